from __future__ import annotations

from functools import partial
from typing import Any

import anyio
import pytest

from poller.engine.child import leaf
from poller.errors import (
    AccessDenied,
    AwsError,
    BadReply,
    RequestRefused,
    ResourceNotFound,
    SourceUnfit,
    Unreachable,
)
from poller.model import Shard, StaleReceipts, Trouble
from tests.adapters.sqs_reading import bodies, elapsed, reading, received, source
from tests.engine.fakes import Recorder, virtual
from tests.fake_sqs import HANGS, FakeSqs, Fault

FAULT = Unreachable("the connection broke", operation="ReceiveMessage")


# --- opening ------------------------------------------------------------------------------------------------------------


async def error_of_opening(queue: FakeSqs, **options: Any) -> BaseException:
    opened = source(queue, **options)
    (shard,) = await opened.shards()
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the tests look at it
        async with opened.open(shard):
            raise AssertionError("opened")
    return leaf(caught.value)


def _message(**attributes: Any) -> dict[str, Any]:
    return {"MessageId": "1", "ReceiptHandle": "r", "Body": "", "Attributes": attributes}


@virtual
async def test_a_queue_has_one_shard() -> None:
    assert await source(FakeSqs()).shards() == (Shard("arn:aws:sqs:eu-west-1:123456789012:orders"),)


@virtual
async def test_a_missing_queue_is_said_so() -> None:
    queue = FakeSqs()
    opened = source(queue)
    queue.name = "another"
    with pytest.raises(ResourceNotFound, match="does not exist"):
        async with opened.open(Shard("orders")):
            pass


@virtual
async def test_a_denied_permission_is_said_so() -> None:
    queue = FakeSqs()
    queue.script("GetQueueAttributes", Fault(AccessDenied("the role needs sqs:GetQueueAttributes")))
    assert "sqs:GetQueueAttributes" in str(await error_of_opening(queue))


@virtual
async def test_a_visibility_timeout_below_the_functions_timeout_is_unfit_in_one_line() -> None:
    error = await error_of_opening(FakeSqs(visibility_timeout=30), function_timeout=31)
    assert isinstance(error, SourceUnfit)
    assert str(error).startswith(
        "Queue visibility timeout: 30 seconds is less than Function timeout: 31 seconds"
    )
    assert "\n" not in str(error)
    assert "orders" in str(error)


@virtual
async def test_a_visibility_timeout_equal_to_the_functions_timeout_will_do() -> None:
    opened = source(FakeSqs(visibility_timeout=30), function_timeout=30)
    async with opened.open(Shard("orders")) as reader:
        assert reader.visibility_timeout == 30


@virtual
@pytest.mark.parametrize(
    ("operation", "reply"),
    [
        ("GetQueueUrl", {}),
        ("GetQueueUrl", []),
        ("GetQueueAttributes", {}),
        ("GetQueueAttributes", {"Attributes": {"VisibilityTimeout": "long"}}),
    ],
)
async def test_a_reply_that_makes_no_sense_is_a_bad_reply(operation: str, reply: Any) -> None:
    queue = FakeSqs()
    queue.script(operation, Fault(reply=reply))
    error = await error_of_opening(queue)
    assert isinstance(error, BadReply)
    assert error.operation == operation


@virtual
async def test_an_error_of_the_body_comes_out_and_everything_is_given_back() -> None:
    queue = FakeSqs()
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - the context is what is tested
        async with reading(queue) as reader:
            await received(reader, queue, 1)
            raise ZeroDivisionError
    assert isinstance(leaf(caught.value), ZeroDivisionError)
    assert queue.visible == ["body 0"]


# --- receiving ----------------------------------------------------------------------------------------------------------


