"""Pause, quiet and the hard stop of one pipeline: who keeps what."""

from __future__ import annotations

import anyio
import pytest

from poller.engine.slots import Places, Slots
from poller.errors import Unreachable
from poller.model import Settled, StateChanged
from tests.engine.fakes import BUSY, Dropping, Function, Mapping, Queue, settle_down, taking, virtual


@virtual
async def test_a_paused_pipeline_lets_its_long_poll_return_and_gives_back_what_it_brought():
    mapping = Mapping()
    async with mapping.running() as pipeline:
        await anyio.sleep(5)
        pipeline.close()
        mapping.queue.send(3)
        await settle_down()
        assert mapping.queue.released == ["m1", "m2", "m3"]
        assert mapping.queue.waiting == ["m1", "m2", "m3"]
        await anyio.sleep(100)
        assert mapping.queue.cancelled_receives == 0
        assert len(mapping.queue.receives) == 1
        assert (pipeline.workers, pipeline.gathering, pipeline.buffered_records) == (0, 0, 0)
    assert mapping.function.calls == []
    assert mapping.observer.of(Settled) == [Settled("orders", released=3)]


@virtual
async def test_a_paused_pipeline_finishes_the_batches_that_a_handler_has():
    mapping = Mapping(function=Function(handler=taking(10)))
    mapping.queue.send(3)
    async with mapping.running() as pipeline:
        await anyio.sleep(1)
        pipeline.close()
        await anyio.sleep(10)
    assert mapping.queue.acked == ["m1", "m2", "m3"]
    assert mapping.queue.released == []


@virtual
async def test_a_pipeline_goes_on_after_a_pause():
    mapping = Mapping()
    async with mapping.running() as pipeline:
        await anyio.sleep(5)
        pipeline.close()
        await anyio.sleep(100)
        mapping.queue.send()
        pipeline.open()
        await settle_down()
        assert mapping.queue.acked == ["m1"]
        await anyio.sleep(60)
    assert mapping.queue.peak_receiving == 1


@virtual
async def test_a_pause_shorter_than_a_long_poll_leaves_one_receive_in_flight():
    mapping = Mapping()
    async with mapping.running() as pipeline:
        await anyio.sleep(5)
        pipeline.close()
        await anyio.sleep(1)
        pipeline.open()
        await anyio.sleep(1)
        assert (pipeline.gathering, pipeline.workers) == (1, 1)
        mapping.queue.send()
        await settle_down()
    assert mapping.queue.acked == ["m1"]
    assert mapping.queue.peak_receiving == 1


@virtual
async def test_a_window_in_progress_is_given_back_by_a_pause():
    mapping = Mapping(batch_size=100, window=60)
    async with mapping.running() as pipeline:
        mapping.queue.send(2)
        await anyio.sleep(1)
        pipeline.close()
        await anyio.sleep(21)
        assert mapping.queue.released == ["m1", "m2"]
        assert pipeline.buffered_bytes == 0
    assert mapping.function.calls == []


@virtual
async def test_what_is_carried_is_given_back_by_a_pause():
    mapping = Mapping(function=Function(handler=taking(10)), payload=13 + 150, maximum_concurrency=1)
    mapping.queue.send(2, size=100)
    async with mapping.running() as pipeline:
        await anyio.sleep(1)
        pipeline.close()
        await anyio.sleep(10)
        assert mapping.queue.acked == ["m1"]
        assert mapping.queue.released == ["m2"]
        assert pipeline.buffered_records == 0
    assert mapping.function.batches == [["m1"]]


@virtual
async def test_a_refused_batch_is_given_back_by_a_pause():
    mapping = Mapping(function=Function(BUSY, BUSY, BUSY), maximum_concurrency=1)
    mapping.queue.send(2)
    async with mapping.running() as pipeline:
        await anyio.sleep(1)
        pipeline.close()
        await settle_down()
        assert mapping.queue.released == ["m1", "m2"]


@virtual
async def test_a_batch_that_is_refused_after_the_pause_began_is_given_back_at_once():
    mapping = Mapping(function=Function(handler=taking(5, BUSY)), maximum_concurrency=1)
    mapping.queue.send(2)
    async with mapping.running() as pipeline:
        await anyio.sleep(1)
        pipeline.close()
        await anyio.sleep(4)
        await settle_down()
        assert mapping.queue.released == ["m1", "m2"]
        assert pipeline.workers == 0


@virtual
async def test_a_batch_that_waits_for_a_place_is_given_back_by_a_pause():
    slots = Slots(Places(1), None)
    mapping = Mapping(slots=slots)
    async with mapping.running() as pipeline:
        await anyio.sleep(1)
        assert slots.try_acquire()
        mapping.queue.send(2)
        await settle_down()
        assert slots.waiting == 1
        pipeline.close()
        await settle_down()
        assert mapping.queue.released == ["m1", "m2"]
    assert (slots.taken, slots.waiting) == (1, 0)


@virtual
async def test_a_worker_that_waits_for_room_ends_with_a_pause():
    slots = Slots(Places(1), None)
    assert slots.try_acquire()
    mapping = Mapping(slots=slots)
    async with mapping.running() as pipeline:
        await settle_down()
        assert slots.waiting == 1
        pipeline.close()
        await settle_down()
        assert (slots.taken, slots.waiting, pipeline.workers) == (1, 0, 0)
    assert mapping.queue.receives == []


@virtual
async def test_a_pause_ends_the_wait_after_a_failed_receive():
    mapping = Mapping()
    mapping.queue.break_down(Unreachable())
    async with mapping.running() as pipeline:
        await anyio.sleep(20)
        pipeline.close()
        await settle_down()
        assert pipeline.workers == 0


