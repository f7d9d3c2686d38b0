"""What goes into a batch, when it goes, and what becomes of it."""

from __future__ import annotations

from weakref import WeakSet

import anyio
import pytest

from poller.errors import Unreachable
from poller.model import FilteredOut, Invoked, NotInvoked, Settled
from tests.engine import stream_fakes
from tests.engine.fakes import (
    BUSY,
    ERROR,
    OK,
    Dropping,
    Function,
    Mapping,
    Queue,
    failing,
    settle_down,
    taking,
    virtual,
)

# --- full and due -------------------------------------------------------------------------------------------------------


@virtual
async def test_a_batch_of_a_hundred_is_gathered_from_receives_of_ten():
    mapping = Mapping(batch_size=100, window=5)
    mapping.queue.send(100)
    async with mapping.running():
        await settle_down()
    assert [len(batch) for batch in mapping.function.batches] == [100]
    assert [receive.asked for receive in mapping.queue.receives[:10]] == [10] * 10


@virtual
async def test_the_last_receive_of_a_batch_asks_for_what_is_missing():
    mapping = Mapping(batch_size=25, window=5)
    mapping.queue.send(30)
    async with mapping.running():
        await settle_down()
        assert [len(batch) for batch in mapping.function.batches] == [25]
        await anyio.sleep(6)
    assert [len(batch) for batch in mapping.function.batches] == [25, 5]
    assert [receive.asked for receive in mapping.queue.receives[:3]] == [10, 10, 5]


@virtual
async def test_without_a_window_a_receive_makes_a_batch():
    mapping = Mapping(batch_size=10)
    async with mapping.running():
        for _ in range(3):
            mapping.queue.send(2)
            await settle_down()
    assert mapping.function.batches == [["m1", "m2"], ["m3", "m4"], ["m5", "m6"]]


@pytest.mark.parametrize("window", [1, 5, 60, 300])
@virtual
async def test_a_window_ends_its_seconds_after_the_first_message(window):
    mapping = Mapping(batch_size=100, window=window)
    async with mapping.running():
        await anyio.sleep(7)
        first = anyio.current_time()
        for _ in range(3):
            mapping.queue.send()
            await anyio.sleep(window / 4)
        await anyio.sleep(window)
    assert mapping.function.batches == [["m1", "m2", "m3"]]
    assert window <= mapping.function.calls[0].at - first < window + 1


@virtual
async def test_a_receive_waits_no_longer_than_the_window_lasts():
    mapping = Mapping(batch_size=100, window=5)
    mapping.queue.send()
    async with mapping.running():
        await anyio.sleep(10)
    assert [receive.wait for receive in mapping.queue.receives[:2]] == [20.0, 5.0]


@virtual
async def test_a_window_outlives_a_receive_that_fails():
    mapping = Mapping(batch_size=100, window=5)
    mapping.queue.failures = [None, Unreachable("blip")]
    async with mapping.running():
        mapping.queue.send()
        await anyio.sleep(1)
        mapping.queue.send()
        await anyio.sleep(10)
    assert mapping.function.batches == [["m1", "m2"]]


@virtual
async def test_a_window_ends_on_time_while_the_source_cannot_be_read():
    mapping = Mapping(batch_size=100, window=5)
    async with mapping.running():
        mapping.queue.send()
        await settle_down()
        first = anyio.current_time()
        mapping.queue.break_down(Unreachable("down"))
        await anyio.sleep(60)
    assert [call.at - first for call in mapping.function.calls] == [5.0]


@virtual
async def test_what_passes_six_megabytes_is_carried_and_goes_next():
    mapping = Mapping(batch_size=10)
    mapping.queue.send(10, size=1024 * 1024)
    async with mapping.running():
        await settle_down()
    assert mapping.function.batches == [["m1", "m2", "m3", "m4", "m5"], ["m6", "m7", "m8", "m9", "m10"]]
    assert sorted(mapping.queue.acked) == sorted(f"m{at}" for at in range(1, 11))


