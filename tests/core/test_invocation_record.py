from __future__ import annotations

import json
from pathlib import Path
from uuid import UUID

import pytest

from poller.core.invocation_record import Ran, invocation_record, invoke_count, record_id
from poller.model import Failed, FunctionError, PartlyFailed, Record, Returned, Succeeded
from tests.core.test_failure import order

EXAMPLES = Path(__file__).parent / "event-examples"
AT = 1768552872.345  # 2026-01-16T08:41:12.345Z
ID = "0b3c1a7e-5d4f-4a7b-8f0a-9a1b2c3d4e5f"
FUNCTION = "arn:aws:lambda:eu-west-1:123456789012:function:orders-worker"
TRACE = '  File "/var/task/app.py", line 9, in handler\n    raise OutOfStock("no stock")\n'
SAID = {"errorMessage": "no stock", "errorType": "OutOfStock", "requestId": ID, "stackTrace": [TRACE]}
NO_STOCK = FunctionError("OutOfStock", "no stock", (TRACE,), said=SAID)
REQUEST = {"orderId": "o-1"}


def example(name):
    return json.loads((EXAMPLES / name).read_text())


def built(reply, outcome, condition="RetriesExhausted", count=3, arn=FUNCTION):
    return invocation_record(Ran(ID, arn, reply, outcome), condition, count, REQUEST, AT)


@pytest.mark.parametrize(
    ("name", "reply", "outcome", "count"),
    [
        ("async-on-failure-retries-exhausted.json", NO_STOCK, Failed(NO_STOCK), 3),
        ("async-on-success.json", Returned({"ok": True}), Succeeded(), 1),
    ],
)
def test_the_record_equals_what_lambda_sends(name, reply, outcome, count):
    expected = example(name)
    record = built(reply, outcome, expected["requestContext"]["condition"], count)
    assert record == expected
    assert list(order(record)) == list(order(expected))


def test_a_partial_failure_shows_what_the_function_returned_and_no_error_of_the_function():
    reply = {"batchItemFailures": [{"itemIdentifier": "m1"}]}
    record = built(Returned(reply), PartlyFailed(frozenset({"m1"})))
    assert record["responseContext"] == {"statusCode": 200, "executedVersion": "$LATEST"}
    assert record["responsePayload"] == reply


def test_a_reply_that_makes_no_sense_shows_why_the_batch_has_failed():
    error = FunctionError("Poller.InvalidBatchItemFailures", "batchItemFailures is 3 instead of an array")
    record = built(Returned({"batchItemFailures": 3}), Failed(error))
    assert record["responseContext"]["functionError"] == "Unhandled"
    assert record["responsePayload"] == {
        "errorType": error.error_type,
        "errorMessage": error.error_message,
    }


@pytest.mark.parametrize(
    "said",
    [
        {"errorType": "Error", "errorMessage": "no 7", "trace": ["Error: no 7", "    at x"]},
        {"errorMessage": "no 7", "errorType": "a.B", "stackTrace": ["x"], "cause": {"errorMessage": "1"}},
        "out of paper",
    ],
)
def test_an_error_is_told_with_all_that_the_runtime_said_of_it(said):
    error = FunctionError("Error", "no 7", said=said)
    assert built(error, Failed(error))["responsePayload"] == said


def test_an_error_of_which_no_runtime_has_told_has_its_type_and_message_only():
    late = FunctionError("Sandbox.Timedout", f"RequestId: {ID} Error: Task timed out after 3.00 seconds")
    assert list(built(late, Failed(late))["responsePayload"]) == ["errorType", "errorMessage"]


def test_a_function_that_returns_nothing_has_said_null():
    assert built(Returned(None), Succeeded(), "Success")["responsePayload"] is None


@pytest.mark.parametrize(
    ("arn", "qualified", "version"),
    [
        (FUNCTION, f"{FUNCTION}:$LATEST", "$LATEST"),
        (f"{FUNCTION}:$LATEST", f"{FUNCTION}:$LATEST", "$LATEST"),
        (f"{FUNCTION}:7", f"{FUNCTION}:7", "7"),
        (f"{FUNCTION}:live", f"{FUNCTION}:live", "$LATEST"),
    ],
)
def test_the_function_is_named_with_its_qualifier(arn, qualified, version):
    record = built(Returned(None), Succeeded(), "Success", arn=arn)
    assert record["requestContext"]["functionArn"] == qualified
    assert record["responseContext"]["executedVersion"] == version


@pytest.mark.parametrize("reply", [Returned(1, "12"), FunctionError("E", "m", version="12")])
def test_the_version_that_an_alias_meant_is_what_lambda_says(reply):
    record = built(reply, Succeeded(), "Success", arn=f"{FUNCTION}:live")
    assert record["requestContext"]["functionArn"] == f"{FUNCTION}:live"
    assert record["responseContext"]["executedVersion"] == "12"


def test_failures_count_receives_and_successes_do_not():
    records = [Record(f"m{number}", None, 1, {}, None, receives=number) for number in (1, 4, 2)]
    assert invoke_count(records, "RetriesExhausted") == 4
    assert invoke_count(records, "Success") == 1


def test_the_same_records_that_come_to_the_same_have_the_same_id_in_any_order():
    first = record_id("orders", "arn:q", "", ["m1", "m2"], "Success")
    assert record_id("orders", "arn:q", "", ["m2", "m1"], "Success") == first == str(UUID(first))


@pytest.mark.parametrize(
    "other",
    [
        ("others", "arn:q", "", ["m1"], "Success"),
        ("orders", "arn:p", "", ["m1"], "Success"),
        ("orders", "arn:q", "shard", ["m1"], "Success"),
        ("orders", "arn:q", "", ["m2"], "Success"),
        ("orders", "arn:q", "", ["m1"], "RetriesExhausted"),
    ],
)
def test_whatever_differs_has_another_id(other):
    assert record_id(*other) != record_id("orders", "arn:q", "", ["m1"], "Success")
