"""A stream as a source of shards: what Kinesis and DynamoDB Streams have in common.

One `Stream` exists for each stream in the daemon, however many mappings are on it, and has one `ShardReads` for each shard
that somebody reads. A mapping has a `StreamSource`, which adds nothing but its name and its envelope, and a `StreamReader` for
each shard: a position, and the page that it is working off.

A stream has nothing to acknowledge and nothing hides records that were received: where a mapping is, the engine's checkpoints
say. So a reader only goes forward, and what must be tried again is kept by the engine.
"""

from __future__ import annotations

import random
import time
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

import anyio
import anyio.lowlevel

from poller.model import Trimmed
from poller.sources._stream_api import SENSELESS, StreamApi, senseless
from poller.sources._stream_pace import Pace
from poller.sources._stream_page import END, Position, after
from poller.sources._stream_shard import READING, THROTTLED, ShardReads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from anyio.abc import TaskGroup

    from poller.model import Record, Shard, StartAt
    from poller.ports import Observer
    from poller.sources._deaggregate import Unpack
    from poller.sources._stream_api import Api
    from poller.sources._stream_page import Page, Wire

#: Records, and bytes of them, that are built before other tasks have their turn: a few milliseconds.
BUILT_AT_ONCE = 500
BUILT_BYTES = 2**19
#: Seconds for which a listing of the shards serves all mappings of a stream.
LISTING_LIFE = 1.0


class Envelope(Protocol):
    """Builds the records that the engine sees."""

    def records(self, shard_id: str, wires: Iterable[Wire]) -> list[Record]:
        """Those of records of a GetRecords reply. Raises KeyError when one lacks what every record has."""
        ...


class Stream(StreamApi):
    """One stream, for all mappings on it."""

    reads_per_second: ClassVar[float]
    """What one shard allows, all of our readers together."""
    bytes_per_second: ClassVar[float]

    def __init__(
        self,
        arn: str,
        connect: Callable[[], Awaitable[Api]],
        *,
        idle_interval: float,
        wall: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(arn, connect)
        self.wall = wall
        self._idle_interval = idle_interval
        self._chance = chance
        self._open: dict[str, ShardReads] = {}
        self._listing = anyio.Lock()
        self._listed: tuple[float, list[Shard]] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.arn}: {len(self._open)} shards read>"

    @property
    def open_shards(self) -> int:
        """Shards that somebody reads."""
        return len(self._open)

    async def shards(self, age: float = LISTING_LIFE) -> Sequence[Shard]:
        """All shards, of a listing that was begun not more than `age` seconds before this was asked."""
        good_since = anyio.current_time() - age
        async with self._listing:
            if self._listed is None or self._listed[0] < good_since:
                self._listed = anyio.current_time(), await self.list_shards()
            return self._listed[1]

    def forget_listing(self) -> None:
        """The shards have changed: list them anew next time."""
        self._listed = None

    @asynccontextmanager
    async def reading(self, shard: Shard, reader: StreamReader) -> AsyncIterator[ShardReads]:
        """The shared reads of a shard, for the length of the context."""
        reads = self._open.get(shard.id)
        if reads is None:
            pace = Pace(
                self.reads_per_second, self.bytes_per_second, self._idle_interval, anyio.current_time()
            )
            reads = self._open[shard.id] = ShardReads(shard.id, self, pace, self.wall, self._chance)
        reads.closed = reads.closed or shard.closed
        reads.readers.add(reader)
        try:
            yield reads
        finally:
            reads.leave(reader)
            if not reads.readers:
                self._open.pop(shard.id, None)


_S = TypeVar("_S", bound=Stream)


