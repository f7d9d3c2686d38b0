"""What the engine's tests run on: virtual time, a scripted queue, a scripted function, and an observer that remembers.

Nothing here sleeps in real time. `virtual` runs a test under trio's mock clock, which jumps to the next deadline as soon as
every task waits, so a test that lives through a day takes milliseconds and always takes the same course.
"""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial, wraps
from itertools import count
from typing import TYPE_CHECKING, Any

import anyio
from trio.testing import MockClock

from poller.core.batch import PAYLOAD_LIMIT, BatchLimits
from poller.engine import parts
from poller.engine.accounts import QueueEnds
from poller.engine.breaker import Breaker, guarded
from poller.engine.child import MappingSpec, leaf
from poller.engine.delivery import Overflow, Route
from poller.engine.door import Door
from poller.engine.invoker import Call as FunctionCall
from poller.engine.invoker import FunctionPlan, Invoker, World
from poller.engine.pipeline import Pipeline, Plan
from poller.engine.slots import Places, Slots
from poller.engine.spooler import Spooler, SpoolPlan
from poller.engine.work import QueueWork
from poller.model import Delivery, FunctionError, Record, Refused, Returned, Shard, SpoolLimits, StateChanged
from poller.stores._memory_spool import MemorySpool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Sequence

    from poller.core.breaker import CircuitPolicy
    from poller.model import Invocation, MappingState, Reply, StartAt
    from poller.ports import Destination

#: Virtual seconds after which a test is taken to hang.
LONG = 100_000.0
#: Unix time at which every test begins.
EPOCH = 1_700_000_000.0

OK = Returned(None)
ERROR = FunctionError("ValueError", "no such order")
BUSY = Refused("no worker is free")


def delivery_of(document: dict[str, Any], event: dict[str, Any] | None = None) -> Delivery:
    """A delivery of a batch of one record that is given up."""
    return Delivery(
        id="5f3c1d8e-0000-4000-8000-000000000001",
        mapping="clicks",
        shard="shardId-000000000003",
        function_arn="arn:aws:lambda:eu-west-1:123456789012:function:clicks",
        document=document,
        event=event,
        at=EPOCH,
        records=1,
        condition="RetryAttemptsExhausted",
    )


# --- time and chance ----------------------------------------------------------------------------------------------------


def in_virtual_time(body: Callable[[], Awaitable[None]]) -> None:
    """Run `body` to its end on a clock that never waits."""

    async def bounded() -> None:
        try:
            with anyio.fail_after(LONG):
                await body()
        except BaseExceptionGroup as group:
            raise leaf(group) from None

    clock = MockClock(autojump_threshold=0)
    anyio.run(bounded, backend="trio", backend_options={"clock": clock})


