"""Kinesis data streams, read by enhanced fan-out; see `poller.sources._subscription` for how the events of a shard come.

Nothing is read ahead: an event is taken from the connection when somebody asks for records and all of the last one are handed
out. A slow function lets the connection fill up, and AWS waits.
"""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

import anyio

from poller.errors import AwsError, ResourceNotFound
from poller.model import Trimmed
from poller.sources._deaggregate import Unpack
from poller.sources._stream_calls import check_shard
from poller.sources._stream_page import TRIM_HORIZON
from poller.sources._stream_shard import may_be_oldest
from poller.sources._subscription import Subscription, ensure_consumer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

    from poller.model import Record, Shard, StartAt
    from poller.ports import Observer
    from poller.sources._deaggregate import Wire
    from poller.sources._subscription import Api, Page
    from poller.sources.kinesis import KinesisStream

__all__ = ["FanOutReader", "FanOutSource", "ensure_consumer"]


class Envelope(Protocol):
    """Makes what Lambda delivers of what the wire brought."""

    def records(self, shard_id: str, wires: Iterable[Wire]) -> list[Record]:
        """One record of each."""
        ...


class FanOutSource:
    """One data stream as one mapping sees it through a consumer of its own; see `poller.ports.Source`.

    `connect` gives calls whose replies may be event streams, each of which takes a connection. The consumer's throughput is
    for one reader of each shard: two mappings need two consumers. With `deaggregate`, which is what Lambda does here, the
    records inside an aggregate of the Kinesis Producer Library are records of their own.
    """

    def __init__(
        self,
        mapping: str,
        stream: KinesisStream,
        consumer_arn: str,
        connect: Callable[[], Awaitable[Api]],
        envelope: Envelope,
        observer: Observer,
        *,
        deaggregate: bool = True,
    ) -> None:
        self._mapping = mapping
        self._stream = stream
        self._consumer_arn = consumer_arn
        self._connect = connect
        self._envelope = envelope
        self._observer = observer
        self._deaggregate = deaggregate

    async def shards(self) -> Sequence[Shard]:
        """The shards that exist now, closed ones included."""
        return await self._stream.shards()

    @asynccontextmanager
    async def open(self, shard: Shard, start: StartAt) -> AsyncIterator[FanOutReader]:
        """Read `shard` from `start`.

        Raises `ShardGone` when the stream has no such shard any more. A LATEST with a timestamp is what was the latest
        then, as far as it has to be asked for again; without one, then is now.
        """
        subscribed = Subscription(self._subscribe, self._consumer_arn, shard.id, start, self._stream.wall)
        async with subscribed as subscription:
            unpack = Unpack.wanted(start, shard.hash_range, apart=self._deaggregate)
            watch = self._watch(shard, start)
            reader = FanOutReader(shard, subscription, self._envelope, unpack, watch)
            if start.kind == "AT_TIMESTAMP":
                reader.skip_before = start.timestamp
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(reader.pump)
                try:
                    yield reader
                finally:
                    tasks.cancel_scope.cancel()

    async def _subscribe(self, operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        api = await self._connect()
        try:
            return await api(operation, params, timeout)
        except ResourceNotFound as error:
            await check_shard(error, params["ShardId"], self._stream)
            raise

    def _watch(self, shard: Shard, start: StartAt) -> Callable[[Page], Awaitable[None]]:
        """What to do about an event once its records are there to be received."""
        first = start.kind == "AFTER_SEQUENCE_NUMBER"

        async def watch(page: Page) -> None:
            nonlocal first
            if page["ChildShards"]:
                self._stream.forget_listing()
            if first and page["Records"]:
                first = False
                # The records matter more than to know which ones there are no more.
                with suppress(AwsError):
                    await self._tell_trimmed(shard.id, start.sequence_number, page["Records"][0])

        return watch

    async def _tell_trimmed(self, shard_id: str, number: str, first: Wire) -> None:
        """Tell if the record of that number had been trimmed, and AWS went on at the trim horizon without a word."""
        stream = self._stream
        found = stream.number(first)
        if found == number or not may_be_oldest(stream.arrived(first), stream, stream.wall()):
            return
        oldest = await stream.get(await stream.seek(shard_id, TRIM_HORIZON), 1)
        if oldest.records and stream.number(oldest.records[0]) == found:
            self._observer.trimmed(Trimmed(self._mapping, shard_id, number, None))


class FanOutReader:
    """Reads one shard by subscription; see `poller.ports.Reader`. The checkpoint is the engine's, so settling is nothing here.

    With de-aggregation the envelope is given the inner records, with the number of the checkpoint behind them (see `numbered`).
    """

    redelivers = False
    full = False

    def __init__(
        self,
        shard: Shard,
        subscription: Subscription,
        envelope: Envelope,
        unpack: Unpack | None,
        watch: Callable[[Page], Awaitable[None]],
    ) -> None:
        self._shard = shard
        self._subscription = subscription
        self._envelope = envelope
        self._unpack = unpack
        self._watch = watch
        self._ready: deque[Record] = deque()
        self._failure: AwsError | None = None
        self._asked = anyio.Event()
        self._news = anyio.Event()
        self.skip_before = 0.0
        """Unix time at which the first record may have arrived: a request says whole seconds only."""
        self.behind: float | None = None
        self.children: tuple[Shard, ...] = ()
        """The shards that follow this one; known when it has ended."""

    def __repr__(self) -> str:
        return f"<FanOutReader {self._shard.id}: {self.doing}, {len(self._ready)} records ready>"

    @property
    def ended(self) -> bool:
        """True when everything of a closed shard has been received."""
        return self._subscription.ended and not self._ready

    @property
    def doing(self) -> str:
        """What it does now, for `/status`."""
        if self._subscription.waiting:
            return "waiting for its subscription"
        return "reading" if self._ready or self.behind is None or self.behind > 0 else "idle"

    async def receive(self, limit: int, wait: float) -> Sequence[Record]:
        """Return up to `limit` records. What a cancelled call would have got, the next one gets."""
        if not self._news.is_set():
            self._asked.set()
            with anyio.move_on_after(wait):
                await self._news.wait()
        taken = [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]
        failure, self._failure = self._failure, None
        if self._news.is_set() and not (self._ready or self._subscription.ended):
            self._news = anyio.Event()
        if failure is not None:
            raise failure
        return taken

    async def ack(self, records: Sequence[Record]) -> int:
        return len(records)

    async def release(self, records: Sequence[Record], delay: float | None) -> None:
        """Nothing: what is not acked is before no checkpoint, and is read again by whoever reads the shard next."""

    async def pump(self) -> None:
        """Read an event whenever one is asked for, until the shard has ended."""
        while not self._subscription.ended:
            await self._asked.wait()
            page: Page | None = None
            try:
                page = await anext(self._subscription)
                self._take_in(page)
            except AwsError as error:
                self._failure = error
            if self._ready or self._failure or self._subscription.ended:
                self._asked = anyio.Event()
                self._news.set()
            if page is not None:
                await self._watch(page)

    def _take_in(self, page: Page) -> None:
        self._ready.extend(record for wire in self._wanted(page) for record in self._records(wire))
        self.behind = page["MillisBehindLatest"] / 1000
        self.children = tuple(page["ChildShards"])

    def _wanted(self, page: Page) -> list[Wire]:
        wires: list[Wire] = page["Records"]
        if not self.skip_before:
            return wires
        arrived, begin = "ApproximateArrivalTimestamp", self.skip_before
        first = next((at for at, wire in enumerate(wires) if wire[arrived] >= begin), len(wires))
        if first < len(wires):
            self.skip_before = 0.0
        return wires[first:]

    def _records(self, wire: Wire) -> list[Record]:
        wires = [wire] if self._unpack is None else self._unpack(wire)
        return self._envelope.records(self._shard.id, wires)
