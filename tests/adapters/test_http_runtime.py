"""What is particular to a function behind a URL: what is sent, what each answer means, and connections that fail."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from poller.model import FunctionError, Invocation, Refused, Returned
from poller.runtimes.http import Endpoint, HttpRuntime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from poller.model import Reply

pytestmark = pytest.mark.anyio

ARN = "arn:aws:lambda:eu-west-1:123456789012:function:orders:live"
LIMIT = 6 * 1024 * 1024 + 100
ERROR = b'{"errorType": "LookupError", "errorMessage": "no order 7", "stackTrace": ["  File x"]}'
FAILED = FunctionError("LookupError", "no order 7", ("  File x",))


class Request(NamedTuple):
    line: str
    headers: dict[str, str]
    body: bytes
    connection: int


class Server:
    """Answers each request with `answer`, these very bytes, and closes the connection when they end in None."""

    def __init__(self, scheme: str = "http") -> None:
        self.answer: tuple[bytes | None, ...] = (answer(200),)
        self.requests: list[Request] = []
        self.waiting = asyncio.Event()
        self.closed = asyncio.Event()
        self.port = 0
        self._scheme = scheme
        self._connections = 0

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            while await self._exchange(reader, writer, self._connections):
                pass
        except (asyncio.IncompleteReadError, OSError):
            self.closed.set()
        finally:
            writer.close()

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int
    ) -> bool:
        line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
        headers = dict(one.split(": ", 1) for one in lines)
        body = await reader.readexactly(int(headers["Content-Length"]))
        self.requests.append(Request(line, headers, body, connection))
        if not self.answer:
            self.waiting.set()
            await reader.readexactly(1)
        for piece in self.answer:
            if piece is None:
                return False
            writer.write(piece)
            await writer.drain()
        return True


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} Said\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server("https" if tls else "http")
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls, limit=2**24)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as running:
        yield running


@asynccontextmanager
async def reaching(url: str, **keys: Any) -> AsyncIterator[HttpRuntime]:
    runtime = HttpRuntime(Endpoint(url, **keys))
    try:
        runtime.open()
        assert await runtime.ready("request-1") is None
        yield runtime
    finally:
        await runtime.aclose()


def an_invocation(event: Any = None) -> Invocation:
    return Invocation("0a1b2c3d-0000-4000-8000-00000000000f", event or {}, time.time() + 30, ARN)


async def ask(url: str, event: Any = None, **keys: Any) -> Reply:
    async with reaching(url, **keys) as runtime:
        return await runtime.invoke(an_invocation(event))


async def test_the_event_is_posted_with_lambdas_headers_and_the_functions_own(server: Server) -> None:
    own = {"Authorization": "Bearer secret", "User-Agent": "mine"}
    await ask(f"{server.url}/invoke?stage=live", {"Records": [{"body": "é"}]}, headers=own)

    (request,) = server.requests
    assert request.line == "POST /invoke?stage=live HTTP/1.1"
    assert json.loads(request.body) == {"Records": [{"body": "é"}]}
    headers = {name: value for name, value in request.headers.items() if name.startswith("Lambda-Runtime-")}
    deadline = int(headers.pop("Lambda-Runtime-Deadline-Ms"))
    assert 0 < deadline - time.time() * 1000 <= 30_000
    assert headers == {
        "Lambda-Runtime-Aws-Request-Id": "0a1b2c3d-0000-4000-8000-00000000000f",
        "Lambda-Runtime-Invoked-Function-Arn": ARN,
        "Lambda-Runtime-Trace-Id": "Root=1-0a1b2c3d-00004000800000000000000f;Parent=0a1b2c3d00004000;Sampled=0",
    }
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Accept-Encoding"] == "identity"
    assert own.items() <= request.headers.items()


@pytest.mark.parametrize(
    ("said", "value"),
    [
        (answer(200, b'{"batchItemFailures": []}'), {"batchItemFailures": []}),
        (answer(200), None),
        (b"HTTP/1.1 204 No Content\r\n\r\n", None),
        (answer(202, b" null"), None),
        (answer(200, b'"a text"', Content_Type="text/plain"), "a text"),
        (answer(200, b'{"errorMessage": "a field of mine"}'), {"errorMessage": "a field of mine"}),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[1\r\n1\r\n]\r\n0\r\n\r\n", [1]),
    ],
)
async def test_success_has_the_body_as_its_result(server: Server, said: bytes, value: Any) -> None:
    server.answer = (said,)
    assert await ask(server.url) == Returned(value)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (answer(500, ERROR), FAILED),
        (answer(400, ERROR), FAILED),
        (answer(404, ERROR), FAILED),
        (answer(503, ERROR, Retry_After="1"), FAILED),
        (answer(200, ERROR), FAILED),
        (answer(200, ERROR, X_Amz_Function_Error="Unhandled"), FAILED),
        (answer(200, b"", X_Amz_Function_Error="Unhandled"), FunctionError("Unhandled", "")),
        (answer(200, b"gone wrong", X_Amz_Function_Error="Handled"), FunctionError("Handled", "gone wrong")),
        (
            answer(500, b'{"errorType": "E", "errorMessage": "m", "trace": ["at x"]}'),
            FunctionError("E", "m", ("at x",)),
        ),
        (
            answer(
                200,
                b'{"errorMessage": "now id Task timed out after 3.00 seconds"}',
                X_Amz_Function_Error="Unhandled",
            ),
            FunctionError("Unhandled", "now id Task timed out after 3.00 seconds", timed_out=True),
        ),
        (answer(500, b"a page\n"), FunctionError("Http.500", 'answered 500 Internal Server Error: "a page"')),
        (answer(502), FunctionError("Http.502", "answered 502 Bad Gateway")),
        (answer(503), FunctionError("Http.503", "answered 503 Service Unavailable")),
        (answer(504), FunctionError("Http.504", "answered 504 Gateway Timeout")),
        (
            answer(422, b'{"a": 1}'),
            FunctionError("Http.422", 'answered 422 Unprocessable Entity: "{\\"a\\": 1}"'),
        ),
        (answer(599), FunctionError("Http.599", "answered 599")),
    ],
)
async def test_the_functions_errors(server: Server, said: bytes, error: FunctionError) -> None:
    server.answer = (said,)
    assert await ask(server.url) == error


@pytest.mark.parametrize("body", [b"OK", b"<html>", b"\xff", b"{", b"[" * 100_000])
async def test_an_answer_that_is_not_json_is_an_error(server: Server, body: bytes) -> None:
    server.answer = (answer(200, body),)
    reply = await ask(server.url)
    assert isinstance(reply, FunctionError)
    assert reply.error_type == "Runtime.MarshalError"
    assert reply.error_message.startswith("The answer is not JSON but ")
    assert len(reply.error_message) < 300


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (answer(429), "answered 429 Too Many Requests: it is tried again"),
        (answer(503, Retry_After="10"), "answered 503 Service Unavailable: it is tried again"),
        (answer(401), "answered 401 Unauthorized: check url and headers"),
        (answer(403, b"no"), "answered 403 Forbidden: check url and headers"),
        (answer(404), "answered 404 Not Found: check url and headers"),
        (answer(405), "answered 405 Method Not Allowed: check url and headers"),
        (
            answer(307, Location="http://127.0.0.1:1/"),
            "answered 307 Temporary Redirect, and redirects are not followed: put the final address into url",
        ),
    ],
)
async def test_what_kept_the_event_from_the_function_is_no_attempt(
    server: Server, said: bytes, reason: str
) -> None:
    server.answer = (said,)
    assert await ask(f"{server.url}/secret?key=secret") == Refused(f"{server.url} {reason}")


@pytest.mark.parametrize(
    "said",
    [
        (f"HTTP/1.1 200 OK\r\nContent-Length: {LIMIT + 1}\r\n\r\n".encode(),),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            *(b"100000\r\n" + b"x" * 2**20 + b"\r\n",) * 7,
        ),
    ],
)
async def test_a_reply_that_is_too_large_is_not_read_to_its_end(
    server: Server, said: tuple[bytes, ...]
) -> None:
    server.answer = said
    async with reaching(server.url) as runtime:
        reply = await runtime.invoke(an_invocation())
        await asyncio.wait_for(server.closed.wait(), 10)
    text = f"Response payload size exceeded maximum allowed payload size ({LIMIT} bytes)."
    assert reply == FunctionError("Function.ResponseSizeTooLarge", text)


async def test_a_large_event_arrives_whole(server: Server) -> None:
    event = {"Records": ["x" * 2**20] * 5}
    assert await ask(server.url, event) == Returned(None)
    assert json.loads(server.requests[0].body) == event


async def test_a_connection_is_kept_for_the_next_invocation(server: Server) -> None:
    async with reaching(server.url) as runtime:
        for _ in range(3):
            assert await runtime.invoke(an_invocation()) == Returned(None)
    assert [request.connection for request in server.requests] == [1, 1, 1]


async def test_a_connection_that_was_closed_meanwhile_is_not_used(server: Server) -> None:
    server.answer = (answer(200, Connection="close"), None)
    async with reaching(server.url) as runtime:
        for _ in range(2):
            assert await runtime.invoke(an_invocation()) == Returned(None)
    assert [request.connection for request in server.requests] == [1, 2]


async def test_a_time_limit_closes_the_connection(server: Server) -> None:
    server.answer = ()
    async with reaching(server.url) as runtime:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(runtime.invoke(an_invocation()))
            await asyncio.wait_for(server.waiting.wait(), 10)
            running.cancel()
        await asyncio.wait_for(server.closed.wait(), 10)


@pytest.mark.parametrize(
    "said",
    [
        (None,),
        (b"HTTP/1.1 200 OK\r\n", None),
        (answer(200, b"[1, 2]")[:-3], None),
        (b"no HTTP at all\r\n\r\n",),
    ],
)
async def test_a_connection_that_breaks_once_the_event_was_sent_is_an_attempt(
    server: Server, said: tuple[bytes | None, ...]
) -> None:
    server.answer = said
    reply = await ask(f"{server.url}/secret")
    assert isinstance(reply, FunctionError)
    assert reply.error_type == "Http.ConnectionLost"
    assert reply.error_message.startswith(f"{server.url} broke off without a whole answer: ")
    assert len(server.requests) == 1


# --- no connection ------------------------------------------------------------------------------------------------------


async def test_an_endpoint_that_does_not_run_is_no_attempt() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        reply = await ask(f"{url}/secret?key=secret")
    assert reply == Refused(
        f"{url} cannot be connected to: Connection refused; check the url, and whether it runs"
    )


async def test_a_host_without_an_address_is_no_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    reply = await ask("http://orders.example/secret")
    assert reply == Refused(
        "http://orders.example has no address: Name or service not known; check the url's host"
    )


async def test_a_connection_that_takes_too_long_is_no_attempt(server: Server) -> None:
    url = f"https://127.0.0.1:{server.port}"  # where nobody speaks TLS, and everybody waits
    reply = await ask(f"{url}/secret", connect_timeout=0.05)
    assert reply == Refused(f"{url} gives no connection within 0.05 s; check the url and the network")


# --- TLS ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("http-tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    openssl = shutil.which("openssl")
    assert openssl, "the TLS tests need the openssl command"
    ask = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout {key} -out {cert}"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([openssl, *ask.split(), *subject], check=True, capture_output=True)
    return cert, key


@pytest.fixture
async def secure(certificate: tuple[Path, Path]) -> AsyncIterator[Server]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    async with serving(context) as running:
        yield running


async def test_tls_trusts_the_bundle_of_the_function(secure: Server, certificate: tuple[Path, Path]) -> None:
    assert await ask(secure.url, ca_bundle=certificate[0]) == Returned(None)


async def test_a_certificate_that_is_not_trusted_is_no_attempt(secure: Server) -> None:
    assert await ask(f"{secure.url}/secret") == Refused(
        f"{secure.url} has no TLS that is trusted: self-signed certificate; check its certificate and ca_bundle"
    )
    assert secure.requests == []


async def test_an_endpoint_without_tls_is_no_attempt(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:
        plain.setblocking(False)
        loop = asyncio.get_running_loop()

        async def speak() -> None:
            peer, _ = await loop.sock_accept(plain)
            await loop.sock_recv(peer, 1)
            await loop.sock_sendall(peer, b"HTTP/1.1 400 Bad Request\r\n\r\n")
            peer.close()

        url = f"https://127.0.0.1:{plain.getsockname()[1]}"
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(speak())
            reply = await ask(url)
    assert isinstance(reply, Refused)
    assert reply.reason.startswith(f"{url} has no TLS that is trusted: ")


def test_an_endpoint_shows_neither_its_path_nor_its_headers() -> None:
    endpoint = Endpoint("https://a:8443/secret?key=secret", {"Authorization": "secret"})
    assert str(endpoint) == "https://a:8443"
    assert "secret" not in repr(endpoint)