@virtual
async def test_what_is_carried_opens_a_window_of_its_own():
    mapping = Mapping(batch_size=10, window=5, payload=13 + 250)
    mapping.queue.send(3, size=100)
    async with mapping.running():
        await settle_down()
        assert mapping.function.batches == [["m1", "m2"]]
        await anyio.sleep(3)
        assert mapping.function.batches == [["m1", "m2"]]
        await anyio.sleep(2.5)
    assert mapping.function.batches == [["m1", "m2"], ["m3"]]


@virtual
async def test_what_is_carried_is_cut_again_and_again():
    mapping = Mapping(batch_size=10, payload=13 + 150)
    mapping.queue.send(4, size=100)
    async with mapping.running():
        await settle_down()
    assert mapping.function.batches == [["m1"], ["m2"], ["m3"], ["m4"]]


@virtual
async def test_a_shard_that_has_ended_cuts_its_last_window_short_and_ends_the_pipeline():
    mapping = Mapping(batch_size=100, window=300)
    mapping.queue.send(15)
    mapping.queue.closed = True
    began = anyio.current_time()
    async with mapping.open() as pipeline:
        await pipeline.run()
    assert [len(batch) for batch in mapping.function.batches] == [15]
    assert len(mapping.queue.acked) == 15
    assert anyio.current_time() == began + 20  # one long poll that found the end


class Kept:
    """Something that can be seen to be gone."""


@virtual
async def test_a_batch_is_let_go_before_the_next_one_is_read(monkeypatch):
    alive, found = WeakSet(), []

    class Watched(stream_fakes.StreamReader):
        async def receive(self, limit, wait):
            found.append(len(alive))
            records = [record._replace(receipt=Kept()) for record in await super().receive(limit, wait)]
            alive.update(record.receipt for record in records)
            return records

    monkeypatch.setattr(stream_fakes, "StreamReader", Watched)
    clicks = stream_fakes.Clicks(batch_size=2)
    clicks.stream.put(6)
    async with clicks.running():
        await settle_down()
    assert clicks.function.batches == [["1", "2"], ["3", "4"], ["5", "6"]]
    assert found == [0, 0, 0, 0]


# --- filtered out -------------------------------------------------------------------------------------------------------


def acks(mapping: Mapping) -> list[list[str]]:
    """The ids of each ack, from now on."""
    requests: list[list[str]] = []
    mapping.queue.on_ack = lambda records: requests.append([record.id for record in records])
    return requests


@virtual
async def test_what_is_filtered_out_is_never_invoked_and_acked_with_its_batch():
    mapping = Mapping(filters=Dropping("m2", "m4"))
    mapping.function.hold()
    mapping.queue.send(4)
    requests = acks(mapping)
    async with mapping.running():
        await settle_down()
        assert requests == []
        mapping.function.let_go()
        await settle_down()
    assert mapping.function.batches == [["m1", "m3"]]
    assert requests == [["m1", "m3", "m2", "m4"]]
    assert mapping.observer.of(FilteredOut) == [FilteredOut("orders", 2)]
    assert mapping.observer.of(Settled) == [Settled("orders", deleted=4)]


@virtual
async def test_a_receive_of_which_nothing_passes_is_acked_at_once():
    mapping = Mapping(filters=Dropping("m1", "m2"))
    mapping.queue.send(2)
    requests = acks(mapping)
    async with mapping.running():
        await settle_down()
    assert requests == [["m1", "m2"]]
    assert mapping.function.calls == []


@virtual
async def test_what_is_filtered_out_of_a_batch_that_fails_is_acked():
    mapping = Mapping(function=Function(ERROR), filters=Dropping("m2"))
    mapping.queue.send(3)
    async with mapping.running():
        await settle_down()
        assert (mapping.queue.acked, mapping.queue.left) == (["m2"], ["m1", "m3"])


@virtual
async def test_what_is_filtered_out_of_a_batch_that_fails_in_part_is_acked_with_the_rest():
    mapping = Mapping(function=Function(failing("m1")), partial=True, filters=Dropping("m2"))
    mapping.queue.send(3)
    requests = acks(mapping)
    async with mapping.running():
        await settle_down()
        assert (requests, mapping.queue.left) == ([["m3", "m2"]], ["m1"])


