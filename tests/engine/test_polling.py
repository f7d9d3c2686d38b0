"""When the pipeline receives, and how many receives it has in flight."""

from __future__ import annotations

from itertools import pairwise

import anyio
import pytest

from poller.engine.slots import Places, Slots
from poller.errors import ResourceNotFound, Unreachable
from poller.model import MappingState, Received, StateChanged, Trouble
from tests.engine.fakes import Dropping, Function, Mapping, Queue, settle_down, taking, virtual


@virtual
async def test_an_idle_queue_costs_three_receives_a_minute():
    mapping = Mapping()
    async with mapping.running():
        await anyio.sleep(600)
    assert mapping.queue.peak_receiving == 1
    assert mapping.queue.empty_receives <= 3 * 10
    assert {receive.wait for receive in mapping.queue.receives} == {20.0}


@virtual
async def test_an_idle_queue_costs_no_more_after_a_burst():
    mapping = Mapping(function=Function(handler=taking(0.1)))
    mapping.queue.latency = 0.01
    async with mapping.running():
        mapping.queue.send(1000)
        await anyio.sleep(300)
        assert mapping.queue.receiving == 1
        mapping.queue.receives.clear()
        await anyio.sleep(599)
    assert mapping.queue.empty_receives <= 3 * 10


@virtual
async def test_a_message_wakes_the_long_poll_and_is_invoked_at_once():
    mapping = Mapping()
    async with mapping.running():
        await anyio.sleep(7)
        mapping.queue.send()
        await settle_down()
        assert mapping.function.batches == [["m1"]]
        assert mapping.queue.acked == ["m1"]


@virtual
async def test_a_trickle_is_read_by_one_receive_at_a_time():
    mapping = Mapping()
    async with mapping.running() as pipeline:
        for _ in range(50):
            mapping.queue.send(3)
            await anyio.sleep(1)
        assert pipeline.gathering == 1
    assert mapping.queue.peak_receiving == 1
    assert len(mapping.queue.acked) == 150


@virtual
async def test_a_backlog_fills_the_functions_up_to_the_limit():
    mapping = Mapping(function=Function(handler=taking(1)), maximum_concurrency=16)
    mapping.queue.latency = 0.01
    mapping.queue.send(2000)
    async with mapping.running():
        await anyio.sleep(0.065)
        assert mapping.function.running == 16
        await anyio.sleep(120)
    assert mapping.function.peak == 16
    assert len(mapping.queue.acked) == 2000


@virtual
async def test_a_backlog_fills_the_functions_however_quick_the_queue_was_before():
    mapping = Mapping(function=Function(handler=taking(5)), maximum_concurrency=80, batch_size=1)
    mapping.queue.latency = 0.01
    async with mapping.running():
        mapping.queue.send(1)
        await anyio.sleep(100)
        mapping.queue.latency = 0.1
        mapping.queue.send(2000)
        await anyio.sleep(30)
        assert mapping.function.peak == 80


@virtual
async def test_a_backlog_that_the_filter_drops_whole_is_read_faster_and_faster_too():
    queue = Queue()
    mapping = Mapping(queue, filters=Dropping(*queue.send(2000)))
    queue.latency = 0.1
    async with mapping.running():
        await anyio.sleep(5)
    assert len(queue.acked) == 2000
    assert not mapping.function.calls


@pytest.mark.parametrize(
    ("mapping_limit", "function_limit", "daemon_limit", "most"),
    [(4, None, 1000, 4), (None, 3, 1000, 3), (None, None, 5, 5), (8, 6, 2, 2), (8, 6, 7, 6)],
)
@virtual
async def test_the_lowest_of_the_three_limits_counts(mapping_limit, function_limit, daemon_limit, most):
    mapping = Mapping(
        function=Function(handler=taking(1)),
        maximum_concurrency=mapping_limit,
        slots=Slots(Places(daemon_limit), function_limit),
    )
    mapping.queue.send(500)
    async with mapping.running():
        await anyio.sleep(5.5)
        assert mapping.function.running == most
    assert mapping.function.peak == most


@virtual
async def test_a_function_without_any_place_receives_nothing():
    mapping = Mapping(slots=Slots(Places(10), 0))
    mapping.queue.send()
    async with mapping.running() as pipeline:
        await anyio.sleep(100)
        pipeline.quiet()
        await anyio.sleep(1)
    assert mapping.queue.receives == []


