"""A circuit breaker at work: it hears how a mapping's invocations end, and closes and opens the mapping's door.

`core.breaker.Circuit` decides. Three things here carry that out:

* `GuardedDispatch`, the way to the function, asks the `Breaker` before an invocation and tells it the outcome.
* `Breaker` holds invocations back while the circuit is half-open or ramping, and closes the door in the moment in which the
  circuit opens: no invocation begins after that.
* `Guarded`, the mapping as its child sees it, opens the door again for a probe when the pause is over, unless the mapping is
  paused by command. A resume by command probes at once.

*Queues.* A message counts a receive as soon as it is received, so the limit holds for workers: as many exist as invocations are
allowed, besides those whose invocation is older than the last opening and still runs. *Streams.* Reading costs nothing, so each
lane may have a batch at hand, and the limit holds for invocations. A poison record must hold up its own lane and no other. So
a lane that has failed since anybody's last success lets others go first with the probe, for `PRECEDENCE` seconds in which they
may read; and once another lane has succeeded where it failed, its failures do not count until it has succeeded too.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakSet

import anyio

from poller.core.breaker import Circuit, verdict
from poller.engine.dispatch import Dispatch
from poller.engine.slots import Places, Slots
from poller.model import CircuitChanged, CircuitState

if TYPE_CHECKING:
    from collections.abc import Callable

    from poller.core.breaker import CircuitPolicy
    from poller.engine.child import Runner
    from poller.engine.door import Door
    from poller.engine.invoker import Call, Invoker
    from poller.engine.status import Load, ShardStatus
    from poller.engine.unparking import Unparking
    from poller.model import Outcome


#: Seconds for which a lane that has failed leaves the probe to others: a read takes less, if there is anything to be read.
PRECEDENCE = 5.0


class Entry(NamedTuple):
    """The leave to invoke once."""

    generation: int
    gate: Slots | None
    """Where it was waited for; None when nothing had to be."""


class Breaker:
    """The circuit breaker of one mapping, over all of its workers or lanes."""

    def __init__(self, mapping: str, policy: CircuitPolicy, door: Door, invoker: Invoker) -> None:
        self.door = door
        self.circuit = Circuit(policy)
        self.stragglers = 0
        """Invocations in flight that are older than the last opening."""
        self.changed = anyio.Event()
        """Set, and replaced, when the circuit opens."""
        self.trip: Callable[[], None] = door.close
        """Closes the door, with all that this takes."""
        self.limit: Callable[[], int] = lambda: 1
        """The mapping's own limit of invocations in flight, such as its lanes; set, with `trip`, by whoever guards it."""
        self._mapping = mapping
        self._observer = invoker.observer
        self._world = invoker.world
        self._slots = invoker.slots
        self._in_flight = 0
        self._places = Places(1)
        self._gate = Slots(self._places, None)
        # Lanes that have failed since the last success of any, and those that failed when others succeeded.
        self._failing: WeakSet[Dispatch] = WeakSet()
        self._suspects: WeakSet[Dispatch] = WeakSet()

    def __repr__(self) -> str:
        return f"<Breaker {self._mapping}: {self.circuit!r}>"

    async def enter(self, who: Dispatch, call: Call) -> Entry | None:
        """Wait until `who` may invoke; None when the door is closed, or closes before."""
        circuit = self.circuit
        if call.shard and circuit.state is CircuitState.HALF_OPEN and self._yields(who):
            await who.door.unless_closed(partial(anyio.sleep, PRECEDENCE))
        if not who.door.is_open:
            return None
        gate: Slots | None = None
        if circuit.state is not CircuitState.CLOSED:
            gate = self._gate
            if not (gate.try_acquire() or await who.door.unless_closed(gate.acquire)):
                return None
            if circuit.state is CircuitState.OPEN or gate is not self._gate:
                # It was let through in the moment in which the circuit opened.
                gate.release()
                return None
        self._in_flight += 1
        return Entry(circuit.generation, gate)

    def _yields(self, who: Dispatch) -> bool:
        return who in self._suspects or (who in self._failing and len(self._failing) < self.limit())

    def leave(self, who: Dispatch, entry: Entry, call: Call, outcome: Outcome | None) -> None:
        """An invocation has ended; `outcome` is None when it did not come to one."""
        if entry.generation == self.circuit.generation:
            self._in_flight -= 1
            if outcome is not None:
                self._hear(who, call, outcome)
        else:
            self.stragglers -= 1
        if entry.gate:
            entry.gate.release()

    def _hear(self, who: Dispatch, call: Call, outcome: Outcome) -> None:
        judged = verdict(outcome, call.records, ordered=bool(call.shard))
        if judged is None:
            return
        done, error = judged
        circuit, before, now = self.circuit, self.circuit.state, anyio.current_time()
        if not self._counts(who, done=done) and before is not CircuitState.HALF_OPEN:
            return
        ceiling = min(self._slots.total, self.limit())
        circuit.heard(done, error, now=now, chance=self._world.chance(), ceiling=ceiling)
        if circuit.state is CircuitState.OPEN:
            self._opened()
        elif before is not CircuitState.CLOSED:
            self._places.resize(int(min(circuit.allowed, sys.maxsize)))
        if circuit.state is not before:
            self._tell(before)

    def _counts(self, who: Dispatch, *, done: bool) -> bool:
        """Whether this says something about the function, and not about one poison record."""
        if not done:
            if len(self._failing) >= self.limit():
                # Each had its turn: the next round of probes begins behind the one that had the last.
                self._failing.clear()
            self._failing.add(who)
            return who not in self._suspects
        if self._failing:
            self._suspects |= self._failing
            self._failing.clear()
        if self._suspects:
            self._suspects.discard(who)
        return True

    def _opened(self) -> None:
        self.stragglers += self._in_flight
        self._in_flight = 0
        self.trip()
        self.changed.set()
        self.changed = anyio.Event()

    def probe(self) -> None:
        """Let one invocation through; the door is opened by whoever calls."""
        before = self.circuit.state
        self.circuit.probe()
        # Invocations of before may hold places of the last gate for long.
        self._places = Places(1)
        self._gate = Slots(self._places, None)
        self._tell(before)

    def _tell(self, before: CircuitState) -> None:
        circuit = self.circuit
        probe_in = circuit.probe_at - anyio.current_time() if circuit.state is CircuitState.OPEN else 0.0
        self._observer.circuit_changed(
            CircuitChanged(self._mapping, before, circuit.state, circuit.failures, circuit.error, probe_in)
        )


