"""The laws of the engine on streams: shards that split and merge, functions that misbehave, and kills at every await.

A kill comes after a number of the scheduler's rounds, so it falls between any two awaits; what it leaves behind is the store
and the stream, as a `kill -9` would.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest
import trio
from hypothesis import HealthCheck, given, register_random, settings
from hypothesis import strategies as st

from poller.core import spooled
from poller.core.breaker import CircuitPolicy
from poller.core.retry import StreamPolicy
from poller.destinations.memory import MemoryDestination
from poller.engine.slots import Places, Slots
from poller.errors import StoreError, Unreachable
from poller.model import SpoolLimits
from poller.stores._memory_spool import MemorySpool
from poller.stores.memory import MemoryStore
from tests.engine.fakes import BUSY, ERROR, OK, Dropping, Function, failing, in_virtual_time
from tests.engine.stream_fakes import Clicks, Stream

# As in test_laws: a course that broke a law can be run again.
register_random(trio._core._run._r)

KEYS = "abcdefgh"
TIMEOUT = 8.0


@dataclass(frozen=True)
class Put:
    keys: str
    size: int


@dataclass(frozen=True)
class Wait:
    seconds: float


@dataclass(frozen=True)
class Reshard:
    kind: str
    which: int


@dataclass(frozen=True)
class Kill:
    rounds: int
    """Of the scheduler, before it comes."""


@dataclass(frozen=True)
class Command:
    name: str


@dataclass(frozen=True)
class Behaviour:
    """What the function does with one invocation."""

    kind: str
    seconds: float = 0.0
    share: float = 0.0


steps = st.lists(
    st.one_of(
        st.builds(Put, st.text(KEYS, min_size=1, max_size=20), st.sampled_from([10, 100, 400])),
        st.builds(Wait, st.sampled_from([0.0, 0.3, 1.0, 7.0, 70.0])),
        st.builds(Reshard, st.sampled_from(["split", "merge"]), st.integers(0, 10)),
        st.builds(Kill, st.integers(0, 60)),
        st.builds(
            Command,
            st.sampled_from(
                [
                    "close",
                    "open",
                    "stop",
                    "no reads",
                    "no listing",
                    "no store",
                    "no destination",
                    "no destination",
                    "recover",
                ]
            ),
        ),
    ),
    max_size=15,
)
behaviours = st.lists(
    st.builds(
        Behaviour,
        st.sampled_from(["ok", "ok", "error", "partial", "hang", "refuse", "spoil"]),
        st.sampled_from([0.0, 0.1, 2.0]),
        st.floats(0, 1, exclude_max=True),
    ),
    max_size=15,
)
mappings = st.fixed_dictionaries(
    {
        "batch_size": st.sampled_from([1, 4, 10, 100]),
        "window": st.sampled_from([0.0, 0.0, 2.0, 90.0]),
        "payload": st.sampled_from([13 + 450, 6 * 2**20]),
        "lanes": st.sampled_from([1, 1, 2, 5]),
        "circuit": st.sampled_from([None, CircuitPolicy(1, 4, 60), CircuitPolicy(3, 10, 100)]),
        "spool_after": st.sampled_from([None, 1, 3]),
        "spool_limits": st.sampled_from([SpoolLimits(2, 2**20), SpoolLimits(1000, 2**20)]),
        "policy": st.builds(
            StreamPolicy,
            maximum_retry_attempts=st.sampled_from([-1, -1, 0, 2]),
            maximum_record_age_in_seconds=st.sampled_from([-1, -1, 60]),
            bisect_batch_on_function_error=st.booleans(),
        ),
    }
)


class SlowSpool(MemorySpool):
    """Can be killed before and after whatever it does, and is down together with its store."""

    def __init__(self, store: WatchedStore) -> None:
        super().__init__()
        self.store = store

    @asynccontextmanager
    async def _at_work(self):
        await anyio.lowlevel.checkpoint()
        if self.store.down:
            raise StoreError("the disk is full")
        yield
        await anyio.lowlevel.checkpoint()

    async def put(self, entries, limits):
        async with self._at_work():
            return await super().put(entries, limits)

    async def take(self, *args, **more):
        async with self._at_work():
            return await super().take(*args, **more)

    async def remove(self, mapping, numbers):
        async with self._at_work():
            await super().remove(mapping, numbers)

    async def totals(self, mapping=None, kind=None):
        async with self._at_work():
            return await super().totals(mapping, kind)

    @property
    def held(self):
        """What is stored, in order."""
        return list(self._waiting["clicks"].all.entries.values())


class SlowDestination(MemoryDestination):
    """Can be killed before and after it has taken something."""

    async def send(self, delivery):
        await anyio.lowlevel.checkpoint()
        await super().send(delivery)
        await anyio.sleep(0.1)


class WatchedStore(MemoryStore):
    """Tells the trial of every checkpoint before it is taken."""

    def __init__(self, trial: Trial) -> None:
        super().__init__()
        self.trial = trial
        self.down = False
        self.spool = SlowSpool(self)

    async def save(self, mapping, shard, checkpoint):
        await anyio.lowlevel.checkpoint()
        if self.down:
            raise StoreError("the disk is full")
        self.trial.check_checkpoint(shard, checkpoint)
        return await super().save(mapping, shard, checkpoint)


@dataclass
class Trial:
    """One mapping through a random course, with what the laws speak of written down on the way."""

    settings: dict
    behaviours: list[Behaviour]
    partial: bool
    stream: Stream = field(default_factory=Stream)
    destination: SlowDestination = field(default_factory=SlowDestination)
    dropped: set[str] = field(default_factory=set)
    #: Of each key, in the order in which they were put.
    put: dict[str, list[str]] = field(default_factory=dict)
    #: Ids in the order in which an invocation first finished them.
    handled: dict[str, None] = field(default_factory=dict)
    given_up: set[str] = field(default_factory=set)
    broken: list[str] = field(default_factory=list)
    #: Whether checkpoints may have been lost, so that batches were worked on again and came to another end.
    repeats: bool = False

    def __post_init__(self):
        self.store = WatchedStore(self)
        self.homes = dict.fromkeys(KEYS, "shard-000")
        self.filters = Dropping()
        self.clicks = self.new_clicks()

    def new_clicks(self):
        return Clicks(
            stream=self.stream,
            store=self.store,
            destination=self.destination,
            function=Function(handler=self.handler),
            partial=self.partial,
            filters=self.filters,
            slots=Slots(Places(4), 3),
            timeout=TIMEOUT,
            **self.settings,
        )

    # --- the function ---------------------------------------------------------------------------------------------------

    async def handler(self, call):
        self.check_circuit()
        behaviour = self.behaviours.pop(0) if self.behaviours else Behaviour("ok")
        ids = list(call.ids)
        await anyio.sleep(1000 if behaviour.kind == "hang" else behaviour.seconds)
        if behaviour.kind == "spoil":
            for record in call.invocation.event["Records"]:
                record.clear()
            return ERROR
        if behaviour.kind in ("error", "refuse"):
            return ERROR if behaviour.kind == "error" else BUSY
        partly = behaviour.kind == "partial" and self.partial
        done = int(behaviour.share * len(ids)) if partly else len(ids)
        self.handled |= dict.fromkeys(ids[:done])
        return failing(*ids[done:]) if done < len(ids) else OK

    def check_circuit(self):
        breaker, running = self.clicks.keeper.breaker, self.clicks.function.running
        unparking = self.clicks.keeper.unparking
        # Taken up while the circuit was closed, which hears nothing of it.
        unheard = unparking._dispatch.in_flight_invocations if unparking else 0
        if breaker and running > breaker.circuit.allowed + breaker.stragglers + unheard:
            self.broken.append(f"{running} invocations in flight: {breaker}")

    # --- the course -----------------------------------------------------------------------------------------------------

    async def run(self, steps):
        rest = list(steps)
        while rest:
            with anyio.CancelScope() as process:
                async with self.clicks.open() as keeper, anyio.create_task_group() as tasks:
                    tasks.start_soon(keeper.run)
                    if await self.until_it_ends(keeper, rest):
                        self.store.down = True
                        process.cancel()
                    else:
                        keeper.quiet()
            self.check_nothing_is_kept()
            self.repeats = self.repeats or self.store.down
            self.mend()
            self.clicks = self.new_clicks()
        await self.finish()

    async def until_it_ends(self, keeper, rest):
        """Take steps until one ends this process: True for a kill, False for a stop."""
        while rest:
            match rest.pop(0):
                case Put(keys, size):
                    self.send(keys, size)
                case Wait(seconds):
                    await anyio.sleep(seconds)
                case Reshard(kind, which):
                    self.reshard(kind, which)
                case Kill(rounds):
                    for _ in range(rounds):
                        await anyio.lowlevel.checkpoint()
                    return True
                case Command("stop"):
                    return False
                case Command(name):
                    self.command(keeper, name)
        return False

    def send(self, keys, size):
        for key in keys:
            (number,) = self.stream.put(shard=self.homes[key], key=key, size=size)
            self.put.setdefault(key, []).append(number)
            if int(number) % 7 == 0:
                self.filters.ids.add(number)

    def reshard(self, kind, which):
        homes = sorted(set(self.homes.values()))
        home = homes[which % len(homes)]
        if kind == "split":
            one, other = self.stream.split(home)
            keys = [key for key in KEYS if self.homes[key] == home]
            for index, key in enumerate(keys):
                self.homes[key] = one if index < len(keys) // 2 else other
        elif len(homes) > 1:
            neighbour = homes[(which + 1) % len(homes)]
            merged = self.stream.merge(home, neighbour)
            self.homes = {key: merged if at in (home, neighbour) else at for key, at in self.homes.items()}

    def command(self, keeper, name):
        match name:
            case "close":
                keeper.close()
            case "open":
                keeper.open()
            case "no reads":
                self.stream.failures = [Unreachable("down")] * 3
            case "no listing":
                self.stream.listing_failures = [None, Unreachable("down")]
            case "no store":
                self.store.down = True
            case "no destination":
                self.destination.broken = Unreachable("down")
            case "recover":
                self.recover()

    def recover(self):
        self.mend()
        self.destination.broken = None

    def mend(self):
        """What a new process would not find as it was."""
        self.store.down = False
        self.stream.failures, self.stream.listing_failures = [], []

    async def finish(self):
        """From here on all is well: whatever is left must be handled."""
        self.recover()
        async with self.clicks.open() as keeper, anyio.create_task_group() as tasks:
            tasks.start_soon(keeper.run)
            for _ in range(30):
                await anyio.sleep(200)
                if not (self.missing() or self.store.spool.held):
                    break
            await anyio.sleep(200)
            load = keeper.load()
            assert (load.in_flight_records, load.buffered_records, load.buffered_bytes) == (0, 0, 0)
            keeper.quiet()
        self.check_nothing_is_kept()
        self.note_given_up()

    # --- the laws -------------------------------------------------------------------------------------------------------

    def records_of(self, failure):
        info = failure.document["KinesisBatchInfo"]
        first, last = int(info["startSequenceNumber"]), int(info["endSequenceNumber"])
        return [record.id for record in self.stream.records[failure.shard] if first <= int(record.id) <= last]

    def note_given_up(self):
        for failure in self.destination.deliveries:
            self.given_up.update(self.records_of(failure))

    def is_done(self, number):
        return number in self.handled or number in self.given_up or number in self.filters.ids

    def spooled(self):
        return {id_ for entry in self.store.spool.held for id_ in self.records_of(spooled.delivery(entry))}

    def missing(self):
        self.note_given_up()
        return [number for numbers in self.put.values() for number in numbers if not self.is_done(number)]

    def check_checkpoint(self, shard, checkpoint):
        """The checkpoint passes no record that is open, and what is spooled keeps its limits."""
        self.note_given_up()
        spooled = self.spooled()
        if len(self.store.spool.held) > self.settings["spool_limits"].entries:
            self.broken.append("the spool is over its limits")
        for record in self.stream.records[shard]:
            behind = checkpoint.finished or int(record.id) <= int(checkpoint.sequence_number or 0)
            if behind and not self.is_done(record.id) and record.id not in spooled:
                self.broken.append(f"the checkpoint of {shard} is at {checkpoint} and {record.id} is open")

    def check_nothing_is_kept(self):
        if self.clicks.slots.taken or self.clicks.function.running or any(self.stream.reading.values()):
            self.broken.append("something was kept over a stop")
        if self.clicks.function.overlaps:
            self.broken.append(f"two batches of one key at a time: {self.clicks.function.overlaps}")

    def check_order_of_failures(self):
        """What is given up of a shard with one lane comes to the destination in the order of the shard."""
        arrived: dict[str, dict[str, None]] = {}
        for failure in self.destination.deliveries:
            arrived.setdefault(failure.shard, {}).update(dict.fromkeys(self.records_of(failure)))
        for shard, ids in arrived.items():
            assert list(ids) == sorted(ids, key=int), f"{shard} is given up in the order {list(ids)}"

    def check(self):
        assert self.broken == []
        assert self.store.spool.held == []
        if self.settings["lanes"] == 1 and not self.repeats:
            self.check_order_of_failures()
        assert self.missing() == []
        assert self.filters.ids.isdisjoint(self.handled)
        assert self.clicks.slots._places.taken == 0
        for numbers in self.put.values():
            order = [number for number in self.handled if number in numbers]
            # What was given up may have been handled by an attempt of before a kill.
            assert [number for number in order if number not in self.given_up] == [
                number for number in numbers if number in self.handled and number not in self.given_up
            ]


def run_trial(settings_of_mapping, steps, behaviours, partial):
    async def body():
        trial = Trial(settings_of_mapping, list(behaviours), partial)
        await trial.run(steps)
        trial.check()

    in_virtual_time(body)


COURSES = {
    "steps": steps,
    "behaviours": behaviours,
    "settings_of_mapping": mappings,
    "partial": st.booleans(),
}

storm = st.lists(
    st.one_of(
        st.builds(Put, st.text(KEYS, min_size=1, max_size=6), st.just(100)),
        st.builds(Wait, st.sampled_from([0.0, 0.3, 2.0, 7.0, 70.0])),
        st.builds(Command, st.sampled_from(["close", "open", "stop", "no destination", "recover"])),
        st.builds(Kill, st.integers(0, 60)) | st.just(Command("no store")),
    ),
    min_size=3,
    max_size=20,
)


def without_repeats(steps):
    return [step for step in steps if not isinstance(step, Kill) and step != Command("no store")]


#: With a destination that is down from the beginning, and a function that fails more often than not.
STORMS = {
    "steps": (storm | storm.map(without_repeats)).map(lambda steps: [Command("no destination"), *steps]),
    "behaviours": st.lists(
        st.builds(Behaviour, st.sampled_from(["ok", "error", "error", "error"])), min_size=20, max_size=40
    ),
    "settings_of_mapping": st.fixed_dictionaries(
        {
            "batch_size": st.sampled_from([1, 2]),
            "lanes": st.sampled_from([1, 1, 3]),
            "spool_after": st.sampled_from([1, 1, 3]),
            "spool_limits": st.sampled_from([SpoolLimits(2, 2**20), SpoolLimits(1000, 2**20)]),
            "policy": st.just(StreamPolicy(maximum_retry_attempts=0)),
        }
    ),
    "partial": st.just(False),
}


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(**COURSES)
def test_the_laws_hold(settings_of_mapping, steps, behaviours, partial):
    run_trial(settings_of_mapping, steps, behaviours, partial)


@pytest.mark.slow
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(**COURSES)
def test_the_laws_hold_over_many_more_courses(settings_of_mapping, steps, behaviours, partial):
    run_trial(settings_of_mapping, steps, behaviours, partial)


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(**STORMS)
def test_the_laws_hold_while_the_destination_is_down(settings_of_mapping, steps, behaviours, partial):
    run_trial(settings_of_mapping, steps, behaviours, partial)


@pytest.mark.slow
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(**STORMS)
def test_the_laws_hold_over_many_more_storms(settings_of_mapping, steps, behaviours, partial):
    run_trial(settings_of_mapping, steps, behaviours, partial)