@virtual
async def test_a_receive_asks_for_all_attributes() -> None:
    queue = FakeSqs()
    async with reading(queue) as reader:
        await received(reader, queue, 1)
    (call,) = queue.calls_of("ReceiveMessage")
    assert call.params == {
        "QueueUrl": queue.url,
        "MaxNumberOfMessages": 10,
        "WaitTimeSeconds": 1,
        "MessageSystemAttributeNames": ["All"],
        "MessageAttributeNames": ["All"],
    }


@virtual
@pytest.mark.parametrize(
    ("wait", "seconds"),
    [(0.0, 1), (0.01, 1), (0.6, 1), (1.4, 1), (1.6, 2), (4.99, 5), (20.0, 20), (300.0, 20)],
)
async def test_a_wait_is_rounded_to_whole_seconds_of_1_to_20(wait: float, seconds: int) -> None:
    queue = FakeSqs()
    async with reading(queue) as reader:
        assert await elapsed(partial(reader.receive, 10, wait)) == seconds
    assert queue.calls_of("ReceiveMessage")[0].params["WaitTimeSeconds"] == seconds


@virtual
@pytest.mark.parametrize(("limit", "asked"), [(1, 1), (9, 9), (10, 10), (10_000, 10)])
async def test_a_limit_above_ten_asks_for_ten(limit: int, asked: int) -> None:
    queue = FakeSqs()
    async with reading(queue) as reader:
        await reader.receive(limit, 1)
    assert queue.calls_of("ReceiveMessage")[0].params["MaxNumberOfMessages"] == asked


@virtual
async def test_a_receive_outlasts_its_long_poll() -> None:
    queue = FakeSqs()
    queue.script("ReceiveMessage", Fault(after=9.0))
    async with reading(queue) as reader:
        assert await reader.receive(10, 20) == ()


@virtual
@pytest.mark.parametrize(
    "messages",
    [
        [{"MessageId": "1"}],
        [{"MessageId": "1", "ReceiptHandle": "r"}],
        ["text"],
        {"MessageId": "1"},
        [{"MessageId": "1", "ReceiptHandle": "r", "Body": "", "MessageAttributes": {"a": "text"}}],
        [{"MessageId": "1", "ReceiptHandle": "r", "Body": "", "MessageAttributes": ["text"]}],
        [_message(ApproximateReceiveCount="often", MessageGroupId="g")],
        [_message(ApproximateReceiveCount=None, MessageGroupId="g")],
    ],
)
@pytest.mark.parametrize("fifo", [False, True])
async def test_a_message_that_makes_no_sense_is_a_bad_reply(messages: Any, fifo: bool) -> None:
    queue = FakeSqs(fifo=fifo)
    queue.script("ReceiveMessage", Fault(reply={"Messages": messages}))
    async with reading(queue) as reader:
        with pytest.raises(BadReply, match="ReceiveMessage: a message"):
            await reader.receive(10, 1)


@virtual
async def test_a_receive_that_fails_says_why() -> None:
    queue = FakeSqs()
    queue.script("ReceiveMessage", Fault(FAULT))
    async with reading(queue) as reader:
        with pytest.raises(Unreachable, match="the connection broke"):
            await reader.receive(10, 1)


# --- FIFO ---------------------------------------------------------------------------------------------------------------


@virtual
async def test_a_fifo_group_arrives_in_order_and_locks() -> None:
    queue = FakeSqs(fifo=True)
    async with reading(queue) as reader:
        for body in ("a1", "b1", "a2"):
            queue.send(body, group=body[0])
        assert bodies(await reader.receive(1, 1)) == ["a1"]
        others = await reader.receive(10, 1)
        assert bodies(others) == ["b1"]
        assert others[0].key == "b"


@virtual
async def test_a_fifo_receive_whose_answer_got_lost_is_asked_for_again() -> None:
    queue = FakeSqs(fifo=True)
    queue.script("ReceiveMessage", Fault(FAULT, lost=True))
    async with reading(queue) as reader:
        queue.send("a1", group="a")
        with pytest.raises(Unreachable):
            await reader.receive(10, 1)
        assert bodies(await reader.receive(10, 1)) == ["a1"]
        assert await reader.receive(10, 1) == ()
    attempts = [call.params["ReceiveRequestAttemptId"] for call in queue.calls_of("ReceiveMessage")]
    assert attempts[0] == attempts[1] != attempts[2]


