"""What becomes of a stream's batches: tried until they are done or given up, in order, with nothing lost on the way."""

from __future__ import annotations

from contextlib import asynccontextmanager

import anyio
import pytest

from poller.core.batch import PAYLOAD_LIMIT
from poller.core.retry import StreamPolicy
from poller.destinations.memory import MemoryDestination
from poller.engine.slots import Places, Slots
from poller.errors import AccessDenied, DocumentTooLarge, Unreachable
from poller.model import (
    Checkpoint,
    Delivered,
    DeliveryFailed,
    Dropped,
    FunctionError,
    Invoked,
    Returned,
    Settled,
    Trouble,
)
from tests.engine.fakes import BUSY, EPOCH, ERROR, OK, Function, failing, settle_down, taking, virtual
from tests.engine.stream_fakes import FUNCTION_ARN, STREAM_ARN, Clicks, Envelope, Stream, failing_on

#: Longer than any pause of a batch.
LONG_ENOUGH = 200.0
MB = 2**20


class Aggregates(Envelope):
    """A record's receipt is its place in its aggregate."""

    def checkpoint(self, record):
        return Checkpoint(record.id, record.receipt)


def retries(number, **more):
    return StreamPolicy(maximum_retry_attempts=number, **more)


def age(seconds, **more):
    return StreamPolicy(maximum_record_age_in_seconds=seconds, **more)


def clicks_with(*replies, **more):
    return Clicks(function=Function(*replies), **more)


def request_ids(clicks):
    return [call.invocation.request_id for call in clicks.function.calls]


def doing(clicks):
    return clicks.keeper.shards()[0].doing


def position(clicks):
    """What would be saved now."""
    return clicks.keeper.checkpoints["shard-000"].sequence_number


def committed(clicks):
    return sum(fact.committed for fact in clicks.observer.of(Settled))


def dropped(clicks):
    return [(fact.first, fact.last, fact.condition) for fact in clicks.observer.of(Dropped)]


def put_aged(stream, *ages):
    """Put records that arrived so many seconds before the test began. Arrival times need not follow the order of a shard."""
    sent = stream.put(len(ages))
    stream.records["shard-000"] = [
        record._replace(arrived=EPOCH - seconds)
        for record, seconds in zip(stream.records["shard-000"], ages, strict=True)
    ]
    return sent


def batch_info(failure):
    info = failure.document["KinesisBatchInfo"]
    return info["startSequenceNumber"], info["endSequenceNumber"], info["batchSize"]


@asynccontextmanager
async def worked(clicks, seconds=LONG_ENOUGH):
    async with clicks.running() as keeper:
        await anyio.sleep(seconds)
        yield keeper


# --- success and failure ------------------------------------------------------------------------------------------------


@virtual
async def test_success_commits_the_batch():
    clicks = clicks_with()
    clicks.stream.put(3)
    async with clicks.running():
        await settle_down()
        assert position(clicks) == "3"
    assert clicks.function.batches == [["1", "2", "3"]]
    assert clicks.observer.of(Settled) == [Settled("clicks", committed=3)]
    (fact,) = clicks.observer.of(Invoked)
    assert (fact.shard, fact.records, fact.failed) == ("shard-000", 3, 0)
    assert clicks.envelope.rebuilt == []


@virtual
async def test_a_failing_batch_is_retried_for_ever_with_growing_pauses_and_the_shard_waits_for_it():
    clicks = clicks_with(*[ERROR] * 9)
    clicks.stream.put(2)
    async with clicks.running():
        await anyio.sleep(1)
        clicks.stream.put(1)
        assert doing(clicks) == "retrying the batch from 1, 2 attempts failed"
        await anyio.sleep(120)
        assert position(clicks) == ""
        await anyio.sleep(10)
        assert doing(clicks) == "reading"
        assert position(clicks) == "3"
    assert clicks.function.batches == [["1", "2"]] * 10 + [["3"]]
    assert clicks.function.times[:10] == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 61.5, 91.5, 121.5]
    assert request_ids(clicks) == ["r-1"] * 10 + ["r-2"]


