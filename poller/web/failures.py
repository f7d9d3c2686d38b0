"""The page of failures: what waits, or one of it in full."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from poller.web.pages import answered

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@dataclass(frozen=True, slots=True)
class FailureSurface:
    """What the page shows. Each raises KeyError for what is not there, ReplayRefused for what makes no sense."""

    look: Callable[[str | None], Awaitable[object]]
    """The failures of a mapping, or of all."""
    show: Callable[[str], Awaitable[object]]
    """One, by its id."""


def failure_routes(surface: FailureSurface) -> list[web.RouteDef]:
    """Where they are."""

    async def failures(request: web.Request) -> web.Response:
        id_, mapping = request.query.get("id"), request.query.get("mapping")
        return await answered(lambda: surface.look(mapping) if id_ is None else surface.show(id_))

    return [web.get("/failures", failures)]