@virtual
async def test_a_fifo_receive_that_was_refused_is_not_asked_for_again() -> None:
    queue = FakeSqs(fifo=True)
    queue.script("ReceiveMessage", Fault(RequestRefused("no")))
    async with reading(queue) as reader:
        with pytest.raises(RequestRefused):
            await reader.receive(10, 1)
        await reader.receive(10, 1)
    first, second = queue.calls_of("ReceiveMessage")
    assert first.params["ReceiveRequestAttemptId"] != second.params["ReceiveRequestAttemptId"]


@virtual
async def test_receives_at_the_same_time_never_share_an_attempt_id() -> None:
    queue = FakeSqs(fifo=True)
    queue.script("ReceiveMessage", Fault(FAULT, lost=True))
    async with reading(queue) as reader:
        with pytest.raises(Unreachable):
            await reader.receive(10, 1)
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(reader.receive, 10, 1)
    attempts = [call.params["ReceiveRequestAttemptId"] for call in queue.calls_of("ReceiveMessage")]
    assert len(attempts) == 4
    assert len(set(attempts)) == 3


@virtual
async def test_a_receipt_that_arrives_twice_is_held_once() -> None:
    queue = FakeSqs()
    async with reading(queue) as reader:
        first, second = await received(reader, queue, 2)
        again = {"MessageId": first.id, "ReceiptHandle": first.receipt, "Body": "body 0"}
        queue.script("ReceiveMessage", Fault(reply={"Messages": [again]}))
        await reader.ack(await reader.receive(10, 1))
        await anyio.sleep(20)
    # Extended once, and given back at the end.
    assert [call.receipts for call in queue.changes] == [[second.receipt]] * 2


# --- deleting -----------------------------------------------------------------------------------------------------------


@virtual
async def test_acked_messages_are_deleted() -> None:
    queue = FakeSqs()
    async with reading(queue) as reader:
        records = await received(reader, queue, 3)
        assert await reader.ack(records) == 3
    assert queue.messages == {}


@virtual
async def test_nothing_is_asked_of_the_queue_for_no_records() -> None:
    queue = FakeSqs()
    async with reading(queue) as reader:
        assert await reader.ack([]) == 0
        await reader.release([], 0.0)
        await reader.release([], None)
    assert not queue.deletions
    assert not queue.changes


@virtual
async def test_a_large_batch_is_deleted_in_tens_with_a_few_requests_at_a_time() -> None:
    queue = FakeSqs()
    async with reading(queue) as reader:
        records = await received(reader, queue, 205)
        queue.always("DeleteMessageBatch", Fault(after=1.0))
        queue.most_in_flight_calls = 0
        assert await reader.ack(records) == 205
        assert queue.most_in_flight_calls == 8
    assert sorted(len(call.receipts) for call in queue.deletions) == [5] + [10] * 20
    assert queue.messages == {}


@virtual
async def test_two_requests_are_enough_for_eleven() -> None:
    queue = FakeSqs()
    async with reading(queue) as reader:
        records = await received(reader, queue, 11)
        assert await reader.ack(records) == 11
    assert len(queue.deletions) == 2


@virtual
async def test_only_the_entries_that_failed_are_sent_again() -> None:
    queue, seen = FakeSqs(), Recorder()
    async with reading(queue, seen) as reader:
        records = await received(reader, queue, 4)
        failed = Fault(entries={1: "InternalError", 3: "AWS.SimpleQueueService.Throttled"})
        queue.script("DeleteMessageBatch", failed, Fault(entries={0: "InternalError"}))
        assert await reader.ack(records) == 4
    assert [call.receipts for call in queue.deletions] == [
        [record.receipt for record in records],
        [records[1].receipt, records[3].receipt],
        [records[1].receipt],
    ]
    assert not seen.of(Trouble)