@virtual
async def test_a_pipeline_that_is_closed_tells_of_no_other_state():
    mapping = Mapping()
    mapping.queue.failures = [Unreachable("blip")]
    async with mapping.running() as pipeline:
        await anyio.sleep(1)
        told = len(mapping.observer.of(StateChanged))
        pipeline.close()
        mapping.queue.send()
        await anyio.sleep(30)
        assert len(mapping.observer.of(StateChanged)) == told


@virtual
async def test_a_long_poll_that_fails_after_the_pipeline_closed_is_no_trouble():
    mapping = Mapping()
    async with mapping.running() as pipeline:
        await anyio.sleep(5)
        pipeline.close()
        mapping.queue.break_down(Unreachable("too late to matter"))
        await settle_down()
        assert pipeline.workers == 0
        assert pipeline.trouble is None
    assert mapping.observer.facts == []


@virtual
async def test_trouble_is_told_anew_after_a_pause():
    mapping = Mapping()
    mapping.queue.break_down(Unreachable("down"))
    async with mapping.running() as pipeline:
        await anyio.sleep(5)
        pipeline.close()
        await anyio.sleep(5)
        pipeline.open()
        await anyio.sleep(5)
        assert pipeline.trouble == "down"
    assert [fact.reason for fact in mapping.observer.of(StateChanged)] == ["down", "down"]


@pytest.mark.parametrize("passing", [True, False])
@virtual
async def test_nothing_is_received_after_a_pause_that_comes_while_filtered_records_are_acked(passing):
    mapping = Mapping(batch_size=100, window=60, filters=Dropping("m1", *([] if passing else ["m2"])))
    mapping.queue.before_ack = lambda: anyio.sleep(5)
    mapping.queue.send(2)
    async with mapping.running() as pipeline:
        await anyio.sleep(1)
        pipeline.close()
        await anyio.sleep(5)
        assert mapping.queue.acked == (["m1"] if passing else ["m1", "m2"])
        assert mapping.queue.released == (["m2"] if passing else [])
        assert pipeline.buffered_records == 0
        assert mapping.queue.receiving == 0
    assert len(mapping.queue.receives) == 1
    assert mapping.function.calls == []


@virtual
async def test_an_ordered_batch_is_not_begun_after_a_pause_that_comes_while_filtered_records_are_acked():
    mapping = Mapping(Queue(fifo=True), filters=Dropping("m1"))
    mapping.queue.before_ack = lambda: anyio.sleep(5)
    mapping.queue.send(2, group="a")
    async with mapping.running() as pipeline:
        await anyio.sleep(1)
        pipeline.close()
        # Another worker's long poll returns before anything is given back.
        await anyio.sleep(20)
        assert mapping.queue.acked == ["m1"]
        assert mapping.queue.released == ["m2"]
    assert mapping.function.calls == []


@pytest.mark.parametrize("refusals", [0, 3])
@virtual
async def test_what_is_filtered_out_of_a_batch_that_is_given_back_is_acked(refusals):
    """The batch waits for a place, or after a refusal, when the pause comes."""
    slots = Slots(Places(1), None)
    mapping = Mapping(function=Function(*[BUSY] * refusals), slots=slots, filters=Dropping("m2"))
    async with mapping.running() as pipeline:
        await anyio.sleep(1)
        if not refusals:
            assert slots.try_acquire()
        mapping.queue.send(3)
        await settle_down()
        assert mapping.queue.acked == []
        pipeline.close()
        await anyio.sleep(20)
        assert (mapping.queue.acked, mapping.queue.released) == (["m2"], ["m1", "m3"])
        assert pipeline.buffered_records == 0


@virtual
async def test_the_hard_stop_gives_back_what_is_filtered_out_and_not_acked_yet():
    mapping = Mapping(filters=Dropping("m2"))
    mapping.function.hold()
    mapping.queue.send(2)
    async with mapping.running():
        await settle_down()
    assert mapping.queue.acked == []
    assert mapping.queue.given_back == ["m1", "m2"]


@virtual
async def test_a_quiet_pipeline_ends_when_its_handlers_have():
    mapping = Mapping(function=Function(handler=taking(30)))
    mapping.queue.send(3)
    async with mapping.running() as pipeline:
        await anyio.sleep(1)
    mapping.queue.send(3)
    async with mapping.open() as pipeline, anyio.create_task_group() as tasks:
        tasks.start_soon(pipeline.run)
        await anyio.sleep(5)
        pipeline.quiet()
    # It ended by itself: the handler began at once, the long poll that followed it lasted 20 seconds.
    assert anyio.current_time() == pytest.approx(31)
    assert len(mapping.queue.acked) == 6
    assert pipeline.workers == 0


@virtual
async def test_a_quiet_pipeline_cannot_be_opened_again():
    mapping = Mapping()
    async with mapping.running() as pipeline:
        pipeline.quiet()
        pipeline.open()
        mapping.queue.send()
        await anyio.sleep(60)
    assert mapping.queue.acked == []


@virtual
async def test_a_pipeline_that_is_quiet_before_it_runs_receives_nothing():
    mapping = Mapping()
    async with mapping.open() as pipeline:
        pipeline.quiet()
        await pipeline.run()
    assert mapping.queue.receives == []


@virtual
async def test_the_hard_stop_gives_back_what_is_at_work():
    mapping = Mapping()
    mapping.function.hold()
    mapping.queue.send(3)
    async with mapping.running():
        await settle_down()
    assert mapping.function.cancelled == 1
    assert mapping.queue.given_back == ["m1", "m2", "m3"]
    assert mapping.queue.waiting == ["m1", "m2", "m3"]
    assert mapping.slots.taken == 0
