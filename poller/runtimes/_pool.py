"""The workers of one function: how many there are, which one is next, and when one goes.

A worker is of the pool from its start until it is GONE. What holds at every moment:

* At most `places` workers are starting, idle or at work. Those that are being ended come on top, for as long as SIGTERM and
  SIGKILL take, and no more than `places` of them: a function that times out time after time cannot pile up processes.
* A worker is started because somebody waits who will not get one of those that are about to be free (starting, or
  finishing), or because `minimum_workers` says so; at most `MAX_STARTING` start at a time.
* The idle ones are a stack. The last one back is taken first, so whatever is not needed sinks to the bottom, gets old there,
  and is retired after `idle_timeout`: the pool scales to zero, or to `minimum_workers`.
* Who waits is woken, not served: it looks for an idle worker itself, and waits on, in front, when another took it.

An init that fails is tried once more, as Lambda does, the second time for as long as the function may take. If that fails
too, all who wait hear of it at once: the next in line would only wait for the same. Warm spares that fail are tried again
with growing pauses.

`renew` makes all present workers outdated: none of them is given another invocation. Those that are at work end it first.

All of it runs on the event loop in callbacks of the processes, their links and timers; there is no task to own.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from poller.model import FunctionError, Refused, Workers
from poller.runtimes._output import Budget
from poller.runtimes._worker import State, Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from poller.runtimes._process import Launch
    from poller.runtimes._worker import Link

#: Seconds that the init code of a function may take at the first try (spec 9.1).
INIT_TIMEOUT = 10.0
#: Seconds after which a worker that has replied, and not come back, is no longer waited for.
FINISH_TIMEOUT = 0.1
#: Seconds between two looks at the memory of a worker, each of which costs as much as an invocation.
LOOK_INTERVAL = 1.0
MAX_STARTING = max(4, 2 * (os.cpu_count() or 1))
#: Seconds between tries to start a warm spare; the first and the longest.
SPARE_PAUSES = (1.0, 60.0)
#: Seconds that a stop waits for what even SIGKILL does not end at once.
REAP_TIMEOUT = 5.0

_log = logging.getLogger("poller.function")


@dataclass(frozen=True, slots=True)
class Size:
    """How many workers, and for how long."""

    places: int
    minimum_workers: int = 0
    idle_timeout: float = 300.0
    maximum_invocations: int | None = None
    init_timeout: float = INIT_TIMEOUT
    timeout: float = 3.0
    """Of an invocation, which is ended after it; the second try of an init may take as long."""


class Pool:
    """The workers of one function. Used from one event loop."""

    def __init__(
        self,
        function: str,
        size: Size,
        plan: Callable[[Link], Launch],
        link: Callable[[asyncio.AbstractEventLoop, Worker], Link],
    ) -> None:
        self.size = size
        self.workers: set[Worker] = set()
        self._function = function
        self._plan = plan
        self._new_link = link
        self.idle: list[Worker] = []
        self._waiting: deque[asyncio.Future[Callable[[str], FunctionError | Refused] | None]] = deque()
        self._second_try: set[Worker] = set()
        self._outdated: set[Worker] = set()
        self._started = self._crashed = 0
        self._init_seconds = self.billed = 0.0
        self.peak_memory = 0
        self._closed = False
        self._idle_timer: asyncio.TimerHandle | None = None
        self._spare_timer: asyncio.TimerHandle | None = None
        self._limit_timer: asyncio.TimerHandle | None = None
        self._spare_pause = SPARE_PAUSES[0]
        self._emptied: asyncio.Event = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop

    def __repr__(self) -> str:
        counts = {state.value: self._count(state) for state in State}
        shown = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        return f"<Pool {self._function}: {shown or 'empty'}, {len(self._waiting)} waiting>"

    # --- what the runtime asks ------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin, on the event loop; a second time does nothing."""
        if not hasattr(self, "_loop"):
            self._loop = asyncio.get_running_loop()
            self._budget = Budget(self._function, self._loop.time)
            self._fill_up()

    def widen(self, places: int) -> None:
        """Allow `places` workers from now on; the engine's slots see to it that no more are asked for."""
        self.size = replace(self.size, places=places)
        if hasattr(self, "_loop"):
            self._grow()

    async def ready(self, request_id: str) -> FunctionError | Refused | None:
        """Wait until there is an idle worker; the answer to the invocation when there will be none."""
        again = False
        while not self.idle:
            if self._closed:
                return Refused("the function is being closed")
            waiter: asyncio.Future[Callable[[str], FunctionError | Refused] | None] = (
                self._loop.create_future()
            )
            (self._waiting.appendleft if again else self._waiting.append)(waiter)
            self._grow()
            try:
                answer = await waiter
            except asyncio.CancelledError:
                with suppress(ValueError):  # whoever looked for a waiter may have thrown it away
                    self._waiting.remove(waiter)
                if not waiter.cancelled():
                    self._wake()  # it was woken for an idle worker, which the next may have
                raise
            if answer is not None:
                return answer(request_id)
            again = True
        return None

    def take(self) -> Worker:
        """Take the idle worker that was used last, for an invocation that begins now; there must be one."""
        if self._limit_timer is None:
            self._limit_timer = self._loop.call_later(self.size.timeout, self._end_late)
        return self.idle.pop()

    def finishing(self, worker: Worker) -> None:
        """A worker has replied and not come back yet."""
        self._loop.call_later(FINISH_TIMEOUT, self._still_finishing, worker, worker.runs)

    def renew(self, plan: Callable[[Link], Launch] | None = None) -> None:
        """Let every invocation from now on run in a worker that is started from now on, by `plan` if there is a new one."""
        if plan is not None:
            self._plan = plan
        self._outdated |= self.workers
        for worker in tuple(self.workers):
            if worker.state in (State.STARTING, State.IDLE):
                worker.end()
        if hasattr(self, "_loop") and not self._closed:
            self._spare_pause = SPARE_PAUSES[0]
            self._grow()
            self._fill_up()

    @property
    def folders(self) -> set[str]:
        """Where the workers run."""
        return {folder for worker in self.workers if (folder := worker.launch.working_directory) is not None}

    async def aclose(self) -> None:
        """End all workers and wait until they are gone."""
        self._closed = True
        if not hasattr(self, "_loop"):
            return
        for timer in (self._idle_timer, self._spare_timer, self._limit_timer):
            if timer is not None:
                timer.cancel()
        self._answer_all(lambda _: Refused("the function is being closed"))
        for worker in tuple(self.workers):
            worker.end()
        if self.workers:
            try:
                async with asyncio.timeout(REAP_TIMEOUT):
                    await self._emptied.wait()
            except TimeoutError:
                _log.error("%d workers of %s cannot be killed", len(self.workers), self._function)

    def account(self, worker: Worker) -> None:
        """Count an invocation that has ended."""
        self.billed += math.ceil(1000 * (worker.duration + (worker.init_duration or 0))) / 1000
        now = self._loop.time()
        if now - worker.looked_at >= LOOK_INTERVAL:
            worker.looked_at = now
            self.peak_memory = max(self.peak_memory, worker.process.peak_memory())

    def count(self) -> Workers:
        """What `/status` and the metrics show."""
        return Workers(
            starting=self._count(State.STARTING),
            idle=self._count(State.IDLE),
            busy=self._count(State.BUSY, State.FINISHING),
            ending=self._count(State.ENDING),
            started=self._started,
            crashed=self._crashed,
            billed_seconds=self.billed,
            init_seconds=self._init_seconds,
            peak_memory=self.peak_memory,
            dropped_lines=self._budget.dropped_lines if hasattr(self, "_budget") else 0,
        )

    # --- what the workers tell ------------------------------------------------------------------------------------------

    def freed(self, worker: Worker) -> None:
        """An idle worker: for who waits, else to the top of the stack; or to its end, when it is old."""
        new = worker.runs == 0
        if new:
            self._second_try.discard(worker)
            self._spare_pause = SPARE_PAUSES[0]
            self._init_seconds += worker.init_duration or 0
            _log.debug(
                "a worker of %s is ready after %.0f ms", self._function, 1000 * (worker.init_duration or 0)
            )
        limit = self.size.maximum_invocations
        if worker in self._outdated or (limit is not None and worker.runs >= limit):
            worker.end()
            self._grow()
            return
        self.idle.append(worker)
        if self._waiting:
            self._wake()
        if new:  # so another one may start
            self._grow()
            self._fill_up()
        if self._idle_timer is None and len(self.workers) > self.size.minimum_workers:
            self._look_at_idle()

    def init_failed(self, worker: Worker, failure: Callable[[str], FunctionError]) -> None:
        """Try once more, then tell all who wait."""
        if self._closed:
            return
        if worker not in self._second_try:
            _log.warning(
                "%s: a worker did not start: %s; once more", self._function, failure("").error_message
            )
            self._start(second=True)
            return
        if not self._waiting:
            _log.error("%s: no worker starts: %s", self._function, failure("").error_message)
        self._answer_all(failure)
        self._later()

    def ending(self, worker: Worker) -> None:
        """Nobody may take it any more."""
        if worker in self.idle:
            self.idle.remove(worker)

    def gone(self, worker: Worker) -> None:
        """A process is reaped: its place is free."""
        self.workers.discard(worker)
        self._second_try.discard(worker)
        self._outdated.discard(worker)
        self._crashed += worker.crashed
        self.ending(worker)
        if worker.exit_reason:
            _log.warning("an idle worker of %s ended: %s", self._function, worker.exit_reason)
            self._later()  # a spare that starts and ends, and starts and ends, must not keep the machine busy
        if not self.workers:
            self._emptied.set()
        if not self._closed:
            self._grow()
            self._fill_up()

    # --- growing --------------------------------------------------------------------------------------------------------

    def _count(self, *states: State) -> int:
        return sum(worker.state in states for worker in self.workers)

    def _grow(self) -> None:
        coming = self._count(State.STARTING) + sum(
            worker.state is State.FINISHING and self._loop.time() - worker.since < FINISH_TIMEOUT
            for worker in self.workers
        )
        for _ in range(len(self._waiting) - coming):
            if not self._has_room() or not self._start():
                return

    def _has_room(self) -> bool:
        ending = self._count(State.ENDING)
        return (
            len(self.workers) - ending < self.size.places
            and ending <= self.size.places
            and self._count(State.STARTING) < MAX_STARTING
        )

    def _start(self, *, second: bool = False) -> bool:
        size = self.size
        limit = max(size.init_timeout, size.timeout) if second else size.init_timeout
        worker = Worker(self._loop, self, limit)
        try:
            link = self._new_link(self._loop, worker)
            try:
                worker.start(self._plan(link), link, self._budget)
            except BaseException:
                link.close()
                raise
        except OSError as error:
            self._cannot_start(error)
            return False
        self.workers.add(worker)
        self._started += 1
        self._emptied.clear()
        if second:
            self._second_try.add(worker)
        return True

    def _cannot_start(self, error: OSError) -> None:
        text = f"no worker can be started: {error}"
        if isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError):
            self._answer_all(
                lambda request_id: FunctionError(
                    "Runtime.InvalidEntrypoint", f"RequestId: {request_id} Error: {text}"
                )
            )
        else:
            self._answer_all(lambda _: Refused(text))
        self._later()

    # --- waking ---------------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        while self._waiting and self.idle:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _answer_all(self, answer: Callable[[str], FunctionError | Refused]) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(answer)

    # --- timers ---------------------------------------------------------------------------------------------------------

    def _end_late(self) -> None:
        """End what has run for too long; one timer for all, because all may run for the same time."""
        limit = self.size.timeout
        now = self._loop.time()
        busy = [worker for worker in self.workers if worker.state is State.BUSY]
        for worker in busy:
            if worker.since + limit <= now:
                worker.time_out(limit)
        since = [worker.since for worker in busy if worker.state is State.BUSY]
        self._limit_timer = self._loop.call_at(min(since) + limit, self._end_late) if since else None

    def _look_at_idle(self) -> None:
        """Retire who has been idle for too long; the bottom of the stack is the oldest."""
        self._idle_timer = None
        now = self._loop.time()
        spare = len(self.workers) - self._count(State.ENDING) - self.size.minimum_workers
        while self.idle and spare > 0 and now - self.idle[0].since >= self.size.idle_timeout:
            self.idle[0].end()
            spare -= 1
        if self.idle and spare > 0:
            due = self.idle[0].since + self.size.idle_timeout
            self._idle_timer = self._loop.call_at(due, self._look_at_idle)

    def _still_finishing(self, worker: Worker, runs: int) -> None:
        if worker.state is State.FINISHING and worker.runs == runs:
            self._grow()
            self._loop.call_later(self.size.timeout, self._never_came_back, worker, runs)

    def _never_came_back(self, worker: Worker, runs: int) -> None:
        if worker.state is State.FINISHING and worker.runs == runs:
            _log.warning("a worker of %s replied and asked for no more work: it is replaced", self._function)
            worker.end()

    def _fill_up(self) -> None:
        """Keep `minimum_workers`."""
        if self._spare_timer is not None or self._closed:
            return
        wanted = min(self.size.minimum_workers, self.size.places)
        while len(self.workers) - self._count(State.ENDING) < wanted and self._has_room():
            if not self._start():
                return

    def _later(self) -> None:
        if self.size.minimum_workers and self._spare_timer is None and not self._closed:
            self._spare_timer = self._loop.call_later(self._spare_pause, self._spare_due)
            self._spare_pause = min(2 * self._spare_pause, SPARE_PAUSES[1])

    def _spare_due(self) -> None:
        self._spare_timer = None
        self._fill_up()
