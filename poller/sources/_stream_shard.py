"""The reads of one shard, shared by all mappings that are on it.

The unit is a read *at a position*. When a reader asks for a position, one of four things happens:

*kept*      a page that covers it is still in memory (`_stream_page`): no read
*joined*    somebody is reading there just now: the reader waits for that page, and shares its failure as well
*paused*    the last read there brought nothing a moment ago: nobody reads there again before the pause is over
*led*       otherwise the reader starts a *flight*, which reads for all who join

Flights of one shard take turns, each at the time that the quota gives it (`_stream_pace`), and one that is throttled backs off
while it has the turn: so the quota, the throttling and the pauses are those of the shard, however many mappings read it. A
flight lives in the task group of the reader that leads it and outlasts the receive that started it: what it brings is kept for
the next one. When its reader leaves, those who had joined start their own.

For each position there is a cursor: an iterator with its age, the pause, and how it came about. While reads bring nothing, the
position stays and its cursor moves on. An iterator that is too old, or was refused as expired, is sought again by its
position. That is exact for one that names a record and, in front of the first record, for the trim horizon and a time. LATEST
would be somewhere else by now, so it is sought by the time at which it was taken; where the API cannot seek by time, the shard
is read from its beginning and older records are skipped.

Readers that began at different places of a quiet shard see the same from then on, but stand at different positions and would
each read for themselves until the first record comes. So there is a *tip*: the position of the last read that found the end of
the shard. A reader that finds the end too moves to the tip, provided that its own beginning is older than that read: then
there is nothing between the two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import floor
from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.lowlevel

from poller.errors import AwsError, RequestRefused
from poller.sources._stream_api import EXPIRED, SENSELESS, TRIMMED, senseless
from poller.sources._stream_calls import ShardCalls
from poller.sources._stream_page import END, RECORD_COST, TRIM_HORIZON, Page, Pages, Position, after

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.abc import TaskGroup

    from poller.sources._stream_api import Reply, StreamApi
    from poller.sources._stream_pace import Pace

#: Bytes that one read should bring at most, about: what a page costs while it is worked off.
READ_BYTES = 4 * 2**20
#: Records of the first read, of which nothing is known.
FIRST_READ = 1000
FEWEST = 100
#: An iterator is not used beyond this part of its life: the clock that counts it is not ours.
USABLE = 0.9
#: Iterators that one flight seeks before it gives up on a source that calls each of them expired.
SEEKS = 3
#: Seconds by which our clock and the source's may differ.
SKEW = 10.0
#: A record this much younger than the retention cannot be the first one left, or nothing can be told from it.
NEAR_HORIZON = 3600.0

#: Seconds for which reads have to bring nothing before that is the end of a shard whose source does not say so: records may lie
#: behind a read that was empty.
SURE = 30.0
#: Seconds by which an event loop may wake somebody too early (uvloop counts in milliseconds): to sleep for the rest would be
#: to spin.
TICK = 0.002

READING = "reading"
IDLE = "idle"
THROTTLED = "throttled"


class Standing(Protocol):
    """A reader, as far as the shard knows it."""

    position: Position
    doing: str
    tasks: TaskGroup


@dataclass(slots=True)
class Cursor:
    """An iterator for a position."""

    iterator: str
    taken_at: float
    """Monotonic time."""
    not_before: float = 0.0
    """The end of the pause; monotonic time."""
    skip_before: float = 0.0
    """Unix time; records that are older are not wanted."""
    sought: bool = True
    """True when it was sought rather than continues another."""


@dataclass(slots=True)
class Tip:
    """A position of which reads have found that nothing comes after it; times are monotonic."""

    position: Position
    first_at: float
    last_at: float


@dataclass(slots=True, eq=False)
class Flight:
    """One read at a position, and all who wait for it."""

    leader: Standing
    landed: anyio.Event = field(default_factory=anyio.Event)
    page: Page | None = None
    error: AwsError | None = None


class ShardReads:
    """Reads one shard for any number of readers."""

    def __init__(
        self,
        shard_id: str,
        api: StreamApi,
        pace: Pace,
        wall: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self.id = shard_id
        self.closed = False
        """True when the shard was closed when it was opened: then nothing is gained by waiting between reads."""
        self.readers: set[Standing] = set()
        self.pages = Pages()
        self._api = api
        self._pace = pace
        self._calls = ShardCalls(shard_id, api, pace, self._show_throttled)
        self._wall = wall
        self._chance = chance
        self._cursors: dict[Position, Cursor] = {}
        self._flights: dict[Position, Flight] = {}
        self._turn = anyio.Lock()
        self._tip: Tip | None = None
        self._mean_cost = READ_BYTES / FIRST_READ
        self._throttled = False

    def __repr__(self) -> str:
        return f"<ShardReads {self.id}: {len(self.readers)} readers, {len(self.pages)} pages kept>"

    # --- who reads ------------------------------------------------------------------------------------------------------

    async def begin(self, position: Position) -> None:
        """Seek where a reader begins: of a shard that cannot be read one should know at once."""
        try:
            await self._seek(position)
        except AwsError as error:
            # That its position is gone is no reason not to begin; the first read goes on at the trim horizon.
            if error.code != TRIMMED:
                raise

    def leave(self, reader: Standing) -> None:
        """Let go of `reader`. What it led ends with its tasks; whoever waits for that goes on alone."""
        self.readers.discard(reader)
        for position, flight in list(self._flights.items()):
            if flight.leader is reader:
                self._land(position, flight)
        self.tidy()

    def tidy(self) -> None:
        """Drop what no reader has any use for."""
        standing = {reader.position for reader in self.readers}
        self.pages.tidy(standing)
        for position in self._cursors.keys() - standing - self._flights.keys():
            del self._cursors[position]

    # --- reading --------------------------------------------------------------------------------------------------------

    async def read(self, reader: Standing, deadline: float) -> tuple[Page, int] | None:
        """The page at the reader's position and where in it that is; None at the deadline. Raises AwsError."""
        position = reader.position
        while reader in self.readers:
            if found := self.pages.find(position):
                return found
            flight = self._flights.get(position)
            if flight is None and await self._paused(position, reader, deadline):
                if anyio.current_time() >= deadline - TICK:
                    return None
                continue
            if flight is None:
                flight = self._take_off(position, reader)
            reader.doing = THROTTLED if self._throttled else READING
            with anyio.CancelScope(deadline=deadline):
                await flight.landed.wait()
            if not flight.landed.is_set():
                return None
            if flight.error:
                raise flight.error
            if flight.page:
                return flight.page, 0
        # Whoever still receives from a closed reader is being cancelled as well, or is a bug.
        await anyio.lowlevel.checkpoint()
        raise anyio.ClosedResourceError

    async def _paused(self, position: Position, reader: Standing, deadline: float) -> bool:
        """Wait for the end of the pause, or the deadline; False when there was none."""
        cursor = self._cursors.get(position)
        if cursor is None or cursor.not_before <= anyio.current_time() + TICK:
            return False
        reader.doing = IDLE
        await anyio.sleep_until(min(cursor.not_before, deadline))
        return True

    def _take_off(self, position: Position, leader: Standing) -> Flight:
        flight = self._flights[position] = Flight(leader)
        leader.tasks.start_soon(self._fly, position, flight)
        return flight

    async def _fly(self, position: Position, flight: Flight) -> None:
        try:
            async with self._turn:
                flight.page = await self._fetch(position)
        except AwsError as error:
            flight.error = error
        finally:
            self._land(position, flight)

    def _land(self, position: Position, flight: Flight) -> None:
        if self._flights.get(position) is flight:
            del self._flights[position]
        flight.landed.set()

    async def _fetch(self, position: Position) -> Page:
        try:
            return await self._page(position)
        except RequestRefused as error:
            if error.code != TRIMMED or not position.sequence_number:
                raise
        self._cursors.pop(position, None)
        page = Page(position, [], TRIM_HORIZON, self._api.number, trimmed=True)
        self.pages.add(page)
        return page

    async def _page(self, position: Position, seeks: int = SEEKS) -> Page:
        cursor = await self._seek(position)
        try:
            reply, sent = await self._calls.get(cursor.iterator, self._limit())
        except RequestRefused as error:
            if not _outlived(error, position) or seeks == 1:
                raise
            cursor.iterator = ""
            return await self._page(position, seeks - 1)
        try:
            trimmed = await self._lost_before(position, cursor, reply)
            return self._take_in(position, cursor, reply, sent, trimmed=trimmed)
        except SENSELESS as error:
            raise senseless("GetRecords", error) from error

    def _limit(self) -> int:
        return int(max(FEWEST, min(self._api.page_records, READ_BYTES / self._mean_cost)))

    # --- what came ------------------------------------------------------------------------------------------------------

    def _take_in(
        self, position: Position, cursor: Cursor, reply: Reply, sent: float, *, trimmed: bool
    ) -> Page:
        records = self._wanted(cursor, reply)
        onward = after(self._api.number(records[-1])) if records else position
        if reply.next_iterator is None:
            onward = END
        behind = reply.behind
        if behind is None and reply.records and not records:
            # More may follow what is not wanted.
            behind = max(0.001, self._wall() - self._api.arrived(reply.records[-1]))
        page = Page(position, records, onward, self._api.number, behind, reply.children, trimmed)
        self._measure(page, reply, sent)
        if reply.next_iterator is not None:
            self._move_on(page, cursor, reply, sent)
        if records or onward == END:
            self.pages.add(page)
        return page

    def _wanted(self, cursor: Cursor, reply: Reply) -> list[dict[str, object]]:
        """Without the records in front of the time at which the reader begins."""
        records = reply.records
        if cursor.skip_before:
            arrived, begin = self._api.arrived, cursor.skip_before
            first = next((at for at, wire in enumerate(records) if arrived(wire) >= begin), len(records))
            return records[first:] if first else records
        return records

    def _measure(self, page: Page, reply: Reply, sent: float) -> None:
        if not reply.records:
            return
        size = self._api.size(reply.records)
        self._pace.came(sent, anyio.current_time(), size)
        page.cost = size * 4 // 3 + RECORD_COST * len(reply.records)
        self._mean_cost = (self._mean_cost + page.cost / len(reply.records)) / 2

    def _move_on(self, page: Page, cursor: Cursor, reply: Reply, sent: float) -> None:
        onward = Cursor(reply.next_iterator or "", sent, sought=False)
        if page.next == page.start:
            onward.skip_before = cursor.skip_before
        self._cursors[page.next] = onward
        if reply.records or self.closed or reply.behind:
            return
        now = anyio.current_time()
        onward.not_before = now + self._pace.pause(now, self._chance())
        self._meet(page, sent)

    def _meet(self, page: Page, sent: float) -> None:
        """Move those who stand at this empty page to the tip, or make its position the tip."""
        position, tip = page.start, self._tip
        if tip and tip.position != position and tip.position in self._cursors:
            if self._same(tip, page):
                page.next = tip.position
                return
            if not position.sequence_number:
                return
        if tip and tip.position == position:
            tip.last_at = sent
        elif position.sequence_number or self._finds_end(page):
            self._tip = Tip(position, sent, sent)

    def _finds_end(self, page: Page) -> bool:
        """Whether nothing that is wanted lies between the position of this empty page and the end of the shard."""
        # Where the source does not say how far behind a read is, that one brought nothing proves nothing.
        return page.behind == 0 or page.start.kind == "LATEST"

    def _same(self, tip: Tip, page: Page) -> bool:
        """Whether those who stand at this empty page lose nothing, and get nothing from before their time, at the tip."""
        if page.start.sequence_number or not self._finds_end(page):
            return False
        began = 0.0
        if page.start.timestamp:
            began = anyio.current_time() - (self._wall() - page.start.timestamp)
        # If the reply proves nothing, the tip itself has to be older than the reader, and to have been one for long.
        proven = tip.first_at <= began and tip.last_at >= tip.first_at + SURE
        return tip.last_at >= began and (page.behind == 0 or proven)

    # --- iterators ------------------------------------------------------------------------------------------------------

    async def _seek(self, position: Position) -> Cursor:
        """The cursor of a position, with an iterator that may be used."""
        cursor = self._cursors.get(position)
        now = anyio.current_time()
        if cursor and cursor.iterator and now - cursor.taken_at < self._api.iterator_life * USABLE:
            return cursor
        target, skip_before = self._target(position, again=cursor is not None)
        iterator = await self._calls.seek(target)
        if target.kind == "LATEST" and self._wall() > target.timestamp + SKEW:
            # It waited, or was throttled, for so long that this is another latest.
            target, skip_before = self._target(position, again=True)
            iterator = await self._calls.seek(target)
        fresh = Cursor(iterator, now, cursor.not_before if cursor else 0.0, skip_before)
        self._cursors[position] = fresh
        return fresh

    def _target(self, position: Position, *, again: bool) -> tuple[Position, float]:
        """What to ask the API for, and the time of the first record that is wanted."""
        if position.kind == "LATEST" and again:
            position = Position("AT_TIMESTAMP", timestamp=position.timestamp - SKEW)
        if position.kind != "AT_TIMESTAMP":
            return position, 0.0
        if self._api.seeks_time:
            return position, position.timestamp
        # Where time is not sought it is not told in fractions either.
        return TRIM_HORIZON, floor(position.timestamp)

    # --- what is gone ---------------------------------------------------------------------------------------------------

    async def _lost_before(self, position: Position, cursor: Cursor, reply: Reply) -> bool:
        """Whether the record at `position` had been trimmed and the source went on at the trim horizon without a word.

        It had when the first record that came is the first one left. Asking for that one costs two calls, so it is done only
        where it can be: after a seek, with a first record about as old as records get.
        """
        api = self._api
        silent = api.trims_silently and cursor.sought and position.sequence_number and reply.records
        if not silent or not may_be_oldest(api.arrived(reply.records[0]), api, self._wall()):
            return False
        first = api.number(reply.records[0])
        if first == position.sequence_number:
            return False
        horizon = await self._calls.seek(TRIM_HORIZON)
        oldest, _ = await self._calls.get(horizon, 1)
        return bool(oldest.records) and api.number(oldest.records[0]) == first

    # --- throttling -----------------------------------------------------------------------------------------------------

    def _show_throttled(self, throttled: bool) -> None:
        self._throttled = throttled
        for reader in self.readers:
            reader.doing = THROTTLED if throttled else READING


def may_be_oldest(arrived: float, api: StreamApi, now: float) -> bool:
    """Whether a record that arrived then may be the first one that its shard still has; Unix times."""
    return arrived <= now - api.retention + NEAR_HORIZON


def _outlived(error: AwsError, position: Position) -> bool:
    """Whether another iterator for the same position would do."""
    # In front of the first record the trim horizon only has to be sought again, and what is older skipped as before.
    return error.code == EXPIRED or (error.code == TRIMMED and not position.sequence_number)
