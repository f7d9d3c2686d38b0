"""What all pages are made with: JSON and text, errors, and the header that commands want."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anyio
import orjson
from aiohttp import hdrs, web

from poller.engine.child import leaf
from poller.errors import PollerError, ReplayRefused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: A browser cannot send this header to another site without asking first, and we do not answer the question.
GUARD_HEADER = "X-Poller"
#: Seconds for a command to be carried out.
COMMAND_TIMEOUT = 30.0


def guarded(request: web.Request) -> web.Response | None:
    """The refusal of a command that may have come from a web page; None for others."""
    if request.headers.get(GUARD_HEADER) == "1":
        return None
    return error_page(
        403, f"send the header {GUARD_HEADER}: 1, which shows that no web page sent this request"
    )


def error_page(status: int, message: str, **more: object) -> web.Response:
    """An error as JSON."""
    return json_page({"error": message, **more}, status=status)


def text_page(text: str, status: int = 200) -> web.Response:
    """Plain text."""
    return web.Response(text=text, status=status, headers={hdrs.CACHE_CONTROL: "no-store"})


def json_page(value: object, status: int = 200, *, pretty: bool = False) -> web.Response:
    """JSON, on one line or for people."""
    options = orjson.OPT_APPEND_NEWLINE | (orjson.OPT_INDENT_2 if pretty else 0)
    try:
        body = orjson.dumps(value, default=str, option=options)
    except TypeError:
        # Half a surrogate pair, or an integer of more than 64 bits, in what a function has said.
        body = json.dumps(value, default=str, indent=2 if pretty else None).encode() + b"\n"
    return web.Response(
        body=body,
        status=status,
        content_type="application/json",
        headers={hdrs.CACHE_CONTROL: "no-store", "X-Content-Type-Options": "nosniff"},
    )


async def answered(command: Callable[[], Awaitable[object]]) -> web.Response:
    """What `command` answers, or why it does not: KeyError is an id that is not there, ReplayRefused what makes no sense."""
    try:
        with anyio.fail_after(COMMAND_TIMEOUT):
            return json_page({"answer": await command()})
    except TimeoutError:
        return error_page(504, f"not done within {COMMAND_TIMEOUT:.0f} s")
    except Exception as raised:
        # Whatever was read meanwhile may have had tasks of its own, which make a group of it.
        error = leaf(raised)
        match error:
            case KeyError():
                return error_page(404, f"there is no {error.args[0]!r}")
            case ReplayRefused():
                return error_page(400, str(error))
            case PollerError():
                return error_page(409, str(error))
            case _:
                raise
