"""The circuit breaker of a queue's mapping: what happens to messages while the function fails whatever it is given."""

from __future__ import annotations

from contextlib import asynccontextmanager

import anyio
import pytest

from poller.core.breaker import CircuitPolicy
from poller.engine.invoker import Call
from poller.engine.slots import Places, Slots
from poller.engine.status import Board, Totals
from poller.engine.supervisor import Supervisor
from poller.model import CircuitChanged, CircuitState, Failed, MappingState, NotInvoked, Settled, Succeeded
from tests.engine.fakes import (
    BUSY,
    ERROR,
    OK,
    Dropping,
    Function,
    Mapping,
    Queue,
    settle_down,
    virtual,
    world,
)

CLOSED, OPEN, HALF_OPEN, RAMPING = CircuitState
#: With the fixed chance of the fakes pauses are half of these: 5, 10, 20, 40, 40 seconds.
POLICY = CircuitPolicy(consecutive_failures=3, pause=10.0, maximum_pause=80.0)


class Outage(Function):
    """A function that fails as long as it is `down`."""

    def __init__(self, seconds: float = 0.0, *, down: bool = True) -> None:
        super().__init__(handler=self.answer)
        self.down = down
        self.seconds = seconds
        #: How long the next invocations take instead.
        self.special: list[float] = []

    async def answer(self, call):
        reply = ERROR if self.down else OK
        await anyio.sleep(self.special.pop(0) if self.special else self.seconds)
        return reply


def orders(**changes):
    """A mapping that handles one message at a time, however many side by side."""
    changes = {"queue": Queue(), "function": Outage(), "batch_size": 1, "circuit": POLICY} | changes
    return Mapping(**changes)


def steps(mapping):
    """The states that the circuit went through."""
    return [fact.state for fact in mapping.observer.of(CircuitChanged)]


def counts(mapping):
    """How often each message that is still there was received."""
    return {message.id: message.receives for message in mapping.queue.messages}


@asynccontextmanager
async def supervised(mapping):
    """The mapping under a supervisor, as the daemon runs it."""
    async with anyio.create_task_group() as tasks:
        supervisor = Supervisor(mapping.observer, Board(), world(), 20.0)
        tasks.start_soon(supervisor.run, [mapping.spec()])
        await supervisor.ready()
        await settle_down()
        yield supervisor
        await supervisor.stop()


def shown(supervisor):
    (status,) = supervisor.status()
    return status


# --- opening ------------------------------------------------------------------------------------------------------------


@virtual
async def test_failures_in_a_row_stop_receives_and_invocations():
    mapping = orders(maximum_concurrency=1)
    mapping.queue.send(20)
    async with mapping.running() as runner:
        await settle_down()
        assert runner.circuit is OPEN
        assert mapping.function.batches == [["m1"], ["m2"], ["m3"]]
        receives = len(mapping.queue.receives)
        await anyio.sleep(4.9)
        assert len(mapping.function.calls) == 3
        assert (len(mapping.queue.receives), mapping.queue.receiving) == (receives, 0)
        assert max(counts(mapping).values()) == 1


@virtual
async def test_a_success_between_failures_keeps_the_circuit_closed():
    mapping = orders(function=Function(*([ERROR, ERROR, OK] * 4)), maximum_concurrency=1)
    mapping.queue.send(12)
    async with mapping.running() as runner:
        await settle_down()
        assert len(mapping.function.calls) == 12
        assert runner.circuit is CLOSED


@virtual
async def test_what_was_not_invoked_counts_neither_way():
    replies = [ERROR, BUSY, ERROR, BUSY, BUSY]
    mapping = orders(function=Function(*replies), maximum_concurrency=1)
    mapping.queue.send(3)
    async with mapping.running() as runner:
        await anyio.sleep(10)
        assert [call.reply for call in mapping.function.calls[:5]] == replies
        assert steps(mapping) == []
        mapping.function._replies = [ERROR] * 3
        mapping.queue.send(3)
        await settle_down()
        assert runner.circuit is OPEN


