"""How far a shard is done, over records that are done in any order.

Records are tracked in the order of the shard. The position is the last record of the longest run of done ones from the front:
a contiguous prefix, so a checkpoint made of it never passes a record that is still open, and it never moves backwards.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Sized(Protocol):
    """A record, as far as progress looks at it."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...


R = TypeVar("R", bound=Sized)


class Progress(Generic[R]):
    """Follows the records of one shard, each by its identity; holds those from the oldest open one onwards."""

    __slots__ = ("_done", "_open", "held_bytes")

    def __init__(self) -> None:
        self.held_bytes = 0
        """Of the records that are held: from the oldest open one onwards, done or not."""
        self._open: deque[R] = deque()
        # Done out of turn. Their ids are theirs alone, because `_open` keeps the records themselves.
        self._done: set[int] = set()

    def __len__(self) -> int:
        """Records tracked and not done."""
        return len(self._open) - len(self._done)

    @property
    def held_records(self) -> int:
        """Records from the oldest open one onwards, done or not."""
        return len(self._open)

    @property
    def oldest(self) -> R | None:
        """The first record that is not done; None when all are."""
        return self._open[0] if self._open else None

    def track(self, records: Sequence[R]) -> None:
        """Open `records`, which come after all that were tracked before."""
        self._open.extend(records)
        self.held_bytes += sum(record.size for record in records)

    def resolve(self, records: Iterable[R]) -> R | None:
        """Note that `records`, the very objects that were tracked, are done; the new position, None when it stays."""
        waiting, done, moved = self._open, self._done, None
        for record in records:
            # Nearly always they are done in their order, which then costs no more than this.
            if waiting[0] is record:
                moved = waiting.popleft()
                self.held_bytes -= moved.size
            else:
                done.add(id(record))
        while done and id(waiting[0]) in done:
            moved = waiting.popleft()
            self.held_bytes -= moved.size
            done.remove(id(moved))
        return moved
