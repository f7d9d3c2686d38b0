"""Connections of the hot calls over real sockets, on both loops: replies whole and broken, the pool, TLS, proxies."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from anyio import create_task_group, wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from poller.aws import connection, dial, pool
from poller.aws.connection import BrokenReply, Disconnected
from poller.aws.dial import Proxy, ProxyRefused, ResumingContext, Route, Unconnected, tls_context
from poller.aws.pool import Pool
from poller.errors import RequestRefused
from tests.raw_http import RawProxy, RawServer, Say, reply

if TYPE_CHECKING:
    from pathlib import Path

    from poller.aws.connection import Reply

pytestmark = pytest.mark.anyio

TOKEN = b"X-Amz-Target: T\r\n"


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": request.param}


def open_pool(server: RawServer, most: int = 10) -> Pool:
    return Pool(Route(f"http://{server.address}/", None, None), most)


def open_secure(url: str, tls: ResumingContext, proxy: Proxy | None = None) -> Pool:
    return Pool(Route(url, tls, proxy))


async def ask(connections: Pool, timeout: float = 5) -> Reply:
    return await connections.post(TOKEN, b"{}", timeout)


async def answered(answer: bytes) -> Reply:
    async with RawServer(Say(answer, "close")) as server, open_pool(server) as connections:
        return await ask(connections)


# --- replies ------------------------------------------------------------------------------------------------------------

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
SHAPES = {
    "with its length": reply(b'{"a":1}'),
    "with odd headers": reply(b'{"a":1}', b"x-empty:", b"X-Odd:\t a:b ", b"Set-Cookie: a", b"Set-Cookie: b"),
    "in chunks": CHUNKED + b'3\r\n{"a\r\n4\r\n":1}\r\n0\r\n\r\n',
    "in chunks with extensions and trailers": CHUNKED + b'07;x=y\r\n{"a":1}\r\n0\r\nX-Sum: 1\r\n\r\n',
    "to the end of the connection": b'HTTP/1.1 200 OK\r\n\r\n{"a":1}',
    "of HTTP/1.0": b'HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\n{"a":1}',
    "after interim ones": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + reply(b'{"a":1}'),
    "with more behind it": reply(b'{"a":1}') + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "with nonsense behind it": reply(b'{"a":1}') + b"\0\0",
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_reply_is_read_whatever_its_shape(shape: str) -> None:
    found = await answered(SHAPES[shape])
    assert (found.status, found.body) == (200, b'{"a":1}')


async def test_a_header_is_found_whatever_its_case() -> None:
    found = await answered(reply(b"", b"x-AMZN-errortype: Throttled", status=b"400 Bad Request"))
    assert (found.status, found.header("X-Amzn-ErrorType"), found.header("Date")) == (400, "Throttled", "")


BROKEN = {
    "that is not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "that changes the protocol": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "with two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "with a length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    "with a length that is no number": b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\n{}",
    "with a bad chunk": CHUNKED + b"xy\r\n{}\r\n",
    "in an encoding without an end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n{}",
}


@pytest.mark.parametrize("shape", BROKEN)
async def test_a_broken_reply_is_an_error(shape: str) -> None:
    with pytest.raises(BrokenReply):
        await answered(BROKEN[shape])


@pytest.mark.slow
@pytest.mark.parametrize(
    "whole", [SHAPES["with its length"], SHAPES["in chunks with extensions and trailers"]]
)
@pytest.mark.parametrize("then", ["close", "reset"])
async def test_a_reply_cut_off_at_any_byte_is_an_error(whole: bytes, then: Any) -> None:
    head = whole.index(b"\r\n\r\n") + 4
    answers = [Say(whole[:end], then) for end in range(len(whole))]
    async with RawServer(*answers) as server, open_pool(server) as connections:
        for end in range(len(whole)):
            with pytest.raises(
                Disconnected if end < head and then == "close" else (BrokenReply, Disconnected)
            ):
                await ask(connections)


async def test_a_reply_that_grows_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MOST_REPLY", 1000)
    with pytest.raises(BrokenReply, match="larger than 1000 bytes"):
        await answered(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2000)


@pytest.mark.parametrize("endless", [b"X-More: 1\r\n", b"x"])
async def test_a_head_without_an_end_is_refused(endless: bytes) -> None:
    with pytest.raises(BrokenReply, match="larger than 65536 bytes"):
        await answered(b"HTTP/1.1 200 OK\r\n" + endless * 70_000)


# --- the pool -----------------------------------------------------------------------------------------------------------


async def test_requests_one_after_the_other_share_a_connection_and_are_sent_whole() -> None:
    async with RawServer(Say(reply())) as server, open_pool(server) as connections:
        for _ in range(3):
            await ask(connections)
    assert server.connections == 1
    start, *headers = server.requests[2].removesuffix(b"\r\n\r\n{}").split(b"\r\n")
    assert start == b"POST / HTTP/1.1"
    assert headers[1:] == [b"X-Amz-Target: T", b"Content-Length: 2"]


@pytest.mark.parametrize(
    "answer",
    [
        Say(reply(), "close"),
        Say(reply(), "reset"),
        Say(reply(b"{}", b"Connection: close")),
        Say(reply(b"{}", b"Keep-Alive: timeout=1")),
        Say(reply() + b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"),
    ],
)
async def test_a_connection_that_will_not_last_is_not_used_again(answer: Say) -> None:
    async with RawServer(answer) as server, open_pool(server) as connections:
        for _ in range(2):
            assert (await ask(connections)).body == b"{}"
            await gone(connections)
    assert server.connections == 2


async def gone(connections: Pool) -> None:
    """Wait until the pool keeps no connection that could be used."""
    while any(one.is_idle and one.idle_until > connections._loop.time() for one in connections._idle):
        await checkpoint()


async def test_what_a_server_says_unasked_is_no_reply() -> None:
    async with RawServer(Say(reply(b"1")), Say(reply(b"2"))) as server, open_pool(server) as connections:
        await ask(connections)
        server.say(reply(b"unasked"))
        await gone(connections)
        assert (await ask(connections)).body == b"2"


async def test_an_idle_connection_is_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "KEEP_ALIVE", 0.05)
    async with RawServer(Say(reply())) as server, open_pool(server) as connections:
        await ask(connections)
        assert repr(connections) == "<Pool 0 connections asked, 1 idle>"
        await asyncio.wait_for(server.closed.wait(), 5)
        assert repr(connections) == "<Pool 0 connections asked, 0 idle>"


async def test_an_idle_connection_goes_while_another_is_kept() -> None:
    async with RawServer(Say(reply())) as server, open_pool(server) as connections:
        async with create_task_group() as tasks:
            tasks.start_soon(ask, connections)
            tasks.start_soon(ask, connections)
        first, second = connections._idle
        assert repr(second) == "<Connection idle, 1 replies>"
        first.idle_until = 0.0
        connections._ring()
        assert (repr(first), connections._idle) == ("<Connection over, 1 replies>", [second])


async def test_a_request_that_is_not_answered_in_time_ends_its_connection() -> None:
    async with (
        RawServer(Say(b"HTTP/1.1 200 OK\r\n"), Say(reply())) as server,
        open_pool(server) as connections,
    ):
        with pytest.raises(TimeoutError, match="did not answer in time"):
            await ask(connections, timeout=0.05)
        await asyncio.wait_for(server.closed.wait(), 5)
        assert (await ask(connections)).body == b"{}"
    assert server.connections == 2


async def test_each_request_has_its_own_deadline() -> None:
    ended: list[float] = []
    async with RawServer(Say(b"")) as server, open_pool(server) as connections, create_task_group() as tasks:

        async def late(timeout: float) -> None:
            with pytest.raises(TimeoutError):
                await ask(connections, timeout)
            ended.append(timeout)

        for timeout in (0.08, 0.04, 0.06):
            tasks.start_soon(late, timeout)
    assert sorted(ended) == [0.04, 0.06, 0.08]


async def test_a_cancelled_request_ends_its_connection() -> None:
    async with RawServer(Say(b"")) as server, open_pool(server) as connections:
        async with create_task_group() as tasks:
            tasks.start_soon(ask, connections)
            await server.asked.wait()
            assert repr(connections) == "<Pool 1 connections asked, 0 idle>"
            assert repr(next(iter(connections._asked))) == "<Connection asked, 0 replies>"
            tasks.cancel_scope.cancel()
        await asyncio.wait_for(server.closed.wait(), 5)
        assert repr(connections) == "<Pool 0 connections asked, 0 idle>"


async def test_a_full_pool_makes_wait_and_lets_the_next_one_in() -> None:
    async with RawServer(Say(b""), Say(reply())) as server, open_pool(server, most=1) as connections:
        async with create_task_group() as tasks:
            tasks.start_soon(ask, connections)
            await server.asked.wait()
            with pytest.raises(TimeoutError):
                await ask(connections, timeout=0.03)
            tasks.cancel_scope.cancel()
        assert (await ask(connections)).body == b"{}"


@pytest.mark.parametrize("given", [False, True])
async def test_who_gives_up_waiting_for_a_place_takes_none(given: bool) -> None:
    async with RawServer(Say(b""), Say(reply())) as server, open_pool(server, most=1) as connections:
        async with create_task_group() as tasks, asyncio.TaskGroup() as others:
            tasks.start_soon(ask, connections)
            await server.asked.wait()
            waiting = [others.create_task(ask(connections)) for _ in range(2)]
            await wait_all_tasks_blocked()
            if given:  # at the same moment
                tasks.cancel_scope.cancel()
                await checkpoint()
            for task in waiting:
                task.cancel()
            tasks.cancel_scope.cancel()
        assert connections._taken == 0
        assert (await ask(connections)).body == b"{}"


async def test_who_still_waits_when_the_pool_closes_hears_of_it() -> None:
    async with RawServer(Say(b"")) as server, create_task_group() as tasks:
        connections = open_pool(server)

        async def cut_off() -> None:
            with pytest.raises(Disconnected):
                await ask(connections)

        tasks.start_soon(cut_off)
        await server.asked.wait()
        await connections.__aexit__()
        with pytest.raises(ConnectionAbortedError):
            await ask(connections)


async def test_a_port_where_nobody_listens_is_no_connection_and_costs_nothing_later() -> None:
    async with RawServer(Say(reply())) as server:
        pass
    async with open_pool(server) as connections:
        with pytest.raises(Unconnected):
            await ask(connections)
        assert connections._open == set()


async def test_an_address_that_leads_nowhere_is_followed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async with RawServer(Say(reply(b"{}", b"Connection: close"))) as server:
        port = int(server.address.rpartition(":")[2])
        asked = []

        async def addresses(host: str, *args: Any, **kwargs: Any) -> list[Any]:
            if host != "sqs.test":  # uvloop asks for addresses too
                return list(await known(host, *args, **kwargs))
            asked.append(host)
            tcp = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
            return [
                (socket.AF_INET, *tcp, ("127.0.0.1", 9)),
                (socket.AF_INET, *tcp, ("127.0.0.1", port)),
            ]

        known = asyncio.get_running_loop().getaddrinfo
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", addresses)
        async with Pool(Route(f"http://sqs.test:{port}/", None, None)) as connections:
            for _ in range(3):
                assert (await ask(connections)).body == b"{}"
    assert asked == ["sqs.test"]


async def test_a_host_without_an_address_is_no_connection() -> None:
    async with Pool(Route("http://nowhere.invalid/", None, None)) as connections:
        with pytest.raises(Unconnected):
            await ask(connections)


# --- TLS ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def served_by(authority: trustme.CA, host: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(context)
    return context


@pytest.fixture
def trusting(authority: trustme.CA, tmp_path: Path) -> ResumingContext:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return tls_context(tmp_path / "ca.pem")


async def test_the_next_connection_goes_on_with_the_tls_session(
    authority: trustme.CA, trusting: ResumingContext
) -> None:
    async with (
        RawServer(Say(reply(b"{}", b"Connection: close")), tls=served_by(authority)) as server,
        open_secure(f"https://{server.address}/", trusting) as connections,
    ):
        for _ in range(3):
            assert (await ask(connections)).body == b"{}"
    assert server.resumed == [False, True, True]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_certificate_by_nobody_trusted_or_for_another_host_is_refused(
    host: str, trusting: ResumingContext, authority: trustme.CA
) -> None:
    vouching = authority if host == "localhost" else trustme.CA()
    async with (
        RawServer(Say(reply()), tls=served_by(vouching, host)) as server,
        open_secure(f"https://{server.address}/", trusting) as connections,
    ):
        with pytest.raises(ssl.SSLCertVerificationError):
            await ask(connections)
    assert server.requests == []


async def test_a_server_that_says_nothing_to_tls_is_given_up(
    trusting: ResumingContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "CONNECT_TIMEOUT", 0.05)
    async with (
        RawServer(Say(b"")) as server,
        open_secure(f"https://{server.address}/", trusting) as connections,
    ):
        with pytest.raises(TimeoutError, match="no connection in time"):
            await ask(connections)


@pytest.mark.parametrize("end", range(0, 60, 7))
async def test_a_reply_cut_off_under_tls_is_an_error(
    end: int, authority: trustme.CA, trusting: ResumingContext
) -> None:
    whole = reply(b'{"a":1}', b"X-Padding: to the end")
    assert len(whole) > 60
    async with (
        RawServer(Say(whole[:end], "close"), tls=served_by(authority)) as server,
        open_secure(f"https://{server.address}/", trusting) as connections,
    ):
        with pytest.raises((BrokenReply, Disconnected)):
            await ask(connections)


# --- proxies ------------------------------------------------------------------------------------------------------------

OPENED = b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n"


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("user", ["", "me:p%40ss@"])
async def test_https_goes_through_a_tunnel_of_the_proxy(
    user: str, scheme: str, authority: trustme.CA, trusting: ResumingContext
) -> None:
    tls = served_by(authority)
    async with (
        RawServer(Say(reply(), "close"), tls=tls) as server,
        RawProxy(server.address, OPENED, tls if scheme == "https" else None) as proxy,
    ):
        via = Proxy.of(f"{scheme}://{user}{proxy.address}")
        async with open_secure("https://127.0.0.1:1234/", trusting, via) as connections:
            assert (await ask(connections)).body == b"{}"
    identity = b"Proxy-Authorization: Basic bWU6cEBzcw==\r\n" if user else b""
    assert proxy.requests == [
        b"CONNECT 127.0.0.1:1234 HTTP/1.1\r\nHost: 127.0.0.1:1234\r\n" + identity + b"\r\n"
    ]
    assert server.requests[0].startswith(b"POST / HTTP/1.1\r\n")
    assert b"Proxy" not in server.requests[0]


async def test_an_ipv6_address_is_named_to_the_proxy_in_brackets(trusting: ResumingContext) -> None:
    async with (
        RawProxy("", b"HTTP/1.1 403 Forbidden\r\n\r\n") as proxy,
        open_secure("https://[::1]/", trusting, Proxy.of(proxy.address)) as connections,
    ):
        with pytest.raises(ProxyRefused, match="403 Forbidden"):
            await ask(connections)
    assert proxy.requests[0].startswith(b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "407 Proxy Authentication Required"),
        (b"", "closed the connection"),
        (b"HTTP/1.1 2", "closed the connection"),
        (b"SSH-2.0\r\n\r\n", "does not speak HTTP"),
        (b"x" * 20_000, "does not speak HTTP"),
        (b"HTTP/1.0 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "does not speak HTTP"),
    ],
)
async def test_a_proxy_that_leads_nowhere_is_named_as_the_cause(
    answer: bytes, why: str, trusting: ResumingContext
) -> None:
    async with (
        RawProxy("", answer) as proxy,
        open_secure("https://127.0.0.1/", trusting, Proxy.of(proxy.address)) as connections,
    ):
        with pytest.raises(ProxyRefused, match=why):
            await ask(connections)
        assert connections._open == set()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_tunnel_that_breaks_while_tls_begins_is_no_connection(
    scheme: str, authority: trustme.CA, trusting: ResumingContext
) -> None:
    tls = served_by(authority) if scheme == "https" else None
    async with RawServer(Say(OPENED, "close"), tls=tls) as proxy:
        via = Proxy.of(f"{scheme}://{proxy.address}")
        async with open_secure("https://127.0.0.1/", trusting, via) as connections:
            with pytest.raises((ssl.SSLError, Unconnected)):
                await ask(connections)
            assert connections._open == set()


# asyncio's TLS within TLS fails at this with an error of its own, in Python 3.11.
@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})], ids=["uvloop"])
async def test_a_proxy_that_dies_while_tls_begins_within_its_own_is_no_connection(
    authority: trustme.CA, trusting: ResumingContext
) -> None:
    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OPENED)
        await reader.readexactly(1)
        writer.transport.abort()

    proxy = await asyncio.start_server(die, "127.0.0.1", 0, ssl=served_by(authority))
    via = Proxy.of(f"https://127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
    async with proxy, open_secure("https://127.0.0.1/", trusting, via) as connections:
        with pytest.raises(Unconnected):
            await ask(connections)
        assert connections._open == set()


async def test_a_host_that_cannot_be_a_name_is_no_connection() -> None:
    via = Proxy.of("http://proxy..example:3128")
    async with Pool(Route("http://sqs.test/", None, via)) as connections:
        with pytest.raises(Unconnected, match="label empty"):
            await ask(connections)


def test_a_proxy_tells_no_password_of_itself() -> None:
    proxy = Proxy.of("http://me:hunter2@proxy.example:3128")
    assert proxy.authorization == "Basic bWU6aHVudGVyMg=="
    assert "bWU6aHVudGVyMg" not in repr(proxy)


@pytest.mark.parametrize(
    "url", ["socks5://me:hunter2@h", "http://", "http://me:hunter2@h:port", "http://h:99999"]
)
def test_a_proxy_of_another_kind_is_refused_and_keeps_its_password(url: str) -> None:
    with pytest.raises(RequestRefused, match="HTTPS_PROXY") as caught:
        Proxy.of(url)
    assert "hunter2" not in str(caught.value)