@virtual
async def test_of_a_hundred_invocations_in_flight_none_follows_the_last_failure_that_counts():
    mapping = orders(function=Outage(3.0), batch_size=10, maximum_concurrency=100)
    mapping.function.special = [1.0, 1.5, 2.0]
    mapping.queue.send(3000)
    async with mapping.running():
        await anyio.sleep(1.9)
        assert mapping.function.running == 100
        assert steps(mapping) == []
        await anyio.sleep(0.2)
        assert steps(mapping) == [OPEN]
        begun = len(mapping.function.calls)
        await anyio.sleep(4.5)
        assert len(mapping.function.calls) == begun
        assert (mapping.queue.receiving, mapping.queue.kept) == (0, {})
        invoked = {name for call in mapping.function.calls for name in call.ids}
        assert len(invoked) == 10 * begun
        assert set(mapping.queue.waiting) == set(counts(mapping)) - invoked
        assert max(counts(mapping).values()) == 1


@virtual
async def test_of_a_hundred_workers_those_that_wait_for_a_slot_give_their_batches_back():
    slots = Slots(Places(1000), 100)
    mapping = orders(slots=slots, window=2.0, batch_size=1000)
    mapping.queue.latency = 0.1
    mapping.queue.send(1000)
    async with mapping.running() as runner:
        mapping.pipeline._polling.allowed = 100
        await anyio.sleep(1)
        assert mapping.pipeline.gathering == 100
        # Another mapping's invocations take all but two of the function's slots.
        assert all(slots.try_acquire() for _ in range(98))
        await anyio.sleep(1.5)
        assert runner.circuit is OPEN
        assert len(mapping.function.calls) <= 4
        assert mapping.queue.kept == {}
        assert set(counts(mapping).values()) == {1}
        invoked = {name for call in mapping.function.calls for name in call.ids}
        assert set(mapping.queue.left) == invoked
        assert set(mapping.queue.waiting) == set(counts(mapping)) - invoked
        assert slots.taken == 98


@virtual
async def test_messages_that_no_handler_saw_come_back_at_once_and_count_one_receive():
    # Two batches fail while eight others wait for one of the two slots.
    slots = Slots(Places(1000), 2)
    mapping = orders(
        function=Outage(1.0),
        slots=slots,
        batch_size=10,
        circuit=CircuitPolicy(2, 10, 80),
        maximum_concurrency=None,
    )
    mapping.queue.send(100)
    async with mapping.running():
        await settle_down()
        assert len(mapping.function.calls) == 2
        await anyio.sleep(1.01)
        invoked = {name for call in mapping.function.calls for name in call.ids}
        assert steps(mapping) == [OPEN]
        assert len(invoked) == 20
        assert set(mapping.queue.left) == invoked
        others = {message.id for message in mapping.queue.messages} - invoked
        assert set(mapping.queue.waiting) == others
        assert max(counts(mapping).values()) == 1
        assert sum(fact.left for fact in mapping.observer.of(Settled)) == 20


@virtual
async def test_an_opening_takes_back_what_waits_for_a_cold_start():
    mapping = orders(circuit=CircuitPolicy(1, 10, 80), maximum_concurrency=2)
    mapping.function.cold_start = 3.0
    mapping.queue.latency = 1.0
    mapping.queue.send(2)
    async with mapping.running() as runner:
        # The second worker has its batch a second after the first, and waits for its cold start when that fails.
        await anyio.sleep(4.5)
        assert runner.circuit is OPEN
        assert mapping.function.batches == [["m1"]]
        assert mapping.queue.released == ["m2"]
        assert mapping.slots.taken == 0


@virtual
async def test_a_long_poll_in_flight_returns_and_what_it_brings_goes_back():
    mapping = orders(circuit=CircuitPolicy(1, 10, 80), batch_size=2)
    async with mapping.running() as runner:
        mapping.function.special = [2.0]
        mapping.queue.send(1)
        await anyio.sleep(1.0)
        assert mapping.queue.receiving == 1
        await anyio.sleep(2.0)
        assert (runner.circuit, mapping.queue.receiving) == (OPEN, 1)
        mapping.queue.send(1)
        await settle_down()
        assert (mapping.queue.receiving, mapping.queue.released) == (0, ["m2"])
        assert counts(mapping) == {"m1": 1, "m2": 1}
        assert mapping.queue.cancelled_receives == 0


# --- the probe ----------------------------------------------------------------------------------------------------------


