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
one more receive on the way to the dead-letter queue. The same goes for a worker that a circuit breaker has overtaken: it opens
the door again for its probe only, while long polls of before it closed may still be on their way.

Cancelling `run` is the hard stop. Handlers are cancelled and the records stay with the reader, which gives back everything
that is not settled when it is closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import anyio

from poller.core.batch import Batch, size_of
from poller.core.polling import Polling
from poller.core.retry import backoff
from poller.engine.status import Load
from poller.errors import AwsError
from poller.model import FilteredOut, Received

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyio.abc import TaskGroup

    from poller.core.batch import BatchLimits
    from poller.core.filters import Filters
    from poller.engine.parts import Parts
    from poller.engine.status import ShardStatus
    from poller.engine.work import Work
    from poller.model import Record


@dataclass(frozen=True, slots=True)
class Plan:
    """How a pipeline gathers."""

    name: str
    """The mapping."""
    limits: BatchLimits
    receive_limit: int
    """The most records that one receive can bring."""
    receive_wait: float
    """Seconds that a receive waits for the first record."""
    filters: Filters | None = None


class Gathered(NamedTuple):
    """What a worker has gathered."""

    batch: Sequence[Record] = ()
    dropped: Sequence[Record] = ()
    """Filtered out of the last receive; acknowledged together with the batch, because that saves a request."""
    carried: Sequence[Record] = ()
    """What did not fit the batch and begins the next one."""


