from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.core.failure import with_payload
from poller.core.lanes import lane_of
from poller.core.replay import (
    ERROR_KINDS,
    NAMED_FAILURES,
    OTHER_ERRORS,
    FailedBatch,
    Pick,
    ReplayEnvelope,
    Span,
    Tally,
    check_failed,
    read,
    same_source,
    sequence_number,
)
from poller.core.stream_envelope import DynamoDbEnvelope, KinesisEnvelope
from poller.model import Checkpoint, Record

STREAM = "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks"
QUEUE = "arn:aws:sqs:eu-west-1:123456789012:orders"


def stream_document(**more: Any) -> dict[str, Any]:
    return {
        "requestContext": {
            "requestId": "r-1",
            "functionArn": "arn:aws:lambda:eu-west-1:123456789012:function:count",
            "condition": "RetryAttemptsExhausted",
            "approximateInvokeCount": 3,
        },
        "responseContext": {"statusCode": 200, "executedVersion": "$LATEST", "functionError": "Unhandled"},
        "version": "1.0",
        "timestamp": "2026-01-16T08:41:12.345Z",
        "KinesisBatchInfo": {
            "shardId": "shardId-000000000003",
            "startSequenceNumber": "10",
            "endSequenceNumber": "40",
            "batchSize": 2,
            "streamArn": STREAM,
        },
    } | more


def record(number: int, key: str | None = "k") -> Record:
    return Record(str(number), key, 1, {}, None)


# --- documents ----------------------------------------------------------------------------------------------------------


def test_a_streams_document_says_where_its_records_are():
    batch = read(json.dumps(stream_document()))
    assert batch.span == Span("shardId-000000000003", "10", "40", 2)
    assert (batch.condition, batch.source_arn) == ("RetryAttemptsExhausted", STREAM)
    assert (batch.function_error, batch.records) == ("Unhandled", None)
    assert batch.timestamp == "2026-01-16T08:41:12.345Z"


def test_a_document_of_a_table_is_read_too():
    info = stream_document()["KinesisBatchInfo"] | {"streamArn": "arn:of:a:table"}
    document = stream_document(DDBStreamBatchInfo=info)
    del document["KinesisBatchInfo"]
    batch = read(json.dumps(document))
    assert batch.span is not None
    assert batch.source_arn == "arn:of:a:table"


def test_an_object_holds_the_events_records():
    document = with_payload(stream_document(), {"Records": [{"eventID": "1"}, {"eventID": "2"}]})
    batch = read(orjson.dumps(document))
    assert batch.records == ({"eventID": "1"}, {"eventID": "2"})
    assert batch.span is not None


def test_an_invocation_record_holds_them_as_well_and_says_what_went_wrong():
    document = {
        "version": "1.0",
        "timestamp": "2026-01-16T08:41:12.345Z",
        "requestContext": {"condition": "RetriesExhausted"},
        "requestPayload": {"Records": [{"messageId": "m", "eventSourceARN": QUEUE}]},
        "responsePayload": {"errorMessage": "no stock", "errorType": "OutOfStock"},
    }
    batch = read(json.dumps(document))
    assert batch.records == ({"messageId": "m", "eventSourceARN": QUEUE},)
    assert (batch.source_arn, batch.span) == (QUEUE, None)
    assert (batch.error_type, batch.error_message) == ("OutOfStock", "no stock")


@pytest.mark.parametrize("payload", [None, {"orderId": "o-1"}, {"Records": "none"}, {"Records": [1]}])
def test_an_invocation_of_something_else_has_no_records(payload: Any):
    document = {
        "requestContext": {"condition": "RetriesExhausted"},
        "requestPayload": payload,
        "responsePayload": "text",
    }
    batch = read(json.dumps(document))
    assert (batch.records, batch.source_arn, batch.error_type) == (None, "", "")


def test_the_end_of_a_window_has_no_records():
    info = {"shardId": "s", "streamArn": STREAM}
    assert read(json.dumps(stream_document(KinesisBatchInfo=info))).span is None


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda text: {"Type": "Notification", "TopicArn": "arn:of:a:topic", "Message": text},
        lambda text: {"detail-type": "Failure", "source": "lambda", "detail": json.loads(text)},
    ],
)
def test_what_a_topic_or_a_bus_wraps_around_it_is_taken_off(wrapped: Any):
    text = json.dumps(stream_document())
    assert read(json.dumps(wrapped(text))) == read(text)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("", "it is no JSON"),
        ("[]", "it is no JSON object"),
        ("{}", "it is no document of an on-failure destination"),
        ('{"requestContext": 1}', "it is no document of an on-failure destination"),
        ('{"requestContext": {}}', "it is no document of an on-failure destination"),
        ('{"Type": "Notification", "Message": "x"}', "it is no JSON"),
    ],
)
def test_what_is_no_document_is_refused_in_a_few_words(body: str, why: str):
    with pytest.raises(ValueError, match=why):
        read(body)


