"""A scripted stream for the engine's tests: shards that split and merge, a function that remembers, and what is between them.

Everything is as in `fakes`: virtual time, no sleeping, scripted replies. Sequence numbers grow over the whole stream.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import anyio

from poller.core import windows
from poller.core.batch import PAYLOAD_LIMIT, BatchLimits
from poller.core.failure import Origin
from poller.core.lanes import lane_of
from poller.core.retry import StreamPolicy
from poller.destinations.memory import MemoryDestination
from poller.engine.breaker import guarded
from poller.engine.delivery import Overflow, Route
from poller.engine.invoker import Call as FunctionCall
from poller.engine.invoker import FunctionPlan, Invoker, World
from poller.engine.leased_shards import LeasedShardKeeper
from poller.engine.parking import ParkingPlan
from poller.engine.pipeline import Plan
from poller.engine.shard_keeper import ShardKeeper, StreamPlan
from poller.engine.slots import Places, Slots
from poller.engine.spooler import Spooler, SpoolPlan
from poller.engine.stream_work import Batches
from poller.errors import ConfigError, ShardGone
from poller.model import Checkpoint, Record, Shard, SpoolLimits
from poller.ports import Spooling
from poller.stores.memory import MemoryStore
from tests.engine.fakes import EPOCH, Function, Recorder, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from poller.core.breaker import CircuitPolicy
    from poller.core.shards import StartingPosition
    from poller.core.windows import Window
    from poller.engine.lease_keeper import LeaseKeeper
    from poller.model import StartAt
    from poller.ports import CheckpointStore, Destination, Spool

FUNCTION_ARN = "arn:aws:lambda:eu-west-1:123456789012:function:count"
FAILED_ARN = "arn:aws:sqs:eu-west-1:123456789012:clicks-failed"
STREAM_ARN = "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks"


class Envelope:
    """Builds events of four members, and knows how often it did."""

    def __init__(self) -> None:
        self.rebuilt: list[str] = []

    def rebuild(self, shard_id: str, record: Record) -> Record:
        self.rebuilt.append(record.id)
        return record._replace(event=event(record.id, record.key))

    def window_event(
        self, shard_id: str, records: Sequence[Record], window: Window, *, final: bool
    ) -> dict[str, Any]:
        return {
            "Records": [record.event for record in records],
            "shardId": shard_id,
            **windows.members(window, final=final),
        }

    def pack(self, record: Record) -> bytes:
        return json.dumps([record.id, record.key, record.size, record.arrived]).encode()

    def unpack(self, shard_id: str, packed: bytes) -> Record:
        number, key, size, arrived = json.loads(packed)
        return Record(number, key, size, event(number, key), None, arrived)

    def checkpoint(self, record: Record) -> Checkpoint:
        return Checkpoint(record.id)


def event(number: str, key: str | None) -> dict[str, Any]:
    # As the queue's fake has them, so that the same scripted function reads both.
    return {"messageId": number, "receives": 1, "group": key}


class Stream:
    """A scripted stream: a `Source` of shards that hold records for ever."""

    def __init__(self, shards: int = 1) -> None:
        self.records: dict[str, list[Record]] = {}
        self.listed: dict[str, Shard] = {}
        self.children: dict[str, list[Shard]] = {}
        #: Shards that are not listed any more, and that cannot be opened.
        self.gone: set[str] = set()
        self.opened: list[tuple[str, StartAt]] = []
        self.reading: dict[str, int] = {}
        #: Raised by the next listings, openings, receives, one each; None lets one through.
        self.listing_failures: list[BaseException | None] = []
        self.opening_failures: list[BaseException | None] = []
        self.failures: list[BaseException | None] = []
        #: Seconds that it takes to open a shard.
        self.opening_time = 0.0
        self.opening = self.peak_opening = 0
        self.listings = 0
        self.receives = 0
        self.began = anyio.current_time()
        #: Whether the end of a shard names its children.
        self.names_children = True
        #: Reads that bring nothing and look like the end of the shard, whatever it holds.
        self.blank_reads = 0
        self._numbers = count(1)
        self._names = count(0)
        self._changed = anyio.Event()
        for _ in range(shards):
            self.create()

    # --- what happens to it -----------------------------------------------------------------------------------------------

    def create(self, *parents: str) -> str:
        name = f"shard-{next(self._names):03}"
        shard = Shard(name, parents)
        self.listed[name], self.records[name] = shard, []
        for parent in parents:
            self.children.setdefault(parent, []).append(shard)
        self._wake()
        return name

    def close(self, shard: str) -> None:
        self.listed[shard] = Shard(shard, self.listed[shard].parents, closed=True)
        self._wake()

    def split(self, shard: str) -> tuple[str, str]:
        self.close(shard)
        return self.create(shard), self.create(shard)

    def merge(self, one: str, other: str) -> str:
        self.close(one)
        self.close(other)
        return self.create(one, other)

    def remove(self, shard: str) -> None:
        """As the retention does in the end."""
        self.gone.add(shard)
        self._wake()

    def put(
        self, number: int = 1, *, shard: str = "shard-000", key: str | None = "k", size: int = 100
    ) -> list[str]:
        """Put records and return their sequence numbers."""
        now = EPOCH + anyio.current_time() - self.began
        records = []
        for _ in range(number):
            id_ = str(next(self._numbers))
            records.append(Record(id_, key, size, event(id_, key), None, now))
        self.records[shard] += records
        self._wake()
        return [record.id for record in records]

    def put_keys(self, keys: str, shard: str = "shard-000") -> list[str]:
        """One record for each letter, with that letter as its key."""
        return [self.put(shard=shard, key=key)[0] for key in keys]

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    # --- the source -------------------------------------------------------------------------------------------------------

    async def shards(self) -> Sequence[Shard]:
        self.listings += 1
        await anyio.lowlevel.checkpoint()
        if self.listing_failures and (failure := self.listing_failures.pop(0)):
            raise failure
        return [shard for name, shard in self.listed.items() if name not in self.gone]

    @asynccontextmanager
    async def open(self, shard: Shard, start: StartAt) -> AsyncIterator[StreamReader]:
        self.opening += 1
        self.peak_opening = max(self.peak_opening, self.opening)
        try:
            await anyio.sleep(self.opening_time)
        finally:
            self.opening -= 1
        if self.opening_failures and (failure := self.opening_failures.pop(0)):
            raise failure
        if shard.id in self.gone:
            raise ShardGone
        self.opened.append((shard.id, start))
        self.reading[shard.id] = self.reading.get(shard.id, 0) + 1
        try:
            yield StreamReader(self, shard.id, self._index(shard.id, start))
        finally:
            self.reading[shard.id] -= 1

    def _index(self, shard: str, start: StartAt) -> int:
        records = self.records[shard]
        match start.kind:
            case "LATEST":
                return len(records)
            case "AT_TIMESTAMP":
                return sum(record.arrived < start.timestamp for record in records)
            case "AFTER_SEQUENCE_NUMBER":
                return sum(int(record.id) <= int(start.sequence_number) for record in records)
            case _:
                return 0

    async def wait_for_change(self, longest: float) -> None:
        with anyio.move_on_after(longest):
            await self._changed.wait()


class StreamReader:
    """The stream's `Reader`."""

    redelivers = False
    full = False
    doing = "reading"

    def __init__(self, stream: Stream, shard: str, index: int) -> None:
        self._stream = stream
        self._shard = shard
        self._index = index
        self._seems_done = False

    @property
    def ended(self) -> bool:
        shard = self._stream.listed[self._shard]
        return shard.closed and self._index >= len(self._stream.records[self._shard])

    @property
    def behind(self) -> float | None:
        return 0.0 if self._seems_done or self._at_tip else 1.0

    @property
    def children(self) -> tuple[Shard, ...]:
        named = self._stream.children.get(self._shard, []) if self._stream.names_children else []
        return tuple(named)

    async def receive(self, limit: int, wait: float) -> Sequence[Record]:
        stream = self._stream
        stream.receives += 1
        await anyio.lowlevel.checkpoint()
        if stream.failures and (failure := stream.failures.pop(0)):
            raise failure
        if self._shard in stream.gone:
            raise ShardGone
        if self._at_tip and not self.ended:
            await stream.wait_for_change(wait)
        if self._shard in stream.gone:
            raise ShardGone
        if stream.blank_reads:
            stream.blank_reads -= 1
            self._seems_done = True
            await anyio.sleep(1.0)
            return []
        self._seems_done = False
        found = stream.records[self._shard][self._index : self._index + limit]
        self._index += len(found)
        return [record._replace(event=event(record.id, record.key)) for record in found]

    @property
    def _at_tip(self) -> bool:
        return self._index >= len(self._stream.records[self._shard])

    async def ack(self, records: Sequence[Record]) -> int:
        raise AssertionError("a lane acknowledges, not the reader behind it")

    async def release(self, records: Sequence[Record], delay: float | None) -> None:
        raise AssertionError("nothing is released")


