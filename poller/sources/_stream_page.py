"""Positions in a shard, and the pages read there.

A position is where the next read begins. It is durable when it names a record: it can be sought again at any time. Before the
first record it only says how the reader began, and two readers that began alike stand at the same position: none of them has
seen a record yet, so what one of them has found to be empty is empty for the other.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from poller.model import Shard

    #: A record as the wire has it. Only its stream and its envelope look into it.
    Wire = Any

#: The last pages of a shard that are kept for readers that have not come to them yet.
PAGES_KEPT = 4
#: Bytes of memory that these pages may take, about.
BYTES_KEPT = 8 * 2**20
#: Bytes of memory that a record takes beyond its data, about.
RECORD_COST = 500


class Position(NamedTuple):
    """Where a read begins."""

    kind: Literal[
        "TRIM_HORIZON", "LATEST", "AT_TIMESTAMP", "AT_SEQUENCE_NUMBER", "AFTER_SEQUENCE_NUMBER", "END"
    ]
    sequence_number: str = ""
    timestamp: float = 0.0
    """Unix time; for LATEST the moment that it was taken."""


TRIM_HORIZON = Position("TRIM_HORIZON")
#: Behind the last record of a closed shard.
END = Position("END")


def after(sequence_number: str) -> Position:
    """The position behind a record."""
    return Position("AFTER_SEQUENCE_NUMBER", sequence_number)


@dataclass(slots=True, eq=False)
class Page:
    """What one read brought."""

    start: Position
    records: list[Wire]
    next: Position
    """Where to read on; END when this was the last page of a closed shard."""
    number: Callable[[Wire], str]
    """The sequence number of a record."""
    behind: float | None = None
    """Seconds from the last record to the end of the shard, where the source says so."""
    children: tuple[Shard, ...] = ()
    trimmed: bool = False
    """True when records between `start` and this page are gone."""
    cost: int = 0
    """Bytes of memory, about."""
    _bounds: tuple[int, int] | None = field(default=None, repr=False)

    def find(self, position: Position) -> int | None:
        """The index of the first record at `position`, None when this page is not what a read there would bring."""
        if position == self.start:
            return 0
        if not (position.sequence_number and self.records):
            return None
        wanted = int(position.sequence_number)
        low, high = self._range()
        if position.kind == "AT_SEQUENCE_NUMBER":
            return bisect_left(self.records, wanted, key=self._order) if low <= wanted <= high else None
        return bisect_right(self.records, wanted, key=self._order) if low <= wanted < high else None

    def lies_ahead(self, position: Position) -> bool:
        """Whether whoever stands at `position` may come to this page."""
        if position == END or position == self.start or not self.records:
            return position == self.start
        if not position.sequence_number:
            return True
        number, last = int(position.sequence_number), self._range()[1]
        return number < last or (number == last and position.kind == "AT_SEQUENCE_NUMBER")

    def _range(self) -> tuple[int, int]:
        if self._bounds is None:
            self._bounds = self._order(self.records[0]), self._order(self.records[-1])
        return self._bounds

    def _order(self, wire: Wire) -> int:
        return int(self.number(wire))


class Pages:
    """The last pages of one shard, bounded in number and in bytes; one that is too large is kept alone."""

    def __init__(self) -> None:
        self._kept: deque[Page] = deque()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def cost(self) -> int:
        """Bytes of memory, about."""
        return sum(page.cost for page in self._kept)

    def add(self, page: Page) -> None:
        """Keep `page`, and the earlier ones as far as there is room."""
        self._kept.append(page)
        while len(self._kept) > PAGES_KEPT or (len(self._kept) > 1 and self.cost > BYTES_KEPT):
            self._kept.popleft()

    def find(self, position: Position) -> tuple[Page, int] | None:
        """The page to be read at `position`, and the index of its first record there."""
        # The newest first: that is where most readers are.
        for page in reversed(self._kept):
            if (at := page.find(position)) is not None:
                return page, at
        return None

    def forget(self, page: Page) -> None:
        """Read it again next time."""
        self._kept = deque(kept for kept in self._kept if kept is not page)

    def tidy(self, positions: Iterable[Position]) -> None:
        """Keep only what somebody at one of these positions may come to."""
        if self._kept:
            standing = list(positions)
            self._kept = deque(page for page in self._kept if any(map(page.lies_ahead, standing)))
