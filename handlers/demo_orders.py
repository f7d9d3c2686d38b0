"""What `poller demo` runs: checks what comes from queues, from Kinesis and from DynamoDB, and fails what is broken.

Environment:
    POLLER_DEMO_LEDGER   a file to which the id of each handled order is added; none by default

An order is `{"id": "...", "amount": 12.5, ...}` with an amount above zero: the body of a message, the data of a Kinesis record,
or a table's item. Set ReportBatchItemFailures on the mapping.
"""

from __future__ import annotations

import base64
import json
import logging
import os
from typing import Any

logger = logging.getLogger(__name__)


def handler(event: dict[str, Any], context: Any) -> dict[str, list[dict[str, str]]]:
    """Handle each order; a broken one is reported as failed, and with it all that have to come after it: the
    rest of its group in a FIFO queue, the rest of the batch in a stream."""
    handled: list[str] = []
    failed: list[str] = []
    held_back: set[str] = set()
    for record in event["Records"]:
        identifier, group = _place(record)
        try:
            order = check(_content(record), held_back, group)
        except ValueError as error:
            logger.debug("the order in %s failed: %s", identifier, error)
            failed.append(identifier)
            held_back.update({group} if group else ())
        else:
            handled.append(order["id"])
    _enter(handled)
    return {"batchItemFailures": [{"itemIdentifier": one} for one in failed]}


def check(order: Any, held_back: set[str], group: str | None) -> dict[str, Any]:
    """Return `order`; ValueError when it is broken, or has to wait for one that is."""
    if group in held_back:
        raise ValueError("an order before it failed")
    if not isinstance(order, dict) or not isinstance(order.get("id"), str):
        raise ValueError("it has no id")  # noqa: TRY004  (every way to be broken is the same to the caller)
    amount = order.get("amount")
    if not isinstance(amount, int | float) or amount <= 0:
        raise ValueError("its amount is not a number above zero")
    return order


def _place(record: dict[str, Any]) -> tuple[str, str | None]:
    """The record's identifier for Lambda, and what it keeps its order with, if with anything."""
    match record["eventSource"]:
        case "aws:kinesis":
            return record["kinesis"]["sequenceNumber"], "shard"
        case "aws:dynamodb":
            return record["dynamodb"]["SequenceNumber"], "shard"
        case _:
            return record["messageId"], record["attributes"].get("MessageGroupId")


def _content(record: dict[str, Any]) -> Any:
    match record["eventSource"]:
        case "aws:kinesis":
            return json.loads(base64.b64decode(record["kinesis"]["data"]))
        case "aws:dynamodb":
            image = record["dynamodb"].get("NewImage", {})
            return {name: _value(*typed.items()) for name, typed in image.items()}
        case _:
            return json.loads(record["body"])


def _value(typed: tuple[str, str]) -> str | float:
    kind, value = typed
    return float(value) if kind == "N" else value


def _enter(handled: list[str]) -> None:
    ledger = os.environ.get("POLLER_DEMO_LEDGER")
    if ledger and handled:
        # One write in append mode: lines of invocations that run side by side do not mix.
        with open(ledger, "ab", buffering=0) as file:
            file.write("".join(f"{order}\n" for order in handled).encode())
