"""Reads a shard by enhanced fan-out; see `poller.sources._subscription` for how its events come.

Nothing is read ahead: an event is taken from the connection when somebody asks for records and all of the last one are handed
out. A slow function lets the connection fill up, and AWS waits.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import anyio

from poller.errors import AwsError
from poller.model import Shard
from poller.sources._deaggregate import Unpack
from poller.sources._subscription import Subscription

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from poller.model import Record, StartAt
    from poller.sources._deaggregate import HashRange, Wire
    from poller.sources._subscription import Api


class Envelope(Protocol):
    """Makes what Lambda delivers of what the wire brought."""

    def record(self, shard_id: str, wire: Wire) -> Record:
        """One record."""
        ...


@dataclass(frozen=True, slots=True)
class Consumer:
    """Opens readers for the shards of one registered consumer."""

    api: Api
    arn: str
    envelope: Envelope
    deaggregate: bool = False
    clock: Callable[[], float] = time.time

    @asynccontextmanager
    async def open(
        self, shard: Shard, start: StartAt, hash_range: HashRange | None = None
    ) -> AsyncIterator[FanOutReader]:
        """Read `shard` from `start`; see `poller.ports.Source`. For `hash_range` see `poller.sources._deaggregate`."""
        async with Subscription(self.api, self.arn, shard.id, start, self.clock) as subscription:
            unpack = Unpack(start, hash_range) if self.deaggregate else None
            reader = FanOutReader(shard, subscription, self.envelope, unpack)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(reader.pump)
                try:
                    yield reader
                finally:
                    tasks.cancel_scope.cancel()


class FanOutReader:
    """Reads one shard by subscription; see `poller.ports.Reader`. The checkpoint is the engine's, so settling is nothing here.

    With de-aggregation the envelope is given the inner records, with the number of the checkpoint behind them (see `numbered`).
    """

    redelivers = False

    def __init__(
        self, shard: Shard, subscription: Subscription, envelope: Envelope, unpack: Unpack | None = None
    ) -> None:
        self._shard = shard
        self._subscription = subscription
        self._envelope = envelope
        self._unpack = unpack
        self._ready: deque[Record] = deque()
        self._failure: AwsError | None = None
        self._asked = anyio.Event()
        self._news = anyio.Event()
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
            try:
                await self._next()
            except AwsError as error:
                self._failure = error
            if self._ready or self._failure or self._subscription.ended:
                self._asked = anyio.Event()
                self._news.set()

    async def _next(self) -> None:
        page = await anext(self._subscription)
        self._ready.extend(record for wire in page["Records"] for record in self._records(wire))
        self.behind = page["MillisBehindLatest"] / 1000
        self.children = tuple(
            Shard(child["ShardId"], tuple(child["ParentShards"])) for child in page["ChildShards"]
        )

    def _records(self, wire: Wire) -> list[Record]:
        wires = [wire] if self._unpack is None else self._unpack(wire)
        return [self._envelope.record(self._shard.id, one) for one in wires]
