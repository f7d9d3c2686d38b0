"""SQS as the canned endpoint speaks it: just as much of the JSON protocol as a consumer needs.

Messages are cut from templates: a reply to ReceiveMessage is one formatting of bytes, with new message ids and receipts every
time. A queue's name says what it is: one that begins with `idle-` never has messages, and its long polls last as long as on
AWS; `once-` has one, for the first who asks; `size-1024` has always messages, of 1,024 bytes; `paced-500-7` gets as many as
one receive may take every 500 ms. Every other one has always messages, of 300 bytes.
"""

from __future__ import annotations

import hashlib
import random
import time
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING, Any

import orjson

from tests.bench.canned_reply import ACCOUNT, DATE, HEAD, IDLE, NOT_CANNED, ONCE, http

if TYPE_CHECKING:
    from collections import Counter

BODY_SIZE = 300


def body_of(place: int, size: int) -> str:
    """The body of the message at `place` of a reply; every other one is paid, so that a filter can pass half."""
    order = {
        "order": 10_000_000 + place,
        "status": "open" if place % 2 else "paid",
        "total": 4200 + place,
        "note": "",
    }
    room = size - len(orjson.dumps(order))
    if room < 0:
        return f"{place:0{size}}"
    order["note"] = "x" * room
    return orjson.dumps(order).decode()


def _message(place: int, size: int) -> bytes:
    """A template with three holes for the number of the message; every number takes the same room."""
    body = body_of(place, size)
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


@lru_cache(maxsize=32)
def _received(count: int, size: int) -> bytes:
    """A template of the HTTP reply with `count` messages of `size` bytes."""
    messages = b",".join(_message(place, size) for place in range(count))
    body = b'{"Messages":[' + messages + b"]}"
    length = len(body % tuple(range(3 * count)))
    return HEAD % (200, b"OK", DATE, length) + body


EMPTY = http(b"{}")


def _period(name: str) -> float:
    """Seconds, of a queue that is paced."""
    return int(name.split("-")[1]) / 1000


class Sqs:
    """The operations. Each takes the parameters and returns a whole HTTP reply."""

    def __init__(self, counts: Counter[str]) -> None:
        self.address = ""
        """The endpoint, for queue URLs."""
        self._counts = counts
        self._number = 0
        self._spent: set[str] = set()
        self._due: dict[str, float] = {}

    def answer(self, operation: str, params: dict[str, Any]) -> tuple[bytes, float]:
        """The reply, and the seconds to wait before it is sent."""
        if operation == "ReceiveMessage":
            name = params["QueueUrl"].rpartition("/")[2]
            longest = float(params.get("WaitTimeSeconds", 0))
            wait = self._wait(name, time.monotonic())
            if wait > longest:
                return EMPTY, longest
            self._taken(name)
            size = int(name.partition("-")[2]) if name.startswith("size-") else BODY_SIZE
            return self._receive(
                1 if name.startswith(ONCE) else params.get("MaxNumberOfMessages", 1), size
            ), wait
        if operation in ("DeleteMessageBatch", "ChangeMessageVisibilityBatch"):
            return self._settle(operation, params["Entries"]), 0.0
        if operation == "GetQueueUrl":
            return http(orjson.dumps({"QueueUrl": f"{self.address}/{ACCOUNT}/{params['QueueName']}"})), 0.0
        if operation == "GetQueueAttributes":
            return http(b'{"Attributes":{"VisibilityTimeout":"60"}}'), 0.0
        return NOT_CANNED, 0.0

    def _wait(self, name: str, now: float) -> float:
        """Seconds until the queue has messages."""
        if name.startswith(IDLE) or name in self._spent:
            return inf
        if name.startswith("paced-"):
            # Somewhere in the first period, for a thousand queues do not get their messages at the same moment.
            due = self._due.setdefault(name, now + random.random() * _period(name))
            return max(0.0, due - now)
        return 0.0

    def _taken(self, name: str) -> None:
        if name.startswith(ONCE):
            self._spent.add(name)
        elif name in self._due:
            self._due[name] += _period(name)

    def _receive(self, count: int, size: int) -> bytes:
        first = self._number
        self._number = first + count
        self._counts["received"] += count
        return _received(count, size) % tuple(
            number for number in range(first, first + count) for _ in range(3)
        )

    def _settle(self, operation: str, entries: list[dict[str, Any]]) -> bytes:
        self._counts["deleted" if operation == "DeleteMessageBatch" else "extended"] += len(entries)
        done = ",".join([f'{{"Id":"{entry["Id"]}"}}' for entry in entries])
        return http(f'{{"Successful":[{done}],"Failed":[]}}'.encode())
