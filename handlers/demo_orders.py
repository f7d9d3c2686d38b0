"""What `poller demo` runs: checks orders, and fails those that are broken.

Environment:
    POLLER_DEMO_LEDGER   a file to which the id of each handled order is added; none by default

An order is `{"id": "...", "amount": 12.5, ...}` with an amount above zero. Set ReportBatchItemFailures on the
mapping.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any

logger = logging.getLogger(__name__)


def handler(event: dict[str, Any], context: Any) -> dict[str, list[dict[str, str]]]:
    """Handle each order; a broken one, and of a FIFO queue all after it in its group, are reported as
    failed."""
    handled: list[str] = []
    failed: list[str] = []
    held_back: set[str] = set()
    for record in event["Records"]:
        group = record["attributes"].get("MessageGroupId")
        try:
            order = check(record["body"], held_back, group)
        except ValueError as error:
            logger.debug("order in message %s failed: %s", record["messageId"], error)
            failed.append(record["messageId"])
            held_back.update({group} if group else ())
        else:
            handled.append(order["id"])
    _enter(handled)
    return {"batchItemFailures": [{"itemIdentifier": message} for message in failed]}


def check(body: str, held_back: set[str], group: str | None) -> dict[str, Any]:
    """Return the order in `body`; ValueError when it is broken, or has to wait for one that is."""
    if group in held_back:
        raise ValueError("an order before it in its group failed")
    order = json.loads(body)
    if not isinstance(order, dict) or not isinstance(order.get("id"), str):
        raise ValueError("it has no id")  # noqa: TRY004  (every way to be broken is the same to the caller)
    amount = order.get("amount")
    if not isinstance(amount, int | float) or amount <= 0:
        raise ValueError("its amount is not a number above zero")
    return order


def _enter(handled: list[str]) -> None:
    ledger = os.environ.get("POLLER_DEMO_LEDGER")
    if ledger and handled:
        # One write in append mode: lines of invocations that run side by side do not mix.
        with open(ledger, "ab", buffering=0) as file:
            file.write("".join(f"{order}\n" for order in handled).encode())
