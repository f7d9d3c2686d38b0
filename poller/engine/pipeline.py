"""One reader at work: receive -> filter -> batch -> invoke -> settle.

A worker is a task that gathers a batch (one or more receives) and then takes it through its function and back to the
source; nothing is handed from task to task on the way. How many workers gather at the same time is `core.polling`'s
decision, how many exist at all is bounded by the concurrency of mapping, function and daemon. So a worker that is busy with
a slow function does not receive: back-pressure reaches the queue without a buffer in between.

A pipeline is *open* (receives), *closed* (paused: workers end after what they do now, `open` starts them again) or *quiet*
(closed for good: `run` returns when the last worker has ended). What a worker holds when the pipeline closes goes two ways:
records that a handler has seen are settled in the ordinary way; records that no handler has seen are given back at once.
A long poll in flight is not cut off, because the source may already have answered it; what it brings is given back. That is
done when the last of them has returned: those still in flight would receive the same records again, and each time counts as
one more receive on the way to the dead-letter queue.

Cancelling `run` is the hard stop. Handlers are cancelled and the records stay with the reader, which gives back everything
that is not settled when it is closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import anyio

from poller.core.batch import Batch
from poller.core.polling import Polling
from poller.core.retry import Attempt, Settle, backoff, decide
from poller.engine.keys import KeyGate
from poller.engine.settle import Settler
from poller.errors import AwsError
from poller.model import FilteredOut, MappingState, Received, StateChanged, Trouble

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from anyio.abc import TaskGroup

    from poller.core.batch import BatchLimits
    from poller.core.filters import Filters, Source
    from poller.engine.invoker import Invoker, World
    from poller.model import Outcome, Record
    from poller.ports import Observer, Reader


@dataclass(frozen=True, slots=True)
class Plan:
    """What a mapping asks of the engine."""

    name: str
    source: Source
    limits: BatchLimits
    receive_limit: int
    """The most records that one receive can bring."""
    receive_wait: float
    """Seconds that a receive waits for the first record."""
    maximum_concurrency: int | None
    reports_batch_item_failures: bool
    filters: Filters | None
    ordered: bool
    """True when records of one key must not be in two invocations at the same time."""
    patience: float
    """Seconds for which a batch that no handler could take is tried again."""


class Pipeline:
    """Runs one mapping over one reader until it is told to be quiet."""

    def __init__(
        self, plan: Plan, reader: Reader, invoker: Invoker, observer: Observer, world: World
    ) -> None:
        self.plan = plan
        self.trouble: str | None = None
        self.workers = 0
        self.gathering = 0
        self.receiving = 0
        self.in_flight_invocations = 0
        self.in_flight_records = 0
        self.buffered_records = 0
        self.buffered_bytes = 0
        self._returning: list[Record] = []
        self._reader = reader
        self._invoker = invoker
        self._observer = observer
        self._world = world
        self._settler = Settler(plan.name, reader, observer)
        self._gate = KeyGate()
        self._polling = Polling(ceiling=self._ceiling)
        self._failures = 0
        self._retry_at = 0.0
        self._open = True
        self._quieted = anyio.Event()
        self._waits: set[anyio.CancelScope] = set()
        self._tasks: TaskGroup | None = None

    def __repr__(self) -> str:
        return (
            f"<Pipeline {self.plan.name}: {self.gathering} of {self.workers} workers gather, "
            f"{self.in_flight_invocations} invocations, {self.buffered_records} records wait>"
        )

    @property
    def _ceiling(self) -> int:
        slots = self._invoker.slots.total
        return min(slots, self.plan.maximum_concurrency or slots)

    @property
    def at_capacity(self) -> bool:
        """True when nothing is received because every worker is busy or waits for a slot."""
        busy = self.gathering > 0 or self.workers >= self._ceiling
        return self._open and self.receiving == 0 and self.trouble is None and busy

    # --- life -----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until quiet and drained."""
        async with anyio.create_task_group() as self._tasks:
            self._grow()
            await self._quieted.wait()

    def close(self) -> None:
        """Receive no more; what is at work goes on."""
        self._open = False
        self._forget_trouble()
        for scope in self._waits:
            scope.cancel()

    def open(self) -> None:
        """Receive again after `close`."""
        if not self._quieted.is_set():
            self._open = True
            self._grow()

    def quiet(self) -> None:
        """Receive no more, for good; `run` returns when what is at work is done."""
        self.close()
        self._quieted.set()

    # --- workers --------------------------------------------------------------------------------------------------------

    def _grow(self) -> None:
        self._polling.ceiling = max(1, self._ceiling)
        while self._tasks and self._may_gather() and self.workers < self._ceiling:
            self.workers += 1
            self.gathering += 1
            self._tasks.start_soon(self._work, self._returning[:])
            self._returning.clear()

    def _may_gather(self) -> bool:
        allowed = min(self._polling.allowed, self._polling.ceiling)
        # Records that were to go back when the pipeline opened again are worked on at once.
        return self._open and (self.gathering < allowed or bool(self._returning))

    async def _work(self, carried: Sequence[Record]) -> None:
        """One worker, started with a permission to gather."""
        while True:
            try:
                batch, carried = await self._gather(carried)
            finally:
                self.gathering -= 1
            if batch:
                self._grow()
                carried = await self._process(batch, carried)
            if not (carried or self._may_gather()):
                break
            self.gathering += 1
            self._grow()
        self.workers -= 1
        self._grow()

    # --- gathering ------------------------------------------------------------------------------------------------------

    async def _gather(self, carried: Sequence[Record]) -> tuple[list[Record], Sequence[Record]]:
        """Fill one batch, beginning with what did not fit the last one; return it and what did not fit this one."""
        batch = Batch(self.plan.limits)
        rest: Sequence[Record] = batch.add(carried, anyio.current_time())
        if not await self._has_room():
            return await self._hand_back(carried), ()
        while not rest:
            due = batch.wait(anyio.current_time())
            if due is not None and due <= 0:
                break
            received = await self._receive(batch.room, due)
            rest = batch.add(await self._filter(received), anyio.current_time())
            if not self._open:
                return await self._hand_back([*batch.records, *rest]), ()
            if not batch.records:
                break
        return batch.records, rest

    async def _has_room(self) -> bool:
        """Wait until the function could take a batch, so that messages are not received only to wait; False if closed."""
        slots = self._invoker.slots
        if slots.try_acquire() or await self._unless_closed(slots.acquire):
            slots.release()
            return self._open
        return False

    async def _receive(self, room: int, due: float | None) -> Sequence[Record]:
        """One receive that is back before `due` seconds have passed; when it fails, the pause that follows."""
        asked = min(room, self.plan.receive_limit)
        wait = self.plan.receive_wait if due is None else min(due, self.plan.receive_wait)
        asked_at = anyio.current_time()
        try:
            records = await self._received(asked, wait)
        except AwsError as error:
            if self._open:
                await self._receive_failed(error, due)
            return ()
        if self._failures:
            self._recovered()
        self._polling.came_back(asked=asked, got=len(records), after=anyio.current_time() - asked_at)
        self._observer.received(Received(self.plan.name, len(records)))
        self._count_buffered(records, 1)
        return records

    async def _received(self, asked: int, wait: float) -> Sequence[Record]:
        self.receiving += 1
        try:
            return await self._reader.receive(asked, wait)
        finally:
            self.receiving -= 1

    async def _receive_failed(self, error: AwsError, due: float | None) -> None:
        self._polling.failed()
        now = anyio.current_time()
        # Receives that were in flight together fail together: that is one failure, and one pause for all of them.
        if now >= self._retry_at:
            self._retry_at = now + self._note_failure(error)
        until = self._retry_at if due is None else min(self._retry_at, now + due)
        await self._unless_closed(partial(anyio.sleep_until, until))

    def _note_failure(self, error: AwsError) -> float:
        """Tell of the trouble and return the pause before the next receive."""
        pause = backoff(self._failures, self._world.chance())
        self._failures += 1
        self.trouble = str(error)
        self._observer.trouble(Trouble(self.plan.name, self.trouble, pause))
        if self._failures == 1:
            self._observer.state_changed(StateChanged(self.plan.name, MappingState.DEGRADED, self.trouble))
        return pause

    def _recovered(self) -> None:
        self._forget_trouble()
        self._observer.state_changed(StateChanged(self.plan.name, MappingState.RUNNING))

    def _forget_trouble(self) -> None:
        self._failures, self._retry_at, self.trouble = 0, 0.0, None

    async def _filter(self, records: Sequence[Record]) -> Sequence[Record]:
        """Records that pass; the others are settled at once, without an invocation."""
        filters = self.plan.filters
        if filters is None or not records:
            return records
        passed: list[Record] = []
        dropped: list[Record] = []
        for record in records:
            (passed if filters.match(record.event) else dropped).append(record)
        if dropped:
            self._observer.filtered_out(FilteredOut(self.plan.name, len(dropped)))
            self._count_buffered(dropped, -1)
            await self._settler.done(dropped)
        return passed

    # --- processing -----------------------------------------------------------------------------------------------------

    async def _process(self, batch: Sequence[Record], carried: Sequence[Record]) -> Sequence[Record]:
        """Take one batch to its end. Returns of `carried` what may still go on."""
        keys = (
            {record.key for record in batch if record.key is not None} if self.plan.ordered else frozenset()
        )
        if keys and not (
            self._gate.try_enter(keys) or await self._unless_closed(partial(self._gate.enter, keys))
        ):
            return await self._hand_back([*batch, *carried])
        try:
            settle = await self._attempts(batch)
            if settle is None:
                return await self._hand_back([*batch, *carried])
            self._count_buffered(batch, -1)
            await self._settler.done(settle.done)
            await self._settler.leave(settle.failed)
        finally:
            if keys:
                self._gate.leave(keys)
        if carried and settle.failed and self.plan.ordered:
            return await self._hold_back(carried, {record.key for record in settle.failed})
        return carried

    async def _attempts(self, batch: Sequence[Record]) -> Settle | None:
        """Invoke until something is decided; None when the pipeline closed before a handler saw the batch."""
        attempt = Attempt(refusals=0, since=anyio.current_time())
        while True:
            outcome = await self._invoke(batch)
            if outcome is None:
                return None
            decision = decide(
                outcome,
                batch,
                attempt,
                patience=self.plan.patience,
                now=anyio.current_time(),
                chance=self._world.chance(),
            )
            if isinstance(decision, Settle):
                return decision
            if not await self._unless_closed(partial(anyio.sleep_until, decision.at)):
                return None
            attempt = Attempt(attempt.refusals + 1, attempt.since)

    async def _invoke(self, batch: Sequence[Record]) -> Outcome | None:
        slots = self._invoker.slots
        if not (slots.try_acquire() or await self._unless_closed(slots.acquire)):
            return None
        self.in_flight_invocations += 1
        self.in_flight_records += len(batch)
        try:
            return await self._invoker.invoke(
                self.plan.name,
                batch,
                partial=self.plan.reports_batch_item_failures,
                source=self.plan.source,
            )
        finally:
            self.in_flight_invocations -= 1
            self.in_flight_records -= len(batch)
            slots.release()

    async def _hand_back(self, records: Sequence[Record]) -> list[Record]:
        """Give back what no handler saw, as soon as no receive could get it at once; nothing remains."""
        self._returning.extend(records)
        if self.receiving == 0:
            returning = self._returning[:]
            self._returning.clear()
            self._count_buffered(returning, -1)
            await self._settler.give_back(returning)
        return []

    async def _hold_back(self, carried: Sequence[Record], failed: set[str | None]) -> Sequence[Record]:
        """Leave records whose key has just failed: they must not overtake it."""
        held = [record for record in carried if record.key in failed]
        self._count_buffered(held, -1)
        await self._settler.leave(held)
        return [record for record in carried if record.key not in failed]

    # --- small things ---------------------------------------------------------------------------------------------------

    async def _unless_closed(self, wait: Callable[[], Awaitable[object]]) -> bool:
        """Await `wait()`, or return False as soon as the pipeline closes."""
        if not self._open:
            return False
        with anyio.CancelScope() as scope:
            self._waits.add(scope)
            try:
                await wait()
            finally:
                self._waits.discard(scope)
        return not scope.cancelled_caught

    def _count_buffered(self, records: Sequence[Record], sign: int) -> None:
        self.buffered_records += sign * len(records)
        self.buffered_bytes += sign * sum(record.size for record in records)
