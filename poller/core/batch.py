"""When a batch is full or due.

A batch goes to its function as soon as one of three things is true (spec 3.1): it holds `batch_size` records; its window,
which opens with its first record, has run out; the next record would push the encoded event over 6 MB. With a window of 0
whatever one receive brought is sent.

A `Batch` is open from its first record until it is taken. It never refuses the first record: one record that is too large
by itself travels alone, and what becomes of it is the retry policy's business, not a reason to block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from poller.model import Record

#: Bytes of one invocation's payload (spec 12), the envelope included.
PAYLOAD_LIMIT = 6 * 1024 * 1024
#: `{"Records":[` and `]}`, less the separator that a record's size counts and the last one does not have.
ENVELOPE_SIZE = 13


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

    def add(self, records: Iterable[Record], now: float) -> list[Record]:
        """Take records in order as long as they fit; return those that did not, for the next batch.

        `now` is any monotonic clock, in seconds; the window opens with the first record.
        """
        taking = iter(records)
        for record in taking:
            if not self._fits(record):
                return [record, *taking]
            if not self.records:
                self._due = now + self._limits.window
            self.records.append(record)
            self.size += record.size
        return []

    def _fits(self, record: Record) -> bool:
        if not self.records:
            return True
        return len(self.records) < self._limits.count and self.size + record.size <= self._limits.size

    def wait(self, now: float) -> float | None:
        """Seconds until the batch is due: 0 or less when it must go, None while it is empty and may wait for ever."""
        if not self.records:
            return None
        if self.room <= 0 or self.size >= self._limits.size:
            return 0.0
        return self._due - now