@virtual
async def test_a_probe_is_one_batch_and_its_failure_lengthens_the_pause():
    mapping = orders(queue=Queue(visibility=1.0))
    mapping.queue.send(50)
    async with mapping.running() as runner:
        await anyio.sleep(100)
        begun = [call.at for call in mapping.function.calls]
        opened = [at for at in begun if at == begun[0]]
        probes = [round(at - begun[0], 3) for at in begun[len(opened) :]]
        assert probes == [5.0, 15.0, 35.0, 75.0]
        assert steps(mapping) == [OPEN, *[HALF_OPEN, OPEN] * 4]
        failures = mapping.observer.of(CircuitChanged)[-1].failures
        assert failures == 3 + 4
        assert runner.trouble == (
            "circuit open: 7 invocations in a row failed (ValueError: no such order); next probe in 15 s"
        )


@virtual
async def test_one_batch_is_received_for_a_probe():
    mapping = orders(
        queue=Queue(visibility=1000.0), function=Outage(2.0), batch_size=10, maximum_concurrency=20
    )
    mapping.queue.send(500)
    async with mapping.running():
        await anyio.sleep(2.5)
        assert steps(mapping) == [OPEN]
        received = sum(counts(mapping).values())
        await anyio.sleep(5.5)
        assert steps(mapping) == [OPEN, HALF_OPEN]
        assert sum(counts(mapping).values()) == received + 10
        await anyio.sleep(1.5)
        assert steps(mapping) == [OPEN, HALF_OPEN, OPEN]
        assert sum(counts(mapping).values()) == received + 10


@virtual
async def test_a_receive_that_brings_nothing_keeps_the_circuit_half_open():
    mapping = orders(queue=Queue(visibility=200.0))
    mapping.queue.send(3)
    async with mapping.running() as runner:
        await anyio.sleep(100)
        assert (runner.circuit, len(mapping.function.calls)) == (HALF_OPEN, 3)
        assert runner.trouble.startswith("circuit half-open: probing with one batch, since 3 invocations")
        assert mapping.queue.receiving == 1
        mapping.function.down = False
        mapping.queue.send(1)
        await settle_down()
        assert (runner.circuit, len(mapping.function.calls)) == (RAMPING, 4)
        assert runner.trouble is None


@virtual
async def test_a_probe_that_is_filtered_out_or_not_invoked_says_nothing():
    mapping = orders(queue=Queue(visibility=200.0), filters=Dropping("m4"))
    mapping.queue.send(3)
    async with mapping.running() as runner:
        await anyio.sleep(50)
        mapping.queue.send(1)
        await settle_down()
        assert (runner.circuit, mapping.queue.acked) == (HALF_OPEN, ["m4"])
        mapping.function._handler = None
        mapping.function._replies = [BUSY, BUSY, OK]
        mapping.queue.send(1)
        await anyio.sleep(1.0)
        assert (runner.circuit, mapping.queue.acked) == (HALF_OPEN, ["m4"])
        await anyio.sleep(2.0)
        assert (runner.circuit, mapping.queue.acked) == (RAMPING, ["m4", "m5"])


@virtual
async def test_an_invocation_of_before_the_opening_does_not_hold_up_the_probe_and_is_not_heard():
    mapping = orders(queue=Queue(visibility=1000.0))
    mapping.function.special = [100.0, 200.0]
    mapping.queue.send(20)
    async with mapping.running() as runner:
        await anyio.sleep(4)
        assert (runner.circuit, mapping.function.running) == (OPEN, 2)
        mapping.function.down = False
        mapping.function.seconds = 98.0
        await anyio.sleep(2)
        assert (runner.circuit, mapping.function.running) == (HALF_OPEN, 3)
        # Both began while the function failed, and say so now.
        await anyio.sleep(95)
        assert (runner.circuit, mapping.function.running) == (HALF_OPEN, 2)
        await anyio.sleep(3)
        assert (runner.circuit, mapping.function.running) == (RAMPING, 3)


