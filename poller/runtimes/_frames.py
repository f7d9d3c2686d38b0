"""Our own protocol between the daemon and a worker of Python: frames over a Unix socket pair.

A frame is four bytes of length (little-endian), one byte of kind, and a body of JSON, which the length counts without the
kind. The daemon sends INVOKE with [request id, deadline, function ARN, event]. The worker sends READY once; INIT_ERROR
instead of it; and for each INVOKE either RESULT with the handler's result or ERROR, both meaning that it is free again.
An error is Lambda's error object.

Requests and answers take turns, so nothing is numbered: what an ended invocation would still say dies with its worker.
"""

from __future__ import annotations

import socket
from struct import Struct
from typing import TYPE_CHECKING

from poller.model import FunctionError, Returned
from poller.runtimes._json import decode, encode
from poller.runtimes._python import MAX_RESPONSE_BYTES
from poller.runtimes._reply import error_of, is_error_object, value_of

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sequence

    from poller.model import Invocation, Reply
    from poller.runtimes._worker import Worker

INVOKE, READY, INIT_ERROR, RESULT, ERROR = b"I", b"i", b"x", b"r", b"e"
HEAD = Struct("<Ic")
#: The largest reply that the protocol allows: what Lambda takes, and JSON may write a byte of it as six. Of more, a worker
#: sends the error that Lambda would make of it.
MAX_BODY = 6 * MAX_RESPONSE_BYTES + 2
_CHUNK = 64 * 1024
_NULL = Returned(None)


class FrameLink:
    """The daemon's end."""

    environment: Mapping[str, str] = {}

    def __init__(self, loop: asyncio.AbstractEventLoop, worker: Worker) -> None:
        self._loop = loop
        self._worker = worker
        self._socket, self._theirs = socket.socketpair()
        self._socket.setblocking(False)
        self._descriptor = self._socket.fileno()
        self._received = bytearray()
        self._unsent = memoryview(b"")

    @property
    def keep(self) -> Sequence[int]:
        return (self._theirs.fileno(),)

    def started(self) -> None:
        self._theirs.close()
        self._loop.add_reader(self._descriptor, self._readable)

    def send(self, invocation: Invocation) -> None:
        body = encode((invocation.request_id, invocation.deadline, invocation.function_arn, invocation.event))
        data = HEAD.pack(len(body), INVOKE) + body
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # it is gone, and its end is being told
        if sent < len(data):
            self._unsent = memoryview(data)[sent:]
            self._loop.add_writer(self._descriptor, self._writable)

    def drain(self) -> None:
        while self._readable():
            pass

    def close(self) -> None:
        self._theirs.close()
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            self._loop.remove_writer(self._descriptor)
            self._socket.close()
            self._descriptor = -1

    def _writable(self) -> None:
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self._unsent = memoryview(b"")
        if not self._unsent:
            self._loop.remove_writer(self._descriptor)

    def _readable(self) -> bool:
        if self._descriptor < 0:
            return False
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._descriptor)
            self._worker.hung_up()
            return False
        if self._received:
            self._received += data
            self._take_frames()
        elif len(data) >= HEAD.size and HEAD.unpack_from(data)[0] + HEAD.size == len(data):
            # The usual case, a frame in one piece: nothing is copied.
            self._take(data[4:5], data[HEAD.size :])
        else:
            self._received += data
            self._take_frames()
        return True

    def _take_frames(self) -> None:
        buffer = self._received
        while len(buffer) >= HEAD.size:
            length, kind = HEAD.unpack_from(buffer)
            if length > MAX_BODY:
                self._worker.broken()
                buffer.clear()
                return
            end = HEAD.size + length
            if len(buffer) < end:
                return
            body = bytes(memoryview(buffer)[HEAD.size : end])
            del buffer[:end]
            self._take(kind, body)

    def _take(self, kind: bytes, body: bytes) -> None:
        worker = self._worker
        try:
            if kind == RESULT:
                reply: Reply = _NULL if body == b"null" else Returned(decode(body))
            elif kind == READY:
                worker.asked()
                return
            elif kind in (ERROR, INIT_ERROR):
                reply = _error(body)
            else:
                raise ValueError(f"a frame of kind {kind!r}")
        except (AttributeError, ValueError, TypeError):
            # The handler has written to a descriptor that is not its own.
            worker.broken()
            return
        if kind == INIT_ERROR:
            assert isinstance(reply, FunctionError)
            worker.init_failed(reply)
            return
        worker.replied(reply)
        worker.asked()


def _error(body: bytes) -> FunctionError:
    if not is_error_object(value_of(body)):
        raise ValueError("it is no error object")
    return error_of(body, "")
