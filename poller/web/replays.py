"""The pages of replays: begun, listed, followed, stopped, gone on with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import orjson
from aiohttp import web

from poller.errors import PollerError, ReplayRefused
from poller.web.pages import COMMAND_TIMEOUT, error_page, guarded, json_page

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@dataclass(frozen=True, slots=True)
class ReplaySurface:
    """What the pages show and do.

    Each raises KeyError for an id that is not there, ReplayRefused for what makes no sense, PollerError for what cannot be done
    now.
    """

    start: Callable[[object, bool], Awaitable[object]]
    """What is asked for, as JSON has it, and whether only to say what would be."""
    listed: Callable[[], Awaitable[object]]
    one: Callable[[str], Awaitable[object]]
    stop: Callable[[str], Awaitable[object]]
    resume: Callable[[str], Awaitable[object]]


class ReplayPages:
    """The handlers."""

    def __init__(self, surface: ReplaySurface) -> None:
        self._surface = surface

    def routes(self) -> list[web.RouteDef]:
        """Where they are."""
        return [
            web.get("/replays", self.listed),
            web.get("/replays/{id}", self.one),
            web.post("/replays", self.start),
            web.post("/replays/{id}/stop", self.stop),
            web.post("/replays/{id}/resume", self.resume),
        ]

    async def listed(self, _: web.Request) -> web.Response:
        return await _answer(self._surface.listed)

    async def one(self, request: web.Request) -> web.Response:
        return await _answer(lambda: self._surface.one(request.match_info["id"]))

    async def start(self, request: web.Request) -> web.Response:
        if refusal := guarded(request):
            return refusal
        body = await request.read()

        async def begin() -> object:
            try:
                wish = orjson.loads(body)
            except ValueError as error:
                raise ReplayRefused("send JSON") from error
            dry_run = isinstance(wish, dict) and wish.pop("dry_run", False) is True
            return await self._surface.start(wish, dry_run)

        return await _answer(begin)

    async def stop(self, request: web.Request) -> web.Response:
        return guarded(request) or await _answer(lambda: self._surface.stop(request.match_info["id"]))

    async def resume(self, request: web.Request) -> web.Response:
        return guarded(request) or await _answer(lambda: self._surface.resume(request.match_info["id"]))


async def _answer(command: Callable[[], Awaitable[object]]) -> web.Response:
    try:
        with anyio.fail_after(COMMAND_TIMEOUT):
            return json_page({"answer": await command()})
    except KeyError as error:
        return error_page(404, f"no replay has the id {error.args[0]!r}")
    except ReplayRefused as error:
        return error_page(400, str(error))
    except PollerError as error:
        return error_page(409, str(error))
    except TimeoutError:
        return error_page(504, f"not done within {COMMAND_TIMEOUT:.0f} s; see /replays")
