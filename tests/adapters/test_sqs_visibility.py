"""How received messages stay hidden, and come back when the reader is closed. All in virtual time."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.errors import AccessDenied, Unreachable
from poller.model import StaleReceipts, Trouble
from tests.adapters.sqs_reading import bodies, elapsed, reading, received
from tests.engine.fakes import Recorder, in_virtual_time, settle_down, virtual
from tests.fake_sqs import HANGS, FakeSqs, Fault

if TYPE_CHECKING:
    from poller.sources.sqs import SqsReader

CHANGE = "ChangeMessageVisibilityBatch"
DELETE = "DeleteMessageBatch"
FAULT = Unreachable("the connection broke")
HOUR = 3600.0


def extensions(queue: FakeSqs) -> list[tuple[float, int, int]]:
    """When, how many messages, to how many seconds."""
    return [
        (call.at, len(call.receipts), call.params["Entries"][0]["VisibilityTimeout"])
        for call in queue.changes
    ]


# --- extending ----------------------------------------------------------------------------------------------------------


@virtual
async def test_held_messages_are_extended_at_half_of_their_visibility_timeout() -> None:
    queue = FakeSqs(visibility_timeout=30)
    async with reading(queue) as reader:
        records = await received(reader, queue, 3)
        await anyio.sleep(50)
        assert extensions(queue) == [(15.0, 3, 30), (30.0, 3, 30), (45.0, 3, 30)]
        assert queue.visible == []
        assert await reader.ack(records) == 3


@virtual
async def test_a_settled_message_is_no_longer_extended_and_the_rest_of_its_receive_is() -> None:
    queue = FakeSqs(visibility_timeout=30)
    async with reading(queue) as reader:
        records = await received(reader, queue, 3)
        await reader.ack(records[:1])
        await reader.release(records[1:2], None)
        await anyio.sleep(20)
        assert [call.receipts for call in queue.changes] == [[records[2].receipt]]
        await anyio.sleep(10)
        assert queue.visible == ["body 1"]


@virtual
async def test_a_large_batch_stays_hidden_until_its_turn_to_be_deleted_has_come() -> None:
    queue = FakeSqs(visibility_timeout=10)
    queue.always(DELETE, Fault(before=1))
    async with reading(queue) as reader:
        records = await received(reader, queue, 1000)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reader.ack, records)
            while queue.messages:
                assert queue.visible == []
                await anyio.sleep(0.5)
        assert len(queue.deletions) == 100


@virtual
async def test_nothing_runs_while_nothing_is_held() -> None:
    queue = FakeSqs(visibility_timeout=30)
    async with reading(queue) as reader:
        await settle_down()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline > HOUR
        await reader.ack(await received(reader, queue, 3))
        await anyio.sleep(100)
        await settle_down()
        assert trio.lowlevel.current_statistics().seconds_to_next_deadline > HOUR
        assert [call.operation for call in queue.calls] == [
            "GetQueueUrl",
            "GetQueueAttributes",
            "ReceiveMessage",
            "DeleteMessageBatch",
        ]


@virtual
async def test_a_message_that_comes_after_a_pause_is_extended_too() -> None:
    queue = FakeSqs(visibility_timeout=30)
    async with reading(queue) as reader:
        await reader.ack(await received(reader, queue, 1))
        await anyio.sleep(1000)
        await received(reader, queue, 1)
        await anyio.sleep(16)
        assert extensions(queue) == [(1015.0, 1, 30)]


@virtual
async def test_messages_of_several_receives_share_requests() -> None:
    queue = FakeSqs(visibility_timeout=30)
    async with reading(queue) as reader:
        for _ in range(20):
            queue.send("body")
        for _ in range(10):
            await reader.receive(2, 1)
            await anyio.sleep(0.1)
        await anyio.sleep(15)
        assert extensions(queue) == [(15.0, 10, 30), (15.0, 10, 30)]


@virtual
async def test_many_messages_are_extended_with_a_few_requests_at_a_time() -> None:
    queue = FakeSqs(visibility_timeout=30)
    async with reading(queue) as reader:
        await received(reader, queue, 1000)
        queue.always(CHANGE, Fault(after=0.05))
        queue.most_in_flight_calls = 0
        await anyio.sleep(100)
        assert queue.most_in_flight_calls == 8
        assert queue.visible == []


@virtual
async def test_a_message_settled_while_its_extension_waits_for_its_turn_is_left_out() -> None:
    queue = FakeSqs(visibility_timeout=30)
    async with reading(queue) as reader:
        records = await received(reader, queue, 100)
        queue.always(CHANGE, Fault(after=1.0))
        await anyio.sleep(15.5)
        await reader.ack(records)
        await anyio.sleep(100)
    assert len(queue.changes) == 8


@virtual
async def test_no_extension_reaches_beyond_12_hours_from_the_receive() -> None:
    queue, seen = FakeSqs(visibility_timeout=7 * 3600), Recorder()
    async with reading(queue, seen) as reader:
        queue.script("ReceiveMessage", Fault(after=2.0))
        await received(reader, queue, 1)
        await anyio.sleep(11.9 * HOUR)
        assert queue.visible == []
        await anyio.sleep(HOUR)
        assert queue.visible == ["body 0"]
        (first, _, whole), (second, _, rest) = extensions(queue)
        assert (first, whole) == (pytest.approx(3.5 * HOUR, abs=5), 7 * 3600)
        # The receive was sent two seconds before it was answered; SQS may have begun to count then.
        assert second + rest == pytest.approx(12 * HOUR, abs=1)
    assert not seen.of(Trouble)


@virtual
async def test_the_longest_visibility_timeout_of_all_is_not_exceeded() -> None:
    queue = FakeSqs(visibility_timeout=12 * 3600)
    async with reading(queue) as reader:
        await received(reader, queue, 1)
        await anyio.sleep(11 * HOUR)
        ((at, _, seconds),) = extensions(queue)
        assert at + seconds == pytest.approx(12 * HOUR, abs=1)
        assert queue.visible == []


@virtual
async def test_a_message_that_is_no_longer_ours_is_not_extended_again() -> None:
    queue, seen = FakeSqs(visibility_timeout=30), Recorder()
    async with reading(queue, seen) as reader:
        await received(reader, queue, 2)
        queue.messages.pop("message-1")
        await anyio.sleep(50)
        assert [count for _, count, _ in extensions(queue)] == [2, 1, 1]
    assert not seen.of(Trouble)
    assert not seen.of(StaleReceipts)


@virtual
@pytest.mark.parametrize(
    "fault",
    [Fault(FAULT), HANGS, Fault(entries={0: "InternalError"}), Fault(reply={"Failed": 1}), Fault(reply={})],
)
async def test_an_extension_that_fails_is_repeated_before_the_message_shows(fault: Fault) -> None:
    queue, seen = FakeSqs(visibility_timeout=30), Recorder()
    queue.script(CHANGE, fault, fault)
    async with reading(queue, seen) as reader:
        records = await received(reader, queue, 1)
        for _ in range(60):
            await anyio.sleep(1)
            assert queue.visible == []
        assert await reader.ack(records) == 1
    assert len(seen.of(Trouble)) == 2


@virtual
async def test_an_extension_that_is_denied_does_not_end_the_mapping() -> None:
    queue, seen = FakeSqs(visibility_timeout=30), Recorder()
    queue.always(CHANGE, Fault(AccessDenied("the role needs sqs:ChangeMessageVisibility")))
    async with reading(queue, seen) as reader:
        records = await received(reader, queue, 1)
        await anyio.sleep(100)
        assert await reader.ack(records) == 1
    assert 10 < len(seen.of(Trouble)) < 40
    assert {fact.error for fact in seen.of(Trouble)} == {"the role needs sqs:ChangeMessageVisibility"}


@virtual
async def test_one_slow_extension_does_not_let_other_messages_show() -> None:
    queue = FakeSqs(visibility_timeout=30)
    async with reading(queue) as reader:
        queue.script(CHANGE, HANGS)
        await received(reader, queue, 1)
        await anyio.sleep(7)
        await received(reader, queue, 1)
        for _ in range(60):
            await anyio.sleep(1)
            assert queue.visible == []


@virtual
async def test_the_shortest_visibility_timeout_is_kept_up_too() -> None:
    queue = FakeSqs(visibility_timeout=1)
    queue.always(CHANGE, Fault(after=0.05))
    async with reading(queue) as reader:
        await received(reader, queue, 1)
        for _ in range(100):
            await anyio.sleep(0.1)
            assert queue.visible == []
    assert 15 < len(queue.changes) < 25


# --- the queue's visibility timeout -------------------------------------------------------------------------------------


@virtual
async def test_the_visibility_timeout_is_read_again_once_a_minute_while_something_is_held() -> None:
    queue = FakeSqs(visibility_timeout=300)
    async with reading(queue) as reader:
        await received(reader, queue, 1)
        await anyio.sleep(301)
    assert [call.at for call in queue.calls_of("GetQueueAttributes")] == [0, 60, 120, 180, 240, 300]


@virtual
async def test_a_visibility_timeout_that_was_raised_is_used_from_then_on() -> None:
    queue = FakeSqs(visibility_timeout=30)
    async with reading(queue) as reader:
        await received(reader, queue, 1)
        queue.visibility_timeout = 600
        await anyio.sleep(80)
        assert reader.visibility_timeout == 600
        assert extensions(queue)[-1] == (75.0, 1, 600)


@virtual
async def test_a_visibility_timeout_that_was_lowered_lets_no_message_show() -> None:
    queue = FakeSqs(visibility_timeout=3600)
    async with reading(queue) as reader:
        await received(reader, queue, 1)
        await anyio.sleep(50)
        queue.visibility_timeout = 20
        await received(reader, queue, 1)
        for _ in range(60):
            await anyio.sleep(1)
            assert queue.visible == []


@virtual
async def test_a_visibility_timeout_of_zero_makes_nothing_visible_and_no_haste() -> None:
    queue = FakeSqs(visibility_timeout=100)
    async with reading(queue) as reader:
        await received(reader, queue, 1)
        queue.visibility_timeout = 0
        await anyio.sleep(80)
        assert reader.visibility_timeout == 0
        assert extensions(queue) == [(50.0, 1, 100)]


@virtual
@pytest.mark.parametrize("fault", [Fault(FAULT), HANGS, Fault(reply={})])
async def test_a_visibility_timeout_that_cannot_be_read_again_stays_what_it_was(fault: Fault) -> None:
    queue, seen = FakeSqs(visibility_timeout=30), Recorder()
    async with reading(queue, seen) as reader:
        await received(reader, queue, 1)
        queue.always("GetQueueAttributes", fault)
        for _ in range(130):
            await anyio.sleep(1)
            assert queue.visible == []
        assert reader.visibility_timeout == 30
    assert len(seen.of(Trouble)) == 2


# --- extensions on their way --------------------------------------------------------------------------------------------


@virtual
async def test_an_extension_on_its_way_does_not_hide_what_is_given_back() -> None:
    queue = FakeSqs(visibility_timeout=30)
    queue.script(CHANGE, Fault(before=2.0))
    async with reading(queue) as reader:
        records = await received(reader, queue, 2)
        await anyio.sleep(15.5)
        await reader.release(records[:1], 0.0)
        assert queue.visible == ["body 0"]
        await anyio.sleep(5)
        assert queue.visible == ["body 0"]


@virtual
async def test_giving_back_does_not_wait_for_the_extension_of_others() -> None:
    queue = FakeSqs(visibility_timeout=30)
    queue.script(CHANGE, Fault(before=5.0))
    async with reading(queue) as reader:
        await received(reader, queue, 1)
        await anyio.sleep(14)
        records = await received(reader, queue, 1)
        await anyio.sleep(2)
        assert await elapsed(partial(reader.release, records, 0.0)) == 0


@virtual
async def test_an_extension_on_its_way_and_a_deletion_leave_no_trace() -> None:
    queue, seen = FakeSqs(visibility_timeout=30), Recorder()
    queue.script(CHANGE, Fault(before=2.0))
    async with reading(queue, seen) as reader:
        records = await received(reader, queue, 1)
        await anyio.sleep(15.5)
        assert await reader.ack(records) == 1
        await anyio.sleep(100)
    assert len(queue.changes) == 1
    assert not seen.facts


# --- closing ------------------------------------------------------------------------------------------------------------


@virtual
async def test_closing_gives_back_everything_that_is_held() -> None:
    queue = FakeSqs()
    async with reading(queue) as reader:
        records = await received(reader, queue, 25)
        await reader.ack(records[:3])
        await reader.release(records[3:5], None)
    assert queue.visible == bodies(records)[5:]
    assert sorted(len(call.receipts) for call in queue.changes) == [10, 10]


@virtual
async def test_closing_gives_back_everything_even_when_cancelled() -> None:
    queue = FakeSqs()
    queue.always(CHANGE, Fault(after=0.5))
    with anyio.move_on_after(5):
        async with reading(queue) as reader:
            await received(reader, queue, 25)
            await anyio.sleep_forever()
    assert len(queue.visible) == 25


@virtual
@pytest.mark.parametrize("cancelled", [False, True])
async def test_closing_takes_three_seconds_at_most_when_the_queue_does_not_answer(cancelled: bool) -> None:
    queue, seen = FakeSqs(visibility_timeout=30), Recorder()
    queue.always(CHANGE, HANGS)
    with anyio.move_on_after(16 if cancelled else math.inf):
        async with reading(queue, seen) as reader:
            await received(reader, queue, 25)
            await anyio.sleep(math.inf if cancelled else 16)
    assert anyio.current_time() == 16 + 3
    assert "closed before every message was given back" in seen.of(Trouble)[-1].error


@virtual
@pytest.mark.parametrize("cancelled", [False, True])
async def test_an_extension_on_its_way_when_the_reader_closes_does_not_hide_what_is_given_back(
    cancelled: bool,
) -> None:
    queue = FakeSqs(visibility_timeout=30)
    queue.script(CHANGE, Fault(before=0.6))
    with anyio.move_on_after(15.2 if cancelled else math.inf):
        async with reading(queue) as reader:
            await received(reader, queue, 2)
            await anyio.sleep(math.inf if cancelled else 15.2)
    assert anyio.current_time() == 15.6
    assert queue.visible == ["body 0", "body 1"]


@virtual
async def test_one_extension_that_hangs_does_not_keep_the_others_from_being_given_back() -> None:
    queue = FakeSqs(visibility_timeout=30)
    queue.script(CHANGE, HANGS)
    async with reading(queue) as reader:
        await received(reader, queue, 15)
        await anyio.sleep(15.2)
    assert anyio.current_time() == 16.2
    assert len(queue.visible) == 15


@virtual
async def test_closing_sends_no_extension_that_was_still_to_come() -> None:
    queue = FakeSqs(visibility_timeout=30)
    async with reading(queue) as reader:
        await received(reader, queue, 200)
        queue.always(CHANGE, Fault(after=0.1))
        await anyio.sleep(15.05)
    assert len(queue.changes) == 8 + 20
    assert len(queue.visible) == 200


async def ack_cut_off(reader: SqsReader, queue: FakeSqs) -> None:
    records = await received(reader, queue, 15)
    queue.script(DELETE, HANGS, HANGS)
    with anyio.move_on_after(1):
        await reader.ack(records)


@virtual
async def test_a_deletion_that_was_cut_off_is_finished_when_the_reader_closes() -> None:
    queue = FakeSqs()
    async with reading(queue) as reader:
        await ack_cut_off(reader, queue)
        assert len(queue.messages) == 15
    assert queue.messages == {}


@virtual
async def test_what_still_waited_to_be_deleted_when_that_was_cut_off_is_not_given_back() -> None:
    queue = FakeSqs()
    async with reading(queue) as reader:
        records = await received(reader, queue, 100)
        queue.script(DELETE, *[HANGS] * 8)
        with anyio.move_on_after(1):
            await reader.ack(records)
    assert queue.messages == {}
    assert queue.changes == []


@virtual
async def test_a_release_that_was_cut_off_is_finished_when_the_reader_closes() -> None:
    queue = FakeSqs()
    async with reading(queue) as reader:
        records = await received(reader, queue, 2)
        queue.script(CHANGE, HANGS)
        with anyio.move_on_after(1):
            await reader.release(records, 0.0)
        assert queue.visible == []
    assert queue.visible == ["body 0", "body 1"]


# --- all of it ----------------------------------------------------------------------------------------------------------

FAULTS = st.sampled_from(
    [Fault(), Fault(), Fault(FAULT), Fault(before=0.5), Fault(entries={0: "InternalError"})]
)
WORK = st.tuples(
    st.sampled_from(["ack", "leave", "give back", "hold on"]),
    st.floats(0.0, 80.0),
    st.integers(1, 10),
)


@settings(max_examples=30)
@given(work=st.lists(WORK, max_size=12), faults=st.lists(FAULTS, max_size=12))
def test_a_message_that_is_held_is_never_offered_to_another(
    work: list[tuple[str, float, int]], faults: list[Fault]
) -> None:
    async def check() -> None:
        queue = FakeSqs(visibility_timeout=20)
        held: set[str] = set()

        async def handle(reader: SqsReader, verb: str, seconds: float, limit: int) -> None:
            records = await reader.receive(limit, 5)
            ids = {record.id for record in records}
            assert not ids & held
            held.update(ids)
            await anyio.sleep(math.inf if verb == "hold on" else seconds)
            held.difference_update(ids)
            if verb == "ack":
                assert await reader.ack(records) == len(records)
            else:
                await reader.release(records, None if verb == "leave" else 0.0)

        # No two failures in a row, which is what half a visibility timeout has room for here.
        queue.script(CHANGE, *(fault for pair in faults for fault in (pair, Fault())))
        async with reading(queue) as reader, anyio.create_task_group() as tasks:
            for number in range(40):
                queue.send(f"body {number}")
            for item in work:
                tasks.start_soon(handle, reader, *item)
            await anyio.sleep(120)
            tasks.cancel_scope.cancel()
        await anyio.sleep(21)
        assert len(queue.visible) == len(queue.messages)

    in_virtual_time(check)