@virtual
async def test_what_a_long_poll_of_before_brings_during_the_probe_is_the_probe():
    mapping = orders(queue=Queue(visibility=1000.0), circuit=CircuitPolicy(1, 4, 80), batch_size=2)
    async with mapping.running() as runner:
        mapping.queue.send(1)
        await settle_down()
        assert (runner.circuit, mapping.queue.receiving) == (OPEN, 1)
        await anyio.sleep(2.5)
        # It is the only receive: there is none beside it.
        assert (runner.circuit, mapping.queue.receiving) == (HALF_OPEN, 1)
        mapping.queue.send(2)
        await settle_down()
        assert mapping.function.batches == [["m1"], ["m2", "m3"]]
        assert counts(mapping) == {"m1": 1, "m2": 1, "m3": 1}
        assert runner.circuit is OPEN


@virtual
async def test_of_what_many_long_polls_of_before_bring_only_one_batch_is_the_probe():
    mapping = orders(queue=Queue(visibility=1000.0), circuit=CircuitPolicy(1, 4, 80), batch_size=2)
    mapping.queue.latency = 3.0
    mapping.queue.send(40)
    async with mapping.running() as runner:
        mapping.pipeline._polling.allowed = 4
        await anyio.sleep(3.5)
        # The first four batches have failed; these are on their way until after the pause.
        assert (len(mapping.function.calls), mapping.queue.receiving) == (4, 5)
        mapping.function.seconds = 2.0
        await anyio.sleep(2.0)
        assert (runner.circuit, len(mapping.function.calls)) == (HALF_OPEN, 4)
        await anyio.sleep(1.0)
        assert (mapping.function.running, len(mapping.function.calls)) == (1, 5)
        await anyio.sleep(2.0)
        assert (runner.circuit, len(mapping.function.calls)) == (OPEN, 5)
        assert mapping.queue.kept == {}
        assert max(counts(mapping).values()) == 1
        assert len(mapping.queue.waiting) == 40 - 5 * 2


# --- the ramp -----------------------------------------------------------------------------------------------------------


@virtual
async def test_concurrency_doubles_with_each_round_until_the_circuit_closes():
    mapping = orders(queue=Queue(visibility=1000.0), maximum_concurrency=16)
    mapping.queue.send(4)
    async with mapping.running() as runner:
        await settle_down()
        mapping.function.down = False
        mapping.function.seconds = 1.0
        mapping.pipeline._polling.allowed = 16
        mapping.queue.send(200)
        await anyio.sleep(5.5)
        running = []
        for _ in range(6):
            running.append(mapping.function.running)
            await anyio.sleep(1.0)
        assert running == [1, 2, 4, 8, 16, 16]
        assert runner.circuit is CLOSED
        assert steps(mapping) == [OPEN, HALF_OPEN, RAMPING, CLOSED]


@virtual
async def test_one_poison_message_does_not_keep_the_circuit_from_closing():
    mapping = orders(queue=Queue(visibility=5.0), maximum_concurrency=8)
    mapping.queue.send(4)
    async with mapping.running() as runner:
        await settle_down()
        outage = mapping.function._handler

        async def handler(call):
            return ERROR if "m9" in call.ids else await outage(call)

        mapping.function._handler = handler
        mapping.function.down = False
        mapping.queue.send(60)
        await anyio.sleep(7)
        assert runner.circuit is CLOSED
        assert steps(mapping) == [OPEN, HALF_OPEN, RAMPING, CLOSED]
        assert [message.id for message in mapping.queue.messages] == ["m9"]


@virtual
async def test_an_outage_during_the_ramp_opens_the_circuit_again():
    mapping = orders(queue=Queue(visibility=1000.0), maximum_concurrency=16, circuit=CircuitPolicy(5, 10, 80))
    mapping.queue.send(5)
    async with mapping.running() as runner:
        await settle_down()
        mapping.function.down = False
        mapping.function.seconds = 1.0
        mapping.pipeline._polling.allowed = 16
        mapping.queue.send(200)
        await anyio.sleep(6.5)
        assert (runner.circuit, mapping.function.running) == (RAMPING, 2)
        # That is the ramp's doing, and no limit that somebody should raise.
        assert (mapping.pipeline.at_capacity, runner.at_capacity) == (True, False)
        mapping.function.down = True
        begun = len(mapping.function.calls)
        await anyio.sleep(2)
        assert runner.circuit is OPEN
        assert len(mapping.function.calls) - begun <= 4
        assert mapping.observer.of(CircuitChanged)[-1].tripped
        assert mapping.observer.of(CircuitChanged)[-1].probe_in == 10.0