@virtual
async def test_a_failing_shard_holds_up_no_other():
    clicks = Clicks(stream=Stream(2), function=Function(handler=failing_on("1", reply=ERROR)))
    clicks.stream.put(shard="shard-000")
    clicks.stream.put(3, shard="shard-001")
    async with worked(clicks):
        assert position(clicks) == ""
        assert clicks.keeper.checkpoints["shard-001"].sequence_number == "4"


@pytest.mark.parametrize("number", [0, 1, 3])
@virtual
async def test_a_batch_is_invoked_once_and_then_as_often_as_it_may_be_retried(number):
    clicks = clicks_with(*[ERROR] * (1 + number), policy=retries(number), batch_size=2)
    clicks.stream.put(3)
    async with worked(clicks):
        assert doing(clicks) == "reading"
    assert clicks.function.batches == [["1", "2"]] * (1 + number) + [["3"]]
    assert clicks.observer.of(Dropped) == [
        Dropped("clicks", "shard-000", 2, "RetryAttemptsExhausted", "1", "2")
    ]
    assert (committed(clicks), await clicks.position_of()) == (3, "3")


@virtual
async def test_a_refusal_is_no_attempt():
    clicks = clicks_with(BUSY, BUSY, ERROR, BUSY, ERROR, policy=retries(1))
    clicks.stream.put(1)
    async with clicks.running():
        await settle_down()
        assert doing(clicks) == "waiting until the batch from 1 can be invoked"
        await anyio.sleep(LONG_ENOUGH)
    # Pauses grow from refusal to refusal; an attempt begins them anew.
    assert clicks.function.times == [0, 0.5, 1.5, 2.0, 2.5]
    assert set(request_ids(clicks)) == {"r-1"}
    assert dropped(clicks) == [("1", "1", "RetryAttemptsExhausted")]


# --- age ----------------------------------------------------------------------------------------------------------------


@virtual
async def test_a_batch_that_gets_too_old_is_given_up_on_the_second():
    clicks = clicks_with(*[ERROR] * 99, policy=age(60), batch_size=1)
    clicks.stream.put(2)
    clicks.destination = MemoryDestination()
    async with clicks.running():
        await anyio.sleep(59.9)
        assert clicks.destination.deliveries == []
        await anyio.sleep(0.2)
    first, second = clicks.destination.deliveries
    assert first.at == EPOCH + 60
    context = first.document["requestContext"]
    assert (context["condition"], context["approximateInvokeCount"]) == ("RecordAgeExceeded", 7)
    assert context["requestId"] == "r-1"
    # The second one was too old before it came to its turn, and counts one attempt that was none.
    context = second.document["requestContext"]
    assert (context["condition"], context["approximateInvokeCount"]) == ("RecordAgeExceeded", 1)
    assert clicks.function.batches == [["1"]] * 7


@virtual
async def test_of_a_batch_only_what_is_too_old_is_given_up():
    clicks = clicks_with(policy=age(60))
    put_aged(clicks.stream, 61, 60, 59, 0, 99)
    async with worked(clicks):
        pass
    assert clicks.function.batches == [["3", "4"]]
    assert dropped(clicks) == [("1", "2", "RecordAgeExceeded"), ("5", "5", "RecordAgeExceeded")]
    assert (committed(clicks), await clicks.position_of()) == (5, "5")


@virtual
async def test_what_gets_too_old_while_its_batch_fills_is_given_up_then_and_the_others_wait_for_their_window():
    clicks = clicks_with(policy=age(60), window=30, destination=MemoryDestination())
    put_aged(clicks.stream, 50, 45, 0)
    async with clicks.running():
        await anyio.sleep(29)
        assert clicks.function.batches == []
        assert [failure.at for failure in clicks.destination.deliveries] == [EPOCH + 10, EPOCH + 15]
        assert [batch_info(failure) for failure in clicks.destination.deliveries] == [
            ("1", "1", 1),
            ("2", "2", 1),
        ]
        assert (position(clicks), clicks.keeper.load().buffered_records) == ("2", 1)
        await anyio.sleep(1.1)
        assert clicks.function.batches == [["3"]]


