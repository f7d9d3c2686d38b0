"""Brings one mapping's batches to their function: waits for a slot, invokes, and knows what is in flight."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import anyio

from poller.core.batch import size_of
from poller.model import NotInvoked

if TYPE_CHECKING:
    from collections.abc import Callable

    from poller.engine.door import Door
    from poller.engine.invoker import Call, Invoker
    from poller.model import Outcome


#: Seconds after which a batch that was refused before, and is not again, counts as taken.
TAKEN = 1.0


class Dispatch:
    """The way of one mapping's batches to their function; with a circuit breaker it is `breaker.GuardedDispatch`."""

    #: Which opening of a circuit breaker this is: a worker of an earlier one receives no more.
    generation = 0
    #: Whether an invocation may begin at all; by default it may.
    fence: Callable[[], bool] | None = None
    #: What takes back an invocation that has its slot and cannot begin yet; by default nothing does.
    _withdraws: Door | None = None

    def __init__(self, invoker: Invoker, door: Door, maximum_concurrency: int | None) -> None:
        self.in_flight_invocations = 0
        self.in_flight_records = 0
        self.in_flight_bytes = 0
        self.refused = 0
        """Batches that wait because the function did not take them."""
        self.on_taken: Callable[[], None] = lambda: None
        """Called when it has taken one of them after all, and is busy with it; set by whoever receives."""
        self._invoker = invoker
        self.door = door
        self.maximum = maximum_concurrency
        """The mapping's own limit of invocations in flight, which may change; None for none."""

    @property
    def ceiling(self) -> int:
        """The most invocations that may be in flight, by mapping, function and daemon."""
        slots = self._invoker.slots.total
        return slots if self.maximum is None else min(slots, self.maximum)

    async def has_room(self) -> bool:
        """Wait until the function could take a batch, so that records are not received only to wait; False if closed."""
        slots = self._invoker.slots
        if slots.try_acquire() or await self.door.unless_closed(slots.acquire):
            slots.release()
            return self.door.is_open
        return False

    async def invoke(self, call: Call) -> Outcome | None:
        """Run the function once there is a slot; None when the door closed before, so that no handler saw the records."""
        slots = self._invoker.slots
        if not (slots.try_acquire() or await self.door.unless_closed(slots.acquire)):
            return None
        if self.fence is not None and not self.fence():
            slots.release()
            return None
        size = size_of(call.records)
        self.in_flight_invocations += 1
        self.in_flight_records += len(call.records)
        self.in_flight_bytes += size
        outcome: Outcome | None
        try:
            if self._withdraws is None:
                outcome = await self._invoker.invoke(call)
            else:
                outcome = await self._invoker.invoke_unless_closed(call, self._withdraws)
            if slots.refused and not isinstance(outcome, NotInvoked | None):
                slots.refused.popleft().set()
            return outcome
        finally:
            self.in_flight_invocations -= 1
            self.in_flight_records -= len(call.records)
            self.in_flight_bytes -= size
            slots.release()

    async def wait_refused(self, until: float, *, in_vain: bool = False) -> None:
        """Wait with a batch that the function refused: until then, or until a handler of the function has ended, which may
        leave what it had too little of. Who has waited longest, for whichever mapping, goes first. One for which handlers
        have ended `in_vain` waits until then."""
        called = anyio.Event()
        refused = deque[anyio.Event]() if in_vain else self._invoker.slots.refused
        refused.append(called)
        self.refused += 1
        try:
            with anyio.CancelScope(deadline=until):
                await called.wait()
        finally:
            self.refused -= 1
            if not called.is_set():
                refused.remove(called)

    async def invoke_again(self, call: Call) -> Outcome | None:
        """As `invoke`, for a batch that was refused. Its handler may take long: that it was taken does not become known at its
        end only."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._wait_taken)
            outcome = await self.invoke(call)
            tasks.cancel_scope.cancel()
        return outcome

    async def _wait_taken(self) -> None:
        await anyio.sleep(TAKEN)
        self.on_taken()