@virtual
async def test_entries_that_fail_again_and_again_are_given_up_and_told() -> None:
    queue, seen = FakeSqs(), Recorder()
    queue.always("DeleteMessageBatch", Fault(entries={0: "InternalError"}))
    async with reading(queue, seen) as reader:
        records = await received(reader, queue, 3)
        assert await reader.ack(records) == 2
    assert len(queue.deletions) == 6
    (trouble,) = seen.of(Trouble)
    assert "InternalError" in trouble.error


@virtual
async def test_an_entry_that_was_refused_is_not_sent_again_but_told() -> None:
    queue, seen = FakeSqs(), Recorder()
    queue.script("DeleteMessageBatch", Fault(entries={0: "KmsDisabled"}, sender_fault=True))
    async with reading(queue, seen) as reader:
        assert await reader.ack(await received(reader, queue, 2)) == 1
    assert len(queue.deletions) == 1
    assert "KmsDisabled" in seen.of(Trouble)[0].error


@virtual
async def test_an_entry_that_was_throttled_is_sent_again_whosever_fault_it_was() -> None:
    queue = FakeSqs()
    queue.script("DeleteMessageBatch", Fault(entries={0: "RequestThrottled"}, sender_fault=True))
    async with reading(queue) as reader:
        assert await reader.ack(await received(reader, queue, 2)) == 2


@virtual
async def test_an_entry_that_the_reply_forgets_is_not_taken_for_done() -> None:
    queue = FakeSqs()
    queue.script("DeleteMessageBatch", Fault(reply={"Successful": [{"Id": "1"}]}))
    async with reading(queue) as reader:
        records = await received(reader, queue, 2)
        assert await reader.ack(records) == 2
    assert queue.deletions[1].receipts == [records[0].receipt]


@virtual
async def test_stale_receipts_are_counted_and_not_sent_again() -> None:
    queue, seen = FakeSqs(), Recorder()
    codes = {
        0: "ReceiptHandleIsInvalid",
        1: "InvalidParameterValue",
        3: "AWS.SimpleQueueService.MessageNotInflight",
    }
    queue.script("DeleteMessageBatch", Fault(entries=codes, sender_fault=True))
    async with reading(queue, seen) as reader:
        records = await received(reader, queue, 4)
        assert await reader.ack(records) == 1
    assert seen.of(StaleReceipts) == [StaleReceipts("orders", 3, records[0].id)]
    assert len(queue.deletions) == 1
    assert not seen.of(Trouble)


@virtual
async def test_a_fifo_receipt_whose_time_has_run_out_is_stale() -> None:
    queue, seen = FakeSqs(fifo=True, visibility_timeout=4), Recorder()
    queue.always("ChangeMessageVisibilityBatch", Fault(FAULT))
    async with reading(queue, seen) as reader:
        records = await received(reader, queue, 1)
        await anyio.sleep(5)
        assert await reader.ack(records) == 0
    assert [fact.records for fact in seen.of(StaleReceipts)] == [1]


@virtual
@pytest.mark.parametrize(
    "reply", [{"Failed": [{}]}, {"Failed": 1}, {"Failed": ["text"]}, {"Successful": 2}, []]
)
async def test_settling_survives_a_reply_that_makes_no_sense(reply: Any) -> None:
    queue, seen = FakeSqs(), Recorder()
    queue.script("DeleteMessageBatch", Fault(reply=reply))
    async with reading(queue, seen) as reader:
        assert await reader.ack(await received(reader, queue, 2)) == 0
    assert "makes no sense" in seen.of(Trouble)[0].error


