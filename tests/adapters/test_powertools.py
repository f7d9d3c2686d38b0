"""Handlers of Powertools' BatchProcessor, unchanged, in workers: the partial failures that they name are what poller reads."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from poller.core import response
from poller.model import Invocation, PartlyFailed
from poller.runtimes import process
from poller.runtimes.context import FunctionIdentity

if TYPE_CHECKING:
    from poller.core.filters import Source

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

EXAMPLES = Path(__file__).parent.parent / "core" / "event-examples"
FUNCTIONS = Path(__file__).parent.parent / "conformance"
ARN = "arn:aws:lambda:eu-west-1:123456789012:function:orders"
STATES = ["good", "bad", "good", "bad"]


def records_of(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((EXAMPLES / name).read_text())["Records"][0]
    return record


def fifo_events() -> list[tuple[str, dict[str, Any]]]:
    example = records_of("sqs-fifo.json")
    return [(f"m{n}", {**example, "messageId": f"m{n}", "body": state}) for n, state in enumerate(STATES)]


def kinesis_events() -> list[tuple[str, dict[str, Any]]]:
    example = records_of("kinesis-standard.json")
    found = []
    for n, state in enumerate(STATES):
        data = base64.b64encode(json.dumps({"state": state}).encode()).decode()
        found.append(
            (f"{n}", {**example, "kinesis": {**example["kinesis"], "sequenceNumber": f"{n}", "data": data}})
        )
    return found


def dynamodb_events() -> list[tuple[str, dict[str, Any]]]:
    example = records_of("dynamodb-stream.json")
    found = []
    for n, state in enumerate(STATES):
        image = {"state": {"S": state}}
        found.append(
            (
                f"{n}",
                {
                    **example,
                    "dynamodb": {**example["dynamodb"], "SequenceNumber": f"{n}", "NewImage": image},
                },
            )
        )
    return found


@pytest.mark.parametrize(
    ("source", "handler", "events", "failed"),
    [
        # After the first failure the processor of a FIFO queue fails all that follow.
        ("sqs", "fifo_handler", fifo_events(), {"m1", "m2", "m3"}),
        ("kinesis", "kinesis_handler", kinesis_events(), {"1", "3"}),
        ("dynamodb", "dynamodb_handler", dynamodb_events(), {"1", "3"}),
    ],
)
async def test_an_unchanged_handler_of_powertools_names_the_right_failures(
    source: Source, handler: str, events: list[tuple[str, dict[str, Any]]], failed: set[str]
) -> None:
    setting = process.Setting(
        {"POWERTOOLS_SERVICE_NAME": "orders"}, "eu-west-1", f"powertools_functions.{handler}", FUNCTIONS
    )
    runtime = process.python(FunctionIdentity("orders", ARN, 256), setting, process.Size(1))
    assert await runtime.ready("request-1") is None
    event = {"Records": [record for _, record in events]}
    reply = await runtime.invoke(Invocation("request-1", event, time.time() + 30, ARN))
    await runtime.aclose()

    outcome = response.parse(reply, {name for name, _ in events}, partial=True, source=source)
    assert outcome == PartlyFailed(frozenset(failed))