@virtual
async def test_a_batch_of_which_all_got_too_old_begins_its_window_anew():
    clicks = clicks_with(policy=age(60), window=50)
    put_aged(clicks.stream, 30)
    async with clicks.running():
        await anyio.sleep(40)
        assert dropped(clicks) == [("1", "1", "RecordAgeExceeded")]
        clicks.stream.put()
        await anyio.sleep(49.5)
        assert clicks.function.batches == []
        await anyio.sleep(1)
    assert clicks.function.batches == [["2"]]


@virtual
async def test_a_door_that_closes_while_a_record_too_old_waits_for_its_destination_leaves_it_to_be_told_later():
    clicks = clicks_with(policy=age(60), window=30, destination=MemoryDestination())
    clicks.destination.broken = AccessDenied("sqs:SendMessage is missing")
    put_aged(clicks.stream, 50, 0)
    async with clicks.running():
        await anyio.sleep(20)
        assert "waiting for the on-failure destination" in doing(clicks)
        clicks.keeper.close()
        await anyio.sleep(1)
        clicks.destination.broken = None
        clicks.keeper.open()
        await anyio.sleep(40)
    assert [batch_info(failure) for failure in clicks.destination.deliveries] == [("1", "1", 1)]
    assert clicks.function.batches == [["2"]]


@virtual
async def test_what_is_left_of_a_batch_after_some_got_too_old_is_another_batch_that_keeps_its_count():
    clicks = clicks_with(*[ERROR] * 4, policy=age(60, maximum_retry_attempts=3))
    put_aged(clicks.stream, 58.0, 0.0)
    async with worked(clicks):
        pass
    assert clicks.function.batches == [["1", "2"]] * 3 + [["2"]]
    # Not at 3.5, where it would have been the turn of both.
    assert clicks.function.times == [0, 0.5, 1.5, 2.0]
    assert request_ids(clicks) == ["r-1"] * 3 + ["r-2"]
    assert dropped(clicks) == [("1", "1", "RecordAgeExceeded"), ("2", "2", "RetryAttemptsExhausted")]


@virtual
async def test_neighbours_that_got_too_old_apart_from_each_other_are_told_with_the_request_they_were_in():
    clicks = clicks_with(ERROR, policy=age(60), destination=MemoryDestination())
    put_aged(clicks.stream, 59.8, 0.0, 59.8, 0.0)
    async with worked(clicks):
        pass
    assert clicks.function.batches == [["1", "2", "3", "4"], ["2", "4"]]
    assert [
        (failure.document["requestContext"]["requestId"], *batch_info(failure))
        for failure in clicks.destination.deliveries
    ] == [("r-1", "1", "1", 1), ("r-1", "3", "3", 1)]
    assert request_ids(clicks) == ["r-1", "r-2"]


@virtual
async def test_runs_that_got_too_old_are_settled_once_although_the_door_closes_between_them():
    class TakesOne(MemoryDestination):
        async def send(self, failure):
            await super().send(failure)
            self.broken = Unreachable()

    clicks = clicks_with(policy=age(60), destination=TakesOne())
    put_aged(clicks.stream, 99, 0, 99, 0)
    async with clicks.running() as keeper:
        await anyio.sleep(5)
        assert position(clicks) == "1"
        keeper.close()
        await anyio.sleep(5)
        assert clicks.function.calls == []
        clicks.destination.broken = None
        keeper.open()
        await settle_down()
    assert [batch_info(failure) for failure in clicks.destination.deliveries] == [
        ("1", "1", 1),
        ("3", "3", 1),
    ]
    assert clicks.function.batches == [["2", "4"]]
    assert (committed(clicks), await clicks.position_of()) == (4, "4")


# --- bisecting and partial responses ------------------------------------------------------------------------------------


