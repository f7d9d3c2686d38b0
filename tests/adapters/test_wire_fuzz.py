"""Whatever a server sends, in whatever pieces: the right reply or an error, and never a hang, a crash or another's record.

The bytes go straight into the connection, so that hundreds of replies a second can be tried; nothing else is left out.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
from http.client import HTTPException, HTTPResponse
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.aws.credentials import Credentials, Frozen
from poller.aws.pool import Pool
from poller.aws.signing import target
from poller.aws.wire import Wire
from poller.errors import AwsError
from tests.scripted_session import Facts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from poller.aws.connection import Connection

pytestmark = pytest.mark.slow

Script = tuple["Sequence[bytes]", Exception | None]
ENDED = (None, ConnectionResetError("reset"))


class Transport:
    """Plays the next of `scripts` for every request: pieces, and then the end of the connection unless it is kept."""

    def __init__(self, connection: Connection, scripts: Iterator[Script], *, kept: bool) -> None:
        self._connection = connection
        self._scripts = scripts
        self._kept = kept
        self._over = False

    def write(self, request: bytes) -> None:
        pieces, end = next(self._scripts)
        loop = asyncio.get_running_loop()
        for piece in pieces:
            loop.call_soon(self._feed, piece)
        if not self._kept:
            loop.call_soon(self._end, end)

    def abort(self) -> None:
        asyncio.get_running_loop().call_soon(self._end, None)

    def _feed(self, piece: bytes) -> None:
        if not self._over:
            self._connection.data_received(piece)

    def _end(self, error: Exception | None) -> None:
        if not self._over:
            self._over = True
            self._connection.connection_lost(error)


class Route:
    """Leads to a `Transport`."""

    request_target = "/"
    headers: dict[str, str]

    def __init__(self, scripts: Iterator[Script], *, kept: bool = False) -> None:
        self.headers = {}
        self.connections = 0
        self._scripts = scripts
        self._kept = kept

    async def connect(self, connection: Connection, timeout: float) -> None:
        self.connections += 1
        transport: Any = Transport(connection, self._scripts, kept=self._kept)
        connection.connection_made(transport)

    def remember(self, connection: Connection) -> None:
        pass


async def _no_credentials() -> Any:
    raise AssertionError("there are some")


def wire_over(pool: Pool) -> Wire:
    credentials = Credentials(_no_credentials)
    credentials._frozen, credentials._checked = Frozen("AKID", "secret"), float("inf")
    observer: Any = Facts()
    return Wire("sqs", "eu-west-1", target("http://sqs.test"), credentials, pool, observer)


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[[Any], Any]]:
    """Runs a coroutine to its end in one loop for all examples; what it leaves to no one's attention fails the test."""
    unseen: list[dict[str, Any]] = []
    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(lambda _, context: unseen.append(context))

        def run(coroutine: Any) -> Any:
            try:
                return runner.run(asyncio.wait_for(coroutine, 5))
            finally:
                assert unseen == []

        yield run


async def received(pieces: Sequence[bytes], end: Exception | None = None) -> dict[str, Any] | str:
    """What the wire makes of a reply: JSON, or the class of its error."""

    def always() -> Iterator[Script]:
        while True:
            yield pieces, end

    route: Any = Route(always())
    async with Pool(route) as pool:
        try:
            return await wire_over(pool).call("ReceiveMessage", {"QueueUrl": "q"}, timeout=60)
        except AwsError as error:
            return type(error).__name__
        finally:
            assert pool._asked == {}


@st.composite
def split(draw: st.DrawFn, whole: bytes) -> list[bytes]:
    cuts = sorted(draw(st.sets(st.integers(0, len(whole)), max_size=6)))
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True) if a < b]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
bodies = st.dictionaries(st.text(max_size=8), values, max_size=4).map(orjson.dumps)


@st.composite
def chunked(draw: st.DrawFn, body: bytes) -> bytes:
    pieces = draw(split(body))
    extension = draw(st.sampled_from([b"", b";a=b", b';a="b c"']))
    trailer = draw(st.sampled_from([b"", b"X-Sum: 1\r\n"]))
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
    return chunks + b"0\r\n" + trailer + b"\r\n"