def test_a_span_that_ends_before_it_begins_is_refused():
    info = stream_document()["KinesisBatchInfo"] | {"startSequenceNumber": "41"}
    with pytest.raises(ValueError, match="its last record comes before its first"):
        read(json.dumps(stream_document(KinesisBatchInfo=info)))


@pytest.mark.parametrize("member", ["startSequenceNumber", "endSequenceNumber", "batchSize"])
@pytest.mark.parametrize("odd", [None, "first", [1]])
def test_a_span_that_makes_no_sense_is_refused(member: str, odd: Any):
    info = stream_document()["KinesisBatchInfo"] | {member: odd}
    with pytest.raises(ValueError, match="what it says of its batch makes no sense"):
        read(json.dumps(stream_document(KinesisBatchInfo=info)))


def test_half_a_surrogate_pair_that_a_function_has_said_does_not_hide_a_document():
    document = {
        "requestContext": {"condition": "RetriesExhausted"},
        "requestPayload": {"Records": [{"messageId": "m", "body": "gr\u00fcn", "eventSourceARN": QUEUE}]},
        "responsePayload": {"errorMessage": "no \ud83d", "errorType": "KeyError", "odd": float("nan")},
    }
    batch = read(json.dumps(document))
    assert batch.error_message == "no ?"
    assert batch.records == ({"messageId": "m", "body": "gr\u00fcn", "eventSourceARN": QUEUE},)


@pytest.mark.parametrize(
    "event",
    [
        {"kinesis": None},
        {"kinesis": {"partitionKey": 1}},
        {"dynamodb": "x"},
        {"attributes": []},
        {"attributes": {"MessageGroupId": ["g"]}},
    ],
)
def test_what_looks_like_no_record_is_none(event: dict[str, Any]):
    assert read(orjson.dumps(with_payload(stream_document(), {"Records": [event]}))).records is None


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data(), odd=trees)
def test_any_document_is_read_or_refused(data: st.DataObject, odd: Any):
    payload = {"Records": [KINESIS.record("s", WIRE).event, TABLE.record("s", orjson.dumps(CHANGE)).event]}
    document: Any = data.draw(
        st.sampled_from(
            [
                with_payload(stream_document(), payload),
                {
                    "requestContext": {"condition": "x"},
                    "requestPayload": payload,
                    "responsePayload": {"errorType": "x", "errorMessage": "y"},
                },
            ]
        )
    )
    at = document
    while isinstance(at, dict | list) and at:
        places = list(at) if isinstance(at, dict) else list(range(len(at)))
        place = data.draw(st.sampled_from(places))
        if data.draw(st.booleans()) or not isinstance(at[place], dict | list):
            at[place] = odd
            break
        at = at[place]
    try:
        batch = read(json.dumps(document))
    except ValueError:
        return
    for event in batch.records or ():
        made = ReplayEnvelope(KINESIS).record(event)
        assert lane_of(made.key, 4) in range(4)
        assert all(isinstance(text, str) for text in (made.id, batch.error_message, batch.function_error))


@pytest.mark.parametrize(
    ("condition", "arn", "why"),
    [
        ("RetryAttemptsExhausted", STREAM, None),
        ("Success", STREAM, "it tells of a success"),
        ("RetriesExhausted", QUEUE, f"it is about {QUEUE}"),
        ("RetriesExhausted", "", "it is about another source"),
    ],
)
def test_only_failures_of_the_mappings_own_source_are_replayed(condition: str, arn: str, why: str | None):
    batch = FailedBatch(condition, arn, None, None)
    if why is None:
        check_failed(batch, STREAM)
    else:
        with pytest.raises(ValueError, match=why):
            check_failed(batch, STREAM)


@pytest.mark.parametrize(
    ("arn", "mapped", "same"),
    [
        (STREAM, STREAM, True),
        (f"{STREAM}/consumer/one:1", STREAM, True),
        (STREAM, f"{STREAM}/consumer/two:2", True),
        (f"{STREAM}-2", STREAM, False),
        ("", STREAM, False),
    ],
)
def test_a_stream_is_the_same_by_whichever_consumer(arn: str, mapped: str, same: bool):
    assert same_source(arn, mapped) is same


# --- records ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "number"),
    [
        ({"kinesis": {"sequenceNumber": "7"}}, "7"),
        ({"dynamodb": {"SequenceNumber": "8"}}, "8"),
        ({"kinesis": {}}, ""),
        ({"dynamodb": None}, ""),
        ({}, ""),
    ],
)
def test_the_sequence_number_of_an_event(event: dict[str, Any], number: str):
    assert sequence_number(event) == number