@virtual
async def test_what_is_filtered_out_of_a_batch_that_is_refused_too_long_is_acked():
    mapping = Mapping(function=Function(*[BUSY] * 7), patience=30, filters=Dropping("m2"))
    mapping.queue.send(2)
    async with mapping.running():
        await anyio.sleep(30)
        assert (mapping.queue.acked, mapping.queue.left) == (["m2"], ["m1"])


@virtual
async def test_what_is_filtered_out_does_not_wait_for_a_batch_that_fills():
    mapping = Mapping(batch_size=100, window=60, filters=Dropping("m2", "m4"))
    requests = acks(mapping)
    async with mapping.running():
        mapping.queue.send(2)
        await anyio.sleep(1)
        assert requests == [["m2"]]
        mapping.queue.send(2)
        await anyio.sleep(1)
        assert requests == [["m2"], ["m4"]]
        assert mapping.function.calls == []
        await anyio.sleep(60)
    assert mapping.function.batches == [["m1", "m3"]]
    assert requests == [["m2"], ["m4"], ["m1", "m3"]]


@virtual
async def test_what_is_filtered_out_of_the_receive_that_ends_a_window_is_acked_with_the_batch():
    mapping = Mapping(batch_size=100, window=5, filters=Dropping("m3"))
    mapping.queue.latency = 2.0
    mapping.queue.send()
    requests = acks(mapping)
    async with mapping.running():
        await anyio.sleep(6.5)
        mapping.queue.send(2)
        await anyio.sleep(2.5)
    assert mapping.function.batches == [["m1", "m2"]]
    assert requests == [["m1", "m2", "m3"]]


@virtual
async def test_what_is_filtered_out_of_a_receive_that_makes_two_batches_is_acked_with_the_first():
    mapping = Mapping(payload=13 + 250, filters=Dropping("m2"), maximum_concurrency=1)
    mapping.queue.send(4, size=100)
    requests = acks(mapping)
    async with mapping.running():
        await settle_down()
    assert mapping.function.batches == [["m1", "m3"], ["m4"]]
    assert requests == [["m1", "m3", "m2"], ["m4"]]


@virtual
async def test_what_is_filtered_out_neither_fills_a_batch_nor_opens_its_window():
    mapping = Mapping(batch_size=2, window=5, filters=Dropping("m1", "m3"))
    async with mapping.running():
        for _ in range(3):
            mapping.queue.send()
            await anyio.sleep(1)
        assert mapping.function.calls == []
        mapping.queue.send()
        await settle_down()
    assert mapping.function.batches == [["m2", "m4"]]


@virtual
async def test_a_filter_that_passes_all_settles_nothing():
    mapping = Mapping(filters=Dropping())
    mapping.queue.send(2)
    async with mapping.running():
        await settle_down()
    assert mapping.function.batches == [["m1", "m2"]]
    assert mapping.observer.of(FilteredOut) == []


# --- settled ------------------------------------------------------------------------------------------------------------


@virtual
async def test_a_batch_that_succeeded_is_acked_whole():
    mapping = Mapping()
    mapping.queue.send(3)
    async with mapping.running():
        await settle_down()
    assert mapping.queue.acked == ["m1", "m2", "m3"]
    assert mapping.observer.of(Settled) == [Settled("orders", deleted=3)]


@virtual
async def test_a_batch_that_failed_is_left_to_the_queue():
    mapping = Mapping(function=Function(ERROR))
    mapping.queue.send(2)
    async with mapping.running():
        await settle_down()
        assert mapping.queue.left == ["m1", "m2"]
        assert mapping.queue.acked == []
        assert mapping.queue.waiting == []
        await anyio.sleep(31)
    assert mapping.function.times == [0.0, 30.0]
    assert mapping.queue.acked == ["m1", "m2"]
    assert mapping.observer.of(Settled) == [Settled("orders", left=2), Settled("orders", deleted=2)]


@virtual
async def test_of_a_batch_that_failed_in_part_the_rest_is_acked():
    mapping = Mapping(function=Function(failing("m2")), partial=True)
    mapping.queue.send(3)
    async with mapping.running():
        await settle_down()
    assert (mapping.queue.acked, mapping.queue.left) == (["m1", "m3"], ["m2"])
    assert [fact.failed for fact in mapping.observer.of(Invoked)] == [1]


