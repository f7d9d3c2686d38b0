"""A delivery survives the spool whatever it holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poller.core import spooled
from poller.errors import StoreError
from poller.model import Delivery, SpoolEntry

DELIVERY = Delivery(
    id="5f3c1d8e-0000-4000-8000-000000000001",
    mapping="clicks",
    shard="shardId-000000000003",
    function_arn="arn:aws:lambda:eu-west-1:123456789012:function:clicks",
    document={"requestContext": {"condition": "RetryAttemptsExhausted"}, "version": "1.0"},
    event={"Records": [{"kinesis": {"data": "aGVsbG8="}}]},
    at=1763889751.125,
    records=1,
    condition="RetryAttemptsExhausted",
    error_type="ValueError",
    error_message="no such order",
)
ARN = "arn:aws:sqs:eu-west-1:123456789012:failed"


def test_an_entry_says_what_can_be_asked_without_reading_its_body() -> None:
    made = spooled.entry(DELIVERY, ARN, 1763889800.5)
    assert replace(made, body=b"") == SpoolEntry(
        kind="delivery",
        mapping="clicks",
        id=DELIVERY.id,
        key=ARN,
        shard="shardId-000000000003",
        at=1763889800.5,
        body=b"",
        error_type="ValueError",
        error_message="no such order",
    )


@pytest.mark.parametrize(
    "delivery",
    [
        DELIVERY,
        replace(DELIVERY, shard="", event=None, succeeded=True),
        replace(
            DELIVERY, event={"body": "half a pair \ud83d", "number": 2**70, "text": "\uffff\u0000é\U0001f600"}
        ),
        replace(DELIVERY, error_message="\udc00"),
    ],
)
def test_a_delivery_comes_back_as_it_was(delivery: Delivery) -> None:
    assert spooled.delivery(spooled.entry(delivery, ARN, 1.0)) == delivery


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"id": 1', b'{"from": "a newer poller"}', b"\xff"])
def test_what_is_no_delivery_is_said_to_be_none(body: bytes) -> None:
    entry = replace(spooled.entry(DELIVERY, ARN, 1.0), body=body)
    with pytest.raises(StoreError, match=f"the spooled delivery {DELIVERY.id} makes no sense: "):
        spooled.delivery(entry)
