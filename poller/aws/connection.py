"""One HTTP/1.1 connection of the hot calls: a request goes out, its reply comes back whole, and only then the next one.

A connection is *idle* (nothing is asked), *asked* (a request was written and its reply is awaited) or *over*. Its laws:

* A reply counts when all of it has come, by its Content-Length, its last chunk or, where it has neither, the end of the
  connection. One that ends before is a `BrokenReply`; when not even its head was whole, `Disconnected`.
* What arrives while nothing is asked belongs to no request: the connection is over, so that it never becomes the beginning of
  the next reply. So is one that says more than was asked.
* Whoever stops waiting ends the connection: its reply would come to the next one who asks.
* Interim replies (100 Continue and its like) are passed over. A reply is refused when it grows past `MOST_REPLY`, or its head
  past `MOST_HEAD`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import httptools

if TYPE_CHECKING:
    from collections.abc import Callable

#: Bytes. The largest reply there is, GetRecords with 10 MB of data, takes 13.4 MB in base64 and 2 MB around it.
MOST_REPLY = 64 * 2**20
MOST_HEAD = 2**16


class Disconnected(OSError):
    """The connection broke before the head of a reply had come."""


class BrokenReply(Exception):
    """The reply ended before it was whole, is too large, or is not HTTP."""


class Reply(NamedTuple):
    """One whole reply."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: str) -> str:
        """The value of a header, "" when there is none."""
        wanted = name.lower().encode()
        return next((value.decode("latin-1") for key, value in self.headers if key.lower() == wanted), "")


class Connection(asyncio.Protocol):
    """One connection. `ended` is told once, when it is over."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ended: Callable[[Connection], None]) -> None:
        self.idle_until = 0.0
        """By the loop's clock; kept here for the pool."""
        self.replies = 0
        self._loop = loop
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiting: asyncio.Future[Reply] | None = None
        self._over = False
        self._begin()

    def __repr__(self) -> str:
        state = "over" if self._over else "asked" if self._waiting else "idle"
        return f"<Connection {state}, {self.replies} replies>"

    def _begin(self) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._received = 0
        self._headed = False

    @property
    def is_idle(self) -> bool:
        """Whether it can be asked now."""
        return not self._over and self._waiting is None

    @property
    def transport(self) -> asyncio.Transport:
        """What it runs on, once it is connected."""
        assert self._transport is not None
        return self._transport

    def ask(self, request: bytes) -> asyncio.Future[Reply]:
        """Send one request on an idle connection; the reply, or why there is none."""
        if self._over:
            raise Disconnected("the connection was closed")
        self._waiting = waiting = self._loop.create_future()
        self.transport.write(request)
        return waiting

    def end(self, error: Exception | None = None) -> None:
        """Be over, at once. Who waits gets `error`."""
        self._over = True
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(error or Disconnected("the connection was closed"))
        if self._transport is not None:
            self._transport.abort()

    # --- the transport's side -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's are no subclass of asyncio's
        if self._over:
            self.end()

    def data_received(self, data: bytes) -> None:
        if self._waiting is None:
            self.end()
            return
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.end(BrokenReply(f"the reply is not HTTP: {error}"))
        else:
            most = MOST_REPLY if self._headed else MOST_HEAD
            if self._received > most:
                self.end(BrokenReply(f"the reply is larger than {most} bytes"))

    def eof_received(self) -> None:
        self._nothing_more(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._nothing_more(error)
        self._ended(self)

    def _nothing_more(self, error: Exception | None) -> None:
        if self._waiting is None:
            self.end()
        elif not self._headed:
            self.end(Disconnected(str(error or "the server closed the connection before its reply")))
        elif error is None and self._unframed():
            self._finish(keep=False)
        else:
            self.end(BrokenReply(f"the reply was cut off{f' ({error})' if error else ''}"))

    def _unframed(self) -> bool:
        return not any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self._headers)

    # --- the parser's side ----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._waiting is None:
            self.end()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._headed = True

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._waiting is None:
            return
        if self._parser.get_status_code() < 200:
            self._headers, self._headed = [], False
        else:
            self._finish(keep=self._parser.should_keep_alive())

    def _finish(self, *, keep: bool) -> None:
        waiting, self._waiting = self._waiting, None
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        reply = Reply(self._parser.get_status_code(), self._headers, body)
        self.replies += 1
        self._begin()
        if not keep:
            self.end()
        if waiting is not None and not waiting.done():
            waiting.set_result(reply)
