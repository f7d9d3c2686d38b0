"""Lanes: keys in order, lanes side by side, one read and one bound for all of them, one checkpoint."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from random import Random

import anyio
import pytest
import trio
from hypothesis import HealthCheck, given, register_random, settings
from hypothesis import strategies as st

from poller.core.retry import StreamPolicy
from poller.engine import lanes as lanes_module
from poller.engine.lanes import Lanes
from poller.errors import ShardGone, Throttled, Unreachable
from poller.model import MappingState, Record, Shard
from tests.engine.fakes import (
    BUSY,
    ERROR,
    OK,
    Dropping,
    Function,
    failing,
    in_virtual_time,
    settle_down,
    taking,
    virtual,
    world,
)
from tests.engine.stream_fakes import Clicks, failing_on, keys_of_lanes

register_random(trio._core._run._r)

#: A key of the first lane of two, and one of the second.
A, B = keys_of_lanes(2)[0], keys_of_lanes(2)[1]


class ScriptedReader:
    """Gives out one page after the other, each after `latency` seconds; then it waits, or ends if it is `closed`."""

    redelivers = False
    full = False
    doing = "reading"
    behind = 7.0
    children = (Shard("child"),)

    def __init__(self, *pages, closed=False, latency=1.0):
        self.pages = deque(pages)
        self.closed = closed
        self.latency = latency
        self.asked = []

    @property
    def ended(self):
        return self.closed and not self.pages

    async def receive(self, limit, wait):
        self.asked.append((limit, wait))
        await anyio.sleep(self.latency if self.pages else wait)
        page = self.pages.popleft() if self.pages else []
        if isinstance(page, BaseException):
            raise page
        return page


def records(keys, size=100):
    return [Record(str(number), key, size, {}, None) for number, key in enumerate(keys, 1)]


def pages(keys):
    """One record a read."""
    return [[record] for record in records(keys)]


def ids(received):
    return [record.id for record in received]


def lanes_over(reader, count=2):
    moved = []
    return Lanes(reader, count, moved.append), moved


async def receive_together(lanes, wait=20.0, limit=100):
    """What each lane received, or the error that it got, and when."""
    began, answers = anyio.current_time(), {}

    async def receive(place):
        try:
            answer = ids(await lanes.lanes[place].receive(limit, wait))
        except Exception as error:
            answer = error
        answers[place] = (answer, anyio.current_time() - began)

    async with anyio.create_task_group() as tasks:
        for place in range(len(lanes.lanes)):
            tasks.start_soon(receive, place)
    return answers


# --- through the whole engine -------------------------------------------------------------------------------------------


@virtual
async def test_lanes_run_side_by_side_and_each_key_in_its_order():
    clicks = Clicks(function=Function(handler=taking(1)), lanes=3, batch_size=2)
    keys = keys_of_lanes(3)
    clicks.stream.put_keys((keys[0] + keys[1] + keys[2]) * 4)
    async with clicks.running():
        await anyio.sleep(0.5)
        assert clicks.function.running == 3
        await anyio.sleep(2)
    assert clicks.function.overlaps == []
    for place in range(3):
        assert [id_ for id_ in clicks.ids if int(id_) % 3 == (place + 1) % 3] == [
            str(number) for number in range(place + 1, 13, 3)
        ]
    assert await clicks.position_of() == "12"


@virtual
async def test_one_lane_keeps_the_order_of_the_whole_shard():
    clicks = Clicks(batch_size=1, lanes=1)
    sent = clicks.stream.put_keys("abcabc")
    async with clicks.running():
        await settle_down()
    assert clicks.ids == sent


@virtual
async def test_a_failing_key_holds_its_lane_and_the_checkpoint_and_nothing_else():
    clicks = Clicks(function=Function(handler=failing_on("2", reply=ERROR)), lanes=2, batch_size=1)
    clicks.stream.put_keys(A + B + A + B + A)
    async with clicks.running() as keeper:
        await anyio.sleep(5)
        assert set(clicks.ids) == {"1", "2", "3", "5"}
        (shard,) = keeper.shards()
        assert (shard.sequence_number, shard.open_records) == ("1", 2)
        assert shard.doing == "retrying the batch from 2, 4 attempts failed"
        assert repr(keeper._reading["shard-000"].lanes) == "<Lanes 2, 2 records open>"
    assert await clicks.position_of() == "1"


@virtual
async def test_the_checkpoint_catches_up_when_the_slow_lane_is_done():
    clicks = Clicks(
        function=Function(handler=failing_on("1", reply=ERROR)),
        policy=StreamPolicy(maximum_retry_attempts=2),
        lanes=2,
        batch_size=1,
    )
    clicks.stream.put_keys(A + B + B + A)
    async with clicks.running():
        await anyio.sleep(1)
        assert clicks.keeper.checkpoints["shard-000"].sequence_number == ""
        await anyio.sleep(1)
        assert clicks.keeper.checkpoints["shard-000"].sequence_number == "4"


@virtual
async def test_a_stuck_key_stops_the_reading_of_its_shard_when_all_that_may_be_held_is_and_only_then(
    monkeypatch,
):
    monkeypatch.setattr(lanes_module, "HELD_RECORDS", 10)
    clicks = Clicks(function=Function(handler=failing_on("1", reply=ERROR)), lanes=2, batch_size=1)
    clicks.stream.put_keys(A)
    clicks.stream.put_keys((A + B) * 50)
    async with clicks.running() as keeper:
        await anyio.sleep(100)
        lanes = keeper._reading["shard-000"].lanes
        # One read brings up to two records here.
        assert 10 <= lanes._progress.held_records <= 11
        assert lanes.open_records <= 8
        reads, handled = clicks.stream.receives, len(set(clicks.ids))
        assert 4 <= handled < 8
        await anyio.sleep(1000)
        assert (clicks.stream.receives, len(set(clicks.ids))) == (reads, handled)
        clicks.function._handler = None
        await anyio.sleep(61)
        assert await clicks.position_of() == "101"


@virtual
async def test_a_batch_does_not_wait_for_its_window_when_all_that_may_be_held_of_its_shard_is(monkeypatch):
    monkeypatch.setattr(lanes_module, "HELD_RECORDS", 10)
    clicks = Clicks(lanes=2, batch_size=5, window=300.0)
    clicks.stream.put_keys(A + B * 50)
    async with clicks.running():
        await settle_down()
        assert [batch for batch in clicks.function.batches if "1" in batch] == [["1"]]
        await anyio.sleep(2)
        assert int(await clicks.position_of()) >= 45


@virtual
async def test_nor_does_it_wait_when_all_that_is_held_behind_it_was_filtered_out(monkeypatch):
    monkeypatch.setattr(lanes_module, "HELD_RECORDS", 10)
    dropping = Dropping(*[str(number) for number in range(2, 51)])
    clicks = Clicks(batch_size=5, window=300.0, filters=dropping)
    clicks.stream.put(50)
    async with clicks.running():
        await anyio.sleep(2)
        assert clicks.function.batches == [["1"]]
        assert await clicks.position_of() == "50"


@virtual
async def test_after_a_pause_each_lane_goes_on_where_it_was():
    clicks = Clicks(function=Function(handler=failing_on("1", "2", reply=BUSY)), lanes=2, batch_size=2)
    clicks.stream.put_keys((A + B) * 4)
    async with clicks.running() as keeper:
        await anyio.sleep(1)
        keeper.close()
        await anyio.sleep(30)
        seen = len(clicks.function.calls)
        clicks.function._handler = None
        keeper.open()
        await settle_down()
        after = [id_ for batch in clicks.function.batches[seen:] for id_ in batch]
        assert [id_ for id_ in after if int(id_) % 2] == ["1", "3", "5", "7"]
        assert [id_ for id_ in after if not int(id_) % 2] == ["2", "4", "6", "8"]
    assert await clicks.position_of() == "8"


@pytest.mark.parametrize("count", [1, 10])
@virtual
async def test_a_read_that_fails_is_one_pause_for_all_lanes_though_each_takes_its_own_time(count):
    chance = Random(1)
    clicks = Clicks(lanes=count, world=replace(world(), chance=chance.random))
    clicks.stream.failures = [Unreachable() for _ in range(1000)]
    async with clicks.running():
        await anyio.sleep(300)
        # Pauses of half a second at first, 60 seconds in the end.
        assert 10 <= clicks.stream.receives <= 15
        clicks.stream.failures.clear()
        clicks.stream.put_keys("abcdefghij")
        await anyio.sleep(85)
        assert await clicks.position_of() == "10"
        assert clicks.observer.states("clicks") == [MappingState.DEGRADED, MappingState.RUNNING]


@virtual
async def test_a_shard_that_is_gone_ends_after_what_was_received():
    clicks = Clicks(function=Function(handler=taking(10)), lanes=2, batch_size=1)
    clicks.stream.put_keys(A + A + B)
    async with clicks.running() as keeper:
        await anyio.sleep(1)
        clicks.stream.remove("shard-000")
        await anyio.sleep(30)
        assert sorted(clicks.ids) == ["1", "2", "3"]
        assert keeper.shards() == ()


# --- one reader, several lanes ------------------------------------------------------------------------------------------


@virtual
async def test_a_lane_is_a_reader_that_says_what_the_reader_behind_it_says():
    reader = ScriptedReader(records(A + A + B), closed=True)
    lanes, moved = lanes_over(reader)
    lane, other = lanes.lanes
    assert (lane.redelivers, lane.doing, lane.children) == (False, "reading", (Shard("child"),))
    first = await lane.receive(1, 20.0)
    assert ids(first) == ["1"]
    assert lane.behind == 7.0
    assert repr(lane) == repr(other) == "<Lane 1 records wait>"
    assert (lanes.ended, lane.ended, lanes.drained, lanes.open_records) == (True, False, False, 3)
    await lane.release(first, None)
    assert (lanes.open_records, moved) == (3, [])
    assert ids(await lane.receive(5, 20.0)) == ["2"]
    assert lane.ended
    assert len(reader.asked) == 1


@virtual
async def test_one_lane_reads_for_all_of_them():
    reader = ScriptedReader(records(A + B + A + B))
    lanes, _ = lanes_over(reader)
    assert await receive_together(lanes) == {0: (["1", "3"], 1.0), 1: (["2", "4"], 1.0)}
    assert reader.asked == [(200, 20.0)]


@virtual
async def test_a_lane_reads_on_as_long_as_only_others_get_something():
    lanes, _ = lanes_over(ScriptedReader(*pages(B + B + B + A)))
    assert ids(await lanes.lanes[0].receive(100, 20.0)) == ["4"]
    assert anyio.current_time() == 4.0
    assert (lanes.waiting_records, lanes.waiting_bytes) == (3, 300)


@virtual
async def test_a_lane_is_back_in_time_while_another_one_reads():
    reader = ScriptedReader(records(B), latency=10.0)
    lanes, _ = lanes_over(reader)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lanes.lanes[1].receive, 100, 20.0)
        await settle_down()
        assert await lanes.lanes[0].receive(100, 3.0) == []
        assert anyio.current_time() == 3.0
    assert len(reader.asked) == 1


@virtual
async def test_a_lane_is_back_in_time_while_every_read_brings_something_for_others():
    lanes, _ = lanes_over(ScriptedReader(*pages(B * 100)))
    lane, other = lanes.lanes

    async def keep_receiving():
        while True:
            await other.receive(100, 20.0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keep_receiving)
        assert await lane.receive(100, 5.5) == []
        assert anyio.current_time() <= 6.5
        tasks.cancel_scope.cancel()


@virtual
async def test_a_lane_waits_no_longer_when_another_one_has_read_in_vain():
    reader = ScriptedReader()
    lanes, _ = lanes_over(reader)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lanes.lanes[1].receive, 100, 5.0)
        await settle_down()
        # It reads on by itself then, for the time that is left to it.
        assert await lanes.lanes[0].receive(100, 20.0) == []
    assert anyio.current_time() == 20.0
    assert reader.asked == [(200, 5.0), (200, 15.0)]


@virtual
async def test_a_read_that_fails_fails_every_lane_once():
    error = Throttled()
    keys = keys_of_lanes(3)
    reader = ScriptedReader(error, records([keys[place] for place in range(3)]))
    lanes, _ = lanes_over(reader, count=3)
    assert await receive_together(lanes) == dict.fromkeys(range(3), (error, 1.0))
    assert len(reader.asked) == 1
    assert lanes.lanes[0].behind is None, "a read that failed says nothing of the tip"
    assert await receive_together(lanes) == {place: ([str(place + 1)], 1.0) for place in range(3)}
    assert lanes.lanes[0].behind == 7.0
    assert len(reader.asked) == 2


@virtual
async def test_a_lane_that_comes_later_is_told_of_the_last_failure_before_it_reads():
    lanes, _ = lanes_over(ScriptedReader(Throttled("first"), Throttled("second"), records(A + B)))
    lane, other = lanes.lanes
    for _ in range(2):
        with pytest.raises(Throttled):
            await lane.receive(100, 20.0)
    with pytest.raises(Throttled, match="second"):
        await other.receive(100, 20.0)
    assert anyio.current_time() == 2.0
    assert ids(await other.receive(100, 20.0)) == ["2"]
    assert ids(await lane.receive(100, 20.0)) == ["1"]


@virtual
async def test_a_shard_that_is_gone_has_ended_for_every_lane_once_it_has_what_was_read():
    keys = keys_of_lanes(3)
    lanes, moved = lanes_over(ScriptedReader(records(keys[0] + keys[1]), ShardGone()), count=3)
    first = await lanes.lanes[0].receive(100, 20.0)
    answers = await receive_together(lanes)
    assert [got for got, _ in answers.values() if got] == [["2"]]
    assert all(lane.ended for lane in lanes.lanes)
    lanes.settle(first)
    assert (lanes.ended, lanes.drained) == (True, False)
    lanes.settle([lanes.oldest])
    assert lanes.drained
    assert ids(moved) == ["1", "2"]


@virtual
async def test_a_read_that_is_cancelled_is_begun_again_by_a_lane_that_waits_for_it():
    reader = ScriptedReader(records(A + B), latency=10.0)
    lanes, _ = lanes_over(reader)
    got = []

    async def receive():
        got.extend(await lanes.lanes[1].receive(100, 20.0))

    async with anyio.create_task_group() as tasks:
        with anyio.move_on_after(5.0):
            tasks.start_soon(receive)
            await lanes.lanes[0].receive(100, 20.0)
    assert len(reader.asked) == 2
    assert ids(got) == ["2"]
    assert ids(await lanes.lanes[0].receive(100, 20.0)) == ["1"]


@pytest.mark.parametrize(
    ("bound", "value"), [("HELD_RECORDS", 4), ("HELD_BYTES", 400)], ids=["records", "bytes"]
)
def test_a_full_buffer_is_read_no_further_until_there_is_room(monkeypatch, bound, value):
    monkeypatch.setattr(lanes_module, bound, value)

    @virtual
    async def course():
        reader = ScriptedReader(*pages(B * 6 + A))
        lanes, _ = lanes_over(reader)
        lane, other = lanes.lanes
        assert await lane.receive(1, 100.0) == []
        # That there is no more to come is told as soon as it is known, and once.
        assert (anyio.current_time(), lane.full, other.full) == (4.0, True, False)
        assert await lane.receive(1, 100.0) == []
        assert anyio.current_time() == 104.0
        assert (len(reader.asked), lanes.waiting_records) == (4, 4)
        got = []

        async def receive():
            got.extend(await lane.receive(1, 100.0))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await settle_down()
            mine = await other.receive(3, 20.0)
            assert ids(mine) == ["1", "2", "3"]
            await settle_down()
            assert got == []
            await other.ack(mine)
        assert ids(got) == ["7"]
        assert lanes.waiting_records == 3

    course()


@virtual
async def test_no_read_asks_for_more_than_a_source_can_give(monkeypatch):
    monkeypatch.setattr(lanes_module, "READ_RECORDS", 50)
    reader = ScriptedReader(records(A))
    lanes, _ = lanes_over(reader)
    await lanes.lanes[0].receive(40, 20.0)
    assert reader.asked == [(50, 20.0)]


@virtual
async def test_the_checkpoint_is_the_end_of_what_is_done_from_the_front_over_all_lanes():
    reader = ScriptedReader(records(A + B + A + B))
    lanes, moved = lanes_over(reader)
    mine = await lanes.lanes[0].receive(100, 20.0)
    others = await lanes.lanes[1].receive(100, 20.0)
    assert await lanes.lanes[1].ack(others[:1]) == 1
    assert moved == []
    assert lanes.oldest is mine[0]
    await lanes.lanes[0].ack(mine)
    assert ids(moved) == ["3"]
    await lanes.lanes[1].ack(others[1:])
    assert ids(moved) == ["3", "4"]
    assert lanes.oldest is None


# --- the law ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    keys=st.lists(st.text("abcdefg", min_size=1, max_size=12), min_size=1, max_size=4),
    lanes=st.integers(1, 5),
    batch_size=st.integers(1, 5),
    bound=st.integers(1, 20),
    bisect=st.booleans(),
    script=st.lists(
        st.tuples(
            st.sampled_from(["ok", "error", "refuse", "partial"]),
            st.sampled_from([0.0, 0.3, 2.0]),
            st.integers(0, 4),
        ),
        max_size=15,
    ),
    reads=st.lists(st.sampled_from([None, Unreachable()]), max_size=8),
    pauses=st.lists(st.sampled_from([0.0, 0.2, 1.0, 5.0]), max_size=4),
)
def test_keys_keep_their_order_and_the_checkpoint_passes_nothing_unfinished(
    keys, lanes, batch_size, bound, bisect, script, reads, pauses
):
    async def course():
        finished, wrong, script_left = set(), [], list(script)

        async def handler(call):
            kind, seconds, place = script_left.pop(0) if script_left else ("ok", 0.0, 0)
            await anyio.sleep(seconds)
            check()
            match kind:
                case "error":
                    return ERROR
                case "refuse":
                    return BUSY
                case "partial":
                    first = min(place, len(call.ids) - 1)
                    note(call.ids[:first])
                    return failing(*call.ids[first:])
            note(call.ids)
            return OK

        def note(done):
            for id_ in done:
                earlier = [one for one, key in sent.items() if key == sent[id_] and int(one) < int(id_)]
                if id_ in finished or not finished.issuperset(earlier):
                    wrong.append(id_)
                finished.add(id_)

        def check():
            position = int(clicks.keeper.checkpoints["shard-000"].sequence_number or 0)
            if not finished.issuperset(str(number) for number in range(1, position + 1)):
                wrong.append(f"checkpoint {position}")

        clicks = Clicks(
            function=Function(handler=handler),
            lanes=lanes,
            batch_size=batch_size,
            partial=True,
            policy=StreamPolicy(bisect_batch_on_function_error=bisect),
        )
        clicks.stream.failures = list(reads)
        sent = {}
        async with clicks.running() as keeper:
            for text in keys:
                sent.update(zip(clicks.stream.put_keys(text), text, strict=True))
                await anyio.sleep(0.1)
            for seconds in pauses:
                keeper.close()
                await anyio.sleep(seconds)
                keeper.open()
                await anyio.sleep(0.4)
                check()
            await anyio.sleep(400)
            check()
        assert wrong == []
        assert clicks.function.overlaps == []
        assert finished == set(sent)
        assert await clicks.position_of() == str(len(sent))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes_module, "HELD_RECORDS", bound)
        in_virtual_time(course)
