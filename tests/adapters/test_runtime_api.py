"""Lambda's Runtime API as one worker's server answers it: the ordinary course, and everything out of order."""

from __future__ import annotations

import asyncio
import base64
import errno
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio.lowlevel
import pytest

from poller.model import FunctionError, Invocation, Returned
from poller.runtimes._http import RequestParser
from poller.runtimes.runtime_api import ApiLink

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable

    from poller.model import Reply

pytestmark = pytest.mark.anyio

ARN = "arn:aws:lambda:eu-west-1:123456789012:function:orders"
CALL = Invocation("f1b0e3a4-2c51-4a35-8b0e-7a7d3a5c9b11", {"n": 1}, 1_700_000_000.5, ARN)
TOO_LARGE = 6 * 1024 * 1024 + 101


@dataclass
class Heard:
    """A worker that only remembers what it heard."""

    asks: int = 0
    replies: list[Reply] = field(default_factory=list)
    failures: list[FunctionError] = field(default_factory=list)

    def asked(self) -> None:
        self.asks += 1

    def replied(self, reply: Reply) -> None:
        self.replies.append(reply)

    def init_failed(self, error: FunctionError) -> None:
        self.failures.append(error)


class Client:
    """A runtime client, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, text: str | bytes) -> None:
        self.writer.write(text if isinstance(text, bytes) else text.replace("\n", "\r\n").encode())
        await self.writer.drain()

    async def call(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
        lines = "".join(f"{name.replace('_', '-')}: {value}\n" for name, value in headers.items())
        head = (
            f"{method} /2018-06-01/runtime/{path} HTTP/1.1\nHost: x\n{lines}Content-Length: {len(body)}\n\n"
        )
        await self.send(head)
        await self.send(body)
        status, _, answer = await self.answer()
        return status, json.loads(answer)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(10):
            first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines)
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(first.split()[1]), headers, body


@dataclass
class Side:
    heard: Heard
    link: ApiLink
    client: Client


@pytest.fixture
async def side() -> AsyncIterator[Side]:
    heard = Heard()
    link = ApiLink(asyncio.get_running_loop(), heard)  # type: ignore[arg-type]
    client = await connect(link)
    yield Side(heard, link, client)
    client.writer.close()
    link.close()


async def connect(link: ApiLink) -> Client:
    host, port = link.environment["AWS_LAMBDA_RUNTIME_API"].split(":")
    return Client(*await asyncio.open_connection(host, int(port)))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def begin(side: Side) -> None:
    """Ask for work and get CALL."""
    await side.client.send("GET /2018-06-01/runtime/invocation/next HTTP/1.1\nHost: x\n\n")
    await until(lambda: bool(side.heard.asks))
    side.link.send(CALL)
    await side.client.answer()


async def test_next_has_the_event_and_every_header(side: Side) -> None:
    side.link.send(CALL)
    await side.client.send("GET /2018-06-01/runtime/invocation/next HTTP/1.1\nHost: x\n\n")
    status, headers, body = await side.client.answer()

    assert (status, json.loads(body)) == (200, {"n": 1})
    assert headers["content-type"] == "application/json"
    assert headers["lambda-runtime-aws-request-id"] == CALL.request_id
    assert headers["lambda-runtime-deadline-ms"] == "1700000000500"
    assert headers["lambda-runtime-invoked-function-arn"] == ARN.lower()
    assert (
        headers["lambda-runtime-trace-id"]
        == "root=1-f1b0e3a4-2c514a358b0e7a7d3a5c9b11;parent=f1b0e3a42c514a35;sampled=0"
    )


async def test_a_response_is_accepted_once(side: Side) -> None:
    await begin(side)
    path = f"invocation/{CALL.request_id}/response"
    assert await side.client.call("POST", path, b'{"a":1}') == (202, {"status": "OK"})
    assert side.heard.replies == [Returned({"a": 1})]

    status, error = await side.client.call("POST", path, b"{}")
    assert (status, error["errorType"]) == (400, "InvalidRequestID")
    assert len(side.heard.replies) == 1


@pytest.mark.parametrize(
    ("body", "reply"), [(b"", None), (b"null", None), (b"[NaN]", [pytest.approx(float("nan"), nan_ok=True)])]
)
async def test_an_empty_response_is_no_result(side: Side, body: bytes, reply: Any) -> None:
    await begin(side)
    await side.client.call("POST", f"invocation/{CALL.request_id}/response", body)
    assert side.heard.replies == [Returned(reply)]


async def test_the_id_of_another_invocation_is_refused(side: Side) -> None:
    await begin(side)
    status, error = await side.client.call("POST", "invocation/other/error", b"{}")
    assert (status, error) == (
        400,
        {"errorMessage": "Invalid request ID", "errorType": "InvalidRequestID"},
    )
    assert side.heard.replies == []


async def test_a_response_before_next_is_refused(side: Side) -> None:
    side.link.send(CALL)
    status, _ = await side.client.call("POST", f"invocation/{CALL.request_id}/response", b"{}")
    assert status == 400


async def test_next_in_the_middle_of_an_invocation_is_refused(side: Side) -> None:
    await begin(side)
    status, error = await side.client.call("GET", "invocation/next")
    assert (status, error["errorType"]) == (403, "InvalidStateTransition")


async def test_a_second_next_beside_a_parked_one_is_refused(side: Side) -> None:
    await side.client.send("GET /2018-06-01/runtime/invocation/next HTTP/1.1\nHost: x\n\n")
    other = await connect(side.link)
    await until(lambda: bool(side.heard.asks))
    assert (await other.call("GET", "invocation/next"))[0] == 403
    other.writer.close()
    side.link.send(CALL)
    assert (await side.client.answer())[0] == 200


@pytest.mark.parametrize(
    ("body", "headers", "error"),
    [
        (
            b'{"errorType":"E","errorMessage":"m","stackTrace":["a","b"]}',
            {},
            FunctionError("E", "m", ("a", "b")),
        ),
        (b'{"errorType":"E","errorMessage":"m","trace":["a"]}', {}, FunctionError("E", "m", ("a",))),
        (
            b"out of paper",
            {"Lambda_Runtime_Function_Error_Type": "Runtime.Paper"},
            FunctionError("Runtime.Paper", "out of paper"),
        ),
        (b"", {}, FunctionError("Runtime.Unknown", "")),
        (b'{"stackTrace":7}', {}, FunctionError("Runtime.Unknown", "")),
    ],
)
async def test_an_error_keeps_what_the_runtime_says(
    side: Side, body: bytes, headers: dict[str, str], error: FunctionError
) -> None:
    await begin(side)
    path = f"invocation/{CALL.request_id}/error"
    assert await side.client.call("POST", path, body, **headers) == (202, {"status": "OK"})
    assert side.heard.replies == [error]


async def test_an_error_keeps_members_that_only_its_runtime_knows(side: Side) -> None:
    await begin(side)
    body = b'{"errorMessage":"m","errorType":"a.B","stackTrace":["x"],"cause":{"errorMessage":"n"}}'
    await side.client.call("POST", f"invocation/{CALL.request_id}/error", body)
    (reply,) = side.heard.replies
    assert isinstance(reply, FunctionError)
    assert reply.said == json.loads(body)


async def test_an_init_error_is_told(side: Side) -> None:
    body = b'{"errorType":"Runtime.Boom","errorMessage":"no"}'
    assert (await side.client.call("POST", "init/error", body))[0] == 202
    assert side.heard.failures == [FunctionError("Runtime.Boom", "no")]


async def test_an_init_error_after_init_is_refused(side: Side) -> None:
    await begin(side)
    status, error = await side.client.call("POST", "init/error", b"{}")
    assert (status, error["errorType"]) == (403, "InvalidStateTransition")
    assert side.heard.failures == []

    path = f"invocation/{CALL.request_id}/response"
    assert (await side.client.call("POST", path, b"{}"))[0] == 202


async def test_a_response_of_more_than_six_megabytes_is_too_large(side: Side) -> None:
    await begin(side)
    path = f"invocation/{CALL.request_id}/response"
    status, error = await side.client.call("POST", path, b"1" * TOO_LARGE)
    assert (status, error["errorType"]) == (413, "RequestEntityTooLarge")
    (reply,) = side.heard.replies
    assert isinstance(reply, FunctionError)
    assert reply.error_type == "Function.ResponseSizeTooLarge"


async def test_a_streamed_response_is_put_together(side: Side) -> None:
    await begin(side)
    await side.client.send(
        f"POST /2018-06-01/runtime/invocation/{CALL.request_id}/response HTTP/1.1\nHost: x\n"
        "Lambda-Runtime-Function-Response-Mode: streaming\nTransfer-Encoding: chunked\n\n"
        '3\n{"a\n4;x=y\n": 1\n1\n}\n0\n\n'
    )
    assert (await side.client.answer())[0] == 202
    assert side.heard.replies == [Returned({"a": 1})]


async def test_a_stream_that_fails_in_the_middle_is_an_error(side: Side) -> None:
    await begin(side)
    body = base64.b64encode(b'{"errorType":"E","errorMessage":"m"}').decode()
    await side.client.send(
        f"POST /2018-06-01/runtime/invocation/{CALL.request_id}/response HTTP/1.1\nHost: x\n"
        "Transfer-Encoding: chunked\nTrailer: Lambda-Runtime-Function-Error-Type\n\n"
        f"1\n[\n0\nLambda-Runtime-Function-Error-Type: E\nLambda-Runtime-Function-Error-Body: {body}\n\n"
    )
    assert (await side.client.answer())[0] == 202
    assert side.heard.replies == [FunctionError("E", "m")]


async def test_another_response_mode_is_refused(side: Side) -> None:
    await begin(side)
    path = f"invocation/{CALL.request_id}/response"
    mode = {"Lambda_Runtime_Function_Response_Mode": "shouting"}
    status, error = await side.client.call("POST", path, b"{}", **mode)
    assert (status, error["errorType"]) == (400, "InvalidFunctionResponseMode")


async def test_a_client_that_asks_before_it_sends_is_told_to_go_on(side: Side) -> None:
    await begin(side)
    await side.client.send(
        f"POST /2018-06-01/runtime/invocation/{CALL.request_id}/response HTTP/1.1\nHost: x\n"
        "Expect: 100-continue\nContent-Length: 2\n\n"
    )
    assert (await side.client.answer())[0] == 100
    await side.client.send("{}")
    assert (await side.client.answer())[0] == 202


async def test_an_invocation_waits_for_the_next_next_when_a_parked_one_has_gone(side: Side) -> None:
    await side.client.send("GET /2018-06-01/runtime/invocation/next HTTP/1.1\nHost: x\n\n")
    await until(lambda: bool(side.heard.asks))
    side.client.writer.close()
    await side.client.writer.wait_closed()
    again = await connect(side.link)
    await until(lambda: side.link.open_connections == 1)
    side.link.send(CALL)
    assert (await again.call("GET", "invocation/next")) == (200, {"n": 1})
    again.writer.close()


async def test_what_is_not_a_call_of_the_api_is_not_found(side: Side) -> None:
    assert (await side.client.call("GET", "restore/next"))[0] == 404


@pytest.mark.parametrize("text", ["hello\n\n", "GET / HTTP/1.1\nno colon\n\n", "GET /\n\n"])
async def test_what_is_not_http_ends_its_connection_only(side: Side, text: str) -> None:
    rude = await connect(side.link)
    await rude.send(text)
    assert (await rude.answer())[0] == 400
    async with asyncio.timeout(10):
        assert await rude.reader.read() == b""
    rude.writer.close()
    await begin(side)


@pytest.mark.parametrize("value", ["close", "TE, Close"])
async def test_connection_close_is_heeded(side: Side, value: str) -> None:
    assert (await side.client.call("GET", "nothing", Connection=value))[0] == 404
    async with asyncio.timeout(10):
        assert await side.client.reader.read() == b""


async def test_a_client_of_http_1_0_may_read_to_the_end(side: Side) -> None:
    side.link.send(CALL)
    await side.client.send("GET /2018-06-01/runtime/invocation/next HTTP/1.0\n\n")
    assert (await side.client.answer())[2] == b'{"n":1}'
    async with asyncio.timeout(10):
        assert await side.client.reader.read() == b""


async def test_a_client_of_http_1_0_may_keep_its_connection(side: Side) -> None:
    for _ in range(2):
        await side.client.send("GET /nothing HTTP/1.0\nConnection: Keep-Alive\n\n")
        assert (await side.client.answer())[0] == 404


class Full:
    """A server of a process that has no descriptor left for a connection, until it has."""

    def __init__(self, server: socket.socket) -> None:
        self.server = server
        self.full = True
        self.asked = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.asked += 1
        if self.full:
            raise OSError(errno.EMFILE, "Too many open files")
        return self.server.accept()

    def close(self) -> None:
        self.server.close()


async def test_a_connection_without_a_descriptor_waits_and_keeps_nobody_busy(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poller.runtimes.runtime_api.ACCEPT_PAUSE", 0.01)
    await begin(side)  # whose connection is accepted
    server = Full(side.link._server)
    side.link._server = server  # type: ignore[assignment]
    waiting = await connect(side.link)
    await until(lambda: server.asked >= 1)
    for _ in range(100):
        await anyio.lowlevel.checkpoint()
    assert server.asked < 50

    server.full = False
    assert (await waiting.call("GET", "nothing"))[0] == 404
    waiting.writer.close()


# --- the parser ---------------------------------------------------------------------------------------------------------

WHOLE = (
    b"POST /a HTTP/1.1\r\nA: b\r\nContent-Length: 3\r\n\r\nabc"
    b"POST /b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n1\r\nf\r\n0\r\nT: u\r\n\r\n"
    b"GET /c HTTP/1.1\r\n\r\n"
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1000])
def test_requests_may_come_in_pieces_of_any_size(size: int) -> None:
    parser = RequestParser(limit=100)
    requests = [
        one for start in range(0, len(WHOLE), size) for one in parser.feed(WHOLE[start : start + size])
    ]
    assert [(one.method, one.path, bytes(one.body)) for one in requests] == [
        ("POST", "/a", b"abc"),
        ("POST", "/b", b"def"),
        ("GET", "/c", b""),
    ]
    assert requests[0].headers["a"] == "b"
    assert requests[1].headers["t"] == "u"


def test_of_a_body_that_is_too_large_only_the_size_is_kept() -> None:
    (request,) = RequestParser(limit=3).feed(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n0123456789")
    assert (request.size, len(request.body)) == (10, 0)


@pytest.mark.parametrize(
    "text",
    [
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"x" * 1_200_000,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 1_200_000,
    ],
)
def test_what_is_not_http_raises(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the parser's only error
        RequestParser(limit=10).feed(text)