@dataclass
class Clicks:
    """One mapping over a scripted stream and function, with the engine's real parts in between."""

    stream: Stream = field(default_factory=Stream)
    function: Function = field(default_factory=Function)
    store: CheckpointStore = field(default_factory=MemoryStore)
    destination: Destination | None = None
    on_success: Destination | None = None
    #: Where what the destination does not take goes, after so many tries; None where it is tried until it does.
    spool_after: int | None = None
    spool_limits: SpoolLimits = field(default_factory=lambda: SpoolLimits(10_000, 2**28))
    #: Destinations of other names, which the mapping had before.
    others: dict[str, Destination] = field(default_factory=dict)
    envelope: Envelope = field(default_factory=Envelope)
    observer: Recorder = field(default_factory=Recorder)
    name: str = "clicks"
    batch_size: int = 100
    window: float = 0.0
    payload: int = PAYLOAD_LIMIT
    lanes: int = 1
    position: StartingPosition = "TRIM_HORIZON"
    timestamp: float = 0.0
    policy: StreamPolicy = field(default_factory=StreamPolicy)
    partial: bool = False
    window_length: int = 0
    filters: Any = None
    timeout: float = 900.0
    circuit: CircuitPolicy | None = None
    slots: Slots = field(default_factory=lambda: Slots(Places(1000), None))
    world: World = field(default_factory=world)
    #: Where keys are parked; None for nowhere.
    spool: Spool | None = None
    probe_interval: float = 0.0
    parks: bool = True
    #: Those of the worker, in a fleet.
    leases: LeaseKeeper | None = None
    keepers: list[ShardKeeper] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.spooler = Spooler(
            SpoolPlan(self.name, self.spool_limits, self._open_spool, self._named), self.observer, self.world
        )

    async def _open_spool(self) -> Spool:
        assert isinstance(self.store, Spooling)
        return self.store.spool

    def _named(self, name: str) -> Destination:
        found = self.destination if name == FAILED_ARN else self.others.get(name)
        if found is None:
            raise ConfigError((f"there is no destination {name}",))
        return found

    @property
    def keeper(self) -> ShardKeeper:
        return self.keepers[-1]

    @property
    def route(self) -> Route | None:
        if self.destination is None:
            return None
        overflow = Overflow(self.spooler, FAILED_ARN, self.spool_after) if self.spool_after else None
        return Route(self.destination, overflow)

    def batches(self, shard: str) -> Batches:
        return Batches(
            call=FunctionCall(self.name, "kinesis", self.partial),
            function_arn=FUNCTION_ARN,
            origin=Origin("kinesis", shard, STREAM_ARN),
            envelope=self.envelope,
            policy=self.policy,
            window_length=self.window_length,
            destination=self.route,
            on_success=self.on_success and Route(self.on_success),
        )

    @property
    def plan(self) -> StreamPlan:
        limits = BatchLimits(self.batch_size, self.window, self.payload)
        plan = Plan(self.name, limits, receive_limit=10_000, receive_wait=20.0, filters=self.filters)
        parking = ParkingPlan(self.name, self.envelope, self.spool_limits, self.probe_interval, self.parks)
        return StreamPlan(
            plan,
            self.batches,
            self.lanes,
            self.position,
            self.timestamp,
            flush_timeout=5.0,
            circuit=self.circuit,
            parking=parking if self.spool else None,
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Any]:
        """The mapping opened, and a keeper, guarded with a `circuit`, that nobody runs yet."""
        function = FunctionPlan("count", FUNCTION_ARN, self.timeout)
        invoker = Invoker(function, self.function, self.slots, self.observer, self.world)
        self.keepers.append(self._keeper(invoker))
        spooling = self.spooler.working() if self.spool_after or self.others else nullcontext()
        async with spooling, self.keeper.opened():
            trip = self.keeper.hold if isinstance(self.keeper, LeasedShardKeeper) else None
            yield guarded(self.keeper, self.keeper.breaker, self.keeper.lanes, trip)

    def _keeper(self, invoker: Invoker) -> ShardKeeper:
        if self.leases:
            return LeasedShardKeeper(self.plan, self.stream, self.store, invoker, self.leases)
        return ShardKeeper(self.plan, self.stream, self.store, invoker, self.spool)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        """The keeper at work; leaving is the hard stop."""
        async with self.open() as keeper, anyio.create_task_group() as tasks:
            tasks.start_soon(keeper.run)
            yield keeper
            tasks.cancel_scope.cancel()

    async def saved(self) -> dict[str, Checkpoint]:
        return dict(await self.store.load(self.name))

    async def position_of(self, shard: str = "shard-000") -> str:
        return (await self.saved())[shard].sequence_number

    @property
    def ids(self) -> list[str]:
        """The sequence numbers that the function has seen, in their order, repeats included."""
        return [id_ for batch in self.function.batches for id_ in batch]


def failing_on(*ids: str, reply: Any) -> Callable[[Any], Awaitable[Any]]:
    """A handler that gives `reply` to every batch that holds one of `ids`, and succeeds on the others."""
    from tests.engine.fakes import OK

    async def handler(call: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        return reply if set(ids) & set(call.ids) else OK

    return handler


def keys_of_lanes(lanes: int) -> dict[int, str]:
    """A key of one letter for each lane, as far as there is one."""
    return {lane_of(key, lanes): key for key in "zyxwvutsrqponmlkjihgfedcba"}


__all__ = ["Clicks", "Envelope", "MemoryDestination", "Stream", "failing_on", "keys_of_lanes"]