@virtual
async def test_names_of_failed_records_mean_nothing_unless_the_mapping_asks_for_them():
    mapping = Mapping(function=Function(failing("m2")))
    mapping.queue.send(3)
    async with mapping.running():
        await settle_down()
    assert mapping.queue.acked == ["m1", "m2", "m3"]


@virtual
async def test_a_name_that_is_not_in_the_batch_fails_all_of_it():
    mapping = Mapping(function=Function(failing("m9")), partial=True)
    mapping.queue.send(3)
    async with mapping.running():
        await settle_down()
    assert (mapping.queue.acked, mapping.queue.left) == ([], ["m1", "m2", "m3"])


@virtual
async def test_a_function_that_takes_too_long_is_cut_off_and_its_batch_left():
    mapping = Mapping(function=Function(handler=taking(100)), timeout=3)
    mapping.queue.send()
    async with mapping.running():
        await anyio.sleep(3.5)
    assert mapping.function.cancelled == 1
    assert mapping.queue.left == ["m1"]
    [fact] = mapping.observer.of(Invoked)
    assert fact.duration == 3.0
    assert fact.outcome.error.error_type == "Sandbox.Timedout"
    assert fact.outcome.error.error_message == "RequestId: r-1 Error: Task timed out after 3.00 seconds"
    assert fact.outcome.error.timed_out


# --- refused ------------------------------------------------------------------------------------------------------------


@virtual
async def test_a_refused_batch_is_tried_again_with_growing_pauses_and_the_same_records():
    mapping = Mapping(function=Function(BUSY, BUSY, BUSY, OK))
    mapping.queue.send(2)
    async with mapping.running():
        await anyio.sleep(10)
    assert mapping.function.batches == [["m1", "m2"]] * 4
    assert mapping.function.times == [0.0, 0.5, 1.5, 3.5]
    assert mapping.queue.acked == ["m1", "m2"]
    assert [message.receives for message in mapping.queue.messages] == []
    assert [fact.failed for fact in mapping.observer.of(Invoked)] == [2, 2, 2, 0]
    assert mapping.observer.of(Invoked)[0].outcome == NotInvoked("no worker is free")


@virtual
async def test_a_batch_that_is_refused_too_long_is_left():
    mapping = Mapping(function=Function(*[BUSY] * 7), patience=30)
    mapping.queue.send()
    async with mapping.running():
        await anyio.sleep(30)
        assert mapping.function.times == [0.0, 0.5, 1.5, 3.5, 7.5, 15.5]
        assert mapping.queue.left == ["m1"]
        assert mapping.queue.acked == []


@virtual
async def test_a_refused_batch_holds_no_place_while_it_pauses():
    mapping = Mapping(function=Function(*[BUSY] * 5))
    mapping.queue.send()
    async with mapping.running() as pipeline:
        await anyio.sleep(2)
        assert mapping.slots.taken == 0
        assert pipeline.dispatch.in_flight_invocations == 0
        assert pipeline.buffered_records == 1


@virtual
async def test_a_refused_batch_does_not_hold_up_the_others():
    async def handler(call):
        return BUSY if "m1" in call.ids else OK

    mapping = Mapping(function=Function(handler=handler), batch_size=1, patience=1000)
    mapping.queue.send()
    async with mapping.running():
        await anyio.sleep(100)
        mapping.queue.send(20)
        await settle_down()
        assert len(mapping.queue.acked) == 20


@virtual
async def test_a_refused_batch_is_tried_at_once_when_a_handler_has_ended():
    mapping = Mapping(function=Function(*[BUSY] * 6), patience=100)
    mapping.queue.send()
    async with mapping.running():
        await anyio.sleep(19)
        assert mapping.function.times == [0.0, 0.5, 1.5, 3.5, 7.5, 15.5]
        mapping.queue.send()
        await settle_down()
        assert mapping.function.times == [0.0, 0.5, 1.5, 3.5, 7.5, 15.5, 19.0, 19.0]
    assert mapping.queue.acked == ["m2", "m1"]


