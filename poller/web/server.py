"""The daemon's own HTTP surface: metrics, health, status, and what can be commanded."""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import anyio
import orjson
from aiohttp import hdrs, web

from poller.errors import PollerError, SeekRefused
from poller.web.failures import failure_routes
from poller.web.pages import COMMAND_TIMEOUT, error_page, guarded, json_page, text_page
from poller.web.replays import ReplayPages

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from anyio.abc import TaskStatus

    from poller.web.failures import FailureSurface
    from poller.web.replays import ReplaySurface

#: Bytes of what a command may send: the patterns of a replay are the most of it.
MAX_BODY = 64 * 1024
#: Seconds from the stop to the last connection closed.
CLOSE_TIMEOUT = 0.9
_INDEX = """\
poller

GET  /metrics                  Prometheus metrics
GET  /healthz                  200 while the daemon works, 503 when it should be restarted
GET  /readyz                   200 when all mappings are started, 503 before and while it stops
GET  /scale                    lag and the number of daemons that it wants, for autoscalers
GET  /status                   what runs, as JSON (?pretty for people)
POST /mappings/{name}/pause    poll no more                           \\
POST /mappings/{name}/resume   poll again                              > want the header X-Poller: 1
  ?key=K or ?all-keys          take up what is parked                  |
POST /mappings/{name}/seek     move a paused mapping in its stream    /
                               {"to": "TRIM_HORIZON", "shard": null, "dry_run": true}
GET  /replays                  replays that run or have ended; /replays/{id} is one of them
POST /replays                  begin one: {"mapping": "orders", "kind": "queue", "target": "arn:...", "dry_run": true}
POST /replays/{id}/stop        end one; what it has at work is done first
POST /replays/{id}/resume      go on with one where it was
GET  /failures                 what waits because it failed (?mapping=NAME), or one of it (?id=ID)
POST /failures/discard         remove what is spooled or parked, of a paused mapping (?id=ID)
"""


@dataclass(frozen=True, slots=True)
class Surface:
    """What the server shows; each is called once a request."""

    metrics: Callable[[], tuple[bytes, str]]
    """Body and content type."""
    healthy: Callable[[], tuple[bool, str]]
    """False and why, when a restart would help."""
    ready: Callable[[], tuple[bool, str]]
    status: Callable[[], object]
    """Anything of dicts, lists, dataclasses and plain values."""
    scale: Callable[[], object]
    """As `status`."""
    mappings: Callable[[], Iterable[str]]
    """The names that `pause` and `resume` know."""
    pause: Callable[[str], Awaitable[None]]
    """Raises KeyError for an unknown name, PollerError when it cannot be done now."""
    resume: Callable[[str], Awaitable[None]]
    resume_keys: Callable[[str, str | None], Awaitable[object]]
    """Name, parked key or None for all; answers as JSON has it. Raises as the others."""
    seek: Callable[[str, str, str | None, bool], Awaitable[object]]
    """Name, where to, shard or None for all, whether only to say what would be; answers as JSON has it. Raises as the others,
    and SeekRefused for what cannot be asked of this mapping."""
    replays: ReplaySurface
    failures: FailureSurface


