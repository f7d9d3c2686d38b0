"""When a batch is full or due.

A batch goes to its function as soon as one of three things is true (spec 3.1): it holds `batch_size` records; its window,
which opens with its first record, has run out; the next record would push the encoded event over 6 MB. With a window of 0
whatever one receive brought is sent.

A `Batch` is open from its first record until it is taken. It never refuses the first record: one record that is too large
by itself travels alone, and what becomes of it is the retry policy's business, not a reason to block.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

from poller.model import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Bytes of one invocation's payload (spec 12), the envelope included.
PAYLOAD_LIMIT = 6 * 1024 * 1024
#: `{"Records":[` and `]}`, less the separator that a record's size counts and the last one does not have.
ENVELOPE_SIZE = 13


# Of a tuple, which costs less than half of what the attribute does.
_size = itemgetter(Record._fields.index("size"))


def size_of(records: Iterable[Record]) -> int:
    """Bytes of `records` in an encoded event."""
    return sum(map(_size, records))


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The mapping's limits: records, seconds, bytes of the encoded event."""

    count: int
    window: float = 0.0
    size: int = PAYLOAD_LIMIT


class Batch:
    """One batch while it fills."""

    def __init__(self, limits: BatchLimits) -> None:
        self.records: list[Record] = []
        self.size = ENVELOPE_SIZE
        self._limits = limits
        self._due = 0.0

    def __repr__(self) -> str:
        return f"<Batch {len(self.records)}/{self._limits.count} records, {self.size} bytes>"

    @property
    def room(self) -> int:
        """Records that still fit by count."""
        return self._limits.count - len(self.records)

    def add(self, records: Sequence[Record], now: float) -> Sequence[Record]:
        """Take records in order as long as they fit; return those that did not, for the next batch.

        `now` is any monotonic clock, in seconds; the window opens with the first record.
        """
        if not self.records:
            self._due = now + self._limits.window
        size = size_of(records)
        if len(records) > self.room or self.size + size > self._limits.size:
            count = self._fitting(records)
            records, rest = records[:count], records[count:]
            size = size_of(records)
        else:
            # Nearly always all of them fit, which is then seen without a look at each.
            rest = ()
        self.records += records
        self.size += size
        return rest

    def keep(self, records: Sequence[Record]) -> None:
        """Go on with these of its records only; the window goes on too."""
        self.records = [*records]
        self.size = ENVELOPE_SIZE + size_of(records)

    def _fitting(self, records: Sequence[Record]) -> int:
        """How many of `records`, from the first on."""
        size = self.size
        for count, record in enumerate(records[: self.room]):
            size += record.size
            if size > self._limits.size and (count or self.records):
                return count
        return self.room

    def wait(self, now: float) -> float | None:
        """Seconds until the batch is due: 0 or less when it must go, None while it is empty and may wait for ever."""
        if not self.records:
            return None
        if self.room <= 0 or self.size >= self._limits.size:
            return 0.0
        return self._due - now
