from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest
from aiohttp import ClientSession, ClientTimeout

from poller.errors import PollerError, ReplayRefused, SeekRefused
from poller.model import MappingState
from poller.web import pages, server
from poller.web.failures import FailureSurface
from poller.web.replays import ReplaySurface
from poller.web.server import Surface, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.anyio
GUARD = {"X-Poller": "1"}


class Daemon:
    """What stands behind the server."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.error: Exception | None = None
        self.surface = Surface(
            metrics=lambda: (b"poller_up 1\n", "text/plain; version=0.0.4; charset=utf-8"),
            healthy=lambda: (True, "ok"),
            ready=lambda: (False, "orders is starting"),
            status=lambda: {"state": MappingState.RUNNING, "error": ValueError("odd")},
            scale=lambda: {"workers": 2, "desired_workers": 3},
            mappings=lambda: ["orders", "clicks"],
            pause=partial(self._command, "pause"),
            resume=partial(self._command, "resume"),
            resume_keys=self._resume_keys,
            seek=self._seek,
            replays=ReplaySurface(
                start=self._start,
                listed=self._listed,
                one=partial(self._replay, "one"),
                stop=partial(self._replay, "stop"),
                resume=partial(self._replay, "resume"),
            ),
            failures=FailureSurface(
                look=self._look,
                show=partial(self._replay, "show"),
                discard=partial(self._replay, "discard"),
            ),
        )
        self.sought: list[tuple[str, str | None, bool]] = []

    async def _resume_keys(self, name: str, key: str | None) -> object:
        await self._command(f"resume {key!r}", name)
        return [{"key": "k"}]

    async def _seek(self, name: str, to: str, shard: str | None, dry_run: bool) -> object:
        self.sought.append((to, shard, dry_run))
        await self._command("seek", name)
        return [{"shard": "s-1"}]

    async def _start(self, wish: object, dry_run: bool) -> object:
        await self._command("dry run" if dry_run else "replay", str(wish))
        return {"id": "r-1"}

    async def _look(self, mapping: str | None) -> object:
        await self._command("look", str(mapping))
        return [{"mapping": mapping}]

    async def _listed(self) -> object:
        return [{"id": "r-1"}]

    async def _replay(self, verb: str, replay_id: str) -> object:
        await self._command(verb, replay_id)
        return {"id": replay_id}

    async def _command(self, verb: str, name: str) -> None:
        self.calls.append((verb, name))
        if self.error is not None:
            raise self.error


@contextlib.asynccontextmanager
async def running(surface: Surface, host: str = "127.0.0.1") -> AsyncIterator[ClientSession]:
    async with anyio.create_task_group() as group:
        port = await group.start(partial(serve, host, 0, surface))
        base = f"http://[::1]:{port}" if host == "::1" else f"http://127.0.0.1:{port}"
        async with ClientSession(base, timeout=ClientTimeout(5)) as client:
            yield client
        group.cancel_scope.cancel()


async def test_metrics_are_served_with_their_own_content_type() -> None:
    async with running(Daemon().surface) as client, client.get("/metrics") as reply:
        assert reply.status == 200
        assert reply.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert await reply.read() == b"poller_up 1\n"


@pytest.mark.parametrize(
    ("path", "status", "text"), [("/healthz", 200, "ok"), ("/readyz", 503, "orders is starting")]
)
async def test_health_is_a_status_code_and_a_reason(path: str, status: int, text: str) -> None:
    async with running(Daemon().surface) as client, client.get(path) as reply:
        assert reply.status == status
        assert await reply.text() == f"{text}\n"
        assert reply.headers["Cache-Control"] == "no-store"


async def test_the_status_is_json_on_one_line_or_pretty() -> None:
    async with running(Daemon().surface) as client:
        async with client.get("/status") as reply:
            assert await reply.json() == {"state": "running", "error": "odd"}
            assert (await reply.text()).count("\n") == 1
        async with client.get("/status?pretty") as reply:
            assert (await reply.text()).count("\n") == 4


async def test_what_an_autoscaler_needs_is_json() -> None:
    async with running(Daemon().surface) as client, client.get("/scale") as reply:
        assert await reply.json() == {"workers": 2, "desired_workers": 3}


async def test_the_index_names_every_path() -> None:
    async with running(Daemon().surface) as client, client.get("/") as reply:
        text = await reply.text()
    for path in (
        "/metrics",
        "/healthz",
        "/readyz",
        "/status",
        "/pause",
        "/resume",
        "/seek",
        "/replays",
        "/failures",
    ):
        assert path in text


@pytest.mark.parametrize("verb", ["pause", "resume"])
async def test_a_mapping_is_paused_and_resumed_by_name(verb: str) -> None:
    daemon = Daemon()
    async with (
        running(daemon.surface) as client,
        client.post(f"/mappings/orders/{verb}", headers=GUARD) as reply,
    ):
        assert (reply.status, await reply.json()) == (200, {"mapping": "orders", "done": True})
    assert daemon.calls == [(verb, "orders")]


@pytest.mark.parametrize(
    ("query", "called"),
    [("?key=a%20b%26c", "resume 'a b&c'"), ("?key=", "resume ''"), ("?all-keys", "resume None")],
)
async def test_parked_keys_are_resumed_one_by_one_or_all_together(query: str, called: str) -> None:
    daemon = Daemon()
    async with running(daemon.surface) as client:
        async with client.post(f"/mappings/orders/resume{query}", headers=GUARD) as reply:
            answer = {"mapping": "orders", "done": True, "answer": [{"key": "k"}]}
            assert (reply.status, await reply.json()) == (200, answer)
        daemon.error = PollerError("no such key")
        async with client.post(f"/mappings/orders/resume{query}", headers=GUARD) as reply:
            assert (reply.status, await reply.json()) == (409, {"error": "no such key"})
        async with client.post(f"/mappings/orders/resume{query}") as reply:
            assert reply.status == 403
    assert daemon.calls == [(called, "orders")] * 2


async def test_a_seek_says_what_it_does_to_each_shard() -> None:
    daemon = Daemon()
    wish = {"to": "LATEST", "shard": None, "dry_run": True}
    async with running(daemon.surface) as client:
        async with client.post("/mappings/orders/seek", headers=GUARD, json=wish) as reply:
            answer = {"mapping": "orders", "done": True, "answer": [{"shard": "s-1"}]}
            assert (reply.status, await reply.json()) == (200, answer)
        wish |= {"shard": "s-1", "dry_run": False}
        async with client.post("/mappings/orders/seek", headers=GUARD, json=wish) as reply:
            assert reply.status == 200
    assert daemon.sought == [("LATEST", None, True), ("LATEST", "s-1", False)]


@pytest.mark.parametrize(
    "body", ["", "{", "[]", '{"to": 1}', '{"to": "LATEST", "shard": 1, "dry_run": true}']
)
async def test_a_seek_to_nowhere_is_refused(body: str) -> None:
    daemon = Daemon()
    async with (
        running(daemon.surface) as client,
        client.post("/mappings/orders/seek", headers=GUARD, data=body) as reply,
    ):
        assert reply.status == 400
        assert (await reply.json())["error"].startswith("send JSON like ")
    assert daemon.calls == []


async def test_a_seek_that_a_web_page_could_send_is_refused() -> None:
    daemon = Daemon()
    wish = {"to": "LATEST", "shard": None, "dry_run": False}
    async with running(daemon.surface) as client, client.post("/mappings/orders/seek", json=wish) as reply:
        assert reply.status == 403
    assert daemon.sought == []


@pytest.mark.parametrize("headers", [{}, {"X-Poller": "0"}])
async def test_what_a_web_page_could_send_is_refused(headers: dict[str, str]) -> None:
    daemon = Daemon()
    async with (
        running(daemon.surface) as client,
        client.post("/mappings/orders/pause", headers=headers) as reply,
    ):
        assert reply.status == 403
        assert "X-Poller: 1" in (await reply.json())["error"]
    assert daemon.calls == []


async def test_an_unknown_mapping_is_answered_with_the_known_ones() -> None:
    daemon = Daemon()
    async with running(daemon.surface) as client, client.post("/mappings/nope/pause", headers=GUARD) as reply:
        assert reply.status == 404
        known = ["clicks", "orders"]
        assert await reply.json() == {"error": "no mapping is named 'nope'", "known": known}
    assert daemon.calls == []


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyError("orders"), 404, "no mapping is named 'orders'"),
        (PollerError("it is stopping"), 409, "it is stopping"),
        (SeekRefused("no such place"), 400, "no such place"),
        (TimeoutError(), 504, "not done within 30 s; see /status"),
    ],
)
async def test_a_command_that_fails_says_why(error: Exception, status: int, message: str) -> None:
    daemon = Daemon()
    daemon.error = error
    async with (
        running(daemon.surface) as client,
        client.post("/mappings/orders/pause", headers=GUARD) as reply,
    ):
        assert (reply.status, (await reply.json())["error"]) == (status, message)


async def test_a_command_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "COMMAND_TIMEOUT", 0.01)

    async def hang(name: str) -> None:
        await anyio.sleep_forever()

    surface = replace(Daemon().surface, pause=hang)
    async with running(surface) as client, client.post("/mappings/orders/pause", headers=GUARD) as reply:
        assert reply.status == 504


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nope", 404), ("GET", "/mappings/orders/pause", 405)]
)
async def test_other_paths_and_methods_are_refused(method: str, path: str, status: int) -> None:
    async with running(Daemon().surface) as client, client.request(method, path) as reply:
        assert reply.status == status


@pytest.mark.parametrize(
    "name", ["evil.example", "evil.example:9464", "127.0.0.1.evil.example", "[::1", "", "10.0.0.1"]
)
async def test_a_server_on_loopback_refuses_other_names_for_itself(name: str) -> None:
    async with running(Daemon().surface) as client, client.get("/status", headers={"Host": name}) as reply:
        assert reply.status == 403
        assert "not the host" in (await reply.json())["error"]


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST.:9464", "127.0.0.1:1", "127.1.2.3", "[::1]:9464"])
async def test_a_server_on_loopback_knows_its_own_names(name: str) -> None:
    async with running(Daemon().surface) as client, client.get("/status", headers={"Host": name}) as reply:
        assert reply.status == 200


async def test_a_server_on_the_name_localhost_is_on_loopback() -> None:
    async with running(Daemon().surface, "localhost") as client:
        async with client.get("/status", headers={"Host": "evil.example"}) as reply:
            assert reply.status == 403
        async with client.get("/status", headers={"Host": "localhost"}) as reply:
            assert reply.status == 200


async def test_a_server_on_every_address_has_any_name() -> None:
    headers = {"Host": "pod-1.example"}
    async with (
        running(Daemon().surface, "0.0.0.0") as client,
        client.get("/healthz", headers=headers) as reply,
    ):
        assert reply.status == 200


async def test_a_request_without_a_host_is_no_browser() -> None:
    async with running(Daemon().surface) as client:
        assert client._base_url is not None
        assert client._base_url.port is not None
        async with await anyio.connect_tcp("127.0.0.1", client._base_url.port) as stream:
            await stream.send(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert (await stream.receive()).startswith(b"HTTP/1.0 200")


async def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PollerError) as caught:
            await serve("127.0.0.1", port, Daemon().surface)
    assert f"cannot listen on 127.0.0.1:{port}: " in str(caught.value)
    assert str(caught.value).endswith("Choose another [daemon] listen")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


async def test_an_address_that_is_not_ours_is_named_with_its_brackets() -> None:
    with pytest.raises(PollerError, match=r"cannot listen on \[2001:db8::1\]:9464: "):
        await serve("2001:db8::1", 9464, Daemon().surface)


async def test_nothing_is_logged_for_a_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with running(Daemon().surface) as client, client.get("/healthz"):
        pass
    assert caplog.records == []


async def test_an_idle_connection_does_not_hold_up_the_stop() -> None:
    async with running(Daemon().surface) as client:
        async with client.get("/healthz"):
            pass
        started = time.monotonic()
    assert time.monotonic() - started < 0.25


@pytest.mark.slow
async def test_a_request_in_flight_holds_up_the_stop_for_less_than_a_second() -> None:
    begun = anyio.Event()

    async def hang(name: str) -> None:
        begun.set()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        port = await group.start(partial(serve, "127.0.0.1", 0, replace(Daemon().surface, pause=hang)))
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(
                b"POST /mappings/orders/pause HTTP/1.1\r\nHost: localhost\r\nX-Poller: 1\r\n\r\n"
            )
            await begun.wait()
        started = time.monotonic()
        group.cancel_scope.cancel()
    assert time.monotonic() - started < 1


# --- replays ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "verb"),
    [({"kind": "queue"}, "replay"), ({"kind": "queue", "dry_run": True}, "dry run")],
)
async def test_a_replay_is_begun_or_only_looked_at(body: dict[str, object], verb: str) -> None:
    daemon = Daemon()
    async with (
        running(daemon.surface) as client,
        client.post("/replays", headers=GUARD, json=body) as reply,
    ):
        assert (reply.status, await reply.json()) == (200, {"answer": {"id": "r-1"}})
    assert daemon.calls == [(verb, "{'kind': 'queue'}")]


async def test_replays_are_listed_and_followed_without_a_header() -> None:
    daemon = Daemon()
    async with running(daemon.surface) as client:
        async with client.get("/replays") as reply:
            assert await reply.json() == {"answer": [{"id": "r-1"}]}
        async with client.get("/replays/r-1") as reply:
            assert await reply.json() == {"answer": {"id": "r-1"}}


@pytest.mark.parametrize("verb", ["stop", "resume"])
async def test_a_replay_is_commanded_by_its_id(verb: str) -> None:
    daemon = Daemon()
    async with running(daemon.surface) as client:
        async with client.post(f"/replays/r-1/{verb}") as reply:
            assert reply.status == 403
        assert daemon.calls == []
        async with client.post(f"/replays/r-1/{verb}", headers=GUARD) as reply:
            assert await reply.json() == {"answer": {"id": "r-1"}}
    assert daemon.calls == [(verb, "r-1")]


async def test_a_replay_that_a_web_page_could_begin_is_refused() -> None:
    daemon = Daemon()
    async with running(daemon.surface) as client, client.post("/replays", json={}) as reply:
        assert reply.status == 403
    assert daemon.calls == []


async def test_what_is_no_json_begins_no_replay() -> None:
    daemon = Daemon()
    async with running(daemon.surface) as client, client.post("/replays", headers=GUARD, data="{") as reply:
        assert (reply.status, await reply.json()) == (400, {"error": "send JSON"})
    assert daemon.calls == []


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyError("r-2"), 404, "there is no 'r-2'"),
        (PollerError("it runs"), 409, "it runs"),
        (ReplayRefused("no such thing"), 400, "no such thing"),
        (TimeoutError(), 504, "not done within 30 s"),
        (ExceptionGroup("of a queue's tasks", [PollerError("denied")]), 409, "denied"),
    ],
)
async def test_a_replay_that_cannot_be_says_why(error: Exception, status: int, message: str) -> None:
    daemon = Daemon()
    daemon.error = error
    async with running(daemon.surface) as client, client.get("/replays/r-2") as reply:
        assert (reply.status, (await reply.json())["error"]) == (status, message)


async def test_a_look_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "COMMAND_TIMEOUT", 0.01)
    surface = Daemon().surface
    surface = replace(surface, replays=replace(surface.replays, listed=anyio.sleep_forever))
    async with running(surface) as client, client.get("/replays") as reply:
        assert reply.status == 504


async def test_a_bug_is_no_refusal() -> None:
    daemon = Daemon()
    daemon.error = ZeroDivisionError()
    async with running(daemon.surface) as client, client.get("/replays/r-2") as reply:
        assert reply.status == 500


@pytest.mark.parametrize("odd", ["half \ud83d", 2**70])
async def test_whatever_a_function_has_said_can_be_shown(odd: object) -> None:
    surface = replace(Daemon().surface, status=lambda: {"odd": odd})
    async with running(surface) as client:
        for path in ("/status", "/status?pretty"):
            async with client.get(path) as reply:
                assert await reply.json() == {"odd": odd}


# --- failures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "call"),
    [
        ("", ("look", "None")),
        ("?mapping=orders", ("look", "orders")),
        ("?id=objects:orders:a%2Fb", ("show", "objects:orders:a/b")),
    ],
)
async def test_failures_are_listed_of_all_or_of_one_mapping_or_shown(
    query: str, call: tuple[str, str]
) -> None:
    daemon = Daemon()
    async with running(daemon.surface) as client, client.get(f"/failures{query}") as reply:
        assert reply.status == 200
        assert "answer" in await reply.json()
    assert daemon.calls == [call]


async def test_a_failure_that_is_not_there_says_so() -> None:
    daemon = Daemon()
    daemon.error = KeyError("queue:orders:m-1")
    async with running(daemon.surface) as client, client.get("/failures?id=queue:orders:m-1") as reply:
        assert (reply.status, await reply.json()) == (404, {"error": "there is no 'queue:orders:m-1'"})


async def test_one_that_waits_is_discarded_by_its_id_and_by_no_web_page() -> None:
    daemon = Daemon()
    async with running(daemon.surface) as client:
        page = "/failures/discard?id=parked:clicks:7"
        async with client.post(page) as reply:
            assert reply.status == 403
        assert daemon.calls == []
        async with client.post(page, headers=GUARD) as reply:
            assert await reply.json() == {"answer": {"id": "parked:clicks:7"}}
    assert daemon.calls == [("discard", "parked:clicks:7")]
