"""FIFO: one batch in flight a group, in the order of the queue."""

from __future__ import annotations

import anyio

from poller.engine.keys import KeyGate
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


def fifo(**settings):
    return Queue(fifo=True, **settings)


@virtual
async def test_a_group_is_handled_one_batch_at_a_time_in_order():
    mapping = Mapping(fifo(), Function(handler=taking(1)), batch_size=1)
    mapping.queue.send(5, group="a")
    async with mapping.running():
        await anyio.sleep(10)
    assert mapping.function.batches == [["m1"], ["m2"], ["m3"], ["m4"], ["m5"]]
    assert mapping.function.peak == 1


@virtual
async def test_two_groups_are_handled_in_parallel():
    mapping = Mapping(fifo(), Function(handler=taking(10)), batch_size=1)
    mapping.queue.send(1, group="a")
    mapping.queue.send(1, group="b")
    async with mapping.running():
        await anyio.sleep(1)
        assert mapping.function.running == 2
    assert mapping.function.overlaps == []


@virtual
async def test_what_is_filtered_out_keeps_no_group_locked_for_a_batch_of_another():
    mapping = Mapping(fifo(), filters=Dropping("m2"))
    mapping.function.hold()
    mapping.queue.send(group="a")
    mapping.queue.send(group="b")
    async with mapping.running():
        await settle_down()
        assert mapping.queue.acked == ["m2"]
        mapping.queue.send(group="b")
        await settle_down()
        assert mapping.function.batches == [["m1"], ["m3"]]
        assert mapping.function.running == 2


@virtual
async def test_a_group_that_the_queue_offers_again_too_early_waits_for_its_first_batch():
    mapping = Mapping(fifo(visibility=5, extends=False), Function(handler=taking(8)), batch_size=1)
    mapping.queue.send(1, group="a")
    async with mapping.running() as pipeline:
        await anyio.sleep(7)
        assert mapping.queue.messages[0].receives == 2
        assert mapping.function.running == 1
        assert repr(pipeline._task._gate) == "<KeyGate 1 keys in flight>"
        await anyio.sleep(30)
    assert mapping.function.overlaps == []
    assert len(mapping.function.calls) >= 2


@virtual
async def test_two_batches_of_a_standard_queue_may_have_one_group():
    mapping = Mapping(Queue(), Function(handler=taking(5)), batch_size=1)
    mapping.queue.send(2, group="tenant")
    async with mapping.running():
        await anyio.sleep(1)
        assert mapping.function.running == 2


@virtual
async def test_a_group_that_failed_comes_back_before_anything_newer_of_it():
    mapping = Mapping(fifo(), Function(OK, ERROR), batch_size=1)
    mapping.queue.send(3, group="a")
    async with mapping.running():
        await anyio.sleep(100)
    assert mapping.function.batches == [["m1"], ["m2"], ["m2"], ["m3"]]
    assert mapping.function.times == [0.0, 0.0, 30.0, 30.0]


@virtual
async def test_a_group_that_failed_does_not_hold_up_another():
    mapping = Mapping(fifo(), Function(ERROR), batch_size=1)
    mapping.queue.send(2, group="a")
    mapping.queue.send(2, group="b")
    async with mapping.running():
        await anyio.sleep(1)
        assert mapping.queue.acked == ["m3", "m4"]
        await anyio.sleep(30)
    assert mapping.queue.acked == ["m3", "m4", "m1", "m2"]


@virtual
async def test_what_is_carried_is_left_when_its_group_has_failed():
    queue = fifo()
    mapping = Mapping(queue, Function(ERROR), payload=13 + 150)
    queue.send(1, group="a")
    queue.send(1, group="a")
    queue.send(1, group="b")
    async with mapping.running():
        await settle_down()
        assert mapping.function.batches == [["m1"], ["m3"]]
        assert queue.left == ["m1", "m2"]
        assert queue.acked == ["m3"]
        await anyio.sleep(31)
    assert mapping.function.batches == [["m1"], ["m3"], ["m1"], ["m2"]]


@virtual
async def test_what_is_carried_goes_on_when_only_another_group_failed():
    queue = fifo()
    mapping = Mapping(queue, Function(failing("m1")), payload=13 + 250, partial=True)
    queue.send(1, group="a")
    queue.send(2, group="b")
    async with mapping.running():
        await settle_down()
    assert mapping.function.batches == [["m1", "m2"], ["m3"]]
    assert queue.acked == ["m2", "m3"]


@virtual
async def test_a_refused_batch_keeps_its_group():
    mapping = Mapping(fifo(visibility=1, extends=False), Function(BUSY, BUSY), batch_size=1)
    mapping.queue.send(2, group="a")
    async with mapping.running():
        await anyio.sleep(1.2)
        # Both the batch that pauses and what the queue offered again are m1.
        assert mapping.function.batches == [["m1"], ["m1"]]
        await anyio.sleep(20)
    assert mapping.function.batches[2] == ["m1"]
    assert mapping.function.batches[-1] == ["m2"]


@virtual
async def test_a_batch_that_waits_for_its_group_is_given_back_when_the_pipeline_closes():
    queue = fifo(visibility=5, extends=False)
    mapping = Mapping(queue, Function(handler=taking(30)), maximum_concurrency=2)
    queue.send(1, group="a")
    async with mapping.running() as pipeline:
        await anyio.sleep(7)
        pipeline.quiet()
        await settle_down()
        assert mapping.queue.released == ["m1"]
        assert pipeline.buffered_records == 1
        await anyio.sleep(30)
        assert pipeline.buffered_records == 0
    assert len(mapping.function.calls) == 1


# --- the gate -----------------------------------------------------------------------------------------------------------


@virtual
async def test_the_gate_takes_all_keys_or_none():
    gate = KeyGate()
    assert gate.try_enter(["a", "b"])
    assert not gate.try_enter(["b", "c"])
    assert gate.try_enter(["c"])
    gate.leave(["a", "b"])
    assert not gate.try_enter(["b", "c"])
    gate.leave(["c"])
    assert gate.try_enter(["b", "c"])


@virtual
async def test_one_batch_at_a_time_passes_the_gate():
    gate, inside, passed = KeyGate(), set(), []

    async def batch(name, keys):
        await gate.enter(keys)
        assert inside.isdisjoint(keys)
        inside.update(keys)
        await anyio.sleep(1)
        inside.difference_update(keys)
        passed.append(name)
        gate.leave(keys)

    async with anyio.create_task_group() as tasks:
        for name, keys in {"1": "ab", "2": "bc", "3": "ca", "4": "d"}.items():
            tasks.start_soon(batch, name, keys)
    assert sorted(passed) == ["1", "2", "3", "4"]
    assert anyio.current_time() >= 3
    assert repr(gate) == "<KeyGate 0 keys in flight>"
