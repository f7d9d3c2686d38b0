from __future__ import annotations

import json
from pathlib import Path
from uuid import UUID

import pytest

from poller.core.failure import (
    LastInvoke,
    Origin,
    WindowInvoke,
    delivery_id,
    document,
    encoded,
    executed_version,
    fitted,
    function_name,
    mapping_id,
    qualified,
    with_payload,
)
from poller.core.retry import Condition, GiveUp, TooLarge
from poller.core.windows import STATE_LIMIT, Window
from poller.errors import DocumentTooLarge
from poller.model import Failed, FunctionError, PartlyFailed, Record

EXAMPLES = Path(__file__).parent / "event-examples"
AT = 1768552872.345  # 2026-01-16T08:41:12.345Z
CLICKS = Origin("kinesis", "shardId-000000000003", "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks")
BASKETS = Origin(
    "dynamodb",
    "shardId-00000001768465800123-1f2e3d4c",
    "arn:aws:dynamodb:eu-west-1:123456789012:table/Basket/stream/2026-01-15T08:30:00.123",
)
FUNCTION = "arn:aws:lambda:eu-west-1:123456789012:function:orders-worker"
INVOKE = LastInvoke("0b3c1a7e-5d4f-4a7b-8f0a-9a1b2c3d4e5f", FUNCTION)
LIVE = LastInvoke(INVOKE.request_id, f"{FUNCTION}:live", "1")
FAILED = Failed(FunctionError("ValueError", "no such order"))


def record(number, arrived):
    return Record(number, None, 1, {}, None, arrived)


CLICK = record("49671600000000000000000000000000000000000000000000000002", 1768552801.204)
LATER = record("49671600000000000000000000000000000000000000000000000066", 1768552801.377)
BASKET = record("100000000001234567890", 1768552802.0)
LATER_FAILED = PartlyFailed(frozenset({LATER.id}))


def example(name):
    return json.loads((EXAMPLES / name).read_text())


def order(value, at=""):
    """Every place of a document, in order."""
    yield at
    if isinstance(value, dict):
        for name, each in value.items():
            yield from order(each, f"{at}.{name}")


@pytest.mark.parametrize(
    ("name", "given_up", "origin"),
    [
        ("retries-exhausted", GiveUp((CLICK, LATER), Condition.RETRIES, 3, FAILED), CLICKS),
        ("partial-response", GiveUp((LATER,), Condition.RETRIES, 4, LATER_FAILED), CLICKS),
        ("record-age", GiveUp((LATER,), Condition.AGE, 1, None), CLICKS),
        ("oversized", GiveUp((LATER,), Condition.RETRIES, 3, TooLarge()), CLICKS),
        ("retries-exhausted", GiveUp((BASKET,), Condition.RETRIES, 2, FAILED), BASKETS),
    ],
)
def test_the_document_equals_what_lambda_sends(name, given_up, origin):
    expected = example(f"dest-{origin.source}-{name}.json")
    built = document(given_up, origin, INVOKE, AT)
    assert built == expected
    assert list(order(built)) == list(order(expected))


def test_a_reply_that_makes_no_sense_is_no_error_of_the_function():
    senseless = Failed(FunctionError("Poller.InvalidBatchItemFailures", "17"), returned=True)
    expected = example("dest-kinesis-partial-response.json")
    assert document(GiveUp((LATER,), Condition.RETRIES, 4, senseless), CLICKS, INVOKE, AT) == expected


def test_an_s3_object_holds_the_event_before_the_timestamp():
    expected = example("dest-dynamodb-s3-object.json")
    event = {"Records": [example("dynamodb-stream.json")["Records"][0]]}
    metadata = document(GiveUp((BASKET,), Condition.RETRIES, 2, FAILED), BASKETS, INVOKE, AT)
    built = with_payload(metadata, event)
    assert built == expected
    assert list(order(built)) == list(order(expected))
    assert "payload" not in metadata


def test_a_final_invoke_without_records_tells_where_and_which_window():
    expected = example("dest-dynamodb-window-final-s3-object.json")
    window = WindowInvoke(Window(1768552800, 1768552810, '{"count":2}'), final=True)
    metadata = document(GiveUp((), Condition.RETRIES, 1, FAILED), BASKETS, LIVE, AT, window)
    built = with_payload(metadata, json.loads(expected["payload"]))
    assert built == expected
    assert list(order(built)) == list(order(expected))


