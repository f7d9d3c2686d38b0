"""Lambda's Runtime API for one worker, over HTTP on a loopback port of its own (spec 9.1).

    nothing parked --GET next--> parked: the worker is idle
    parked --an invocation--> delivered: its headers and its event are the answer to `next`
    delivered --POST response or error--> answered: 202, and the invocation has its reply
    answered --GET next--> parked

What does not fit the present step is refused as Lambda refuses it and changes nothing: an unknown or answered id is 400
InvalidRequestID, a second `next` or an init error after the first one is 403 InvalidStateTransition. A parked connection that
breaks leaves the worker idle: its invocation is delivered to the next `next`.

The port is open to every program of the machine, as it is inside Lambda's own sandbox.
"""

from __future__ import annotations

import base64
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import orjson

from poller.model import FunctionError, Returned
from poller.runtimes._http import Request, RequestParser
from poller.runtimes._json import decode, encode
from poller.runtimes._python import MAX_RESPONSE_BYTES, too_large
from poller.runtimes._reply import error_of, headers_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence

    from poller.model import Invocation, Reply
    from poller.runtimes._worker import Worker

_PREFIX = "/2018-06-01/runtime/"
_OK = b'{"status":"OK"}\n'
_CHUNK = 64 * 1024
#: Connections of one worker at a time.
MAX_CONNECTIONS = 16
#: Seconds until a connection that could not be accepted is tried again.
ACCEPT_PAUSE = 1.0