@virtual
async def test_bisecting_gets_down_to_the_one_bad_record_and_delivers_the_good_ones_in_their_order():
    clicks = Clicks(
        function=Function(handler=failing_on("6", reply=ERROR)),
        policy=retries(1, bisect_batch_on_function_error=True),
    )
    clicks.stream.put(8)
    async with worked(clicks):
        pass
    assert clicks.function.batches == [
        ["1", "2", "3", "4", "5", "6", "7", "8"],
        ["1", "2", "3", "4"],
        ["5", "6", "7", "8"],
        ["5", "6"],
        ["5"],
        ["6"],
        ["6"],
        ["7", "8"],
    ]
    # Only the bad one is worth a pause; each part is a new batch with a request of its own.
    assert clicks.function.times == [0, 0, 0, 0, 0, 0, 0.5, 0.5]
    assert request_ids(clicks) == ["r-1", "r-2", "r-3", "r-4", "r-5", "r-6", "r-6", "r-7"]
    assert dropped(clicks) == [("6", "6", "RetryAttemptsExhausted")]
    assert (committed(clicks), await clicks.position_of()) == (8, "8")


@virtual
async def test_the_first_half_is_committed_while_the_second_waits():
    clicks = Clicks(
        function=Function(handler=failing_on("4", reply=ERROR)),
        policy=StreamPolicy(bisect_batch_on_function_error=True),
    )
    clicks.stream.put(4)
    async with worked(clicks, 10):
        assert position(clicks) == "3"
        assert doing(clicks).startswith("retrying the batch from 4, ")


ALL = ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("replies", "bisect", "batches", "same_request"),
    [
        ([failing("3")], False, [ALL, ["3", "4", "5"]], False),
        ([failing("5", "2", "4")], False, [ALL, ["2", "3", "4", "5"]], False),
        ([failing("4"), failing("5")], False, [ALL, ["4", "5"], ["5"]], False),
        ([failing("1")], False, [ALL, ALL], True),
        ([failing("99")], False, [ALL, ALL], True),
        ([failing("3", "99")], False, [ALL, ALL], True),
        ([failing("")], False, [ALL, ALL], True),
        ([ERROR], False, [ALL, ALL], True),
        ([failing()], False, [ALL], True),
        ([OK], False, [ALL], True),
        # Split at the record that is named, not in the middle.
        ([failing("4")], True, [ALL, ["4", "5"]], False),
        ([failing("1")], True, [ALL, ["1", "2"], ["3", "4", "5"]], False),
        ([failing("99")], True, [ALL, ["1", "2"], ["3", "4", "5"]], False),
        ([ERROR], True, [ALL, ["1", "2"], ["3", "4", "5"]], False),
    ],
)
@virtual
async def test_a_partial_response_commits_what_comes_before_the_lowest_failed_record(
    replies, bisect, batches, same_request
):
    policy = retries(1, bisect_batch_on_function_error=bisect)
    clicks = clicks_with(*replies, partial=True, policy=policy)
    clicks.stream.put(5)
    async with worked(clicks):
        pass
    assert clicks.function.batches == batches
    assert len(set(request_ids(clicks))) == (1 if same_request else len(batches))
    assert (committed(clicks), await clicks.position_of(), dropped(clicks)) == (5, "5", [])


@virtual
async def test_the_lowest_failed_record_is_that_of_the_shards_order_not_of_the_texts():
    clicks = clicks_with(failing("10", "9"), partial=True)
    clicks.stream.put(11)
    async with worked(clicks):
        pass
    assert clicks.function.batches[1] == ["9", "10", "11"]


@virtual
async def test_what_a_partial_response_leaves_has_the_retries_of_a_new_batch():
    clicks = clicks_with(failing("3"), *[failing("3")] * 4, partial=True, policy=retries(3))
    clicks.stream.put(3)
    clicks.destination = MemoryDestination()
    async with clicks.running():
        await anyio.sleep(0.1)
        assert position(clicks) == "2"
        await anyio.sleep(LONG_ENOUGH)
    assert clicks.function.batches == [["1", "2", "3"], *[["3"]] * 4]
    (failure,) = clicks.destination.deliveries
    assert failure.document["requestContext"]["approximateInvokeCount"] == 4
    assert failure.document["responseContext"]["functionError"] is None
    assert batch_info(failure) == ("3", "3", 1)


