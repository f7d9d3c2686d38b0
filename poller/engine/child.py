"""One mapping, guarded: it is opened, run, restarted after a failure, paused and resumed here, and harms no other.

States::

    starting -> running <-> degraded      degraded: the source cannot be read at the moment (the pipeline tries again), or the
       |  ^        |                                circuit breaker is open: the function fails whatever it is given
       |  |        |                      paused: by command, or `enabled = false`; nothing is received
       v  |        v                      failed: could not be opened, or crashed
      failed    draining -> stopped       draining: receives no more, finishes what is at work

A source that cannot be opened (missing queue, denied access, no connection) is tried again for ever, with growing pauses:
somebody will create the queue or grant the permission. A crash is a bug in poller or a runtime; it is restarted too, since
all state is in positions and receipts, but only `CRASH_BUDGET` times in `CRASH_PERIOD` seconds: past that the mapping stays
failed, and is shown so, until it is resumed or its configuration changes.
"""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import anyio

from poller.core.retry import backoff
from poller.engine.status import IDLE, MappingStatus
from poller.errors import PollerError
from poller.model import MappingState, StateChanged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Hashable
    from contextlib import AbstractAsyncContextManager

    from poller.engine.invoker import World
    from poller.engine.status import Load, ShardStatus, SpoolStatus, Totals
    from poller.engine.unparking import Resumed, Unparking
    from poller.model import CircuitState
    from poller.ports import Observer

CRASH_BUDGET = 5
#: Seconds.
CRASH_PERIOD = 300.0
#: Seconds that a mapping must have been open for its next failure to count as the first one.
SETTLED = 60.0
BY_COMMAND = "by command"


class Runner(Protocol):
    """An opened mapping: the pipeline of a queue, or the shards of a stream; or one of these with a circuit breaker."""

    @property
    def trouble(self) -> str | None:
        """Why the source cannot be read, or progress not be kept, at the moment."""
        ...

    @property
    def at_capacity(self) -> bool:
        """True when nothing is received because the function can take no more."""
        ...

    @property
    def circuit(self) -> CircuitState | None:
        """Where the circuit breaker stands; None for a mapping that has none."""
        ...

    @property
    def unparking(self) -> Unparking | None:
        """What takes up parked keys; None where none is ever parked."""
        ...

    async def run(self) -> None:
        """Work until quiet and drained."""
        ...

    def close(self) -> None:
        """Receive no more; what is at work goes on."""
        ...

    def open(self) -> None:
        """Receive again after `close`."""
        ...

    def quiet(self) -> None:
        """Receive no more, for good; `run` returns when what is at work is done."""
        ...

    def load(self) -> Load:
        """What is at work now."""
        ...

    def shards(self) -> tuple[ShardStatus, ...]:
        """Each shard, for a stream; empty for a queue."""
        ...


@dataclass(frozen=True, slots=True)
class MappingSpec:
    """A mapping as the supervisor sees it."""

    name: str
    source: str
    """The ARN of its queue or stream."""
    function: str
    enabled: bool
    fingerprint: Hashable
    """Equal for two specs exactly when nothing that matters to the running mapping differs."""
    open: Callable[[], AbstractAsyncContextManager[Runner]]
    """Opens the source; raises `poller.errors.PollerError` when that is not possible now."""
    spool: Callable[[], tuple[SpoolStatus, ...]] = tuple
    """What is spooled for its destinations now."""