@virtual
async def test_nothing_more_is_received_while_refused_batches_wait_for_their_next_try():
    mapping = Mapping(function=Function(*[BUSY] * 1000), patience=100.0)
    mapping.queue.send(1000)
    messages = list(mapping.queue.messages)
    async with mapping.running() as pipeline:
        await anyio.sleep(1)
        received = sum(message.receives for message in messages)
        assert received <= 100
        await anyio.sleep(89)
        assert sum(message.receives for message in messages) == received == pipeline.buffered_records


@virtual
async def test_a_function_that_refused_and_takes_long_gets_all_it_may_before_its_first_handler_has_ended():
    async def handler(call):
        if anyio.current_time() < 20:
            return BUSY
        await anyio.sleep(600)
        return OK

    mapping = Mapping(function=Function(handler=handler), patience=1000, timeout=900, maximum_concurrency=20)
    mapping.queue.latency = 0.02
    mapping.queue.send(1000)
    async with mapping.running():
        await anyio.sleep(100)
        assert mapping.function.running == 20


@virtual
async def test_a_batch_that_is_refused_for_what_is_in_it_is_not_tried_with_each_handler_that_ends():
    async def handler(call):
        if "m1" in call.ids:
            return BUSY
        await anyio.sleep(0.1)
        return OK

    mapping = Mapping(function=Function(handler=handler), batch_size=1, patience=1000, maximum_concurrency=5)
    mapping.queue.latency = 0.02
    mapping.queue.send(1000)
    async with mapping.running():
        await anyio.sleep(20)
        assert len(mapping.queue.acked) > 600
        assert mapping.function.batches.count(["m1"]) < 15


@pytest.mark.parametrize("fifo", [False, True], ids=["standard", "fifo"])
@virtual
async def test_a_function_that_takes_less_than_the_mapping_may_send_is_kept_busy_and_burns_no_receives(fifo):
    async def handler(call):
        if mapping.function.running > 5:
            return BUSY
        await anyio.sleep(1)
        return OK

    mapping = Mapping(Queue(fifo=fifo), Function(handler=handler), maximum_concurrency=1000)
    mapping.queue.latency = 0.02
    for number in range(1000):
        mapping.queue.send(group=f"group {number}")
    messages = list(mapping.queue.messages)
    async with mapping.running():
        await anyio.sleep(25)
        assert mapping.queue.messages == []
    assert {message.receives for message in messages} == {1}


@virtual
async def test_a_mapping_with_a_backlog_leaves_another_its_turn_at_a_function_that_takes_little():
    async def handler(call):
        if function.running > 2:
            return BUSY
        await anyio.sleep(1)
        return OK

    function = Function(handler=handler)
    busy = Mapping(function=function, name="busy", batch_size=1)
    late = Mapping(function=function, name="late", batch_size=1, slots=busy.slots)
    busy.queue.latency = late.queue.latency = 0.02
    busy.queue.send(1000)
    async with busy.running(), late.running():
        await anyio.sleep(60.5)
        late.queue.send(20)
        await anyio.sleep(60)
    assert late.queue.messages == []
    assert len(busy.queue.acked) > 180


# --- the invocation -----------------------------------------------------------------------------------------------------


@virtual
async def test_an_invocation_carries_its_deadline_and_the_functions_arn():
    mapping = Mapping(timeout=12)
    async with mapping.running():
        await anyio.sleep(5)
        mapping.queue.send()
        await settle_down()
    [call] = mapping.function.calls
    assert call.invocation.request_id == "r-1"
    assert call.invocation.deadline == 1_700_000_000 + 5 + 12
    assert call.invocation.function_arn == "arn:aws:lambda:eu-west-1:123456789012:function:ship"
    assert call.invocation.event == {"Records": [{"messageId": "m1", "receives": 1, "group": None}]}


@virtual
async def test_every_invocation_is_told():
    mapping = Mapping(function=Function(handler=taking(2)))
    mapping.queue.send(3)
    async with mapping.running():
        await anyio.sleep(3)
    [fact] = mapping.observer.of(Invoked)
    assert (fact.mapping, fact.function, fact.request_id) == ("orders", "ship", "r-1")
    assert (fact.records, fact.failed, fact.duration) == (3, 0, 2.0)