@pytest.mark.parametrize(
    "reply",
    [
        Returned({"batchItemFailures": [{"itemIdentifier": "1"}]}, version="12"),
        FunctionError("E", "m", version="12"),
    ],
)
@virtual
async def test_destinations_are_told_of_the_version_that_ran_where_lambda_has_said_which(reply):
    clicks = clicks_with(reply, partial=True, policy=retries(0), destination=MemoryDestination())
    clicks.stream.put(2)
    async with worked(clicks):
        pass
    (failure,) = clicks.destination.deliveries
    assert failure.document["responseContext"]["executedVersion"] == "12"


@pytest.mark.parametrize("reply", [failing("99"), failing(""), Returned("done")])
@virtual
async def test_destinations_are_told_of_a_senseless_reply_as_of_a_function_that_did_not_fail(reply):
    clicks = clicks_with(*[reply] * 3, partial=True, policy=retries(2), destination=MemoryDestination())
    clicks.stream.put(2)
    async with clicks.running():
        await anyio.sleep(LONG_ENOUGH)
    (failure,) = clicks.destination.deliveries
    assert failure.document["requestContext"]["approximateInvokeCount"] == 3
    assert failure.document["responseContext"]["functionError"] is None
    assert batch_info(failure) == ("1", "2", 2)


# --- too large ----------------------------------------------------------------------------------------------------------


@virtual
async def test_an_event_that_is_too_large_is_halved_until_it_fits():
    clicks = clicks_with(policy=retries(0), payload=100 * MB)
    clicks.stream.put(5, size=2 * MB)
    async with worked(clicks):
        pass
    assert clicks.function.batches == [["1", "2"], ["3"], ["4", "5"]]
    assert dropped(clicks) == []


@virtual
async def test_a_single_record_that_is_too_large_is_given_up_without_its_handler_or_waiting():
    clicks = clicks_with(policy=retries(2), destination=MemoryDestination())
    clicks.stream.put(1, size=PAYLOAD_LIMIT)
    clicks.stream.put(1)
    async with clicks.running():
        await settle_down()
        assert clicks.function.batches == [["2"]]
        assert position(clicks) == "2"
    (failure,) = clicks.destination.deliveries
    assert failure.document["requestContext"]["approximateInvokeCount"] == 3
    assert "responseContext" not in failure.document
    assert batch_info(failure) == ("1", "1", 1)


@virtual
async def test_without_a_limit_of_retries_a_record_that_is_too_large_blocks_until_it_is_too_old():
    clicks = clicks_with(policy=age(100))
    clicks.stream.put(1, size=PAYLOAD_LIMIT)
    clicks.stream.put(1, size=100)
    async with clicks.running():
        await anyio.sleep(99)
        assert doing(clicks) == "retrying the batch from 1, 9 attempts failed"
        told = {fact.error for fact in clicks.observer.of(Trouble)}
        assert told == {"shard-000: the event of record 1 alone passes 6 MB, so no function can get it"}
        clicks.stream.put()
        await anyio.sleep(2)
    assert clicks.ids == ["3"]
    assert dropped(clicks) == [("1", "1", "RecordAgeExceeded"), ("2", "2", "RecordAgeExceeded")]


# --- destinations -------------------------------------------------------------------------------------------------------