@virtual
async def test_nothing_is_received_while_the_function_is_busy():
    mapping = Mapping(maximum_concurrency=4)
    mapping.function.hold()
    mapping.queue.send(1000)
    async with mapping.running() as pipeline:
        await anyio.sleep(100)
        assert len(mapping.queue.kept) == 4 * 10
        assert len(mapping.queue.receives) == 4
        assert pipeline.at_capacity
        mapping.function.let_go()
        await settle_down()
        assert not pipeline.at_capacity
    assert len(mapping.queue.acked) == 1000


@virtual
async def test_nothing_is_received_while_another_mapping_has_all_places_of_the_function():
    slots = Slots(Places(100), 2)
    busy = Mapping(name="busy", slots=slots)
    other = Mapping(name="other", slots=slots)
    busy.function.hold()
    busy.queue.send(20)
    async with busy.running():
        await settle_down()
        other.queue.send(20)
        async with other.running():
            await anyio.sleep(100)
            assert other.queue.receives == []
            busy.function.let_go()
            await settle_down()
            assert len(other.queue.acked) == 20
    assert slots.taken == 0


@virtual
async def test_no_record_waits_for_a_place_when_its_mapping_has_the_function_alone():
    waits = []
    mapping = Mapping(function=Function(handler=taking(3)), maximum_concurrency=5)
    mapping.queue.send(200)
    async with mapping.running() as pipeline:
        await anyio.sleep(0.25)
        for _ in range(100):
            await anyio.sleep(0.5)
            waits.append(pipeline.buffered_records - pipeline.dispatch.in_flight_records)
    assert set(waits) == {0}


@virtual
async def test_what_is_in_flight_and_buffered_is_counted():
    mapping = Mapping(maximum_concurrency=1, batch_size=2, payload=13 + 150)
    mapping.function.hold()
    mapping.queue.send(2, size=100)
    async with mapping.running() as pipeline:
        await settle_down()
        assert (pipeline.dispatch.in_flight_invocations, pipeline.dispatch.in_flight_records) == (1, 1)
        assert (pipeline.buffered_records, pipeline.buffered_bytes) == (2, 200)
        assert repr(pipeline) == "<Pipeline orders: 0 of 1 workers gather, 1 invocations, 2 records wait>"
        mapping.function.let_go()
        await settle_down()
        assert (pipeline.dispatch.in_flight_invocations, pipeline.dispatch.in_flight_records) == (0, 0)
        assert (pipeline.buffered_records, pipeline.buffered_bytes) == (0, 0)


@virtual
async def test_every_receive_is_told():
    mapping = Mapping()
    mapping.queue.send(3)
    async with mapping.running():
        await anyio.sleep(30)
    assert mapping.observer.of(Received) == [Received("orders", 3), Received("orders", 0)]


# --- when the source cannot be read -------------------------------------------------------------------------------------


@virtual
async def test_a_failed_receive_degrades_the_mapping_until_the_next_one_succeeds():
    mapping = Mapping()
    mapping.queue.failures = [Unreachable("no route"), Unreachable("no route to host")]
    async with mapping.running() as pipeline:
        await anyio.sleep(0.1)
        assert pipeline.trouble == "no route"
        await anyio.sleep(0.5)
        assert pipeline.trouble == "no route to host"
        mapping.queue.send()
        await anyio.sleep(1)
        assert pipeline.trouble is None
    assert mapping.queue.acked == ["m1"]
    assert mapping.observer.of(Trouble) == [
        Trouble("orders", "no route", 0.5),
        Trouble("orders", "no route to host", 1.0),
    ]
    assert mapping.observer.of(StateChanged) == [
        StateChanged("orders", MappingState.DEGRADED, "no route"),
        StateChanged("orders", MappingState.RUNNING),
    ]


@virtual
async def test_pauses_grow_while_the_source_stays_away():
    mapping = Mapping()
    mapping.queue.break_down(ResourceNotFound("the queue is gone"))
    async with mapping.running():
        await anyio.sleep(200)
    began = [receive.began for receive in mapping.queue.receives]
    pauses = [later - earlier for earlier, later in pairwise(began)]
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30]