WIRE = {"SequenceNumber": "7", "PartitionKey": "key", "Data": "eA==", "ApproximateArrivalTimestamp": 1.5}
CHANGE = {
    "eventID": "e",
    "eventName": "INSERT",
    "dynamodb": {
        "ApproximateCreationDateTime": 1,
        "Keys": {"id": {"S": "a"}},
        "SequenceNumber": "8",
        "SizeBytes": 3,
        "StreamViewType": "KEYS_ONLY",
    },
}
KINESIS = KinesisEnvelope(STREAM, "eu-west-1", "role")
TABLE = DynamoDbEnvelope("arn:of:a:table", "eu-west-1")


@pytest.mark.parametrize(("stream", "wire"), [(KINESIS, WIRE), (TABLE, orjson.dumps(CHANGE))])
def test_a_stored_record_is_as_it_was_and_can_be_made_afresh(stream: Any, wire: Any):
    first = stream.record("shard", wire)
    envelope = ReplayEnvelope(stream)
    stored = envelope.record(orjson.loads(orjson.dumps(first.event)))
    assert (stored.id, stored.key, stored.size) == (first.id, first.key, first.size)
    stored.event.clear()
    assert envelope.rebuild("shard", stored).event == first.event
    assert envelope.checkpoint(stored) == Checkpoint(first.id)


@pytest.mark.parametrize(("stream", "wire"), [(KINESIS, WIRE), (TABLE, orjson.dumps(CHANGE))])
def test_a_record_read_again_is_made_afresh_by_its_stream(stream: Any, wire: Any):
    first = stream.record("shard", wire)
    before = orjson.loads(orjson.dumps(first.event))
    first.event.clear()
    assert ReplayEnvelope(stream).rebuild("shard", first).event == before
    assert ReplayEnvelope(stream).checkpoint(first) == stream.checkpoint(first)


def test_there_are_no_windows_in_a_replay():
    with pytest.raises(NotImplementedError):
        ReplayEnvelope(KINESIS).window_event("shard", (), None, final=True)


# --- which records a batch held -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "held"), [(9, False), (10, True), (100, True), (101, False)])
def test_a_span_holds_what_lies_between_as_numbers_and_not_as_text(number: int, held: bool):
    assert Span("s", "10", "100", 1).holds(str(number)) is held
    assert Pick(Span("s", "10", "100", 1), 1).wants(record(number)) is held


@given(
    keys=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40),
    lanes=st.integers(1, 5),
    data=st.data(),
)
def test_a_pick_takes_the_records_of_its_lane_and_no_others(keys: list[str], lanes: int, data: st.DataObject):
    records = [record(10 + number, key) for number, key in enumerate(keys)]
    own = data.draw(st.sampled_from(records))
    batch = [one for one in records if lane_of(one.key, lanes) == lane_of(own.key, lanes)]
    span = Span("s", batch[0].id, batch[-1].id, len(batch))
    pick = Pick(span, lanes)
    assert [one for one in records if pick.wants(one)] == batch


def test_without_the_first_record_nothing_tells_the_lane_so_all_are_taken():
    pick = Pick(Span("s", "10", "40", 3), 4)
    assert all(pick.wants(record(number, key)) for number, key in ((11, "a"), (12, "b"), (40, "c")))


# --- the tally ----------------------------------------------------------------------------------------------------------


def test_failures_are_counted_by_their_type_and_the_first_are_named():
    tally = Tally(succeeded=3)
    tally.fail(["1", "2"], "ValueError", "no such order")
    tally.fail([str(number) for number in range(NAMED_FAILURES)], "KeyError", "")
    assert tally.failed == 2 + NAMED_FAILURES
    assert tally.errors == {"ValueError": 2, "KeyError": NAMED_FAILURES}
    assert len(tally.failed_ids) == NAMED_FAILURES
    assert tally.failed_ids[:3] == ["1", "2", "0"]
    assert tally.example == "no such order"
    assert tally.done == 5 + NAMED_FAILURES


def test_of_a_very_long_message_its_beginning_is_kept():
    tally = Tally()
    tally.fail(["1"], "ValueError", "x" * 10**6)
    assert tally.example == "x" * 1_000


def test_there_may_be_any_number_of_error_types():
    tally = Tally()
    for number in range(ERROR_KINDS + 10):
        tally.fail(["1"], f"Error{number}", "")
    assert len(tally.errors) == ERROR_KINDS + 1
    assert tally.errors[OTHER_ERRORS] == 10
    tally.fail(["1"], "Error0", "")
    assert tally.errors["Error0"] == 2


def test_what_cannot_be_used_is_counted_and_the_first_reason_kept():
    tally = Tally()
    tally.refuse("it is no JSON")
    tally.refuse("it is about something else")
    assert (tally.unreadable, tally.kept, tally.why_unreadable) == (2, 2, "it is no JSON")


def test_a_tally_goes_on_where_it_was_and_one_of_an_older_release_too():
    tally = Tally(succeeded=1, filtered=2, gone=3, messages=4)
    tally.fail(["1"], "ValueError", "no")
    assert Tally.load(json.loads(orjson.dumps(tally.dump()))) == tally
    assert Tally.load({"succeeded": 5, "other": 1}) == Tally(succeeded=5)