@virtual
async def test_a_batch_that_is_given_up_goes_to_its_destination():
    clicks = clicks_with(ERROR, ERROR, policy=retries(1), destination=MemoryDestination())
    clicks.stream.put(2)
    async with worked(clicks):
        pass
    (failure,) = clicks.destination.deliveries
    assert (failure.mapping, failure.shard, failure.at) == ("clicks", "shard-000", EPOCH + 0.5)
    assert failure.document == {
        "requestContext": {
            "requestId": "r-1",
            "functionArn": FUNCTION_ARN,
            "condition": "RetryAttemptsExhausted",
            "approximateInvokeCount": 2,
        },
        "responseContext": {
            "statusCode": 200,
            "executedVersion": "$LATEST",
            "functionError": "Unhandled",
        },
        "version": "1.0",
        "timestamp": "2023-11-14T22:13:20.500Z",
        "KinesisBatchInfo": {
            "shardId": "shard-000",
            "startSequenceNumber": "1",
            "endSequenceNumber": "2",
            "approximateArrivalOfFirstRecord": "2023-11-14T22:13:20.000Z",
            "approximateArrivalOfLastRecord": "2023-11-14T22:13:20.000Z",
            "batchSize": 2,
            "streamArn": STREAM_ARN,
        },
    }
    assert [record["messageId"] for record in failure.event["Records"]] == ["1", "2"]
    assert clicks.observer.of(Delivered) == [Delivered("clicks", "shard-000", 2, "RetryAttemptsExhausted")]
    assert clicks.observer.of(Dropped) == []
    assert (committed(clicks), await clicks.position_of()) == (2, "2")


@virtual
async def test_the_checkpoint_does_not_move_before_the_destination_has_taken_the_batch():
    class Slow(MemoryDestination):
        async def send(self, failure):
            await anyio.sleep(10)
            await super().send(failure)

    clicks = clicks_with(ERROR, policy=retries(0), destination=Slow(), batch_size=1)
    clicks.stream.put(2)
    async with clicks.running():
        await anyio.sleep(9)
        assert (position(clicks), clicks.ids) == ("", ["1"])
        await anyio.sleep(2)
        assert (position(clicks), clicks.ids) == ("2", ["1", "2"])


@virtual
async def test_a_destination_that_is_down_is_waited_for_and_the_shard_says_so():
    clicks = clicks_with(ERROR, policy=retries(0), destination=MemoryDestination(), batch_size=1)
    clicks.destination.broken = AccessDenied("s3:PutObject is missing")
    clicks.stream.put(2)
    async with clicks.running():
        await anyio.sleep(5)
        assert doing(clicks) == "waiting for the on-failure destination: s3:PutObject is missing"
        assert (position(clicks), clicks.ids) == ("", ["1"])
        clicks.destination.broken = None
        await anyio.sleep(5)
        assert doing(clicks) == "reading"
    assert clicks.observer.of(DeliveryFailed) == [
        DeliveryFailed("clicks", "shard-000", "s3:PutObject is missing", pause)
        for pause in (0.5, 1.0, 2.0, 4.0)
    ]
    assert len(clicks.destination.deliveries) == 1
    assert (clicks.ids, await clicks.position_of()) == (["1", "2"], "2")


@virtual
async def test_a_shard_that_waited_for_its_destination_does_not_say_so_while_it_works_on_the_rest():
    clicks = Clicks(
        function=Function(handler=failing_on("1", reply=ERROR)),
        policy=retries(0, bisect_batch_on_function_error=True),
        destination=MemoryDestination(),
    )
    clicks.destination.broken = Unreachable()
    clicks.stream.put(2)
    async with clicks.running():
        await settle_down()
        clicks.destination.broken = None
        clicks.function._handler = taking(100)
        await anyio.sleep(5)
        assert doing(clicks) == "working"


@virtual
async def test_what_is_too_large_for_the_destination_is_dropped_at_once_and_said_loudly():
    clicks = clicks_with(ERROR, policy=retries(0), destination=MemoryDestination(), batch_size=2)
    clicks.destination.broken = DocumentTooLarge("a document of 12 bytes; the destination takes 10")
    clicks.stream.put(3)
    async with clicks.running():
        await settle_down()
        assert (position(clicks), doing(clicks)) == ("3", "reading")
    (fact,) = clicks.observer.of(DeliveryFailed)
    assert fact == DeliveryFailed("clicks", "shard-000", str(clicks.destination.broken), None)
    assert dropped(clicks) == [("1", "2", "RetryAttemptsExhausted")]
    assert clicks.observer.of(Delivered) == []