@virtual
async def test_a_source_that_fails_under_many_receives_is_tried_again_as_soon_as_under_one():
    mapping = Mapping(maximum_concurrency=20)
    mapping.queue.latency = 0.01
    mapping.queue.send(2000)
    async with mapping.running() as pipeline:
        await anyio.sleep(3)
        assert mapping.queue.receiving == 20
        mapping.queue.break_down(Unreachable("the connection broke"))
        await anyio.sleep(0.1)
        assert pipeline.gathering == 20
        mapping.queue.break_down(None)
        [message] = mapping.queue.send()
        await anyio.sleep(0.45)
        assert mapping.queue.acked[-1] == message
        assert pipeline.trouble is None
        assert pipeline.gathering == 1
    assert mapping.observer.of(Trouble) == [Trouble("orders", "the connection broke", 0.5)]
    assert mapping.observer.states() == [MappingState.DEGRADED, MappingState.RUNNING]


@virtual
async def test_a_source_that_cannot_be_read_gets_one_receive_at_a_time():
    mapping = Mapping(function=Function(handler=taking(0.05)), maximum_concurrency=20)
    mapping.queue.latency = 0.01
    mapping.queue.send(10_000)
    async with mapping.running():
        await anyio.sleep(0.3)
        mapping.queue.break_down(Unreachable())
        await anyio.sleep(0.2)
        mapping.queue.receives.clear()
        await anyio.sleep(200)
    assert len({receive.began for receive in mapping.queue.receives}) == len(mapping.queue.receives) <= 13


@virtual
async def test_a_receive_that_fails_after_the_recovery_is_a_new_trouble():
    mapping = Mapping(maximum_concurrency=2, batch_size=1)
    mapping.queue.send(2)
    async with mapping.running() as pipeline:
        await anyio.sleep(5)
        assert mapping.queue.receiving == 2
        mapping.queue.failures = [Unreachable("first"), Unreachable("second")]
        # One of the two long polls ends and the receive after it fails; then the other one brings a message, and the
        # worker that pauses tries again.
        for trouble, later in (("first", 0.1), ("second", 0.6)):
            mapping.queue.send()
            await anyio.sleep(later)
            assert pipeline.trouble == trouble
        await anyio.sleep(30)
    assert mapping.observer.of(Trouble) == [
        Trouble("orders", "first", 0.5),
        Trouble("orders", "second", 0.5),
    ]
    assert mapping.observer.states() == [MappingState.DEGRADED, MappingState.RUNNING] * 2


@virtual
async def test_what_a_pause_finds_is_given_back_only_when_no_other_receive_could_get_it_again():
    mapping = Mapping(function=Function(handler=taking(0.1)))
    mapping.queue.latency = 0.01
    mapping.queue.send(300)
    async with mapping.running() as pipeline:
        await anyio.sleep(5)
        polls = mapping.queue.receiving
        assert polls > 1
        pipeline.close()
        late = mapping.queue.send(5)
        await anyio.sleep(30)
        assert mapping.queue.receiving == 0
        assert mapping.queue.released == late
        assert [message.receives for message in mapping.queue.messages] == [1] * 5


@virtual
async def test_what_waits_to_be_given_back_is_worked_on_when_the_pipeline_opens_again():
    mapping = Mapping(function=Function(handler=taking(0.1)))
    mapping.queue.latency = 0.01
    mapping.queue.send(300)
    async with mapping.running() as pipeline:
        await anyio.sleep(5)
        pipeline.close()
        late = mapping.queue.send(5)
        await anyio.sleep(1)
        assert mapping.queue.receiving > 0
        pipeline.open()
        await anyio.sleep(1)
        assert mapping.queue.acked[-5:] == late
        assert mapping.queue.released == []


@virtual
async def test_a_limit_that_changes_holds_for_what_begins_from_then_on():
    mapping = Mapping(function=Function(handler=taking(1.0)), batch_size=1, maximum_concurrency=1)
    mapping.queue.send(500)
    async with mapping.running() as pipeline:
        for limit in (4, 20, 3, 0, 7):
            pipeline.fit(limit)
            await anyio.sleep(5.5)
            await settle_down()
            assert pipeline.dispatch.in_flight_invocations == pipeline.workers == limit
    assert mapping.queue.peak_receiving <= 20
