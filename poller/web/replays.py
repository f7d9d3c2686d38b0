"""The pages of replays: begun, listed, followed, stopped, gone on with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from poller.errors import ReplayRefused
from poller.web.pages import answered, guarded

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
        return await answered(self._surface.listed)

    async def one(self, request: web.Request) -> web.Response:
        return await answered(lambda: self._surface.one(request.match_info["id"]))

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

        return await answered(begin)

    async def stop(self, request: web.Request) -> web.Response:
        return guarded(request) or await answered(lambda: self._surface.stop(request.match_info["id"]))

    async def resume(self, request: web.Request) -> web.Response:
        return guarded(request) or await answered(lambda: self._surface.resume(request.match_info["id"]))