@pytest.mark.parametrize(
    ("state", "final", "early"),
    [
        ("{}", False, False),
        ("{}", True, False),
        ("x" * (STATE_LIMIT + 1), True, True),
    ],
)
def test_a_window_that_ended_early_says_so(state, final, early):
    window = WindowInvoke(Window(1768552800, 1768552810, state), final=final)
    built = document(GiveUp((CLICK,), Condition.RETRIES, 1, FAILED), CLICKS, INVOKE, AT, window)
    assert list(built)[-1] == "timeWindowInfo"
    assert built["timeWindowInfo"] == {
        "window": {"start": "2026-01-16T08:40:00Z", "end": "2026-01-16T08:40:10Z"},
        "isFinalInvokeForWindow": final,
        "isWindowTerminatedEarly": early,
    }


@pytest.mark.parametrize(
    ("time", "kinesis", "dynamodb"),
    [
        (1768552801.0, "2026-01-16T08:40:01.000Z", "2026-01-16T08:40:01Z"),
        (
            1768552801.2039999,
            "2026-01-16T08:40:01.204Z",
            "2026-01-16T08:40:01Z",
        ),  # 0.1 us from its millisecond
        (1768552801.75, "2026-01-16T08:40:01.750Z", "2026-01-16T08:40:01Z"),
        (1768552801.057, "2026-01-16T08:40:01.057Z", "2026-01-16T08:40:01Z"),
    ],
)
def test_times_have_milliseconds_for_kinesis_and_whole_seconds_for_dynamodb(time, kinesis, dynamodb):
    given_up = GiveUp((record("1", time),), Condition.AGE, 1, None)
    built = document(given_up, CLICKS, INVOKE, time)
    assert built["timestamp"] == kinesis
    assert built["KinesisBatchInfo"]["approximateArrivalOfLastRecord"] == kinesis
    built = document(given_up, BASKETS, INVOKE, time)
    assert built["timestamp"] == kinesis
    assert built["DDBStreamBatchInfo"]["approximateArrivalOfFirstRecord"] == dynamodb


def test_what_is_given_up_again_after_a_restart_has_the_same_id():
    again = example("dest-kinesis-retries-exhausted.json")
    again["requestContext"] |= {"requestId": "another", "approximateInvokeCount": 7}
    again["timestamp"] = "2026-01-16T09:00:00.000Z"
    first = delivery_id("clicks", example("dest-kinesis-retries-exhausted.json"))
    assert delivery_id("clicks", again) == first == str(UUID(first))


@pytest.mark.parametrize(
    "change",
    [
        {"shardId": "shardId-000000000099"},
        {"startSequenceNumber": "1"},
        {"endSequenceNumber": "99"},
        {"streamArn": "arn:aws:kinesis:eu-west-1:123456789012:stream/others"},
    ],
)
def test_other_records_have_another_id(change):
    told = example("dest-kinesis-retries-exhausted.json")
    before = delivery_id("clicks", told)
    told["KinesisBatchInfo"] |= change
    assert delivery_id("clicks", told) != before


def test_another_mapping_or_condition_has_another_id():
    told = example("dest-dynamodb-retries-exhausted.json")
    aged = told | {"requestContext": told["requestContext"] | {"condition": "RecordAgeExceeded"}}
    ids = {delivery_id(*of) for of in (("a", told), ("b", told), ("a", aged))}
    assert len(ids) == 3


def test_records_of_one_aggregate_are_told_apart():
    told = example("dest-kinesis-retries-exhausted.json")
    ids = {delivery_id("a", told, within) for within in ((None, None), (0, 0), (0, None), (0, 1), (1, 1))}
    assert len(ids) == 5
    assert delivery_id("a", told) in ids


def test_the_ends_of_two_windows_without_records_are_told_apart_by_their_requests():
    told = example("dest-dynamodb-window-final-s3-object.json")
    other = told | {"requestContext": told["requestContext"] | {"requestId": "another"}}
    assert delivery_id("baskets", told) != delivery_id("baskets", other)