class Connection:
    """One connection of the runtime client."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        peer: socket.socket,
        serve: Callable[[Connection, Request], None],
    ) -> None:
        self.open = True
        self._loop = loop
        self._socket = peer
        self._serve = serve
        self._parser = RequestParser(MAX_RESPONSE_BYTES)
        self._unsent = b""
        self._last = False
        peer.setblocking(False)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._descriptor = peer.fileno()
        loop.add_reader(self._descriptor, self.readable)

    def answer(self, status: int, body: bytes, headers: str = "") -> None:
        """Send an answer; does not raise when the other side is gone."""
        phrase = HTTPStatus(status).phrase
        head = f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\n"
        self._send(f"{head}{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def close(self) -> None:
        """Let go of it."""
        if self.open:
            self.open = False
            self._loop.remove_reader(self._descriptor)
            self._loop.remove_writer(self._descriptor)
            self._socket.close()

    def readable(self) -> bool:
        """Serve what came; False when nothing did."""
        if not self.open:
            return False
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        try:
            requests = self._parser.feed(data) if data else []
        except ValueError:
            self.answer(400, _error_body("BadRequest", "not HTTP"))
            data, requests = b"", []
        if not data:
            self.close()
            return False
        if self._parser.wants_continue:
            self._parser.wants_continue = False
            self._send(b"HTTP/1.1 100 Continue\r\n\r\n")
        for request in requests:
            self._last = not request.keep_alive
            self._serve(self, request)
        return True

    def _send(self, data: bytes) -> None:
        if not self.open:
            return
        if self._unsent:
            self._unsent += data
            return
        self._unsent = data
        self._writable()
        if self._unsent:
            self._loop.add_writer(self._descriptor, self._writable)

    def _writable(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._loop.remove_writer(self._descriptor)
            if self._last:
                self.close()


class ApiLink:
    """The daemon's end: a server with one client."""

    keep: Sequence[int] = ()

    def __init__(self, loop: asyncio.AbstractEventLoop, worker: Worker) -> None:
        self._loop = loop
        self._worker = worker
        self._connections: list[Connection] = []
        self._parked: Connection | None = None
        self._invocation: Invocation | None = None
        self._delivered = False
        self._initialized = False
        self._server = socket.create_server(("127.0.0.1", 0), backlog=MAX_CONNECTIONS)
        self._server.setblocking(False)
        self._descriptor = self._server.fileno()
        self._port: int = self._server.getsockname()[1]
        self._listen()

    @property
    def environment(self) -> Mapping[str, str]:
        return {"AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self._port}"}

    @property
    def open_connections(self) -> int:
        """How many connections the client has now."""
        return sum(connection.open for connection in self._connections)

    def started(self) -> None:
        """Nothing of the process's end is here."""

    def send(self, invocation: Invocation) -> None:
        self._invocation, self._delivered = invocation, False
        self._deliver()

    def drain(self) -> None:
        while self._acceptable():
            pass
        for connection in tuple(self._connections):
            while connection.readable():
                pass

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self._connections.clear()
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            self._server.close()
            self._descriptor = -1

    def _listen(self) -> None:
        if self._descriptor >= 0:
            self._loop.add_reader(self._descriptor, self._acceptable)

    def _acceptable(self) -> bool:
        try:
            peer, _ = self._server.accept()
        except BlockingIOError:
            return False
        except OSError:
            # It most likely has no descriptor for it. Asked at once, it would say so at every turn of the loop.
            self._loop.remove_reader(self._descriptor)
            self._loop.call_later(ACCEPT_PAUSE, self._listen)
            return False
        self._connections = [one for one in self._connections if one.open]
        if len(self._connections) >= MAX_CONNECTIONS:
            peer.close()
        else:
            self._connections.append(Connection(self._loop, peer, self._serve))
        return True

    # --- requests -------------------------------------------------------------------------------------------------------

    def _serve(self, connection: Connection, request: Request) -> None:
        match request.method, request.path.removeprefix(_PREFIX).split("/"):
            case "GET", ["invocation", "next"]:
                self._next(connection)
            case "POST", ["invocation", request_id, "response"]:
                self._settle(connection, request_id, request, _response)
            case "POST", ["invocation", request_id, "error"]:
                self._settle(connection, request_id, request, _failure)
            case "POST", ["init", "error"]:
                self._init_error(connection, request)
            case _:
                connection.answer(404, _error_body("NotFound", "No such call of the Runtime API"))

    def _init_error(self, connection: Connection, request: Request) -> None:
        if self._initialized:
            text = "State transition from Ready to InitError failed: the runtime has asked for work"
            connection.answer(403, _error_body("InvalidStateTransition", text))
            return
        connection.answer(202, _OK)
        self._worker.init_failed(_failure(request))

    def _next(self, connection: Connection) -> None:
        self._initialized = True
        waiting = self._parked is not None and self._parked.open
        if waiting or (self._invocation is not None and self._delivered):
            text = "State transition from Running to Ready failed: the invocation has no answer yet"
            connection.answer(403, _error_body("InvalidStateTransition", text))
            return
        self._parked = connection
        if self._invocation is None:
            self._worker.asked()
        else:
            self._deliver()

    def _deliver(self) -> None:
        invocation, parked = self._invocation, self._parked
        self._parked = None
        if invocation is None or parked is None or not parked.open:
            return
        self._delivered = True
        headers = "".join(f"{name}: {value}\r\n" for name, value in headers_of(invocation).items())
        parked.answer(200, encode(invocation.event), headers)

    def _settle(
        self, connection: Connection, request_id: str, request: Request, read: Callable[[Request], Reply]
    ) -> None:
        invocation = self._invocation
        if invocation is None or not self._delivered or invocation.request_id != request_id:
            connection.answer(400, _error_body("InvalidRequestID", "Invalid request ID"))
            return
        mode = request.headers.get("lambda-runtime-function-response-mode", "streaming")
        if mode.lower() != "streaming":
            text = "Invalid function response mode"
            connection.answer(400, _error_body("InvalidFunctionResponseMode", text))
            return
        self._invocation = None
        if request.size > MAX_RESPONSE_BYTES:
            text = f"Exceeded maximum allowed payload size ({MAX_RESPONSE_BYTES} bytes)."
            connection.answer(413, _error_body("RequestEntityTooLarge", text))
            self._worker.replied(too_large())
        else:
            connection.answer(202, _OK)
            self._worker.replied(read(request))


def _error_body(error_type: str, message: str) -> bytes:
    return orjson.dumps({"errorMessage": message, "errorType": error_type})


def _response(request: Request) -> Reply:
    if (
        "lambda-runtime-function-error-type" in request.headers
    ):  # a stream that failed in the middle: in its trailers
        body = request.headers.get("lambda-runtime-function-error-body", "")
        try:
            request.body = bytearray(base64.b64decode(body))
        except ValueError:
            request.body = bytearray()
        return _failure(request)
    return Returned(_value(bytes(request.body)))


def _value(body: bytes) -> Any:
    # As with the other runtimes: what is not JSON is a text, which no source takes for a batch response.
    try:
        return decode(body)
    except ValueError:
        return body.decode(errors="replace") or None


def _failure(request: Request) -> FunctionError:
    otherwise = request.headers.get("lambda-runtime-function-error-type") or "Runtime.Unknown"
    return error_of(bytes(request.body), otherwise)
