"""SQS as the canned endpoint speaks it: just as much of the JSON protocol as a consumer needs.

Messages are cut from templates: a reply to ReceiveMessage is one formatting of bytes, with new message ids and receipts every
time. A queue whose name begins with `idle-` never has messages, and its long polls last as long as on AWS.
"""

from __future__ import annotations

import hashlib
import time
from functools import cache
from typing import TYPE_CHECKING, Any

import orjson

from tests.bench.canned_reply import ACCOUNT, DATE, HEAD, IDLE, NOT_CANNED, http

if TYPE_CHECKING:
    from collections import Counter

BODY_SIZE = 300


def body_of(place: int) -> str:
    """The body of the message at `place` of a reply; every other one is paid, so that a filter can pass half."""
    order = {
        "order": 10_000_000 + place,
        "status": "open" if place % 2 else "paid",
        "total": 4200 + place,
        "note": "",
    }
    order["note"] = "x" * (BODY_SIZE - len(orjson.dumps(order)))
    return orjson.dumps(order).decode()


def _message(place: int) -> bytes:
    """A template with three holes for the number of the message; every number takes the same room."""
    body = body_of(place)
    sent = str(int(time.time() * 1000))
    attributes = {
        "SenderId": "AIDAIENQZJOLO23YVJ4VO",
        "ApproximateFirstReceiveTimestamp": sent,
        "ApproximateReceiveCount": "1",
        "SentTimestamp": sent,
    }
    message = {
        "MessageId": "%(id)",
        "ReceiptHandle": "AQEB" + "wJnKyrHigUMZj6rYigCgxlaS3SLy0a" * 12 + "%(receipt)",
        "MD5OfBody": hashlib.md5(body.encode()).hexdigest(),
        "Body": body,
        "Attributes": attributes,
    }
    text = orjson.dumps(message).replace(b"%(id)", b"%08x-5f3b-4c11-9d2e-%012x")
    return text.replace(b"%(receipt)", b"%032x==")


@cache
def _received(count: int) -> bytes:
    """A template of the HTTP reply with `count` messages."""
    messages = b",".join(_message(place) for place in range(count))
    body = b'{"Messages":[' + messages + b"]}"
    size = len(body % tuple(range(3 * count)))
    return HEAD % (200, b"OK", DATE, size) + body


EMPTY = http(b"{}")


class Sqs:
    """The operations. Each takes the parameters and returns a whole HTTP reply."""

    def __init__(self, counts: Counter[str]) -> None:
        self.address = ""
        """The endpoint, for queue URLs."""
        self._counts = counts
        self._number = 0

    def answer(self, operation: str, params: dict[str, Any]) -> tuple[bytes, float]:
        """The reply, and the seconds to wait before it is sent."""
        if operation == "ReceiveMessage":
            if params["QueueUrl"].rpartition("/")[2].startswith(IDLE):
                return EMPTY, float(params.get("WaitTimeSeconds", 0))
            return self._receive(params.get("MaxNumberOfMessages", 1)), 0.0
        if operation in ("DeleteMessageBatch", "ChangeMessageVisibilityBatch"):
            return self._settle(operation, params["Entries"]), 0.0
        if operation == "GetQueueUrl":
            return http(orjson.dumps({"QueueUrl": f"{self.address}/{ACCOUNT}/{params['QueueName']}"})), 0.0
        if operation == "GetQueueAttributes":
            return http(b'{"Attributes":{"VisibilityTimeout":"60"}}'), 0.0
        return NOT_CANNED, 0.0

    def _receive(self, count: int) -> bytes:
        first = self._number
        self._number = first + count
        self._counts["received"] += count
        return _received(count) % tuple(number for number in range(first, first + count) for _ in range(3))

    def _settle(self, operation: str, entries: list[dict[str, Any]]) -> bytes:
        self._counts["deleted" if operation == "DeleteMessageBatch" else "extended"] += len(entries)
        done = ",".join([f'{{"Id":"{entry["Id"]}"}}' for entry in entries])
        return http(f'{{"Successful":[{done}],"Failed":[]}}'.encode())