# --- the door -----------------------------------------------------------------------------------------------------------


def _retrying():
    return clicks_with(*[ERROR] * 9, batch_size=2)


def _refused():
    return clicks_with(*[BUSY] * 9, batch_size=2)


def _waiting_for_the_destination():
    clicks = clicks_with(*[ERROR] * 9, policy=retries(0), destination=MemoryDestination(), batch_size=2)
    clicks.destination.broken = Unreachable()
    return clicks


def _waiting_for_a_slot():
    places = Places(1)

    async def handler(_):
        places.resize(0)
        return ERROR

    clicks = Clicks(function=Function(handler=handler), batch_size=2, slots=Slots(places, None))
    clicks.places = places
    return clicks


def heal(clicks):
    clicks.function._replies.clear()
    clicks.function._handler = None
    if clicks.destination:
        clicks.destination.broken = None
    if clicks.slots.total == 0:
        clicks.places.resize(1)


@pytest.mark.parametrize("shut", [0.0, 30.0])
@pytest.mark.parametrize("course", [_retrying, _refused, _waiting_for_the_destination, _waiting_for_a_slot])
@virtual
async def test_what_a_closing_door_leaves_is_worked_on_in_the_same_order_when_it_opens(course, shut):
    clicks = course()
    clicks.stream.put(5)
    async with clicks.running() as keeper:
        await anyio.sleep(1.7)
        seen = len(clicks.function.calls)
        keeper.close()
        if shut:
            await anyio.sleep(shut)
            assert doing(clicks) == "paused"
            assert keeper.load().buffered_records == 2
        assert (len(clicks.function.calls), position(clicks)) == (seen, "")
        heal(clicks)
        keeper.open()
        await anyio.sleep(1)
    after = [id_ for batch in clicks.function.batches[seen:] for id_ in batch]
    if clicks.destination and clicks.destination.deliveries:
        # It was open again before anybody had gone away.
        after = ["1", "2", *after]
    assert after == ["1", "2", "3", "4", "5"]
    assert (committed(clicks), await clicks.position_of()) == (5, "5")


@virtual
async def test_only_what_is_left_of_a_batch_goes_on_after_the_door_was_closed():
    clicks = Clicks(
        function=Function(handler=failing_on("3", reply=ERROR)),
        policy=StreamPolicy(bisect_batch_on_function_error=True),
    )
    clicks.stream.put(5)
    async with clicks.running() as keeper:
        await anyio.sleep(1)
        assert position(clicks) == "2"
        keeper.close()
        await anyio.sleep(1)
        assert keeper.load().buffered_records == 3
        clicks.stream.put(1)
        clicks.function._handler = None
        seen = len(clicks.function.calls)
        keeper.open()
        await settle_down()
    # Another batch, so another request.
    assert clicks.function.batches[seen:] == [["3"], ["4", "5"], ["6"]]
    assert request_ids(clicks)[seen] not in request_ids(clicks)[:seen]
    assert (committed(clicks), await clicks.position_of()) == (6, "6")


@virtual
async def test_a_pause_does_not_forget_how_often_a_batch_was_tried():
    clicks = clicks_with(ERROR, ERROR, ERROR, OK, policy=retries(2))
    clicks.stream.put(1)
    async with clicks.running() as keeper:
        for _ in range(3):
            await settle_down()
            keeper.close()
            await anyio.sleep(5)
            clicks.stream.put(1)
            keeper.open()
        await anyio.sleep(100)
    assert clicks.function.batches[:3] == [["1"], ["1"], ["1"]]
    assert [fact.records for fact in clicks.observer.of(Dropped)] == [1]


@virtual
async def test_a_batch_with_its_handler_is_finished_behind_a_closed_door():
    clicks = Clicks(function=Function(handler=taking(10)), batch_size=1)
    clicks.stream.put(2)
    async with clicks.running() as keeper:
        await anyio.sleep(1)
        keeper.close()
        await anyio.sleep(30)
        assert (clicks.ids, position(clicks)) == (["1"], "1")
        keeper.open()
        await anyio.sleep(30)
        assert (clicks.ids, position(clicks)) == (["1", "2"], "2")