def virtual(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Make a plain test function of an async one; it runs in virtual time."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        in_virtual_time(partial(test, *args, **kwargs))

    return run


async def settle_down() -> None:
    """Return when every other task waits for time to pass."""
    await anyio.wait_all_tasks_blocked()


def world(chance: float = 0.0) -> World:
    """Fixed chance, so pauses are half their longest: 0.5, 1, 2, 4 seconds; request ids count from r-1."""
    ids = count(1)
    began = anyio.current_time()
    return World(
        wall=lambda: EPOCH + anyio.current_time() - began,
        chance=lambda: chance,
        request_id=lambda: f"r-{next(ids)}",
    )


# --- the queue ----------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Message:
    """One message in a scripted queue. Hidden while `visible_at` lies in the future."""

    id: str
    group: str | None
    size: int
    visible_at: float
    receives: int = 0
    receipt: str = ""


@dataclass(frozen=True)
class Receive:
    """One call of receive: when it began and ended, what it asked for, how many it got (-1: it failed)."""

    began: float
    ended: float
    asked: int
    wait: float
    got: int


class Queue:
    """A scripted queue: a `Source` of one shard, and in `kept` what its readers hold at the moment.

    It behaves like SQS: visibility timeouts, receive counts, receipts that the next receive makes stale, long polls that a
    message wakes, and for a FIFO queue groups that stay locked while one of their messages is hidden. A reader extends the
    visibility of what it holds, unless `extends` is False.
    """

    def __init__(self, *, fifo: bool = False, visibility: float = 30.0, extends: bool = True) -> None:
        self.fifo = fifo
        self.visibility = visibility
        self.extends = extends
        self.messages: list[Message] = []
        self.kept: dict[str, Message] = {}
        self.receives: list[Receive] = []
        self.receiving = 0
        self.peak_receiving = 0
        self.cancelled_receives = 0
        self.acked: list[str] = []
        self.left: list[str] = []
        self.released: list[str] = []
        self.given_back: list[str] = []
        self.opened = 0
        self.closed = False
        #: Raised by the next receives, one each; None lets one through.
        self.failures: list[BaseException | None] = []
        #: Raised by every receive, those in flight included; see `break_down`.
        self.outage: BaseException | None = None
        #: Raised by the next attempts to open the queue.
        self.missing: list[BaseException] = []
        self.opening: Callable[[], Awaitable[object]] = anyio.lowlevel.checkpoint
        self.before_ack: Callable[[], Awaitable[object]] = anyio.lowlevel.checkpoint
        #: Seconds from a receive that finds messages to its answer.
        self.latency = 0.0
        self.on_ack: Callable[[Sequence[Record]], None] = lambda records: None
        self._ids = count(1)
        self._receipts = count(1)
        self._changed = anyio.Event()

    def send(self, number: int = 1, *, group: str | None = None, size: int = 100) -> list[str]:
        """Send messages m1, m2, ... and return their ids."""
        sent = [Message(f"m{next(self._ids)}", group, size, -1.0) for _ in range(number)]
        self.messages += sent
        self._wake()
        return [message.id for message in sent]

    def break_down(self, error: BaseException | None) -> None:
        """Fail every receive with `error` until called with None."""
        self.outage = error
        self._wake()

    @property
    def waiting(self) -> list[str]:
        """Ids of the messages that a receive could bring now."""
        now = anyio.current_time()
        return [message.id for message in self.messages if message.visible_at <= now]

    @property
    def empty_receives(self) -> int:
        return sum(receive.got == 0 for receive in self.receives)

    async def shards(self) -> Sequence[Shard]:
        return (Shard("queue"),)

    @asynccontextmanager
    async def open(self, shard: Shard, start: StartAt | None = None) -> AsyncIterator[QueueReader]:
        await self.opening()
        if self.missing:
            raise self.missing.pop(0)
        self.opened += 1
        reader = QueueReader(self)
        try:
            yield reader
        finally:
            reader.close()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def wait_for_message(self, longest: float) -> None:
        """Return when a message may have become visible, or after `longest` seconds."""
        now = anyio.current_time()
        later = (message.visible_at - now for message in self.messages if message.visible_at > now)
        with anyio.move_on_after(min(longest, *later, longest)):
            await self._changed.wait()

    def take(self, limit: int) -> list[Message]:
        """Up to `limit` visible messages, now hidden."""
        now = anyio.current_time()
        locked = {message.group for message in self.messages if message.visible_at > now}
        free = [
            message
            for message in self.messages
            if message.visible_at <= now and not (self.fifo and message.group in locked)
        ]
        for message in free[:limit]:
            message.receives += 1
            message.receipt = f"{message.id}#{next(self._receipts)}"
            message.visible_at = float("inf") if self.extends else now + self.visibility
        return free[:limit]

    def show(self, message: Message, delay: float) -> None:
        """Make a message visible again after `delay` seconds."""
        message.visible_at = anyio.current_time() + delay
        self._wake()

    def delete(self, message: Message) -> None:
        self.messages.remove(message)
        self._wake()


class QueueReader:
    """The queue's `Reader`."""

    redelivers = True
    full = False
    behind = None
    doing = "reading"
    children: tuple[Shard, ...] = ()

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._holds: dict[str, Message] = {}

    @property
    def ended(self) -> bool:
        """As a closed shard, of which everything has been received; no real queue ends."""
        return self._queue.closed and not self._queue.waiting

    async def receive(self, limit: int, wait: float) -> Sequence[Record]:
        queue = self._queue
        began = anyio.current_time()
        queue.receiving += 1
        queue.peak_receiving = max(queue.peak_receiving, queue.receiving)
        got = -1
        try:
            records = await self._receive(limit, began + wait)
            got = len(records)
        except anyio.get_cancelled_exc_class():
            queue.cancelled_receives += 1
            raise
        else:
            return records
        finally:
            queue.receiving -= 1
            queue.receives.append(Receive(began, anyio.current_time(), limit, wait, got))

    async def _receive(self, limit: int, until: float) -> list[Record]:
        queue = self._queue
        await anyio.lowlevel.checkpoint()
        if queue.failures and (failure := queue.failures.pop(0)):
            raise failure
        while True:
            await anyio.sleep(queue.latency)
            if queue.outage:
                raise queue.outage
            taken = queue.take(limit)
            left = until - anyio.current_time()
            if taken or left <= 0:
                break
            await queue.wait_for_message(left)
        for message in taken:
            self._holds[message.receipt] = queue.kept[message.receipt] = message
        return [_record(message, fifo=queue.fifo) for message in taken]

    async def ack(self, records: Sequence[Record]) -> int:
        self._queue.on_ack(records)
        current = self._let_go(records)
        for message in current:
            # Nobody extends it any more: a deletion that does not arrive lets it come back.
            self._queue.show(message, self._queue.visibility)
        await self._queue.before_ack()
        current = [message for message in current if message in self._queue.messages]
        for message in current:
            self._queue.delete(message)
        self._queue.acked += [message.id for message in current]
        return len(current)

    async def release(self, records: Sequence[Record], delay: float | None) -> None:
        (self._queue.left if delay is None else self._queue.released).extend(record.id for record in records)
        for message in self._let_go(records):
            self._queue.show(message, self._queue.visibility if delay is None else delay)
        await anyio.lowlevel.checkpoint()

    def _let_go(self, records: Iterable[Record]) -> list[Message]:
        """Hold `records` no longer; returns those whose receipt is still the latest."""
        current = []
        for record in records:
            message = self._holds.pop(record.receipt)
            del self._queue.kept[record.receipt]
            if message.receipt == record.receipt:
                current.append(message)
        return current

    def close(self) -> None:
        """Give back what is not settled."""
        records = [_record(message, receipt=receipt) for receipt, message in self._holds.items()]
        self._queue.given_back += [record.id for record in records]
        for message in self._let_go(records):
            self._queue.show(message, 0.0)


def _record(message: Message, *, fifo: bool = False, receipt: str | None = None) -> Record:
    event = {"messageId": message.id, "receives": message.receives, "group": message.group}
    key = message.group if fifo else None
    return Record(message.id, key, message.size, event, receipt or message.receipt, receives=message.receives)


# --- the function -------------------------------------------------------------------------------------------------------


@dataclass
class Call:
    """One invocation that the function saw."""

    at: float
    invocation: Invocation
    ids: list[str]
    groups: set[str | None]
    reply: Reply | None = None
    """None while it runs, and for ever when it was cancelled."""


class Function:
    """A scripted `Runtime`.

    It gives `replies` one after the other and then succeeds, or does what `handler` does. While it is `hold`ing, an
    invocation waits for `let_go`.
    """

    def __init__(
        self, *replies: Reply | Exception, handler: Callable[[Call], Awaitable[Reply]] | None = None
    ) -> None:
        self.keeps_time = False
        self.calls: list[Call] = []
        self.cold_start = 0.0
        self.unready: FunctionError | Refused | None = None
        self.in_flight: Counter[str] = Counter()
        self.running = 0
        self.peak = 0
        self.cancelled = 0
        self.overlaps: list[set[str | None]] = []
        self._replies = list(replies)
        self._handler = handler
        self._free = anyio.Event()
        self._free.set()
        self._busy_groups: set[str | None] = set()

    @property
    def batches(self) -> list[list[str]]:
        return [call.ids for call in self.calls]

    @property
    def times(self) -> list[float]:
        """Seconds between the first invocation and each one."""
        return [call.at - self.calls[0].at for call in self.calls]

    def hold(self) -> None:
        self._free = anyio.Event()

    def let_go(self) -> None:
        self._free.set()

    def open(self) -> None:
        pass

    def workers(self) -> None:
        pass

    async def ready(self, request_id: str) -> FunctionError | Refused | None:
        await anyio.sleep(self.cold_start)
        return self.unready

    async def invoke(self, invocation: Invocation) -> Reply:
        records = invocation.event["Records"]
        call = Call(
            anyio.current_time(),
            invocation,
            [record["messageId"] for record in records],
            {record["group"] for record in records if record["group"] is not None},
        )
        self.calls.append(call)
        self.running += 1
        self.peak = max(self.peak, self.running)
        if both := call.groups & self._busy_groups:
            self.overlaps.append(both)
        self._busy_groups |= call.groups
        try:
            call.reply = await self._answer(call)
        except anyio.get_cancelled_exc_class():
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
            self._busy_groups -= call.groups
        return call.reply

    async def _answer(self, call: Call) -> Reply:
        await self._free.wait()
        if self._handler:
            return await self._handler(call)
        reply = self._replies.pop(0) if self._replies else OK
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def aclose(self) -> None:
        pass


def failing(*ids: str) -> Returned:
    """A reply that names failed records."""
    return Returned({"batchItemFailures": [{"itemIdentifier": id_} for id_ in ids]})


def taking(seconds: float, reply: Reply = OK) -> Callable[[Call], Awaitable[Reply]]:
    """A handler that takes its time."""

    async def handler(_: Call) -> Reply:
        await anyio.sleep(seconds)
        return reply

    return handler


# --- the observer -------------------------------------------------------------------------------------------------------


class Recorder:
    """An observer that remembers every fact, in order."""

    def __init__(self) -> None:
        self.facts: list[Any] = []

    def of(self, kind: type) -> list[Any]:
        return [fact for fact in self.facts if isinstance(fact, kind)]

    def states(self, mapping: str = "orders") -> list[MappingState]:
        return [fact.state for fact in self.of(StateChanged) if fact.mapping == mapping]

    def _note(self, fact: Any) -> None:
        self.facts.append(fact)

    received = filtered_out = invoked = settled = stale_receipts = state_changed = trouble = api_request = (
        _note
    )
    lease_changed = trimmed = dropped = delivered = spooled = delivery_failed = circuit_changed = parked = (
        unparked
    ) = _note


# --- put together -------------------------------------------------------------------------------------------------------


class Dropping:
    """A filter that drops some records by id."""

    def __init__(self, *ids: str) -> None:
        self.ids = set(ids)

    def match(self, event: dict[str, Any]) -> bool:
        return event["messageId"] not in self.ids


@dataclass
class Mapping:
    """One mapping over a scripted queue and function, with the engine's real parts in between."""

    queue: Queue = field(default_factory=Queue)
    function: Function = field(default_factory=Function)
    name: str = "orders"
    batch_size: int = 10
    window: float = 0.0
    payload: int = PAYLOAD_LIMIT
    maximum_concurrency: int | None = None
    partial: bool = False
    filters: Any = None
    patience: float = 30.0
    timeout: float = 900.0
    on_failure: Destination | None = None
    on_success: Destination | None = None
    maximum_retry_attempts: int = -1
    #: Tries before what a destination does not take goes to the spool; None for no spool.
    spool_after: int | None = None
    spool: MemorySpool = field(default_factory=MemorySpool)
    spoolers: list[Spooler] = field(default_factory=list)
    observer: Recorder = field(default_factory=Recorder)
    slots: Slots = field(default_factory=lambda: Slots(Places(1000), None))
    enabled: bool = True
    circuit: CircuitPolicy | None = None
    fingerprint: Hashable = 1
    #: The pipelines of every time it was opened.
    pipelines: list[Pipeline] = field(default_factory=list)

    @property
    def pipeline(self) -> Pipeline:
        return self.pipelines[-1]

    @property
    def plan(self) -> Plan:
        return Plan(
            name=self.name,
            limits=BatchLimits(self.batch_size, self.window, self.payload),
            receive_limit=10,
            receive_wait=20.0,
            filters=self.filters,
        )

    @property
    def spool_plan(self) -> SpoolPlan:
        async def open_spool() -> MemorySpool:
            return self.spool

        made = {"failure": self.on_failure, "success": self.on_success}
        return SpoolPlan(self.name, SpoolLimits(1000, 2**28), open_spool, made.__getitem__)

    def ends(self, function_arn: str) -> QueueEnds | None:
        if not (self.on_failure or self.on_success):
            return None
        source = f"arn:aws:sqs:eu-west-1:123456789012:{self.name}"
        on_failure, on_success = (
            one and Route(one, self.spool_after and Overflow(self.spoolers[-1], name, self.spool_after))
            for name, one in (("failure", self.on_failure), ("success", self.on_success))
        )
        return QueueEnds(source, function_arn, on_failure, on_success, self.maximum_retry_attempts)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Any]:
        """The source opened, and a pipeline over it, guarded with a `circuit`, that nobody runs yet."""
        chances = world()
        function = FunctionPlan("ship", "arn:aws:lambda:eu-west-1:123456789012:function:ship", self.timeout)
        invoker = Invoker(function, self.function, self.slots, self.observer, chances)
        self.spoolers.append(Spooler(self.spool_plan, self.observer, chances))
        spooling = self.spoolers[-1].working() if self.spool_after else nullcontext()
        async with spooling, self.queue.open(Shard("queue")) as reader:
            breaker = Breaker(self.name, self.circuit, Door(), invoker) if self.circuit else None
            shared = parts.build(self.name, reader, invoker, self.maximum_concurrency, breaker=breaker)
            call = FunctionCall(self.name, "sqs", self.partial)
            work = QueueWork(
                call, shared, ordered=self.queue.fifo, patience=self.patience, ends=self.ends(function.arn)
            )
            self.pipelines.append(Pipeline(self.plan, shared, work))
            yield guarded(self.pipeline, breaker, lambda: self.maximum_concurrency or 1250)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        """The pipeline at work; leaving is the hard stop."""
        async with self.open() as pipeline, anyio.create_task_group() as tasks:
            tasks.start_soon(pipeline.run)
            yield pipeline
            tasks.cancel_scope.cancel()

    def spec(self, **changes: Any) -> MappingSpec:
        """The mapping as a supervisor sees it."""
        values: dict[str, Any] = {
            "name": self.name,
            "source": f"arn:aws:sqs:eu-west-1:123456789012:{self.name}",
            "function": "ship",
            "enabled": self.enabled,
            "fingerprint": self.fingerprint,
            "open": self.open,
        }
        return MappingSpec(**{**values, **changes})