async def serve(
    host: str, port: int, surface: Surface, *, task_status: TaskStatus[int] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Answer on `host`:`port` until cancelled; started with the actual port, which matters when `port` is 0.

    Raises PollerError when it cannot listen there.
    """
    runner = web.AppRunner(
        _application(host, surface),
        access_log=None,
        keepalive_timeout=75.0,
        lingering_time=1.0,
        shutdown_timeout=0.5,
    )
    await runner.setup()
    try:
        await _listen(runner, host, port)
        task_status.started(runner.addresses[0][1])
        await anyio.sleep_forever()
    finally:
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
            await runner.cleanup()


async def _listen(runner: web.AppRunner, host: str, port: int) -> None:
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        reason = error.strerror or str(error)
        place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        raise PollerError(f"cannot listen on {place}: {reason}. Choose another [daemon] listen") from error


def _application(host: str, surface: Surface) -> web.Application:
    pages = _Pages(surface)
    middlewares = [_same_host(host)] if _is_loopback(host) else []
    app = web.Application(middlewares=middlewares, client_max_size=MAX_BODY)
    app.add_routes(
        [
            web.get("/", pages.index),
            web.get("/metrics", pages.metrics),
            web.get("/healthz", pages.healthz),
            web.get("/readyz", pages.readyz),
            web.get("/status", pages.status),
            web.get("/scale", pages.scale),
            web.post("/mappings/{name}/pause", pages.pause),
            web.post("/mappings/{name}/resume", pages.resume),
            web.post("/mappings/{name}/seek", pages.seek),
            *ReplayPages(surface.replays).routes(),
            *failure_routes(surface.failures),
        ]
    )
    return app


class _Pages:
    def __init__(self, surface: Surface) -> None:
        self._surface = surface

    async def index(self, _: web.Request) -> web.Response:
        return text_page(_INDEX)

    async def metrics(self, _: web.Request) -> web.Response:
        body, content_type = self._surface.metrics()
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})

    async def healthz(self, _: web.Request) -> web.Response:
        return _verdict(*self._surface.healthy())

    async def readyz(self, _: web.Request) -> web.Response:
        return _verdict(*self._surface.ready())

    async def status(self, request: web.Request) -> web.Response:
        return json_page(self._surface.status(), pretty="pretty" in request.query)

    async def scale(self, _: web.Request) -> web.Response:
        return json_page(self._surface.scale())

    async def pause(self, request: web.Request) -> web.Response:
        return await self._command(request, self._surface.pause)

    async def resume(self, request: web.Request) -> web.Response:
        if not request.query.keys() & {"key", "all-keys"}:
            return await self._command(request, self._surface.resume)
        key = request.query.get("key")
        return await self._command(request, lambda name: self._surface.resume_keys(name, key))

    async def seek(self, request: web.Request) -> web.Response:
        body = await request.read()

        async def command(name: str) -> object:
            return await self._surface.seek(name, *_wish(body))

        return await self._command(request, command)

    async def _command(
        self, request: web.Request, command: Callable[[str], Awaitable[object]]
    ) -> web.Response:
        if refusal := guarded(request):
            return refusal
        name = request.match_info["name"]
        if name not in (known := sorted(self._surface.mappings())):
            return _unknown(name, known)
        return await _run(name, command, known)


def _wish(body: bytes) -> tuple[str, str | None, bool]:
    """What a seek asks for: where to, which shard, whether only to say what would be."""
    with suppress(ValueError):
        match orjson.loads(body):
            case {"to": str(to), "shard": str() | None as shard, "dry_run": bool(dry_run)}:
                return to, shard, dry_run
    raise SeekRefused('send JSON like {"to": "TRIM_HORIZON", "shard": null, "dry_run": true}')


async def _run(name: str, command: Callable[[str], Awaitable[object]], known: list[str]) -> web.Response:
    try:
        with anyio.fail_after(COMMAND_TIMEOUT):
            answer = await command(name)
    except KeyError:  # removed by a reload in this very moment
        return _unknown(name, known)
    except SeekRefused as error:
        return error_page(400, str(error))
    except PollerError as error:
        return error_page(409, str(error))
    except TimeoutError:
        return error_page(504, f"not done within {COMMAND_TIMEOUT:.0f} s; see /status")
    more = {} if answer is None else {"answer": answer}
    return json_page({"mapping": name, "done": True, **more})


def _same_host(host: str) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Refuse names that are not ours: a web page can make its own name mean loopback (DNS rebinding)."""

    @web.middleware
    async def check(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        # Not request.host, which asks the DNS when the header is missing; every browser sends it.
        asked = request.headers.get(hdrs.HOST)
        if asked is None or _is_ours(asked, host):
            return await handler(request)
        return error_page(403, f"this server is {host}, not the host that the request names")

    return check


def _is_ours(asked: str, host: str) -> bool:
    try:
        name = urlsplit(f"//{asked}").hostname or ""
    except ValueError:
        return False
    return name == host.lower() or _is_loopback(name)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def _unknown(name: str, known: list[str]) -> web.Response:
    return error_page(404, f"no mapping is named {name!r}", known=known)


def _verdict(good: bool, text: str) -> web.Response:
    return text_page(f"{text}\n", 200 if good else 503)