@virtual
async def test_a_stop_leaves_what_is_being_retried_to_the_next_start():
    clicks = clicks_with(*[ERROR] * 99, batch_size=2)
    clicks.stream.put(3)
    async with clicks.open() as keeper, anyio.create_task_group() as tasks:
        tasks.start_soon(keeper.run)
        await anyio.sleep(5)
        keeper.quiet()
    assert await clicks.position_of() == ""
    again = Clicks(stream=clicks.stream, store=clicks.store)
    async with again.running():
        await settle_down()
    assert again.ids == ["1", "2", "3"]


# --- handlers that change what they are given ---------------------------------------------------------------------------


def _clear(event):
    event["Records"].clear()


def _rename(event):
    for record in event["Records"]:
        record["messageId"] = "changed"


@pytest.mark.parametrize("change", [_clear, _rename])
@pytest.mark.parametrize("bisect", [False, True])
@virtual
async def test_every_attempt_gets_a_fresh_event_whatever_the_handler_did_to_the_one_before(change, bisect):
    attempts = []

    async def handler(call):
        attempts.append(call.ids)
        change(call.invocation.event)
        return ERROR

    clicks = Clicks(
        function=Function(handler=handler),
        policy=retries(2, bisect_batch_on_function_error=bisect),
        destination=MemoryDestination(),
    )
    clicks.stream.put(2)
    async with worked(clicks):
        pass
    halves = [["1"]] * 3 + [["2"]] * 3
    assert attempts == ([["1", "2"], *halves] if bisect else [["1", "2"]] * 3)
    given_up = [
        record["messageId"] for one in clicks.destination.deliveries for record in one.event["Records"]
    ]
    assert given_up == ["1", "2"]


@virtual
async def test_a_fresh_event_is_given_after_the_door_was_closed_too_however_often():
    async def handler(call):
        _clear(call.invocation.event)
        return ERROR

    clicks = Clicks(function=Function(handler=handler), batch_size=2, slots=Slots(Places(1), None))
    clicks.stream.put(4)
    async with clicks.running() as keeper:
        for _ in range(3):
            await anyio.sleep(0.7)
            keeper.close()
            await settle_down()
            keeper.open()
        # It opens and closes once more without a handler having seen the batch in between.
        await settle_down()
        keeper.close()
        await settle_down()
        assert clicks.slots.try_acquire()
        keeper.open()
        await settle_down()
        keeper.close()
        clicks.slots.release()
        await settle_down()
        clicks.function._handler = None
        keeper.open()
        await settle_down()
    assert set(map(tuple, clicks.function.batches)) == {("1", "2"), ("3", "4")}
    assert clicks.function.batches[-2:] == [["1", "2"], ["3", "4"]]
    assert not {"3", "4"} & set(clicks.envelope.rebuilt)


@virtual
async def test_nothing_is_built_anew_for_a_batch_that_no_handler_has_seen():
    clicks = clicks_with(BUSY, BUSY)
    clicks.stream.put(2)
    async with clicks.running() as keeper:
        await settle_down()
        keeper.close()
        await settle_down()
        keeper.open()
        await anyio.sleep(10)
    assert clicks.function.batches == [["1", "2"]] * 3
    assert clicks.envelope.rebuilt == []


@virtual
async def test_records_of_one_aggregate_are_told_of_apart_though_they_share_a_sequence_number():
    clicks = Clicks(
        envelope=Aggregates(),
        function=Function(ERROR, ERROR, OK, OK),
        policy=retries(0),
        batch_size=1,
        destination=MemoryDestination(),
        on_success=MemoryDestination(),
    )
    clicks.stream.put(4)
    records = clicks.stream.records["shard-000"]
    records[:] = [record._replace(id="7", receipt=place) for place, record in enumerate(records)]
    async with worked(clicks):
        for end in (clicks.destination, clicks.on_success):
            assert len(end.deliveries) == len({delivery.id for delivery in end.deliveries}) == 2