# --- how it is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ({"text": "grüße 😀 \u2028"}, {"text": "grüße 😀 \u2028"}),
        ({"text": "\ufffe and \uffff"}, {"text": "\ufffe and \uffff"}),
        ({"text": "half \ud83d"}, {"text": "half \ud83d"}),
        ({"number": 2**70}, {"number": 2**70}),
        ({"number": float("nan")}, {"number": None}),
        ({"number": float("nan"), "text": "\ud83d"}, {"number": None, "text": "\ud83d"}),
    ],
)
def test_whatever_was_said_is_written_as_json_that_every_destination_takes(value, read):
    body = encoded(value)
    assert json.loads(body) == read
    assert not {"\ufffe", "\uffff"} & set(body.decode())


def test_the_bytes_of_characters_that_are_refused_are_found_in_no_other_text():
    text = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x11000)]))
    assert json.loads(encoded(text)) == text


INVOCATION = {
    "requestContext": {"condition": "RetriesExhausted"},
    "requestPayload": {"Records": ["r" * 100]},
    "responsePayload": {"errorMessage": "e" * 100},
}
SUCCEEDED = INVOCATION | {"requestContext": {"condition": "Success"}}
#: Bytes of the whole, without the response, and without the request as well.
WHOLE, REQUEST, LEAST = (
    len(encoded({name: SUCCEEDED[name] for name in names}))
    for names in (
        ("requestContext", "requestPayload", "responsePayload"),
        ("requestContext", "requestPayload"),
        ("requestContext",),
    )
)


@pytest.mark.parametrize(
    ("limit", "members"),
    [
        (WHOLE, ["requestContext", "requestPayload", "responsePayload"]),
        (WHOLE - 1, ["requestContext", "requestPayload"]),
        (REQUEST, ["requestContext", "requestPayload"]),
        (REQUEST - 1, ["requestContext"]),
        (LEAST, ["requestContext"]),
    ],
)
def test_the_record_of_a_success_parts_with_its_response_and_then_its_request_to_fit(limit, members):
    before = json.dumps(SUCCEEDED)
    assert list(json.loads(fitted(SUCCEEDED, limit))) == members
    assert json.dumps(SUCCEEDED) == before


def test_the_record_of_a_failure_keeps_its_request_whatever_it_costs():
    least = len(encoded({name: INVOCATION[name] for name in ("requestContext", "requestPayload")}))
    assert list(json.loads(fitted(INVOCATION, least))) == ["requestContext", "requestPayload"]
    with pytest.raises(
        DocumentTooLarge, match=f"a document of {least} bytes; the destination takes {least - 1}"
    ):
        fitted(INVOCATION, least - 1)


@pytest.mark.parametrize("document", [SUCCEEDED, example("dest-kinesis-retries-exhausted.json")])
def test_what_never_fits_is_refused(document):
    with pytest.raises(DocumentTooLarge):
        fitted(document, 20)


def test_the_document_of_a_stream_is_whole_or_not_at_all():
    told = example("dest-kinesis-retries-exhausted.json")
    size = len(encoded(told))
    assert json.loads(fitted(told, size)) == told
    with pytest.raises(DocumentTooLarge):
        fitted(told, size - 1)


# --- names --------------------------------------------------------------------------------------------------------------


def test_a_mapping_keeps_its_uuid_and_shares_it_with_no_other():
    ids = {mapping_id("a", "arn:1"), mapping_id("b", "arn:1"), mapping_id("a", "arn:2")}
    assert len(ids) == 3
    assert mapping_id("a", "arn:1") in ids
    assert all(str(UUID(one)) == one for one in ids)


@pytest.mark.parametrize(
    ("qualifier", "version"),
    [("", "$LATEST"), (":live", "$LATEST"), (":$LATEST", "$LATEST"), (":17", "17")],
)
def test_the_version_that_ran_is_known_where_the_arn_names_it(qualifier, version):
    assert executed_version(FUNCTION + qualifier) == version
    assert executed_version("arn:aws:lambda:eu-west-1:123456789012:function:17") == "$LATEST"


@pytest.mark.parametrize("qualifier", ["", ":live", ":$LATEST"])
def test_a_functions_arn_has_its_name_and_a_qualifier_at_least_the_latest(qualifier):
    assert function_name(FUNCTION + qualifier) == "orders-worker"
    assert qualified(FUNCTION + qualifier) == FUNCTION + (qualifier or ":$LATEST")