class Child:
    """Keeps one mapping running until it is told to be quiet."""

    def __init__(self, spec: MappingSpec, observer: Observer, world: World, *, paused: bool = False) -> None:
        """`paused` by command, before it begins."""
        self.spec = spec
        self.restarts = 0
        self.done = anyio.Event()
        self.scope = anyio.CancelScope()
        self.started = anyio.Event()
        self._observer = observer
        self._world = world
        self._runner: Runner | None = None
        self._state = MappingState.STARTING
        self._reason = ""
        self._since = world.wall()
        self._paused = paused or not spec.enabled
        self._pause_reason = BY_COMMAND if spec.enabled else "enabled = false"
        self._quieted = False
        # Told to end one run of the source, and to begin no other.
        self._ending = False
        self._held = False
        self._run_scope = anyio.CancelScope()
        self._closed = anyio.Event()
        self._closed.set()
        self._woken = anyio.Event()
        self._opened_at: float | None = None
        self._failures = 0
        self._crashes: deque[float] = deque(maxlen=CRASH_BUDGET)

    def __repr__(self) -> str:
        return f"<Child {self.spec.name}: {self.state}{', ' + self.reason if self.reason else ''}>"

    # --- life -----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until quiet; cancelling `scope` is the hard stop."""
        try:
            with self.scope:
                await self._keep_running()
        except Exception as error:  # a crash beside a cancellation; the scope lets it pass
            self._failed(leaf(error))
        self._enter(MappingState.STOPPED)
        self.done.set()

    async def _keep_running(self) -> None:
        while not self._quieted:
            if self._paused or self._held:
                self._enter(MappingState.PAUSED, self._pause_reason)
                await self._wait_for_command(None)
                continue
            try:
                await self._run_once()
            except Exception as error:  # the guard: whatever it is, it ends here
                await self._wait_for_command(self._failed(leaf(error)))

    async def _run_once(self) -> None:
        self._opened_at = None
        self._ending = False
        self._closed = anyio.Event()
        if self._state is not MappingState.FAILED:
            self._enter(MappingState.STARTING)
        try:
            with anyio.CancelScope() as self._run_scope:
                async with self.spec.open() as self._runner:
                    self._follow_command(self._runner)
                    await self._runner.run()
        finally:
            self._runner = None
            self._closed.set()
        if not (self._quieted or self._ending):
            raise RuntimeError("it ended although nobody told it to")

    def _follow_command(self, runner: Runner) -> None:
        """Catch up with what was commanded while the source was being opened."""
        self._opened_at = anyio.current_time()
        self._woken = anyio.Event()
        if self._quieted or self._ending:
            runner.quiet()
        elif self._paused:
            runner.close()
            self._enter(MappingState.PAUSED, self._pause_reason)
        else:
            self._enter(MappingState.RUNNING)

    async def _wait_for_command(self, longest: float | None) -> None:
        with anyio.move_on_after(longest):
            await self._woken.wait()
        self._woken = anyio.Event()

    def _failed(self, error: BaseException) -> float | None:
        """Note a failure and return the pause before the next try, None for none until a command."""
        now = anyio.current_time()
        if self._opened_at is not None and now - self._opened_at > SETTLED:
            self._failures = 0
        pause: float | None = backoff(self._failures, self._world.chance())
        self._failures += 1
        self.restarts += 1
        if isinstance(error, PollerError):
            self._enter(MappingState.FAILED, f"{error}; next try in {pause:.2g} s")
            return pause
        reason = f"crashed: {type(error).__name__}: {error}"
        self._crashes.append(now)
        if len(self._crashes) == CRASH_BUDGET and now - self._crashes[0] < CRASH_PERIOD:
            pause = None
            reason += (
                f"; {CRASH_BUDGET} crashes within {CRASH_PERIOD:.0f} s, so it stays down until it is resumed"
            )
        self._enter(MappingState.FAILED, reason, error)
        return pause

    def _enter(self, state: MappingState, reason: str = "", error: BaseException | None = None) -> None:
        if state is not self._state:
            self._since = self._world.wall()
        self._state, self._reason = state, reason
        if state is not MappingState.STARTING:
            self.started.set()
        self._observer.state_changed(StateChanged(self.spec.name, state, reason, error))

    # --- commands -------------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """Receive no more; what is at work goes on, what no handler saw is given back."""
        if self._quieted:
            return
        self._paused, self._pause_reason = True, BY_COMMAND
        if self._runner:
            self._runner.close()
            self._enter(MappingState.PAUSED, self._pause_reason)
        else:
            self._woken.set()

    def resume(self) -> None:
        """Go on after a pause, or try a failed mapping again now."""
        if self._quieted:
            return
        self._paused = False
        self._crashes.clear()
        if self._runner and not self._ending:
            self._runner.open()
            self._enter(MappingState.RUNNING)
        else:
            self._woken.set()

    async def resume_keys(self, key: str | None) -> tuple[Resumed, ...]:
        """Take up one parked key now, or all of them, and say what came of it within a while.

        Raises PollerError for a key that is not parked, for a mapping that parks none, and while it is not running.
        """
        if self._runner is None:
            raise PollerError(
                f"it is {self.state}, so nothing parked can be taken up: poller status {self.spec.name}"
            )
        if self._runner.unparking is None:
            raise PollerError('it parks no keys: that takes on_poison = "park"')
        return await self._runner.unparking.resume(key)

    def quiet(self) -> None:
        """Receive no more, for good; `done` is set when everything at work has ended."""
        self._quieted = True
        if self._runner:
            self._runner.quiet()
            if self._state is not MappingState.DRAINING:
                self._enter(MappingState.DRAINING)
        else:
            # The source is not open, so there is nothing to drain.
            self.scope.cancel()
        self._woken.set()

    @property
    def paused_by_command(self) -> bool:
        """Whether it takes a `resume` to go on, whatever the config says."""
        return self._paused and self._pause_reason == BY_COMMAND

    def check_paused(self) -> None:
        """Raise PollerError when the mapping is not paused."""
        if not self._paused:
            raise PollerError(f"it is {self.state}, not paused: poller pause {self.spec.name}")

    @asynccontextmanager
    async def put_down(self, patience: float) -> AsyncIterator[None]:
        """A paused mapping with its source closed: nothing reads it and no progress is noted, until this is left.

        What is at work has `patience` seconds to end. The source is opened anew by `resume`, and not before this is left. One
        caller at a time. Raises PollerError when the mapping is not paused.
        """
        self.check_paused()
        self._held = self._ending = True
        try:
            if self._runner:
                self._runner.quiet()
            with anyio.move_on_after(patience):
                await self._closed.wait()
            self._run_scope.cancel()
            await self._closed.wait()
            yield
        finally:
            # A caller that gives up while work is ending must not leave a source that nobody can open again before it has.
            self._run_scope.cancel()
            self._held = False
            self._woken.set()

    # --- what it is doing -----------------------------------------------------------------------------------------------

    @property
    def state(self) -> MappingState:
        """Where the mapping stands now."""
        if self._state is MappingState.RUNNING and self._runner and self._runner.trouble:
            return MappingState.DEGRADED
        return self._state

    @property
    def reason(self) -> str:
        """Why it stands there, as far as there is something to say."""
        if self._state is MappingState.RUNNING and self._runner:
            if self._runner.trouble:
                return self._runner.trouble
            if self._runner.at_capacity:
                return f"at the concurrency limit: {self._runner.load().in_flight_invocations} invocations in flight"
        return self._reason

    def status(self, totals: Totals) -> MappingStatus:
        """A snapshot."""
        load = self._runner.load() if self._runner else IDLE
        unparking = self._runner.unparking if self._runner else None
        return MappingStatus(
            name=self.spec.name,
            source=self.spec.source,
            function=self.spec.function,
            state=self.state,
            reason=self.reason,
            since=self._since,
            receivers=load.receivers,
            in_flight_invocations=load.in_flight_invocations,
            in_flight_records=load.in_flight_records,
            buffered_records=load.buffered_records,
            buffered_bytes=load.buffered_bytes,
            restarts=self.restarts,
            totals=totals,
            shards=self._runner.shards() if self._runner else (),
            circuit=self._runner.circuit if self._runner else None,
            spool=self.spec.spool(),
            parked=unparking.status() if unparking else None,
        )


def leaf(error: BaseException) -> BaseException:
    """The first single exception inside nested groups: what went wrong, without the task groups that it came through."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