class Pipeline:
    """Gathers batches from one reader and works on them until it is told to be quiet, or a shard has ended."""

    circuit = None
    #: Keys are parked for all pipelines of a stream together.
    unparking = None

    def __init__(self, plan: Plan, parts: Parts, work: Work) -> None:
        self.plan = plan
        self.dispatch = parts.dispatch
        self.dispatch.on_taken = self._grow
        self.workers = 0
        self.gathering = 0
        self.receiving = 0
        self.buffered_records = 0
        self.buffered_bytes = 0
        self._reader = parts.reader
        self._door = parts.door
        self._health = parts.health
        self._settler = parts.settler
        self._observer = parts.observer
        self._world = parts.world
        self._task = work
        self._returning: list[Record] = []
        self._polling = Polling(ceiling=self.dispatch.ceiling)
        self._failures = 0
        self._retry_at = 0.0
        self._quieted = anyio.Event()
        self._tasks: TaskGroup | None = None

    def __repr__(self) -> str:
        return (
            f"<Pipeline {self.plan.name}: {self.gathering} of {self.workers} workers gather, "
            f"{self.dispatch.in_flight_invocations} invocations, {self.buffered_records} records wait>"
        )

    @property
    def trouble(self) -> str | None:
        """Why the source cannot be read at the moment."""
        return self._health.trouble

    @property
    def at_capacity(self) -> bool:
        """True when nothing is received because every worker is busy or waits for a slot."""
        busy = self.gathering > 0 or self.workers >= self.dispatch.ceiling
        return self._door.is_open and self.receiving == 0 and not self._failures and busy

    def load(self) -> Load:
        """What is at work now."""
        return Load(
            receivers=self.receiving,
            in_flight_invocations=self.dispatch.in_flight_invocations,
            in_flight_records=self.dispatch.in_flight_records,
            buffered_records=self.buffered_records - self.dispatch.in_flight_records,
            buffered_bytes=self.buffered_bytes - self.dispatch.in_flight_bytes,
        )

    def shards(self) -> tuple[ShardStatus, ...]:
        """None: what is read here is told by whoever opened it."""
        return ()

    # --- life -----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until quiet and drained, or until the shard has ended and all of it is done."""
        try:
            async with anyio.create_task_group() as self._tasks:
                self._grow()
                await self._quieted.wait()
        finally:
            # Whoever opens it again while its source is being closed after a crash starts nothing.
            self._tasks = None

    def close(self) -> None:
        """Receive no more; what is at work goes on."""
        self._door.close()
        self._forget_trouble()

    def open(self) -> None:
        """Receive again after `close`."""
        if not self._quieted.is_set():
            self._door.open()
            self._grow()

    def quiet(self) -> None:
        """Receive no more, for good; `run` returns when what is at work is done."""
        self.close()
        self._quieted.set()

    def fit(self, maximum: int) -> None:
        """Have at most `maximum` invocations in flight from now on; workers that are too many end with what they have."""
        self.dispatch.maximum = maximum
        self._grow()

    # --- workers --------------------------------------------------------------------------------------------------------

    def _grow(self) -> None:
        self._polling.ceiling = max(1, self.dispatch.ceiling)
        if self._is_refused:
            self._polling.failed()
        while self._tasks and self._may_gather() and self.workers < self.dispatch.ceiling:
            self.workers += 1
            self.gathering += 1
            self._tasks.start_soon(self._work, self._returning[:])
            self._returning.clear()

    def _may_gather(self) -> bool:
        allowed = min(self._polling.allowed, self._polling.ceiling)
        # Records that were on their way back when the pipeline opened again are worked on at once.
        if self._quieted.is_set() or self._is_refused:
            return False
        return self._door.is_open and (self.gathering < allowed or bool(self._returning))

    @property
    def _is_refused(self) -> bool:
        """Whether the function takes no more. One batch alone may be refused for what is in it."""
        return self.dispatch.refused > 1

    async def _work(self, carried: Sequence[Record]) -> None:
        """One worker, started with a permission to gather."""
        generation = self.dispatch.generation
        while True:
            try:
                gathered = await self._gather(carried, generation)
            finally:
                self.gathering -= 1
            carried = gathered.carried
            if gathered.batch:
                self._grow()
                carried = await self._process(gathered)
            elif self._reader.ended and self._door.is_open and not self._returning:
                self._quieted.set()
                break
            # A batch of a stream can be a hundred thousand objects. Let go before the next ones are made, their memory is used
            # again while the processor's caches have it: a third less CPU a record of DynamoDB, a sixth less of Kinesis.
            del gathered
            if generation != self.dispatch.generation or not (carried or self._may_gather()):
                break
            if not carried and self.workers > self.dispatch.ceiling:
                break
            if not carried:
                # The door has opened again before this worker could end.
                carried, self._returning = self._returning, []
            self.gathering += 1
            self._grow()
        if carried or (self._returning and not self._door.is_open):
            await self._hand_back(carried)
        self.workers -= 1
        self._grow()

    # --- gathering ------------------------------------------------------------------------------------------------------

    def _takes_in(self, generation: int) -> bool:
        return self._door.is_open and generation == self.dispatch.generation

    async def _gather(self, carried: Sequence[Record], generation: int) -> Gathered:
        """Fill one batch, beginning with what did not fit the last one."""
        batch = Batch(self.plan.limits)
        rest: Sequence[Record] = batch.add(carried, self._world.clock())
        dropped: Sequence[Record] = ()
        if not await self.dispatch.has_room():
            return Gathered(await self._hand_back(carried))
        reader = self._reader
        while not (rest or (batch.records and (reader.ended or reader.full))):
            due = batch.wait(self._world.clock())
            if due is not None and due <= 0:
                break
            # The batch may fill for long: what was dropped so far does not wait for it.
            await self._settler.done(dropped)
            if not self._takes_in(generation):
                return Gathered(await self._hand_back(batch.records))
            if due is not None:
                fresh, lasts = await self._task.fresh(batch.records)
                if len(fresh) < len(batch.records):
                    self._keep(batch, fresh)
                    dropped = ()
                    continue
                due = max(0.0, min(due, lasts))
            received = await self._receive(batch.room, due)
            passed, dropped = self._filter(received)
            if not self._takes_in(generation):
                await self._settler.done(dropped)
                return Gathered(await self._hand_back([*batch.records, *passed]))
            rest = batch.add(passed, self._world.clock())
            if not batch.records:
                await self._settler.done(dropped)
                await self._task.idle()
                break
        return Gathered(batch.records, dropped, rest)

    def _keep(self, batch: Batch, records: Sequence[Record]) -> None:
        self._count_buffered(batch.records, -1)
        batch.keep(records)
        self._count_buffered(records, 1)

    async def _receive(self, room: int, due: float | None) -> Sequence[Record]:
        """One receive that is back before `due` seconds have passed; when it fails, the pause that follows."""
        asked = min(room, self.plan.receive_limit)
        wait = self.plan.receive_wait if due is None else min(due, self.plan.receive_wait)
        asked_at = self._world.clock()
        try:
            records = await self._received(asked, wait)
        except AwsError as error:
            if self._door.is_open:
                await self._receive_failed(error, due)
            return ()
        if self._failures:
            self._recovered()
        self._polling.came_back(asked=asked, got=len(records), after=self._world.clock() - asked_at)
        self._observer.received(Received(self.plan.name, len(records)))
        self._count_buffered(records, 1)
        return records

    async def _received(self, asked: int, wait: float) -> Sequence[Record]:
        self.receiving += 1
        try:
            if self._reader.redelivers:
                return await self._reader.receive(asked, wait)
            received: list[Record] = []

            async def receive() -> None:
                received.extend(await self._reader.receive(asked, wait))

            # What a cut off read would have brought is still in the stream: a stop need not wait for it.
            await self._door.unless_closed(receive)
            return received
        finally:
            self.receiving -= 1

    async def _receive_failed(self, error: AwsError, due: float | None) -> None:
        self._polling.failed()
        now = self._world.clock()
        # Receives that were in flight together fail together: that is one failure, and one pause for all of them.
        if now >= self._retry_at:
            self._retry_at = now + self._note_failure(error)
        until = self._retry_at if due is None else min(self._retry_at, now + due)
        await self._door.unless_closed(partial(anyio.sleep_until, until))

    def _note_failure(self, error: AwsError) -> float:
        """Tell of the trouble and return the pause before the next receive."""
        pause = backoff(self._failures, self._world.chance())
        self._failures += 1
        self._health.failed(self, str(error), pause)
        return pause

    def _recovered(self) -> None:
        self._failures, self._retry_at = 0, 0.0
        self._health.recovered(self)

    def _forget_trouble(self) -> None:
        self._failures, self._retry_at = 0, 0.0
        self._health.forget(self)

    def _filter(self, records: Sequence[Record]) -> tuple[Sequence[Record], Sequence[Record]]:
        """Records that pass, and the others, which are done without an invocation."""
        filters = self.plan.filters
        if filters is None or not records:
            return records, ()
        passed: list[Record] = []
        dropped: list[Record] = []
        for record in records:
            (passed if filters.match(record.event) else dropped).append(record)
        if dropped:
            self._observer.filtered_out(FilteredOut(self.plan.name, len(dropped)))
            self._count_buffered(dropped, -1)
        return passed, dropped

    # --- processing -----------------------------------------------------------------------------------------------------

    async def _process(self, gathered: Gathered) -> Sequence[Record]:
        """Take one batch to its end. Returns of what was carried what may still go on."""
        batch, dropped, carried = gathered
        worked = await self._task.process(batch, dropped)
        self._count_buffered(batch, -1)
        self._count_buffered(worked.unfinished, 1)
        if worked.unfinished:
            return await self._hand_back([*worked.unfinished, *carried])
        if carried and worked.failed_keys:
            return await self._hold_back(carried, worked.failed_keys)
        return carried

    async def _hand_back(self, records: Sequence[Record]) -> list[Record]:
        """Give back what is not to be worked on now, as soon as no receive could get it at once; nothing remains.

        What does not come back by itself stays here instead, until the pipeline opens again or ends; and so does what a worker
        of before gives back while the door is open again: the next worker begins with it.
        """
        self._returning.extend(records)
        if self.receiving == 0 and self._reader.redelivers and not self._door.is_open:
            returning = self._returning[:]
            self._returning.clear()
            self._count_buffered(returning, -1)
            await self._settler.give_back(returning)
        return []

    async def _hold_back(self, carried: Sequence[Record], failed: frozenset[str | None]) -> Sequence[Record]:
        """Leave records whose key has just failed: they must not overtake it."""
        held = [record for record in carried if record.key in failed]
        self._count_buffered(held, -1)
        await self._settler.leave(held)
        return [record for record in carried if record.key not in failed]

    def _count_buffered(self, records: Sequence[Record], sign: int) -> None:
        self.buffered_records += sign * len(records)
        self.buffered_bytes += sign * size_of(records)
