"""What a replay is made of: which queue a wish means, what its facts are, what becomes of records that fail again.

How the parts work together is tested with the real daemon, in `tests/e2e/test_replay.py`.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from poller.app.replay_sources import FailedAgain, ReplayObserver, Setting, _last_failure, queue_id
from poller.config.mapping import Mapping
from poller.core.replay import Tally
from poller.core.replay_wish import ReplayWish
from poller.errors import ReplayRefused
from poller.model import (
    ApiRequest,
    Delivered,
    Failed,
    FunctionError,
    Invoked,
    Outcome,
    PartlyFailed,
    Received,
    StaleReceipts,
    Succeeded,
)
from tests.engine.fakes import Recorder, delivery_of

ORDERS = "arn:aws:sqs:eu-west-1:123456789012:orders.fifo"
CLICKS = "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks"


def setting(target: str, source: str = CLICKS) -> Setting:
    streams: dict[str, Any] = {} if ":sqs:" in source else {"starting_position": "LATEST"}
    mapping = Mapping(name="work", event_source_arn=source, function_name="one", **streams)
    around: Any = SimpleNamespace(close_timeout=2.0)
    nothing: Any = None
    return Setting(ReplayWish("work", "queue", target), mapping, nothing, nothing, around)


@pytest.mark.parametrize(
    ("target", "region", "account", "name"),
    [
        ("arn:aws:sqs:us-east-1:123456789012:failed", "us-east-1", "123456789012", "failed"),
        ("https://sqs.us-east-1.amazonaws.com/123456789012/failed", "us-east-1", "123456789012", "failed"),
        ("http://127.0.0.1:4566/000000000000/failed.fifo", "eu-west-1", "000000000000", "failed.fifo"),
    ],
)
def test_a_queue_is_named_by_its_arn_or_its_url(target: str, region: str, account: str, name: str) -> None:
    queue = queue_id(setting(target))
    assert (queue.region, queue.account, queue.name) == (region, account, name)
    assert queue.fifo is name.endswith(".fifo")
    assert queue.function_timeout == 0


def test_a_dead_letter_looks_as_its_own_queue_would_have_brought_it() -> None:
    dead = "arn:aws:sqs:eu-west-1:123456789012:dead.fifo"
    assert queue_id(setting(dead, ORDERS)).arn == ORDERS
    assert queue_id(setting(dead)).arn == dead


@pytest.mark.parametrize("target", ["failed", "https://failed", "arn:aws:sns:eu-west-1:123456789012:failed"])
def test_what_is_no_queue_is_refused(target: str) -> None:
    with pytest.raises(ReplayRefused, match="must be the ARN or the URL of an SQS queue"):
        queue_id(setting(target))


def test_the_mappings_own_queue_is_refused() -> None:
    with pytest.raises(ReplayRefused, match="that is the queue that the mapping reads anyway"):
        queue_id(setting(ORDERS, ORDERS))


# --- facts --------------------------------------------------------------------------------------------------------------


def invoked(outcome: Outcome) -> Invoked:
    return Invoked("work", "one", "r-1", 1, 1, outcome, 0.1)


def test_only_facts_about_the_function_and_its_requests_are_told() -> None:
    told = Recorder()
    observer = ReplayObserver(told, moves=False)
    observer.received(Received("work", 3))
    observer.delivered(Delivered("work", "s-1", 3, "RetryAttemptsExhausted"))
    assert told.facts == []
    facts = [
        invoked(Succeeded()),
        ApiRequest("sqs", "ReceiveMessage", "ok", 0.1),
        StaleReceipts("work", 1, "m-1"),
    ]
    observer.invoked(facts[0])  # type: ignore[arg-type]
    observer.api_request(facts[1])  # type: ignore[arg-type]
    observer.stale_receipts(facts[2])  # type: ignore[arg-type]
    assert [fact for fact in told.facts if not isinstance(fact, ApiRequest)] == [facts[0], facts[2]]


def test_moving_messages_invokes_no_function_that_anybody_knows() -> None:
    told = Recorder()
    ReplayObserver(told, moves=True).invoked(invoked(Succeeded()))
    assert told.facts == []


@pytest.mark.parametrize(
    ("outcome", "failure"),
    [
        (Failed(FunctionError("ValueError", "no such order")), ("ValueError", "no such order")),
        (PartlyFailed(frozenset({"m-1"})), ("ReportBatchItemFailures", "")),
    ],
)
def test_how_the_last_invocation_failed_is_remembered(outcome: Outcome, failure: tuple[str, str]) -> None:
    ReplayObserver(Recorder(), moves=False).invoked(invoked(outcome))
    assert _last_failure.get() == failure


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("error_type", "document", "kind"),
    [
        ("ValueError", {"responseContext": {}}, "ValueError"),
        ("", {"responseContext": {}}, "ReportBatchItemFailures"),
        ("", {}, "PayloadTooLarge"),
    ],
)
async def test_records_that_fail_again_are_counted_and_told_of(
    error_type: str, document: dict[str, Any], kind: str
) -> None:
    told: list[tuple[str, list[str]]] = []
    tally = Tally()
    again = FailedAgain(lambda shard, ids: told.append((shard, list(ids))), tally)
    event = {"Records": [{"kinesis": {"sequenceNumber": number}} for number in ("7", "8")]}
    await again.send(replace(delivery_of(document, event), error_type=error_type, shard="s-1"))
    assert told == [("s-1", ["7", "8"])]
    assert (tally.failed, dict(tally.errors), tally.failed_ids) == (2, {kind: 2}, ["7", "8"])
