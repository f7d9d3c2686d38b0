"""The pages of failures: what waits, one of it in full, one of it discarded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from poller.web.pages import answered, guarded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@dataclass(frozen=True, slots=True)
class FailureSurface:
    """What the page shows. Each raises KeyError for what is not there, ReplayRefused for what makes no sense."""

    look: Callable[[str | None], Awaitable[object]]
    """The failures of a mapping, or of all."""
    show: Callable[[str], Awaitable[object]]
    """One, by its id."""
    discard: Callable[[str], Awaitable[object]]
    """Removes one that is spooled or parked, by its id, for good, and tells what it was; PollerError while that cannot be."""


def failure_routes(surface: FailureSurface) -> list[web.RouteDef]:
    """Where they are."""

    async def failures(request: web.Request) -> web.Response:
        id_, mapping = request.query.get("id"), request.query.get("mapping")
        return await answered(lambda: surface.look(mapping) if id_ is None else surface.show(id_))

    async def discard(request: web.Request) -> web.Response:
        id_ = request.query.get("id", "")
        return guarded(request) or await answered(lambda: surface.discard(id_))

    return [web.get("/failures", failures), web.post("/failures/discard", discard)]