class StreamSource(Generic[_S]):
    """One stream as one mapping sees it; see `poller.ports.Source`."""

    def __init__(self, mapping: str, stream: _S, envelope: Envelope, observer: Observer) -> None:
        self._mapping = mapping
        self._stream = stream
        self._envelope = envelope
        self._observer = observer

    async def shards(self) -> Sequence[Shard]:
        """The shards that exist now, closed ones included."""
        return await self._stream.shards()

    @asynccontextmanager
    async def open(self, shard: Shard, start: StartAt) -> AsyncIterator[StreamReader]:
        """Read `shard` from `start`.

        Raises `ShardGone` when the stream has no such shard any more. A LATEST with a timestamp is what was the latest
        then, as far as its iterator has to be sought again; without one, then is now. With a sub-sequence number the
        aggregated record itself comes first, since the records inside it are not all done.
        """
        reader = StreamReader(
            self._mapping,
            shard,
            self._position(start),
            self._stream,
            self._envelope,
            self._observer,
            self._unpack(shard, start),
        )
        async with self._stream.reading(shard, reader) as reads:
            await reads.begin(reader.position)
            async with anyio.create_task_group() as tasks:
                reader.start(reads, tasks)
                try:
                    yield reader
                finally:
                    reads.leave(reader)
                    tasks.cancel_scope.cancel()

    def _unpack(self, shard: Shard, start: StartAt) -> Unpack | None:
        """What takes records apart, if anything does."""
        return None

    def _position(self, start: StartAt) -> Position:
        if start.kind == "AFTER_SEQUENCE_NUMBER":
            if start.sub_sequence_number is None:
                return after(start.sequence_number)
            return Position("AT_SEQUENCE_NUMBER", start.sequence_number)
        if start.kind == "AT_SEQUENCE_NUMBER":
            return Position("AT_SEQUENCE_NUMBER", start.sequence_number)
        if start.kind == "LATEST":
            return Position("LATEST", timestamp=start.timestamp or self._stream.wall())
        return Position(start.kind, timestamp=start.timestamp)


class _Apart:
    """How a reader takes records apart. There is none where that is not wanted: readers are small, and many."""

    def __init__(self, unpack: Unpack) -> None:
        self.unpack = unpack
        self.left: deque[Record] = deque()
        """What is left of the last record; its page stays in hand as long as there is some."""
        self.turn = anyio.Lock()


