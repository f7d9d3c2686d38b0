"""A canned SQS endpoint, in a process of its own: it answers at once, remembers nothing, and is never the limit.

It speaks just as much of SQS' JSON protocol as a consumer needs. Messages are cut from templates: a reply to ReceiveMessage
is one formatting of bytes, with new message ids and receipts every time. A queue whose name begins with `idle-` never has
messages, and its long polls last as long as on AWS. `GET /stats` tells what was served and the CPU seconds that it took.

    python -m tests.bench.canned        prints its port, and ends when its standard input does
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import resource
import sys
import threading
import time
from collections import Counter
from functools import cache
from typing import Any

import orjson
import uvloop

ACCOUNT = "123456789012"
BODY_SIZE = 300
IDLE = "idle-"
_HEAD = (
    b"HTTP/1.1 %d %s\r\nx-amzn-RequestId: 8c4f6c3e-7f5b-5d6c-9a3e-2f1f6c7e5b4a\r\nContent-Type: application/x-amz-json-1.0\r\n"
    b"Date: %s\r\nConnection: keep-alive\r\nContent-Length: %d\r\n\r\n"
)
_DATE = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()).encode()


def http(body: bytes, status: int = 200) -> bytes:
    """A whole HTTP reply."""
    return _HEAD % (status, b"OK" if status == 200 else b"Bad Request", _DATE, len(body)) + body


# --- what it answers ----------------------------------------------------------------------------------------------------


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
    return _HEAD % (200, b"OK", _DATE, size) + body


EMPTY = http(b"{}")


class Sqs:
    """The operations. Each takes the parameters and returns a whole HTTP reply."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.counts: Counter[str] = Counter()
        self._number = 0

    def stats(self) -> bytes:
        """Everything since the start."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return http(
            orjson.dumps({**self.counts, "cpu": used.ru_utime + used.ru_stime, "wall": time.monotonic()})
        )

    def answer(self, operation: str, params: dict[str, Any]) -> tuple[bytes, float]:
        """The reply, and the seconds to wait before it is sent."""
        self.counts[operation] += 1
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
        return http(b'{"__type":"com.amazonaws.sqs#InvalidAction","message":"not canned"}', 400), 0.0

    def _receive(self, count: int) -> bytes:
        first = self._number
        self._number = first + count
        self.counts["received"] += count
        return _received(count) % tuple(number for number in range(first, first + count) for _ in range(3))

    def _settle(self, operation: str, entries: list[dict[str, Any]]) -> bytes:
        self.counts["deleted" if operation == "DeleteMessageBatch" else "extended"] += len(entries)
        done = ",".join([f'{{"Id":"{entry["Id"]}"}}' for entry in entries])
        return http(f'{{"Successful":[{done}],"Failed":[]}}'.encode())


# --- HTTP ---------------------------------------------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """One client. Requests have a Content-Length and come one after the other."""

    def __init__(self, sqs: Sqs) -> None:
        self._sqs = sqs
        self._rest = b""
        self._transport: Any = None
        self._parked: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._parked is not None:
            self._parked.cancel()

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            head = data[:end].lower()
            size = _header(head, b"\r\ncontent-length:")
            stop = end + 4 + int(size or 0)
            if len(data) < stop:
                break
            self._request(data[:end], head, data[end + 4 : stop])
            data = data[stop:]
        self._rest = data

    def _request(self, head: bytes, lowered: bytes, body: bytes) -> None:
        if head.startswith(b"GET"):
            self._transport.write(self._sqs.stats())
            return
        at = lowered.find(b"\r\nx-amz-target:")
        target = _header(head[at:], head[at : at + 15]) if at >= 0 else b""
        reply, wait = self._sqs.answer(target.decode().rpartition(".")[2], orjson.loads(body or b"{}"))
        if wait:
            self._parked = asyncio.get_running_loop().call_later(wait, self._transport.write, reply)
        else:
            self._transport.write(reply)


def _header(head: bytes, name: bytes) -> bytes:
    at = head.find(name)
    if at < 0:
        return b""
    end = head.find(b"\r\n", at + len(name))
    return head[at + len(name) : end if end >= 0 else len(head)].strip()


async def serve() -> None:
    """Listen on a free port of loopback, for ever."""
    loop = asyncio.get_running_loop()
    sqs = Sqs("")
    server = await loop.create_server(lambda: Connection(sqs), "127.0.0.1", 0, backlog=4096)
    port = server.sockets[0].getsockname()[1]
    sqs.address = f"http://127.0.0.1:{port}"
    print(port, flush=True)
    await asyncio.Event().wait()


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    uvloop.run(serve())
