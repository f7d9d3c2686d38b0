"""The small part of HTTP/1.1 that a runtime client speaks: requests with a length or in chunks, kept-alive connections."""

from __future__ import annotations

from dataclasses import dataclass, field

#: Bytes of a request's head; a header of X-Ray may have a megabyte.
MAX_HEAD = 1_100_000


@dataclass(slots=True)
class Request:
    """One request; trailers are among the headers, whose names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)
    size: int = 0
    """Bytes that the body had; more than `body` holds when it was too large to keep."""
    version: str = "HTTP/1.1"

    @property
    def keep_alive(self) -> bool:
        """Whether the connection stays open for another request."""
        wishes = self.headers.get("connection", "").lower()
        return "keep-alive" in wishes if self.version == "HTTP/1.0" else "close" not in wishes


class RequestParser:
    """Takes bytes as they come and gives complete requests. Of a body above `limit` only the size is kept."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._request: Request | None = None
        self._left = 0
        self._chunked = False
        self._step = _SIZE
        self.wants_continue = False
        """The client waits to be told that its body is welcome."""

    def feed(self, data: bytes) -> list[Request]:
        """Return the requests that `data` completes; raises ValueError for what is not HTTP."""
        self._buffer += data
        requests = []
        while (request := self._next()) is not None:
            requests.append(request)
        return requests

    def _next(self) -> Request | None:
        if self._request is None:
            self._request = self._head()
        request = self._request
        if request is None or not (self._chunks(request) if self._chunked else self._plain(request)):
            return None
        self._request = None
        self.wants_continue = False
        return request

    def _head(self) -> Request | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD:
                raise ValueError("the head is too large")
            return None
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        method, path, version = first.split(" ")
        request = Request(method, path, dict(map(_header, lines)), version=version)
        self._chunked = request.headers.get("transfer-encoding", "").lower() == "chunked"
        self._left = 0 if self._chunked else int(request.headers.get("content-length", "0"))
        if self._left < 0:
            raise ValueError("a negative length")
        self._step = _SIZE
        self.wants_continue = request.headers.get("expect", "").lower() == "100-continue"
        return request

    def _plain(self, request: Request) -> bool:
        """Move what is there of the present piece of the body; True when that is all of it."""
        piece = self._buffer[: self._left]
        del self._buffer[: len(piece)]
        self._left -= len(piece)
        request.size += len(piece)
        if request.size <= self._limit:
            request.body += piece
        return self._left == 0

    def _chunks(self, request: Request) -> bool:
        while True:
            if self._step is _DATA:
                if not self._plain(request):
                    return False
                self._step = _END
            line = self._line()
            if line is None:
                return False
            if self._step is _TRAILERS:
                if not line:
                    return True
                name, value = _header(line)
                request.headers[name] = value
            elif self._step is _END:
                self._step = _SIZE
            else:
                self._left = int(line.partition(";")[0], 16)
                self._step = _DATA if self._left else _TRAILERS

    def _line(self) -> str | None:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD:
                raise ValueError("a line is too long")
            return None
        line = self._buffer[:end].decode("latin-1")
        del self._buffer[: end + 2]
        return line


# The steps of a chunked body.
_SIZE, _DATA, _END, _TRAILERS = "size", "data", "end", "trailers"


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon:
        raise ValueError("a header without a colon")
    return name.strip().lower(), value.strip()
