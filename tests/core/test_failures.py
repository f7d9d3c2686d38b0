from __future__ import annotations

import json
from typing import Any

import pytest

from poller.core.failures import UNREADABLE, Failure, Place, group, make_id, of_document, split_id


def document(**more: Any) -> str:
    return json.dumps({"requestContext": {"condition": "RetryAttemptsExhausted"}} | more)


INFO = {
    "shardId": "s-1",
    "startSequenceNumber": "1",
    "endSequenceNumber": "9",
    "batchSize": 4,
    "streamArn": "a",
}


@pytest.mark.parametrize(
    ("body", "what", "message", "records", "shard", "source"),
    [
        (document(KinesisBatchInfo=INFO), "RetryAttemptsExhausted", "", 4, "s-1", "a"),
        (
            document(KinesisBatchInfo=INFO, responseContext={"functionError": "Unhandled"}),
            "RetryAttemptsExhausted (Unhandled)",
            "",
            4,
            "s-1",
            "a",
        ),
        (
            document(
                requestPayload={"Records": [{"eventSourceARN": "b"}, {}]},
                responseContext={"functionError": "Unhandled"},
                responsePayload={"errorType": "OutOfStock", "errorMessage": "no stock of 7"},
            ),
            "OutOfStock",
            "no stock of 7",
            2,
            "given",
            "b",
        ),
        ("what?", UNREADABLE, "it is no JSON", 0, "", ""),
    ],
)
def test_a_document_is_named_by_its_error_or_by_why_it_was_given_up(
    body: str, what: str, message: str, records: int, shard: str, source: str
):
    failure = of_document("queue:clicks:m-1", body, 7.0, "given")
    assert failure == Failure("queue:clicks:m-1", what, message, 7.0, records, shard, source)


def test_failures_that_look_alike_are_one_group_with_its_newest_and_its_oldest():
    failures = [
        Failure("a", "KeyError", "no order 1", 20.0, 1),
        Failure("b", "KeyError", "no order 2", 30.0, 2),
        Failure("c", "KeyError", "no order 3", 10.0, 3),
        Failure("d", "ValueError", "no order 4", 5.0, 4),
        Failure("e", "KeyError", "no customer", 5.0, 5),
    ]
    groups = group(failures)
    assert [(one.what, one.fingerprint, one.count, one.records) for one in groups] == [
        ("KeyError", "no order <number>", 3, 6),
        ("ValueError", "no order <number>", 1, 4),
        ("KeyError", "no customer", 1, 5),
    ]
    assert (groups[0].newest, groups[0].oldest) == (30.0, 10.0)
    assert (groups[0].newest_id, groups[0].message) == ("b", "no order 2")


@pytest.mark.parametrize(("total", "looked_at", "sample"), [(None, 5, False), (5, 5, False), (6, 5, True)])
def test_a_place_says_whether_there_is_more_than_was_looked_at(
    total: int | None, looked_at: int, sample: bool
):
    assert Place("clicks", "queue", "arn", total, looked_at).sample is sample


@pytest.mark.parametrize("name", ["m-1", 17, "aws/lambda/x:y"])
def test_an_id_says_where_a_failure_is(name: Any):
    assert split_id(make_id("objects", "clicks", name)) == ("objects", "clicks", str(name))


@pytest.mark.parametrize("id_", ["", "queue", "queue:clicks", "queue:clicks:", "queue::x", "shelf:clicks:x"])
def test_what_is_no_id_is_refused(id_: str):
    with pytest.raises(ValueError, match="as `poller failures` shows it"):
        split_id(id_)