@virtual
@pytest.mark.parametrize("error", [FAULT, AccessDenied("denied"), BadReply("cut off")])
async def test_a_delete_that_fails_is_told_and_never_raised(error: AwsError) -> None:
    queue, seen = FakeSqs(), Recorder()
    async with reading(queue, seen) as reader:
        records = await received(reader, queue, 30)
        queue.script("DeleteMessageBatch", Fault(), Fault(error))
        assert await reader.ack(records) == 20
    assert seen.of(Trouble) == [Trouble("orders", str(error), 0.0)]


@virtual
async def test_what_was_confirmed_counts_when_sending_the_rest_again_fails() -> None:
    queue, seen = FakeSqs(), Recorder()
    queue.script("DeleteMessageBatch", Fault(entries={0: "InternalError"}), Fault(FAULT))
    async with reading(queue, seen) as reader:
        assert await reader.ack(await received(reader, queue, 3)) == 2
    assert seen.of(Trouble) == [Trouble("orders", "the connection broke", 0.0)]


@virtual
async def test_a_queue_that_does_not_answer_delays_a_delete_by_ten_seconds() -> None:
    queue, seen = FakeSqs(), Recorder()
    queue.script("DeleteMessageBatch", HANGS)
    async with reading(queue, seen) as reader:
        records = await received(reader, queue, 1)
        assert await elapsed(partial(reader.ack, records)) == 10
    assert len(seen.of(Trouble)) == 1


# --- giving back --------------------------------------------------------------------------------------------------------


@virtual
async def test_a_message_that_is_given_back_is_visible_at_once() -> None:
    queue = FakeSqs()
    async with reading(queue) as reader:
        records = await received(reader, queue, 2)
        await reader.release(records[:1], 0.0)
        assert queue.visible == ["body 0"]


@virtual
async def test_a_message_may_be_given_back_for_later() -> None:
    queue = FakeSqs()
    async with reading(queue) as reader:
        await reader.release(await received(reader, queue, 1), 90.4)
        await anyio.sleep(89.5)
        assert queue.visible == []
        await anyio.sleep(1)
        assert queue.visible == ["body 0"]


@virtual
async def test_a_message_that_is_left_comes_back_when_its_timeout_has_run_out() -> None:
    queue = FakeSqs(visibility_timeout=30)
    async with reading(queue) as reader:
        await reader.release(await received(reader, queue, 1), None)
        await anyio.sleep(29)
        assert queue.visible == []
        await anyio.sleep(1)
        assert queue.visible == ["body 0"]
    assert not queue.changes


@virtual
async def test_a_message_that_fails_too_often_goes_to_the_queues_dead_letters() -> None:
    queue = FakeSqs(visibility_timeout=30, max_receive_count=2)
    async with reading(queue) as reader:
        queue.send("poison")
        for _ in range(2):
            await reader.release(await reader.receive(10, 20), None)
            await anyio.sleep(30)
        assert await reader.receive(10, 1) == ()
    assert [message.body for message in queue.dead_letters] == ["poison"]


@virtual
async def test_a_release_that_fails_is_told_and_never_raised() -> None:
    queue, seen = FakeSqs(), Recorder()
    async with reading(queue, seen) as reader:
        records = await received(reader, queue, 2)
        queue.script("ChangeMessageVisibilityBatch", Fault(FAULT))
        await reader.release(records, 0.0)
    assert [fact.error for fact in seen.of(Trouble)] == ["the connection broke"]
    assert queue.visible == []


@virtual
async def test_giving_back_a_message_that_is_gone_is_nobodys_trouble() -> None:
    queue, seen = FakeSqs(), Recorder()
    async with reading(queue, seen) as reader:
        records = await received(reader, queue, 1)
        queue.messages.clear()
        await reader.release(records, 0.0)
    assert not seen.facts


@virtual
async def test_a_reader_says_what_it_holds() -> None:
    queue = FakeSqs()
    async with reading(queue) as reader:
        await received(reader, queue, 12)
        assert repr(reader) == "<SqsReader orders: 12 messages held>"
        assert reader.redelivers