class GuardedDispatch(Dispatch):
    """The way of batches to their function when a breaker stands in it."""

    def __init__(
        self, invoker: Invoker, breaker: Breaker, door: Door, maximum_concurrency: int | None
    ) -> None:
        super().__init__(invoker, door, maximum_concurrency)
        self._breaker = breaker
        self._withdraws = door

    @property
    def generation(self) -> int:  # type: ignore[override]  # constant for who has no breaker
        return self._breaker.circuit.generation

    @property
    def ceiling(self) -> int:
        circuit = self._breaker.circuit
        return int(min(super().ceiling, circuit.allowed + self._breaker.stragglers))

    async def invoke(self, call: Call) -> Outcome | None:
        entry = await self._breaker.enter(self, call)
        if entry is None:
            return None
        outcome: Outcome | None = None
        try:
            outcome = await super().invoke(call)
        finally:
            self._breaker.leave(self, entry, call, outcome)
        return outcome


class Guarded:
    """A mapping with a circuit breaker; see `poller.engine.child.Runner`."""

    def __init__(self, runner: Runner, breaker: Breaker, limit: Callable[[], int]) -> None:
        self._runner = runner
        self._breaker = breaker
        self._wanted = True
        breaker.trip, breaker.limit = runner.close, limit

    def __repr__(self) -> str:
        return f"<Guarded {self._runner!r}, {self._breaker.circuit!r}>"

    # --- life -----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until quiet and drained."""
        async with anyio.create_task_group() as background:
            background.start_soon(self._probe_in_time)
            await self._runner.run()
            background.cancel_scope.cancel()

    async def _probe_in_time(self) -> None:
        while True:
            changed = self._breaker.changed
            with anyio.CancelScope(deadline=self._breaker.circuit.probe_at):
                await changed.wait()
            if self._breaker.circuit.probe_at <= anyio.current_time():
                if self._wanted:
                    self.open()
                else:
                    await changed.wait()

    def close(self) -> None:
        """Receive no more; what is at work goes on. A circuit that is open stays so until `open`."""
        self._wanted = False
        self._runner.close()

    def open(self) -> None:
        """Receive again after `close`; of a circuit that is open, a probe."""
        self._wanted = True
        if self.circuit is CircuitState.OPEN:
            self._breaker.probe()
        self._runner.open()

    def quiet(self) -> None:
        """Receive no more, for good; `run` returns when what is at work is done."""
        self._wanted = False
        self._runner.quiet()

    # --- what it is doing -----------------------------------------------------------------------------------------------

    @property
    def circuit(self) -> CircuitState:
        """Where the circuit breaker stands."""
        return self._breaker.circuit.state

    @property
    def unparking(self) -> Unparking | None:
        """What takes up parked keys; None where none is ever parked."""
        return self._runner.unparking

    @property
    def trouble(self) -> str | None:
        """Why nothing is received at the moment, or only a probe."""
        if self.circuit in (CircuitState.OPEN, CircuitState.HALF_OPEN):
            return self._breaker.circuit.describe(anyio.current_time())
        return self._runner.trouble

    @property
    def at_capacity(self) -> bool:
        """True when nothing is received because the function can take no more; not what a ramp does not let through yet."""
        return self.circuit is CircuitState.CLOSED and self._runner.at_capacity

    def load(self) -> Load:
        """What is at work now."""
        return self._runner.load()

    def shards(self) -> tuple[ShardStatus, ...]:
        """Each shard, for a stream; empty for a queue."""
        shards = self._runner.shards()
        if self._wanted and self.circuit is CircuitState.OPEN:
            return tuple(
                replace(shard, doing="circuit open") if shard.doing == "paused" else shard for shard in shards
            )
        return shards


def guarded(
    runner: Runner,
    breaker: Breaker | None,
    limit: Callable[[], int],
    trip: Callable[[], None] | None = None,
) -> Runner:
    """The mapping as its child runs it; `limit` is its own limit of invocations in flight. `trip` closes the door without more,
    where the runner's `close` does more than that."""
    if breaker is None:
        return runner
    one = Guarded(runner, breaker, limit)
    if trip is not None:
        breaker.trip = trip
    return one