# --- commands -----------------------------------------------------------------------------------------------------------


@virtual
async def test_a_status_shows_a_mapping_with_an_open_circuit_as_degraded():
    mapping = orders(queue=Queue(visibility=1000.0), maximum_concurrency=1)
    mapping.queue.send(20)
    async with supervised(mapping) as supervisor:
        status = shown(supervisor)
        assert (status.state, status.circuit) == (MappingState.DEGRADED, OPEN)
        assert status.reason == (
            "circuit open: 3 invocations in a row failed (ValueError: no such order); next probe in 5 s"
        )
        assert status.receivers == 0
        mapping.function.down = False
        await anyio.sleep(6)
        status = shown(supervisor)
        assert (status.state, status.circuit, status.reason) == (MappingState.RUNNING, CLOSED, "")


@virtual
async def test_a_mapping_that_is_paused_stays_so_when_the_pause_of_its_circuit_is_over():
    mapping = orders(queue=Queue(visibility=1000.0))
    mapping.queue.send(20)
    async with supervised(mapping) as supervisor:
        calls = len(mapping.function.calls)
        supervisor.pause("orders")
        await anyio.sleep(1000)
        status = shown(supervisor)
        assert (status.state, status.reason, status.circuit) == (MappingState.PAUSED, "by command", OPEN)
        assert (len(mapping.function.calls), mapping.queue.receiving) == (calls, 0)
        mapping.function.down = False
        supervisor.resume("orders")
        await settle_down()
        assert shown(supervisor).state is MappingState.RUNNING
        assert len(mapping.queue.acked) == 20


@virtual
async def test_a_resume_probes_an_open_circuit_at_once():
    mapping = orders(queue=Queue(visibility=1000.0))
    mapping.queue.send(20)
    async with supervised(mapping) as supervisor:
        calls = len(mapping.function.calls)
        supervisor.resume("orders")
        await settle_down()
        assert len(mapping.function.calls) == calls + 1
        assert steps(mapping) == [OPEN, HALF_OPEN, OPEN]
        await anyio.sleep(9.9)
        assert len(mapping.function.calls) == calls + 1
        await anyio.sleep(0.2)
        assert len(mapping.function.calls) == calls + 2


@virtual
async def test_a_pause_during_the_probe_lets_it_end_and_is_kept():
    mapping = orders(queue=Queue(visibility=1000.0))
    mapping.queue.send(20)
    async with supervised(mapping) as supervisor:
        mapping.function.seconds = 3.0
        await anyio.sleep(6)
        assert shown(supervisor).circuit is HALF_OPEN
        mapping.function.down = False
        supervisor.pause("orders")
        await anyio.sleep(3)
        assert (shown(supervisor).circuit, shown(supervisor).state) == (OPEN, MappingState.PAUSED)
        await anyio.sleep(100)
        calls = len(mapping.function.calls)
        supervisor.resume("orders")
        await anyio.sleep(1)
        assert (len(mapping.function.calls), shown(supervisor).circuit) == (calls + 1, HALF_OPEN)
        supervisor.pause("orders")
        await anyio.sleep(3)
        assert (shown(supervisor).circuit, mapping.queue.receiving) == (RAMPING, 0)
        supervisor.resume("orders")
        await anyio.sleep(1)
        assert mapping.function.running == 2
        assert shown(supervisor).state is MappingState.RUNNING


@virtual
async def test_a_circuit_that_opens_while_the_mapping_is_paused_waits_for_the_resume():
    mapping = orders(queue=Queue(visibility=1000.0), function=Outage(2.0), maximum_concurrency=5)
    mapping.queue.send(20)
    async with supervised(mapping) as supervisor:
        supervisor.pause("orders")
        await anyio.sleep(500)
        assert (shown(supervisor).circuit, shown(supervisor).state) == (OPEN, MappingState.PAUSED)
        calls = len(mapping.function.calls)
        supervisor.resume("orders")
        await anyio.sleep(1)
        assert (len(mapping.function.calls), shown(supervisor).circuit) == (calls + 1, HALF_OPEN)


