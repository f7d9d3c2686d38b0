"""A fleet in virtual time: workers that share a memory store over a network that delays, loses and repeats.

Nothing waits here. Events lie in a heap, the earliest happens next, and chance comes from one seed, so that a run is the same
each time. Each worker has a clock of its own, minutes apart from the others. What happens in the table is watched:

* a commit must begin where the last one of its shard ended, so two owners can never both commit;
* no two workers may believe at the same time that they read a shard, but for one that is stopped and cannot know;
* how long a shard has nobody who reads it is measured, from the moment that its reader died.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import count
from random import Random
from typing import TYPE_CHECKING, Any

from poller.core.leases import (
    FAILOVER_TIME,
    HELD,
    Claim,
    HandOff,
    Held,
    Lost,
    Release,
    Renew,
    Want,
    look_interval,
    plan,
    upkeep,
)
from poller.core.sightings import Sightings
from poller.core.survey import Survey, heirs, survey
from poller.model import Checkpoint, Lease, LeaseKey, Listing, Worker
from poller.stores.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from poller.core.leases import Action

MAPPING = "clicks"
#: Seconds after which a request that got no answer is given up.
TIMEOUT = 2.0
#: Seconds from one sign of life to the next, and between two looks at what has to be renewed.
BEAT = FAILOVER_TIME / 2
TICK = 0.9


def result(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What the memory store answers: it never waits."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waited")


@dataclass
class Network:
    """What befalls requests. The parts are chances."""

    latency: float = 0.01
    lost_requests: float = 0.0
    lost_answers: float = 0.0
    repeated: float = 0.0
    slow: float = 0.0
    """Requests that take a hundred times as long."""


class Store(MemoryStore):
    """A memory store that lets the watch look in."""

    def counter(self, key: LeaseKey) -> int:
        return self._leases[key].counter


@dataclass(eq=False)
class Reading:
    """A lease that a worker reads."""

    lease: Lease
    renewed: float
    began: float
    at: int
    draining: bool = False
    stuck: bool = False
    asking: bool = False
    """A renewal is on its way."""

    def checkpoint(self, now: float) -> Checkpoint:
        """A record a second, all of them done at once."""
        return Checkpoint(str(self.at + int(now - self.began)))


class Fleet:
    """The table, the network, the workers, and what they did."""

    def __init__(
        self, shards: dict[str, float], seed: int = 0, network: Network | None = None, phases: int = 0
    ) -> None:
        self.now = 0.0
        self.chance = Random(seed)
        self.network = network or Network()
        self.store = Store()
        self.true_loads = shards
        self.workers: list[SimulatedWorker] = []
        self.writes: Counter[int] = Counter()
        """Writes to the table, refused ones included, by second."""
        self.moves: list[tuple[float, LeaseKey]] = []
        """Changes from one owner that was there to another."""
        self.gaps: list[tuple[float, float]] = []
        """When a shard was taken up again, and how long nobody had read it."""
        self.orphans: dict[LeaseKey, float] = {}
        self.readers: dict[LeaseKey, set[SimulatedWorker]] = {}
        self.committed: dict[LeaseKey, int] = {}
        self.commits = 0
        self.phases = phases
        """Into how many groups the workers fall that look at the same moment; 0 for each on its own."""
        self._looks: dict[tuple[int, float, float], tuple[Sightings, Sightings, Survey]] = {}
        self._listed = (-1.0, Listing((), ()))
        self._events: list[tuple[float, int, SimulatedWorker | None, Callable[[], None]]] = []
        self._order = count()
        self._by_name: dict[str, SimulatedWorker] = {}
        self._names = count(1)
        for shard, load in shards.items():
            lease = Lease(MAPPING, shard, load=load)
            result(self.store.add(lease))
            self.orphans[lease.key] = 0.0
            self.committed[lease.key] = 0

    # --- time -----------------------------------------------------------------------------------------------------------

    def after(self, seconds: float, do: Callable[[], None], worker: SimulatedWorker | None = None) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), worker, do))

    def run(self, until: float) -> None:
        """Let everything happen that happens before `until`."""
        while self._events and self._events[0][0] < until:
            self.now, _, worker, do = heapq.heappop(self._events)
            if worker is None:
                do()
            elif worker.stopped_until > self.now:
                self.after(worker.stopped_until - self.now, do, worker)
            elif worker.alive:
                do()
        self.now = until

    # --- workers --------------------------------------------------------------------------------------------------------

    def join(self, number: int = 1) -> list[SimulatedWorker]:
        joined = [SimulatedWorker(self, f"worker-{next(self._names)}") for _ in range(number)]
        self.workers += joined
        self._by_name |= {worker.id: worker for worker in joined}
        for worker in joined:
            worker.start()
        return joined

    def kill(self, worker: SimulatedWorker) -> None:
        worker.alive = False
        for key in list(worker.held):
            self.stopped_reading(worker, key)

    def alive(self) -> list[SimulatedWorker]:
        return [worker for worker in self.workers if worker.alive]

    def is_alive(self, name: str) -> bool:
        return self._by_name[name].alive

    def some(self) -> SimulatedWorker:
        return self.chance.choice(self.alive())

    def some_that_stays(self) -> SimulatedWorker:
        return self.chance.choice([worker for worker in self.alive() if not worker.leaving])

    # --- what is watched ------------------------------------------------------------------------------------------------

    def began_reading(self, worker: SimulatedWorker, lease: Lease) -> None:
        readers = self.readers.setdefault(lease.key, set())
        awake = [other for other in readers if other.stopped_until < self.now and other is not worker]
        assert not awake, f"{lease.shard} is read by {worker} and {awake}"
        readers.add(worker)
        since = self.orphans.pop(lease.key, None)
        if since is not None:
            self.gaps.append((self.now, self.now - since))

    def stopped_reading(self, worker: SimulatedWorker, key: LeaseKey) -> None:
        readers = self.readers[key]
        readers.discard(worker)
        if not readers:
            self.orphans.setdefault(key, self.now)

    def commit(self, lease: Lease, checkpoint: Checkpoint) -> None:
        """A write that carries `checkpoint` is carried out for who saw the row as `lease`."""
        begins, ends = int(lease.checkpoint.sequence_number or 0), int(checkpoint.sequence_number)
        assert begins == self.committed[lease.key], (
            f"{lease.shard} was committed by two: {lease.owner} is one"
        )
        self.committed[lease.key] = ends
        self.commits += 1

    def loads(self) -> dict[str, float]:
        """What the workers carry in truth."""
        return {worker.id: sum(self.true_loads[shard] for _, shard in worker.held) for worker in self.alive()}

    def imbalance(self) -> float:
        loads = self.loads().values()
        return max(loads) / min(loads) if min(loads) else float("inf")

    def unread(self) -> set[LeaseKey]:
        return set(self.orphans)

    # --- the table, at the other end of the network ---------------------------------------------------------------------

    def ask(
        self,
        worker: SimulatedWorker,
        call: Callable[[], Any],
        answered: Callable[[Any], None],
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        """Carry out `call` at the table, and one of the others at `worker`, or none when it is no more there."""
        network, chance = self.network, self.chance
        slow = 100.0 if network.slow and chance.random() < network.slow else 1.0
        there = self.latency() * slow
        if worker.cut_off_until > self.now or (
            network.lost_requests and chance.random() < network.lost_requests
        ):
            self.after(TIMEOUT, failed, worker)
            return

        def arrive() -> None:
            answer = call()
            back = self.latency() * slow
            is_lost = network.lost_answers and chance.random() < network.lost_answers
            if is_lost or worker.cut_off_until > self.now or there + back > TIMEOUT:
                self.after(max(0.0, TIMEOUT - there), failed, worker)
            else:
                self.after(back, lambda: answered(answer), worker)
            if network.repeated and chance.random() < network.repeated:
                self.after(self.latency() * 50, call)

        self.after(there, arrive)

    def listing(self) -> Listing:
        """The rows; all who read at the same moment get the same."""
        if self._listed[0] != self.now:
            self._listed = (self.now, result(self.store.list()))
        return self._listed[1]

    def is_as_seen(self, lease: Lease) -> bool:
        """Whether a write on the condition of `lease` would be a new one."""
        return self.store.counter(lease.key) == lease.counter

    def latency(self) -> float:
        return self.network.latency * self.chance.uniform(0.5, 1.5) if self.network.latency else 0.0

    def written(self) -> None:
        self.writes[int(self.now)] += 1

    def look(
        self, sightings: Sightings, listing: Listing, asked: float, answered: float
    ) -> tuple[Sightings, Survey]:
        """What a worker makes of a look; equal arguments are worked out once, which is what keeps large runs short."""
        key = (id(sightings), asked, answered)
        if key not in self._looks:
            folded = sightings.fold(listing, asked, answered)
            self._looks[key] = (sightings, folded, survey(listing, folded, FAILOVER_TIME))
            if len(self._looks) > 64:
                del self._looks[next(iter(self._looks))]
        return self._looks[key][1:]


_NOTHING_SEEN = Sightings()


class SimulatedWorker:
    """One daemon, as far as leases go."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        self.id = name
        self.alive = True
        self.stopped_until = -1.0
        self.cut_off_until = -1.0
        self.held: dict[LeaseKey, Reading] = {}
        self.leaving = False
        self._fleet = fleet
        self._me = Worker(name, frozenset({MAPPING}))
        # With phases, all of a phase have one clock and so one look.
        self._ahead = 0.0 if fleet.phases else fleet.chance.uniform(-300, 300)
        self._sightings = _NOTHING_SEEN
        self._survey: Survey | None = None
        self._looks = 0
        self._asking: set[LeaseKey] = set()
        self._asked: dict[LeaseKey, tuple[int, float]] = {}
        self._shunned: dict[LeaseKey, float] = {}

    def __repr__(self) -> str:
        return self.id

    def clock(self) -> float:
        return self._fleet.now + self._ahead

    def start(self) -> None:
        fleet = self._fleet
        interval = look_interval(len(fleet.true_loads))
        phase = fleet.chance.uniform(0, 1)
        if fleet.phases:
            phase = fleet.chance.randrange(fleet.phases) * interval / fleet.phases
        self._after(phase, self._beat)
        self._after(phase, self._look)
        self._after(phase, self._tick)

    def leave(self) -> None:
        """SIGTERM: give everything back, then be gone."""
        self.leaving = True
        self._me = me = Worker(self.id, frozenset(), self._me.counter + 1)
        self._write(lambda: result(self._fleet.store.beat(me)), lambda _: None)
        left = [reading.lease for reading in self.held.values()]
        found = heirs(self._survey, self.id, left) if self._survey else {}
        for reading in list(self.held.values()):
            self._drain(reading, found.get(reading.lease.key, ""))
        self._go(4)
        self._after(10, lambda: self._fleet.kill(self))

    def _go(self, looks: int) -> None:
        """Give back what was handed over meanwhile, and remove the own row, once nothing is read any more."""

        def see(listing: Listing) -> None:
            for lease in listing.leases:
                if lease.owner == self.id:
                    self._write(partial(self._give_back, lease), lambda _: None)
            if looks and any(lease.wanted_by == self.id for lease in listing.leases):
                self._after(0.25, lambda: self._go(looks - 1))
            else:
                self._write(lambda: result(self._fleet.store.leave(self._me)), lambda _: None)

        if self.held:
            self._after(0.1, lambda: self._go(looks))
        else:
            self._fleet.ask(self, self._fleet.listing, see)

    def _give_back(self, lease: Lease) -> None:
        if row := result(self._fleet.store.claim(lease, self.id)):
            result(self._fleet.store.release(row, row.checkpoint))

    def _after(self, seconds: float, do: Callable[[], None]) -> None:
        self._fleet.after(seconds, do, self)

    # --- being there ----------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        if self.leaving:
            return
        self._me = me = Worker(self.id, self._me.mappings, self._me.counter + 1)
        self._write(lambda: result(self._fleet.store.beat(me)), lambda _: None)
        self._after(BEAT, self._beat)

    # --- looking --------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        asked, fleet = self.clock(), self._fleet
        self._looks += 1

        def see(listing: Listing) -> None:
            self._sightings, found = fleet.look(self._sightings, listing, asked, self.clock())
            self._survey = found
            # One that is new waits for the others that are new, so that it does not take what is for all of them.
            if self._looks > 1:
                counters = {key: reading.lease.counter for key, reading in self.held.items()}
                shunned = {key for key, until in self._shunned.items() if until > self.clock()}
                for action in plan(found, self._me, counters, shunned):
                    self._act(action)

        if fleet.phases:
            see(fleet.listing())
        else:
            fleet.ask(self, fleet.listing, see)
        if not self.leaving:
            self._after(look_interval(len(fleet.true_loads)), self._look)

    def _act(self, action: Action) -> None:
        lease = action.lease
        reading = self.held.get(lease.key)
        match action:
            case Claim():
                self._claim(lease)
            case Want():
                self._write(lambda: result(self._fleet.store.want(lease, self.id)), lambda _: None)
            case HandOff() if reading and not reading.draining:
                self._drain(reading, action.to)
            case Release() if reading and not reading.draining:
                self._drain(reading, "")
            case Lost() if reading:
                self._drop(reading)

    def _claim(self, lease: Lease) -> None:
        if lease.key in self._asking or lease.key in self.held:
            return
        self._asking.add(lease.key)
        asked, fleet = self._first_asked(lease, self._sightings.at), self._fleet

        def call() -> Lease | None:
            is_new = fleet.is_as_seen(lease)
            row: Lease | None = result(fleet.store.claim(lease, self.id))
            if is_new and row and lease.owner not in ("", self.id) and fleet.is_alive(lease.owner):
                fleet.moves.append((fleet.now, lease.key))
            return row

        def answered(row: Lease | None) -> None:
            self._asking.discard(lease.key)
            # An answer that took so long is none: the lease may be another's by now.
            if row and not self.leaving and self.clock() - asked < FAILOVER_TIME * HELD:
                position = int(row.checkpoint.sequence_number or 0)
                self.held[row.key] = Reading(row, asked, fleet.now, position)
                fleet.began_reading(self, row)

        self._write(call, answered, lambda: self._asking.discard(lease.key))

    def _first_asked(self, lease: Lease, now: float) -> float:
        """When this change was asked for first: what is found to have happened may have happened then."""
        before = self._asked.get(lease.key)
        if before is None or before[0] != lease.counter:
            before = self._asked[lease.key] = (lease.counter, now)
        return before[1]

    # --- holding --------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        held = [
            Held(reading.lease, reading.renewed, not reading.stuck and not reading.asking)
            for reading in self.held.values()
        ]
        for action in upkeep(held, self.clock()):
            reading = self.held[action.lease.key]
            if isinstance(action, Renew):
                self._renew(reading)
            else:
                if reading.stuck:
                    self._shunned[reading.lease.key] = self.clock() + 3 * FAILOVER_TIME
                self._drop(reading)
        self._after(TICK, self._tick)

    def _renew(self, reading: Reading) -> None:
        fleet, lease = self._fleet, reading.lease
        asked = self._first_asked(lease, self.clock())
        checkpoint = reading.checkpoint(fleet.now)
        load = fleet.true_loads[lease.shard] * fleet.chance.uniform(0.97, 1.03)
        reading.asking = True

        def call() -> Lease | None:
            is_new = fleet.is_as_seen(lease)
            row: Lease | None = result(fleet.store.renew(lease, checkpoint, load))
            if is_new and row:
                fleet.commit(lease, checkpoint)
            return row

        def answered(row: Lease | None) -> None:
            reading.asking = False
            if self.held.get(lease.key) is not reading:
                return
            if row is None:
                self._drop(reading)
                return
            reading.lease, reading.renewed = row, asked
            if row.wanted_by != self.id and self._takes(row.wanted_by):
                self._drain(reading, row.wanted_by)

        def failed() -> None:
            reading.asking = False

        self._write(call, answered, failed)

    def _takes(self, worker: str) -> bool:
        return self._survey is not None and self._survey.takes(worker, MAPPING)

    def _drain(self, reading: Reading, to: str) -> None:
        """Let the batch in flight end, then hand over."""
        if reading.draining:
            return
        reading.draining = True
        self._after(self._fleet.chance.uniform(0, 1), lambda: self._hand_over(reading, to))

    def _hand_over(self, reading: Reading, to: str) -> None:
        fleet, lease = self._fleet, reading.lease
        if self.held.get(lease.key) is not reading:
            return
        if reading.asking:
            self._after(0.1, lambda: self._hand_over(reading, to))
            return
        checkpoint = reading.checkpoint(fleet.now)
        heir = to if self._takes(to) else ""
        self._drop(reading)

        def call() -> bool:
            is_new = fleet.is_as_seen(lease)
            happened: bool = result(fleet.store.release(lease, checkpoint, heir))
            if is_new and happened:
                fleet.commit(lease, checkpoint)
                if heir:
                    fleet.moves.append((fleet.now, lease.key))
            return happened

        self._write(call, lambda _: None)

    def _drop(self, reading: Reading) -> None:
        del self.held[reading.lease.key]
        self._fleet.stopped_reading(self, reading.lease.key)

    def _write(
        self,
        call: Callable[[], Any],
        answered: Callable[[Any], None],
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        self._fleet.written()
        self._fleet.ask(self, call, answered, failed)
