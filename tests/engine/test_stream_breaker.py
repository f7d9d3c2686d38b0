"""The circuit breaker of a stream's mapping: no batch is given up for an outage, and lanes find their way back in order."""

from __future__ import annotations

import anyio
import pytest

from poller.core.breaker import CircuitPolicy
from poller.core.retry import StreamPolicy
from poller.core.windows import GRACE
from poller.engine.breaker import PRECEDENCE
from poller.engine.slots import Places, Slots
from poller.model import CircuitChanged, CircuitState, Dropped, Returned
from tests.engine.fakes import ERROR, OK, Function, failing, settle_down, virtual
from tests.engine.stream_fakes import Clicks, Stream, failing_on, keys_of_lanes

CLOSED, OPEN, HALF_OPEN, RAMPING = CircuitState
#: With the fixed chance of the fakes pauses are half of these: 20, 40, 80, 160, 160 seconds.
POLICY = CircuitPolicy(consecutive_failures=3, pause=40.0, maximum_pause=320.0)


class Outage(Function):
    """A function that fails as long as it is `down`."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(handler=self.answer)
        self.down = True
        self.seconds = seconds

    async def answer(self, call):
        reply = ERROR if self.down else OK
        await anyio.sleep(self.seconds)
        return reply


def clicks(**changes):
    return Clicks(**({"function": Outage(), "circuit": POLICY} | changes))


def steps(mapping):
    """The states that the circuit went through."""
    return [fact.state for fact in mapping.observer.of(CircuitChanged)]


@virtual
async def test_the_batch_at_hand_waits_and_its_retry_is_the_probe():
    mapping = clicks()
    mapping.stream.put(3)
    async with mapping.running() as runner:
        await anyio.sleep(10)
        # Three attempts with Lambda's pauses between them, then none.
        assert mapping.function.times == [0.0, 0.5, 1.5]
        assert runner.circuit is OPEN
        await anyio.sleep(100)
        assert mapping.function.times == [0.0, 0.5, 1.5, 21.5, 61.5]
        assert mapping.function.batches == [["1", "2", "3"]] * 5
        mapping.function.down = False
        await anyio.sleep(60)
        assert runner.circuit is CLOSED  # its ceiling is the one lane
        assert await mapping.position_of() == "3"


@virtual
async def test_nothing_is_read_while_the_circuit_is_open():
    mapping = clicks(lanes=4, circuit=CircuitPolicy(1, 40, 320))
    keys = keys_of_lanes(4)
    mapping.stream.put(key=keys[0])
    async with mapping.running() as runner:
        await settle_down()
        assert runner.circuit is OPEN
        receives = mapping.stream.receives
        mapping.stream.put(5, key=keys[1])
        await anyio.sleep(19)
        assert mapping.stream.receives == receives
        (shard,) = runner.shards()
        assert shard.doing == "circuit open"
        mapping.function.down = False
        await anyio.sleep(2 + PRECEDENCE)
        assert runner.circuit in (RAMPING, CLOSED)
        assert sorted(mapping.ids) == sorted(["1", "1", *"23456"])


@virtual
async def test_no_batch_is_given_up_for_an_outage_that_its_probes_outlast():
    mapping = clicks(policy=StreamPolicy(maximum_retry_attempts=6))
    mapping.stream.put(3)
    async with mapping.running():
        # Three attempts open the circuit; four probes more are the retries that are left. The fifth comes after 300 seconds.
        await anyio.sleep(290)
        assert len(mapping.function.calls) == 6
        mapping.function.down = False
        await anyio.sleep(100)
        assert mapping.observer.of(Dropped) == []
        assert await mapping.position_of() == "3"


@virtual
async def test_without_a_breaker_the_same_outage_gives_the_batch_up():
    mapping = clicks(policy=StreamPolicy(maximum_retry_attempts=6), circuit=None)
    mapping.stream.put(3)
    async with mapping.running() as runner:
        await anyio.sleep(290)
        assert runner.circuit is None
        assert [fact.records for fact in mapping.observer.of(Dropped)] == [3]


@virtual
async def test_a_batch_that_has_fewer_retries_than_the_circuit_has_patience_is_given_up():
    mapping = clicks(policy=StreamPolicy(maximum_retry_attempts=1))
    mapping.stream.put(3)
    async with mapping.running() as runner:
        await anyio.sleep(10)
        assert len(mapping.observer.of(Dropped)) == 1
        assert runner.circuit is CLOSED


@virtual
async def test_a_failing_first_record_counts_as_a_failure_of_the_batch():
    async def first(call):
        return failing(call.ids[0])

    mapping = clicks(function=Function(handler=first), partial=True)
    mapping.stream.put(3)
    async with mapping.running() as runner:
        await anyio.sleep(10)
        assert (runner.circuit, len(mapping.function.calls)) == (OPEN, 3)
        assert "no record of the batch was finished" in runner.trouble


@virtual
async def test_a_bisected_batch_waits_in_its_halves():
    mapping = clicks(policy=StreamPolicy(bisect_batch_on_function_error=True))
    mapping.stream.put(8)
    async with mapping.running():
        await anyio.sleep(10)
        assert [len(batch) for batch in mapping.function.batches] == [8, 4, 2]
        mapping.function.down = False
        await anyio.sleep(20)
        assert mapping.function.batches[3:] == [["1"], ["2"], ["3", "4"], ["5", "6", "7", "8"]]
        assert await mapping.position_of() == "8"


@virtual
async def test_lanes_that_wait_while_a_probe_fails_wait_for_the_next_one():
    keys = keys_of_lanes(4)
    mapping = clicks(lanes=4, function=Outage(1.0), circuit=CircuitPolicy(4, 40, 320))
    for lane in range(4):
        mapping.stream.put(2, key=keys[lane])
    async with mapping.running() as runner:
        await anyio.sleep(20 + 1.5)
        assert (runner.circuit, mapping.function.running) == (HALF_OPEN, 1)
        await anyio.sleep(1)
        assert (steps(mapping), len(mapping.function.calls)) == ([OPEN, HALF_OPEN, OPEN], 5)
        mapping.function.down = False
        await anyio.sleep(50)
        assert runner.circuit in (RAMPING, CLOSED)
        assert await mapping.position_of() == "8"
        assert mapping.function.overlaps == []


@pytest.mark.slow
@virtual
async def test_a_thousand_lanes_stop_together_and_come_back_by_one_probe_and_a_ramp():
    mapping = clicks(lanes=1000, batch_size=1, function=Outage(1.0), circuit=CircuitPolicy(10, 40, 320))
    for key in range(2200):
        mapping.stream.put(key=f"key-{key}")
    async with mapping.running() as runner:
        await anyio.sleep(5)
        assert steps(mapping) == [OPEN]
        stopped = len(mapping.function.calls)
        assert 10 <= stopped <= 1000
        await anyio.sleep(18)
        # Its probe has failed.
        assert (steps(mapping), len(mapping.function.calls)) == ([OPEN, HALF_OPEN, OPEN], stopped + 1)
        mapping.function.down = False
        running = []
        await anyio.sleep(39.5)
        for _ in range(12):
            running.append(mapping.function.running)
            await anyio.sleep(1)
        assert running[:10] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
        assert runner.circuit in (RAMPING, CLOSED)
        await anyio.sleep(100)
        assert steps(mapping)[-1] is CLOSED
        assert await mapping.position_of() == "2200"
        assert mapping.function.overlaps == []
        done = [call.ids[0] for call in mapping.function.calls if call.reply == OK]
        assert sorted(map(int, done)) == list(range(1, 2201))


@pytest.mark.parametrize("poison", ["1", "3"])
@virtual
async def test_one_poison_lane_does_not_keep_the_others_from_their_probe(poison):
    keys = keys_of_lanes(4)
    mapping = clicks(lanes=4, circuit=CircuitPolicy(4, 40, 320))
    for lane in range(4):
        mapping.stream.put(key=keys[lane])
    async with mapping.running() as runner:
        await settle_down()
        assert (runner.circuit, len(mapping.function.calls)) == (OPEN, 4)
        mapping.function._handler = failing_on(poison, reply=ERROR)
        await anyio.sleep(70)
        assert [call.ids for call in mapping.function.calls[4:6]].count([poison]) <= 1
        done = {call.ids[0] for call in mapping.function.calls if call.reply == OK}
        assert done == {"1", "2", "3", "4"} - {poison}
        # It is tried again and again, and opens nothing: others have succeeded where it fails.
        await anyio.sleep(1000)
        assert runner.circuit is RAMPING
        assert len(mapping.function.calls) > 15
        mapping.stream.put(3, key=keys[3 if poison == "1" else 0])
        await settle_down()
        assert mapping.ids[-3:] == ["5", "6", "7"]


@virtual
async def test_two_poison_lanes_do_not_take_turns():
    keys = keys_of_lanes(4)
    mapping = clicks(lanes=4, circuit=CircuitPolicy(4, 40, 320))
    for lane in range(4):
        mapping.stream.put(key=keys[lane])
    async with mapping.running():
        await settle_down()
        mapping.function._handler = failing_on("1", "2", reply=ERROR)
        await anyio.sleep(150)
        # At most one probe for each of them comes before a probe that succeeds.
        first_done = next(index for index, call in enumerate(mapping.function.calls) if call.reply == OK)
        assert first_done <= 4 + 2
        assert {"3", "4"} <= {call.ids[0] for call in mapping.function.calls if call.reply == OK}


@virtual
async def test_a_lane_that_has_to_read_first_is_before_a_poison_lane():
    keys = keys_of_lanes(4)
    mapping = clicks(lanes=4, function=Function(handler=failing_on("1", reply=ERROR)))
    mapping.stream.put(key=keys[0])
    async with mapping.running() as runner:
        await anyio.sleep(10)
        assert runner.circuit is OPEN
        mapping.stream.put(key=keys[1])
        await anyio.sleep(12 + PRECEDENCE)
        assert runner.circuit is RAMPING
        assert mapping.function.batches == [["1"], ["1"], ["1"], ["2"], ["1"]]


@virtual
async def test_an_idle_lane_does_not_hold_up_the_probe():
    keys = keys_of_lanes(4)
    mapping = clicks(lanes=4)
    mapping.stream.put(key=keys[2])
    async with mapping.running() as runner:
        await anyio.sleep(10)
        assert runner.circuit is OPEN
        mapping.function.down = False
        await anyio.sleep(11.6 + PRECEDENCE)
        assert await mapping.position_of() == "1"


@virtual
async def test_an_attempt_that_outlasts_the_opening_goes_on_in_its_lane_and_in_order():
    keys = keys_of_lanes(4)
    mapping = clicks(lanes=4, circuit=CircuitPolicy(1, 40, 320))
    seconds = {"1": 30.0}

    async def handler(call):
        await anyio.sleep(seconds.pop(call.ids[0], 0.0))
        return ERROR if anyio.current_time() - began < 40 else OK

    mapping.function = Function(handler=handler)
    began = anyio.current_time()
    mapping.stream.put(3, key=keys[0])
    mapping.stream.put(key=keys[1])
    async with mapping.running() as runner:
        await anyio.sleep(25)
        # It began before the circuit opened, and ends after the first probe has failed.
        assert mapping.function.running == 1
        await anyio.sleep(100)
        assert runner.circuit is CLOSED or runner.circuit is RAMPING
        assert await mapping.position_of() == "4"
        assert mapping.function.overlaps == []


@virtual
async def test_a_pause_and_a_resume_probe_at_once():
    mapping = clicks()
    mapping.stream.put(3)
    async with mapping.running() as runner:
        await anyio.sleep(10)
        runner.close()
        (shard,) = runner.shards()
        assert shard.doing == "paused"
        await anyio.sleep(1000)
        assert len(mapping.function.calls) == 3
        mapping.function.down = False
        runner.open()
        await settle_down()
        assert len(mapping.function.calls) == 4
        assert await mapping.position_of() == "3"


@virtual
async def test_a_stop_while_the_circuit_is_open_ends_at_once_and_repeats_the_batch_later():
    mapping = clicks()
    mapping.stream.put(3)
    async with mapping.open() as runner, anyio.create_task_group() as tasks:
        tasks.start_soon(runner.run)
        await anyio.sleep(10)
        assert runner.circuit is OPEN
        began = anyio.current_time()
        runner.quiet()
    assert anyio.current_time() == began
    mapping.function.down = False
    async with mapping.running() as runner:
        await settle_down()
        assert runner.circuit is CLOSED
        assert mapping.function.batches[-1] == ["1", "2", "3"]


@virtual
async def test_the_end_of_a_window_waits_too():
    states = []

    async def handler(call):
        final = call.invocation.event["isFinalInvokeForWindow"]
        states.append((final, call.invocation.event["state"]))
        return ERROR if final and len(states) < 6 else Returned({"state": {"seen": 3}})

    mapping = clicks(function=Function(handler=handler), window_length=30)
    mapping.stream.put(3)
    async with mapping.running() as runner:
        await anyio.sleep(30 + GRACE)
        assert runner.circuit is OPEN
        assert states == [(False, {}), *[(True, {"seen": 3})] * 3]
        await anyio.sleep(200)
        assert runner.circuit is CLOSED
        assert states[4:] == [(True, {"seen": 3})] * 2
        assert mapping.keeper.checkpoints["shard-000"].window == ""


@virtual
async def test_a_ramp_ends_at_as_many_lanes_as_there_are():
    mapping = clicks(stream=Stream(shards=3), lanes=2, slots=Slots(Places(4), None))
    async with mapping.running() as runner:
        await settle_down()
        assert mapping.keeper.lanes() == 6
        assert runner.trouble is None
        assert not runner.at_capacity
        for shard in mapping.stream.records:
            mapping.stream.put(shard=shard)
        await anyio.sleep(10)
        assert runner.circuit is OPEN
        mapping.function.down = False
        await anyio.sleep(30)
        assert runner.circuit is RAMPING
        for _ in range(4):  # 1 and 2 of before, then as many as there are slots
            mapping.stream.put()
            await anyio.sleep(1)
        assert runner.circuit is CLOSED
