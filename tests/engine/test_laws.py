"""The laws of the whole engine, under random traffic, functions that misbehave, and commands at any moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

import anyio
import pytest
import trio
from hypothesis import HealthCheck, given, register_random, settings
from hypothesis import strategies as st

from poller.core.breaker import CircuitPolicy
from poller.engine.slots import Places, Slots
from poller.engine.status import Board
from poller.engine.supervisor import Supervisor
from poller.errors import Unreachable
from tests.engine.fakes import (
    BUSY,
    ERROR,
    OK,
    Dropping,
    Function,
    Mapping,
    Queue,
    Recorder,
    failing,
    in_virtual_time,
    settle_down,
    world,
)

# trio runs tasks that are ready at the same moment in an order of its own choice. With its source of chance known to
# Hypothesis a course that broke a law can be run again.
register_random(trio._core._run._r)

TIMEOUT = 8.0
FUNCTION_LIMIT, DAEMON_LIMIT = 3, 4


@dataclass(frozen=True)
class Send:
    number: int
    group: str
    size: int


@dataclass(frozen=True)
class Wait:
    seconds: float


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
        st.builds(Send, st.integers(1, 25), st.sampled_from("abc"), st.sampled_from([10, 100, 400])),
        st.builds(Wait, st.sampled_from([0.0, 0.3, 1.0, 7.0, 25.0])),
        st.builds(
            Command,
            st.sampled_from(["pause", "resume", "stop", "stop now", "break down", "recover", "reload"]),
        ),
    ),
    max_size=15,
)
behaviours = st.lists(
    st.builds(
        Behaviour,
        st.sampled_from(["ok", "ok", "error", "partial", "hang", "refuse", "crash"]),
        st.sampled_from([0.0, 0.1, 2.0]),
        st.floats(0, 1, exclude_max=True),
    ),
    max_size=12,
)
mappings = st.fixed_dictionaries(
    {
        "batch_size": st.sampled_from([1, 4, 10, 30]),
        "window": st.sampled_from([0.0, 0.0, 2.0]),
        "payload": st.sampled_from([13 + 250, 6 * 2**20]),
        "maximum_concurrency": st.sampled_from([None, 1, 2]),
        "circuit": st.sampled_from([None, CircuitPolicy(1, 4, 60), CircuitPolicy(2, 10, 100)]),
    }
)


@dataclass
class Trial:
    """One mapping through a random course, with what the laws speak of written down on the way."""

    mapping: Mapping
    behaviours: list[Behaviour]
    sent: dict[str, list[str]] = field(default_factory=dict)
    #: Ids in the order in which an invocation first said that it had finished them.
    handled: list[str] = field(default_factory=list)
    #: Message and receive count of everything that may be acked now.
    may_be_acked: set[tuple[str, int]] = field(default_factory=set)
    broken: list[str] = field(default_factory=list)
    fingerprints: count = field(default_factory=count)

    @property
    def queue(self):
        return self.mapping.queue

    async def handler(self, call):
        self.check_limits()
        behaviour = self.behaviours.pop(0) if self.behaviours else Behaviour("ok")
        await anyio.sleep(1000 if behaviour.kind == "hang" else behaviour.seconds)
        if behaviour.kind == "crash":
            raise ValueError("a bug")
        if behaviour.kind in ("error", "refuse"):
            return ERROR if behaviour.kind == "error" else BUSY
        # As a FIFO handler must: what comes after the first failure is failed too.
        done = len(call.ids) if behaviour.kind == "ok" else int(behaviour.share * len(call.ids))
        for record in call.invocation.event["Records"][:done]:
            self.may_be_acked.add((record["messageId"], record["receives"]))
            if record["messageId"] not in self.handled:
                self.handled.append(record["messageId"])
        return failing(*call.ids[done:]) if done < len(call.ids) else OK

    def check_limits(self):
        limit = min(self.mapping.maximum_concurrency or FUNCTION_LIMIT, FUNCTION_LIMIT)
        if self.mapping.function.running > limit:
            self.broken.append(f"{self.mapping.function.running} invocations in flight")
        if self.mapping.circuit:
            breaker = self.mapping.pipeline.dispatch._breaker
            if self.mapping.function.running > breaker.circuit.allowed + breaker.stragglers:
                self.broken.append(f"{self.mapping.function.running} invocations in flight: {breaker}")

    def on_ack(self, records):
        for record in records:
            allowed = (record.id, record.event["receives"]) in self.may_be_acked
            if not allowed and record.id not in self.mapping.filters.ids:
                self.broken.append(f"{record.id} was acked although its batch did not succeed")

    def send(self, step):
        group = step.group if self.queue.fifo else None
        ids = self.queue.send(step.number, group=group, size=step.size)
        self.sent.setdefault(step.group, []).extend(ids)
        self.mapping.filters.ids |= {each for each in ids if int(each[1:]) % 7 == 0}

    async def start(self, tasks):
        supervisor = Supervisor(self.mapping.observer, Board(), world(), 20.0)
        tasks.start_soon(supervisor.run, [self.mapping.spec(fingerprint=next(self.fingerprints))])
        await supervisor.ready()
        return supervisor

    async def run(self, steps):
        async with anyio.create_task_group() as tasks:
            supervisor = await self.start(tasks)
            for step in steps:
                if isinstance(step, Send):
                    self.send(step)
                elif isinstance(step, Wait):
                    await anyio.sleep(step.seconds)
                elif step.name in ("stop", "stop now"):
                    if step.name == "stop now":
                        supervisor.stop_now()
                    await supervisor.stop()
                    self.check_nothing_is_kept()
                    supervisor = await self.start(tasks)
                else:
                    await self.command(supervisor, step.name)
            await self.finish(supervisor)

    async def command(self, supervisor, name):
        if name == "reload":
            await supervisor.reload([self.mapping.spec(fingerprint=next(self.fingerprints))])
        elif name == "break down":
            self.queue.break_down(Unreachable("down"))
        elif name == "recover":
            self.queue.break_down(None)
        else:
            getattr(supervisor, name)("orders")

    def check_nothing_is_kept(self):
        if self.queue.kept or self.mapping.slots.taken or self.mapping.function.running:
            self.broken.append("something was kept over a stop")

    async def finish(self, supervisor):
        """From here on all is well: whatever is left must be handled."""
        self.queue.break_down(None)
        await settle_down()
        supervisor.resume("orders")
        for _ in range(50):
            await anyio.sleep(60)
            supervisor.resume("orders")
            if not self.queue.messages:
                break
        await anyio.sleep(60)
        pipeline = self.mapping.pipeline
        assert (pipeline.buffered_records, pipeline.buffered_bytes) == (0, 0)
        assert (pipeline.dispatch.in_flight_invocations, pipeline.dispatch.in_flight_records) == (0, 0)
        await supervisor.stop()
        self.check_nothing_is_kept()

    def check(self):
        assert self.broken == []
        everything = {each for ids in self.sent.values() for each in ids}
        assert set(self.queue.acked) == everything
        assert len(self.queue.acked) == len(everything)
        assert set(self.handled) == everything - self.mapping.filters.ids
        assert self.mapping.slots._places.taken == 0
        if self.queue.fifo:
            assert self.mapping.function.overlaps == []
            for ids in self.sent.values():
                wanted = [each for each in ids if each not in self.mapping.filters.ids]
                assert [each for each in self.handled if each in ids] == wanted


def run_trial(queue, settings_of_mapping, steps, behaviours):
    mapping = Mapping(
        queue,
        partial=True,
        timeout=TIMEOUT,
        filters=Dropping(),
        slots=Slots(Places(DAEMON_LIMIT), FUNCTION_LIMIT),
        observer=Recorder(),
        **settings_of_mapping,
    )
    trial = Trial(mapping, list(behaviours))
    mapping.function = Function(handler=trial.handler)
    queue.on_ack = trial.on_ack

    async def everything():
        await trial.run(steps)

    in_virtual_time(everything)
    trial.check()


quickly = settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow])
thoroughly = settings(quickly, max_examples=300)
trials = given(
    mapping=mappings,
    steps=steps,
    behaviours=behaviours,
    extends=st.booleans(),
    latency=st.sampled_from([0.0, 0.02]),
    chance=st.random_module(),
)


def standard(extends, latency):
    queue = Queue(visibility=5 if not extends else 12, extends=extends)
    queue.latency = latency
    return queue


def fifo(extends, latency):
    queue = standard(extends, latency)
    queue.fifo = True
    return queue


@quickly
@trials
def test_nothing_is_lost_and_nothing_acked_unhandled(mapping, steps, behaviours, extends, latency, chance):
    run_trial(standard(extends, latency), mapping, steps, behaviours)


@quickly
@trials
def test_groups_keep_their_order_and_have_one_batch_in_flight(
    mapping, steps, behaviours, extends, latency, chance
):
    run_trial(fifo(extends, latency), {**mapping, "window": 0.0}, steps, behaviours)


@pytest.mark.slow
@pytest.mark.parametrize("make", [standard, fifo])
def test_the_laws_hold_over_many_more_courses(make):
    @thoroughly
    @trials
    def trial(mapping, steps, behaviours, extends, latency, chance):
        window = 0.0 if make is fifo else mapping["window"]
        run_trial(make(extends, latency), {**mapping, "window": window}, steps, behaviours)

    trial()