@pytest.mark.parametrize("after", [0.0, 5.5, 8.5, 9.5])  # open, half-open, ramping twice
@virtual
async def test_a_stop_at_any_moment_keeps_nothing(after):
    mapping = orders(queue=Queue(visibility=1000.0), maximum_concurrency=16)
    mapping.queue.send(50)
    async with supervised(mapping) as supervisor:
        mapping.function.down, mapping.function.seconds = False, 2.0
        await anyio.sleep(after)
        mapping.queue.send(50)
        began = anyio.current_time()
        await supervisor.stop()
        assert anyio.current_time() - began <= 2.0
        assert (mapping.queue.kept, mapping.slots.taken, mapping.function.running) == ({}, 0, 0)
        assert mapping.queue.cancelled_receives == 0
        steps_before = steps(mapping)
        await anyio.sleep(1000)
        assert steps(mapping) == steps_before


@virtual
async def test_a_hard_stop_during_a_probe_gives_the_batch_back():
    mapping = orders(queue=Queue(visibility=1000.0))
    mapping.queue.send(20)
    async with mapping.running() as runner:
        await settle_down()
        mapping.function.hold()
        await anyio.sleep(6)
        assert (runner.circuit, mapping.function.running) == (HALF_OPEN, 1)
    assert len(mapping.queue.given_back) == 1
    assert mapping.slots.taken == 0


@virtual
async def test_a_fifo_queue_keeps_its_order_over_an_outage():
    mapping = orders(queue=Queue(fifo=True, visibility=2.0), batch_size=5)
    for group in "abcabcabcabc":
        mapping.queue.send(2, group=group)
    async with mapping.running() as runner:
        await anyio.sleep(30)
        assert runner.circuit in (OPEN, HALF_OPEN)
        mapping.function.down = False
        await anyio.sleep(300)
        assert runner.circuit in (RAMPING, CLOSED)
        assert mapping.queue.messages == []
        assert mapping.function.overlaps == []
    done = [name for call in mapping.function.calls if call.reply == OK for name in call.ids]
    assert len(done) == 24
    for offset in range(3):
        of_group = [f"m{2 * index + part}" for index in range(offset, 12, 3) for part in (1, 2)]
        assert [name for name in done if name in of_group] == of_group


@virtual
async def test_one_that_is_let_through_in_the_moment_of_an_opening_stays_out():
    mapping = orders(circuit=CircuitPolicy(1, 10, 80))
    entries = []
    async with mapping.open(), anyio.create_task_group() as tasks:
        dispatch = mapping.pipeline.dispatch
        breaker = dispatch._breaker
        call = Call("orders", "sqs", partial=False)

        async def enter():
            entries.append(await breaker.enter(dispatch, call))

        await enter()
        breaker.leave(dispatch, entries.pop(), call, Failed(ERROR))
        breaker.probe()
        breaker.door.open()
        await enter()
        breaker.leave(dispatch, entries.pop(), call, Succeeded())
        await enter()
        await enter()
        tasks.start_soon(enter)
        await settle_down()
        one, other = entries
        breaker.leave(dispatch, one, call, NotInvoked("throttled"))
        breaker.leave(dispatch, other, call, Failed(ERROR))
        await settle_down()
        assert entries == [one, other, None]
        assert (one.gate.taken, breaker.circuit.state, breaker.stragglers) == (0, OPEN, 0)


@virtual
async def test_what_it_is_shows_in_a_line():
    mapping = orders(maximum_concurrency=1)
    mapping.queue.send(20)
    async with mapping.running() as runner:
        await settle_down()
        assert repr(runner).startswith("<Guarded <Pipeline orders:")
        assert repr(runner).endswith("<Circuit open, 3 failures in a row, 0 allowed>>")
        assert repr(mapping.pipeline.dispatch._breaker) == (
            "<Breaker orders: <Circuit open, 3 failures in a row, 0 allowed>>"
        )
        assert runner.shards() == ()
        assert runner.load().in_flight_invocations == 0
        assert not runner.at_capacity


def test_a_board_has_no_use_for_a_circuit():
    board = Board()
    board.circuit_changed(CircuitChanged("orders", CLOSED, OPEN, 3, "ValueError"))
    assert board.of("orders") == Totals()