class StreamReader:
    """Reads one shard for one mapping; see `poller.ports.Reader`."""

    redelivers = False
    full = False
    tasks: TaskGroup

    def __init__(
        self,
        mapping: str,
        shard: Shard,
        position: Position,
        stream: Stream,
        envelope: Envelope,
        observer: Observer,
        unpack: Unpack | None = None,
    ) -> None:
        self.position = position
        """Where the next page begins."""
        self.ended = False
        self.behind: float | None = None
        self.doing = READING
        self.children: tuple[Shard, ...] = ()
        """Once ended: the shards that go on with this one's keys, as far as the source has named them."""
        self._mapping = mapping
        self._shard = shard
        self._stream = stream
        self._envelope = envelope
        self._observer = observer
        self._apart = None if unpack is None else _Apart(unpack)
        self._reads: ShardReads
        self._page: Page | None = None
        self._at = 0
        self._arrived: float | None = None

    def __repr__(self) -> str:
        in_hand = len(self._page.records) - self._at if self._page else 0
        in_hand += len(self._apart.left) if self._apart else 0
        return f"<StreamReader {self._mapping} {self._shard.id}: {self.doing}, {in_hand} records in hand>"

    def start(self, reads: ShardReads, tasks: TaskGroup) -> None:
        """Get what the reader works with."""
        self._reads, self.tasks = reads, tasks

    # --- receiving ------------------------------------------------------------------------------------------------------

    async def receive(self, limit: int, wait: float) -> Sequence[Record]:
        """Return up to `limit` records; none as soon as a read has brought none, and after `wait` seconds at the latest.

        Several may receive at the same time; no record is handed out twice. Cancelling it loses none.
        """
        deadline = anyio.current_time() + wait
        while True:
            if (page := self._in_hand()) is None:
                if not await self._read_on(deadline):
                    return ()
            elif self._apart is None:
                return await self._take(page, limit)
            elif inner := await self._take_apart(self._apart, limit):
                return inner

    async def _read_on(self, deadline: float) -> bool:
        """Turn to the next page; False when there are no records to be had."""
        if self.position == END:
            await anyio.lowlevel.checkpoint()
            return False
        position = self.position
        found = await self._reads.read(self, deadline)
        if found is None:
            if self.doing == THROTTLED:
                # A shard that cannot be read is not known to be at its end.
                self.behind = None
            return False
        # Whoever receives at the same time may have turned to the page already.
        if not self._in_hand() and self.position == position:
            self._turn_to(*found)
            return self._in_hand() is not None
        return True

    def _in_hand(self) -> Page | None:
        return self._page

    def _turn_to(self, page: Page, at: int) -> None:
        if page.trimmed and at == 0:
            self._tell_trimmed(page)
        self.position = page.next
        if at < len(page.records):
            self._page, self._at = page, at
        else:
            self.behind = page.behind or 0.0
            if page.next == END:
                self._end(page)
        self._reads.tidy()

    async def _take(self, page: Page, limit: int) -> list[Record]:
        begin, end = self._at, min(self._at + limit, len(page.records))
        self._at = end
        if end == len(page.records):
            # Whoever comes next, even while these are being built, has to read on.
            self._page = None
        built: list[Record] = []
        step = max(1, min(BUILT_AT_ONCE, BUILT_BYTES * len(page.records) // max(1, page.cost)))
        try:
            for at in range(begin, end, step):
                if at > begin:
                    await anyio.lowlevel.cancel_shielded_checkpoint()
                wires = page.records[at : min(at + step, end)]
                built += self._envelope.records(self._shard.id, wires)
            self._note(page, end)
        except SENSELESS as error:
            self._go_back(page, begin)
            raise senseless("GetRecords", error) from error
        return built

    async def _take_apart(self, apart: _Apart, limit: int) -> list[Record]:
        """As `_take`, where nobody knows before how many records there will be; none when all of them belong elsewhere."""
        taken: list[Record] = []
        built = 0
        # One after the other, so that each gets records that follow each other.
        async with apart.turn:
            while (page := self._in_hand()) and len(taken) < limit:
                if built >= BUILT_AT_ONCE:
                    await anyio.lowlevel.cancel_shielded_checkpoint()
                    built = 0
                try:
                    built += self._hand_out(page, apart, taken, limit)
                except SENSELESS as error:
                    self._go_back(page, self._at)
                    if taken:
                        break  # whoever comes next is told
                    raise senseless("GetRecords", error) from error
        return taken

    def _hand_out(self, page: Page, apart: _Apart, taken: list[Record], limit: int) -> int:
        """Move records of one record of the page, or what was left of it, to `taken`; return how many were built."""
        built = 0
        if not apart.left:
            inner = apart.unpack(page.records[self._at])
            apart.left.extend(self._envelope.records(self._shard.id, inner))
            self._at += 1
            built = 1 + len(apart.left)
        while apart.left and len(taken) < limit:
            taken.append(apart.left.popleft())
        if not apart.left:
            if self._at == len(page.records):
                self._page = None
            self._note(page, self._at)
        return built

    def _go_back(self, page: Page, at: int) -> None:
        """Read again from here: a record that makes no sense is not one to be skipped."""
        self._reads.pages.forget(page)
        self._page = None
        self.position = after(self._stream.number(page.records[at - 1])) if at else page.start

    def _note(self, page: Page, end: int) -> None:
        arrived = self._stream.arrived
        self._arrived = arrived(page.records[end - 1])
        if page.behind is None:
            self.behind = max(0.0, self._stream.wall() - self._arrived)
        else:
            self.behind = page.behind + max(0.0, arrived(page.records[-1]) - self._arrived)
        if end == len(page.records) and page.next == END:
            self._end(page)

    def _end(self, page: Page) -> None:
        self.ended, self.children, self.doing, self.behind = True, page.children, "ended", 0.0
        self._stream.forget_listing()

    def _tell_trimmed(self, page: Page) -> None:
        stream = self._stream
        first = stream.arrived(page.records[0]) if page.records else stream.wall() - stream.retention
        lost = None if self._arrived is None else max(0.0, first - self._arrived)
        self._observer.trimmed(Trimmed(self._mapping, self._shard.id, self.position.sequence_number, lost))

    # --- settling -------------------------------------------------------------------------------------------------------

    async def ack(self, records: Sequence[Record]) -> int:
        """Nothing to do: the engine's checkpoint says what is done."""
        return len(records)

    async def release(self, records: Sequence[Record], delay: float | None) -> None:
        """Nothing to do: nobody else could get them."""
