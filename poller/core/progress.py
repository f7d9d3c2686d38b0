"""How far a shard is done, over records that are done in any order.

Records are tracked in the order of the shard. The position is the last record of the longest run of done ones from the front:
a contiguous prefix, so a checkpoint made of it never passes a record that is still open, and it never moves backwards.
"""

from __future__ import annotations

from collections import deque
from operator import attrgetter, is_
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

_size = attrgetter("size")


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
        self.held_bytes += _size_of(records)

    def resolve(self, records: Sequence[R]) -> R | None:
        """Note that `records`, the very objects that were tracked, are done; the new position, None when it stays."""
        waiting, done = self._open, self._done
        # Thousands at a time, so each step goes over all of them without a line of Python for each.
        if not done and all(map(is_, records, waiting)):
            # Done in their order, as always with one lane.
            count = len(records)
        else:
            done.update(map(id, records))
            count = next((n for n, one in enumerate(map(id, waiting)) if one not in done), len(waiting))
        passed = [waiting.popleft() for _ in range(count)]
        if done:
            done.difference_update(map(id, passed))
        self.held_bytes -= _size_of(passed)
        return passed[-1] if passed else None


def _size_of(records: Iterable[Sized]) -> int:
    return sum(map(_size, records))