@st.composite
def replies(draw: st.DrawFn, body: bytes) -> bytes:
    before = b"".join(draw(st.lists(st.sampled_from(INTERIM), max_size=2)))
    odd = b"".join(draw(st.lists(st.sampled_from(ODD), max_size=3)))
    if draw(st.booleans()):
        return (
            before
            + b"HTTP/1.1 200 OK\r\n"
            + odd
            + b"Transfer-Encoding: chunked\r\n\r\n"
            + draw(chunked(body))
        )
    return before + b"HTTP/1.1 200 OK\r\n" + odd + b"Content-Length: %d\r\n\r\n" % len(body) + body


INTERIM = [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"]
ODD = [
    b"Connection: close\r\n",
    b"Connection: keep-alive\r\n",
    b"X-Empty:\r\n",
    b"Set-Cookie: a\r\n",
    b"Keep-Alive: timeout=0\r\n",
]


@st.composite
def mutated(draw: st.DrawFn, whole: bytes) -> bytes:
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(whole)))
        to = min(len(whole), at + draw(st.integers(0, 12)))
        new = draw(
            st.binary(max_size=4)
            | st.sampled_from([whole[at:to] * 2, b"\r\n", b"\r\n\r\n", b"0\r\n\r\n", b":", b" "])
        )
        whole = whole[:at] + new + whole[to:]
    return whole


@given(data=st.data(), body=bodies, end=st.sampled_from(ENDED))
@settings(max_examples=300)
def test_a_whole_reply_is_read_as_it_is_in_whatever_pieces_it_comes(
    data: st.DataObject, body: bytes, end: Exception | None, run: Callable[[Any], Any]
) -> None:
    pieces = data.draw(split(data.draw(replies(body))))
    assert run(received(pieces, end)) == json.loads(body)


@given(data=st.data(), body=bodies, end=st.sampled_from(ENDED))
@settings(max_examples=300)
def test_a_reply_that_ends_early_is_an_error(
    data: st.DataObject, body: bytes, end: Exception | None, run: Callable[[Any], Any]
) -> None:
    whole = data.draw(replies(body))
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]
    assert run(received(data.draw(split(part)), end)) in ("BadReply", "Unreachable")


@given(data=st.data(), noise=st.binary(max_size=200))
@settings(max_examples=200)
def test_noise_is_an_error(data: st.DataObject, noise: bytes, run: Callable[[Any], Any]) -> None:
    assert run(received(data.draw(split(noise)))) in ("BadReply", "Unreachable")


@given(data=st.data(), body=bodies)
@settings(max_examples=300)
def test_a_mutated_reply_is_an_error_or_what_another_client_reads_whatever_its_pieces(
    data: st.DataObject, body: bytes, run: Callable[[Any], Any]
) -> None:
    whole = data.draw(mutated(data.draw(replies(body))))
    at_once = run(received([whole]))
    assert run(received(data.draw(split(whole)))) == at_once
    assert isinstance(at_once, str) or at_once == read_by_python(whole)


def read_by_python(whole: bytes) -> Any:
    """What Python's own client takes for the JSON of the reply, which knows neither empty lines before it nor Early Hints."""

    class Left(io.BytesIO):
        def makefile(self, mode: str) -> io.BytesIO:
            return self

    left: Any = Left(BEFORE.sub(b"", whole))
    reply = HTTPResponse(left, method="POST")
    try:
        reply.begin()
        return json.loads(reply.read()) if reply.status == 200 else reply.status
    except (HTTPException, ValueError) as error:
        return error


BEFORE = re.compile(rb"\A(?:[\r\n]*HTTP/\d\.\d 1\d\d.*?\r\n\r\n)*[\r\n]*", re.DOTALL)


@given(data=st.data(), numbers=st.lists(st.integers(0, 10**6), min_size=1, max_size=5, unique=True))
@settings(max_examples=300)
def test_of_many_requests_each_gets_its_own_reply_or_an_error(
    data: st.DataObject, numbers: list[int], run: Callable[[Any], Any]
) -> None:
    scripts: list[tuple[bytes, ...]] = []
    for number in numbers:
        whole = data.draw(replies(orjson.dumps({"number": number})))
        behind = data.draw(st.sampled_from([b"", b"", b"\0", b"\r\n", whole, INTERIM[0], whole[:20]]))
        scripts.append((whole + behind,))

    async def ask_all() -> list[Any]:
        route: Any = Route(((pieces, None) for pieces in scripts), kept=True)
        async with Pool(route) as pool:
            wire = wire_over(pool)
            return [await wire.call("ReceiveMessage", {"QueueUrl": "q"}, timeout=60) for _ in numbers]

    assert run(ask_all()) == [{"number": number} for number in numbers]
