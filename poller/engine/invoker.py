"""Runs one function on batches: concurrency, time limit, reply -> Outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, assert_never

import anyio

from poller.core import response
from poller.model import Failed, Invocation, Invoked, NotInvoked, PartlyFailed, Succeeded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from poller.core.filters import Source
    from poller.engine.door import Door
    from poller.engine.slots import Slots
    from poller.model import FunctionError, Outcome, Record, Refused, Reply
    from poller.ports import Observer, Runtime


#: Says what a reply means, given what it means for the records.
Judge: TypeAlias = "Callable[[Reply, Outcome], Outcome]"


@dataclass(frozen=True, slots=True)
class World:
    """Time and chance, as arguments: Unix time, a number in [0, 1), and a new request id."""

    wall: Callable[[], float]
    chance: Callable[[], float]
    request_id: Callable[[], str]
    clock: Callable[[], float] = anyio.current_time
    """Seconds of the clock that the loop's timers go by; asked often for each batch, so who knows a quicker way says so."""


@dataclass(frozen=True, slots=True)
class FunctionPlan:
    """What the engine knows of a function."""

    name: str
    arn: str
    """As mapped, with the qualifier that the mapping names."""
    timeout: float
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Call:
    """One invocation that a mapping asks for."""

    mapping: str
    source: Source
    partial: bool
    """Whether the reply is read for batchItemFailures."""
    records: Sequence[Record] = ()
    event: dict[str, Any] = field(default_factory=dict)
    request_id: str | None = None
    """That of the attempt before, when the batch is unchanged; None for a new one."""
    shard: str = ""
    """The shard of a stream; empty for a queue."""
    judge: Judge | None = None
    """Has the last word on what the reply means."""

    def of(self, records: Sequence[Record], event: dict[str, Any]) -> Call:
        """The same for these records."""
        return Call(self.mapping, self.source, self.partial, records, event)


class Invoker:
    """Runs `function` for one mapping, within the function's slots."""

    def __init__(
        self, function: FunctionPlan, runtime: Runtime, slots: Slots, observer: Observer, world: World
    ) -> None:
        self.function = function
        self.slots = slots
        self._runtime = runtime
        self.observer = observer
        self.world = world

    async def invoke(self, call: Call) -> Outcome:
        """Run the function now; the caller holds a slot. A function that fails is a value."""
        request_id = call.request_id or self.world.request_id()
        return await self._invoke(call, request_id, await self._runtime.ready(request_id))

    async def invoke_unless_closed(self, call: Call, door: Door) -> Outcome | None:
        """As `invoke`; None when `door` closed while no handler could begin, such as during a cold start."""
        request_id = call.request_id or self.world.request_id()
        answers: list[FunctionError | Refused | None] = []

        async def ready() -> None:
            answers.append(await self._runtime.ready(request_id))

        # Cancelled rather than asked afterwards: a worker that was woken for nobody would be idle while others wait.
        if not await door.unless_closed(ready):
            return None
        return await self._invoke(call, request_id, answers[0])

    async def _invoke(self, call: Call, request_id: str, reply: Reply | None) -> Outcome:
        started = self.world.clock()
        if reply is None:
            reply = await self._run(request_id, call.event)
        ids = [record.id for record in call.records] if call.partial else ()
        outcome = response.parse(reply, ids, partial=call.partial, source=call.source)
        if call.judge is not None:
            outcome = call.judge(reply, outcome)
        self.observer.invoked(
            Invoked(
                mapping=call.mapping,
                function=self.function.name,
                request_id=request_id,
                records=len(call.records),
                failed=_failed(outcome, call.records),
                outcome=outcome,
                duration=self.world.clock() - started,
                shard=call.shard,
            )
        )
        return outcome

    async def _run(self, request_id: str, event: dict[str, Any]) -> Reply:
        timeout = self.function.timeout
        invocation = Invocation(request_id, event, self.world.wall() + timeout, self.function.arn)
        if self._runtime.keeps_time:
            return await self._runtime.invoke(invocation)
        with anyio.move_on_after(timeout):
            return await self._runtime.invoke(invocation)
        return response.timed_out(request_id, timeout)


def _failed(outcome: Outcome, records: Sequence[Record]) -> int:
    match outcome:
        case PartlyFailed(ids):
            return sum(record.id in ids for record in records)
        case Failed() | NotInvoked():
            return len(records)
        case Succeeded():
            return 0
        case _:
            assert_never(outcome)
