"""A canned endpoint of SQS, Kinesis and DynamoDB Streams, in a process of its own: it answers at once, remembers nothing, and
is never the limit. `GET /stats` tells what was served and the CPU seconds that it took.

    python -m tests.bench.canned CA_FILE    prints its ports, plain and TLS, and ends when its standard input does

The authority that vouches for the TLS port is written to CA_FILE.
"""

from __future__ import annotations

import asyncio
import os
import resource
import ssl
import sys
import threading
import time
from collections import Counter
from typing import Any

import orjson
import trustme
import uvloop

from tests.bench.canned_reply import http
from tests.bench.canned_sqs import Sqs
from tests.bench.canned_streams import DynamoDbStreams, Kinesis


class Services:
    """All that is canned, by the name that their protocol has for them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.sqs = Sqs(self.counts)
        self._by_name: dict[str, Sqs | Kinesis | DynamoDbStreams] = {
            "AmazonSQS": self.sqs,
            "Kinesis_20131202": Kinesis(self.counts),
            "DynamoDBStreams_20120810": DynamoDbStreams(self.counts),
        }

    def stats(self) -> bytes:
        """Everything since the start."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return http(
            orjson.dumps({**self.counts, "cpu": used.ru_utime + used.ru_stime, "wall": time.monotonic()})
        )

    def answer(self, target: str, params: dict[str, Any]) -> tuple[bytes, float]:
        """A whole HTTP reply, and the seconds to wait before it is sent."""
        service, _, operation = target.partition(".")
        self.counts[operation] += 1
        return self._by_name[service].answer(operation, params)


class Connection(asyncio.Protocol):
    """One client. Requests have a Content-Length and come one after the other."""

    def __init__(self, services: Services) -> None:
        self._services = services
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
            self._transport.write(self._services.stats())
            return
        at = lowered.find(b"\r\nx-amz-target:")
        target = _header(head[at:], head[at : at + 15]) if at >= 0 else b""
        reply, wait = self._services.answer(target.decode(), orjson.loads(body or b"{}"))
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


async def serve(ca_file: str) -> None:
    """Listen on free ports of loopback, for ever."""
    services = Services()
    plain, secure = await _listen(services, None), await _listen(services, _vouched(ca_file))
    services.sqs.address = f"http://127.0.0.1:{plain}"
    print(plain, secure, flush=True)
    await asyncio.Event().wait()


async def _listen(services: Services, tls: ssl.SSLContext | None) -> int:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(services), "127.0.0.1", 0, backlog=4096, ssl=tls)
    return int(server.sockets[0].getsockname()[1])


def _vouched(ca_file: str) -> ssl.SSLContext:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(ca_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    uvloop.run(serve(sys.argv[1]))
