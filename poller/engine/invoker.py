"""Runs one function on batches: concurrency, time limit, reply -> Outcome."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

import anyio

from poller.core import envelope, response
from poller.model import Failed, FunctionError, Invocation, Invoked, NotInvoked, PartlyFailed, Succeeded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from poller.core.filters import Source
    from poller.engine.slots import Slots
    from poller.model import Outcome, Record, Reply
    from poller.ports import Observer, Runtime


@dataclass(frozen=True, slots=True)
class World:
    """Time and chance, as arguments: Unix time, a number in [0, 1), and a new request id."""

    wall: Callable[[], float]
    chance: Callable[[], float]
    request_id: Callable[[], str]


@dataclass(frozen=True, slots=True)
class FunctionPlan:
    """What the engine knows of a function."""

    name: str
    arn: str
    """As mapped, with the qualifier that the mapping names."""
    timeout: float
    """Seconds."""


class Invoker:
    """Runs `function` for one mapping, within the function's slots."""

    def __init__(
        self, function: FunctionPlan, runtime: Runtime, slots: Slots, observer: Observer, world: World
    ) -> None:
        self.function = function
        self.slots = slots
        self._runtime = runtime
        self._observer = observer
        self._world = world

    async def invoke(
        self, mapping: str, records: Sequence[Record], *, partial: bool, source: Source
    ) -> Outcome:
        """Run the function on `records` now; the caller holds a slot.

        A function that fails is a value. With `partial` its reply is read for batchItemFailures.
        """
        request_id = self._world.request_id()
        timeout = self.function.timeout
        invocation = Invocation(
            request_id, envelope.event(records), self._world.wall() + timeout, self.function.arn
        )
        started = anyio.current_time()
        reply: Reply | None = None
        with anyio.move_on_after(timeout):
            reply = await self._runtime.invoke(invocation)
        if reply is None:
            reply = _timed_out(request_id, timeout)
        outcome = response.parse(reply, {record.id for record in records}, partial=partial, source=source)
        self._observer.invoked(
            Invoked(
                mapping=mapping,
                function=self.function.name,
                request_id=request_id,
                records=len(records),
                failed=_failed(outcome, records),
                outcome=outcome,
                duration=anyio.current_time() - started,
            )
        )
        return outcome


def _timed_out(request_id: str, timeout: float) -> FunctionError:
    message = f"RequestId: {request_id} Error: Task timed out after {timeout:.2f} seconds"
    return FunctionError("Sandbox.Timedout", message, timed_out=True)


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
