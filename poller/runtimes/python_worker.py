"""The other end of `runtime = "python"`: a process that imports one handler and runs it, invocation by invocation.

It does what Lambda's own runtime client does, in `poller.runtimes._frames`' protocol. Nothing of the daemon is here: its
imports are what a cold start costs.
"""

from __future__ import annotations

import inspect
import logging
import os
import select
import socket
import sys
import time
from contextlib import suppress
from json import dumps
from typing import TYPE_CHECKING, Any

from poller.errors import FunctionInitError
from poller.model import FunctionError, Invocation
from poller.runtimes._frames import ERROR, HEAD, INIT_ERROR, READY, RESULT
from poller.runtimes._json import decode
from poller.runtimes._python import (
    MAX_RESPONSE_BYTES,
    encode_result,
    error_of,
    load_handler,
    reported,
    too_large,
)
from poller.runtimes._reply import trace_id
from poller.runtimes.context import FunctionIdentity, LambdaContext

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_CHUNK = 64 * 1024
#: Lambda's levels that Python does not have.
_LEVELS = {"TRACE": "DEBUG"}


class Records(logging.Handler):
    """What Lambda installs before it imports a handler: `[LEVEL]<tab>time<tab>request id<tab>message`, to the output.

    A handler's own formatter takes the place of all of that, and may use `aws_request_id` and `tenant_id`.
    """

    request_id = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            record.aws_request_id, record.tenant_id = self.request_id, None
            line = self.format(record)
            if self.formatter is None:
                at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
                line = f"[{record.levelname}]\t{at}.{int(record.msecs):03d}Z\t{self.request_id}\t{line}"
            sys.stdout.write(line if line.endswith("\n") else f"{line}\n")
        except Exception:
            self.handleError(record)


class Line:
    """The worker's end of the socket pair."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)  # what the handler starts must not keep it open
        self._socket = socket.socket(fileno=descriptor)
        # To sleep in recv would be to be woken twice: the kernel also wakes who sleeps there when the daemon takes the reply
        # out of its end. Who polls for input is left alone: a fifth more invocations a second.
        self._readable = select.poll()
        self._readable.register(descriptor, select.POLLIN)

    def receive(self) -> bytes | None:
        """Wait for an invocation; None when the daemon is gone."""
        self._readable.poll()
        data = self._socket.recv(_CHUNK)
        if len(data) >= HEAD.size and HEAD.unpack_from(data)[0] + HEAD.size == len(data):
            return data[HEAD.size :]
        buffer = bytearray(data)
        while len(buffer) < HEAD.size or len(buffer) < HEAD.size + HEAD.unpack_from(buffer)[0]:
            if not data:
                return None
            data = self._socket.recv(_CHUNK)
            buffer += data
        return bytes(buffer[HEAD.size :])

    def send(self, kind: bytes, body: bytes = b"") -> None:
        """Write one frame."""
        self._socket.sendall(HEAD.pack(len(body), kind) + body)

    def send_error(self, kind: bytes, error: FunctionError) -> None:
        """Write what went wrong."""
        body = _object(error)
        self.send(kind, body if len(body) <= MAX_RESPONSE_BYTES else _object(too_large()))


class PythonWorker:
    """Runs one handler until the daemon lets go."""

    def __init__(self, line: Line, function: FunctionIdentity, handler: Callable[[Any, Any], Any]) -> None:
        self._line = line
        self._function = function
        self._handler = handler
        self._is_async = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
            type(handler).__call__
        )
        self._runner: asyncio.Runner | None = None
        self._pid = os.getpid()

    def serve(self, records: Records) -> None:
        """Run invocations, one after the other."""
        _flush()
        self._line.send(READY)
        while (body := self._line.receive()) is not None:
            request_id, deadline, arn, event = decode(body)
            records.request_id = request_id
            os.environ["_X_AMZN_TRACE_ID"] = trace_id(request_id)
            reply = self._run(event, Invocation(request_id, None, deadline, arn))
            if os.getpid() != self._pid:
                os._exit(
                    0
                )  # a fork of the handler's came back from it: there is one invocation and one reply
            _flush()
            if isinstance(reply, FunctionError):
                self._line.send_error(ERROR, reply)
            else:
                self._line.send(RESULT, reply)

    def _run(self, event: Any, invocation: Invocation) -> bytes | FunctionError:
        try:
            result = self._handler(event, LambdaContext(self._function, invocation))
            result = self._awaited(result) if self._is_async else result
            return encode_result(result, invocation.request_id)
        except SystemExit:
            raise  # ends the process, as it does in Lambda
        except BaseException as error:
            # Lambda's client prints it too. Here the daemon logs each failure, with its stack.
            return error_of(error, invocation.request_id)

    def _awaited(self, coroutine: Any) -> Any:
        if self._runner is None:
            import asyncio

            self._runner = asyncio.Runner()
        return self._runner.run(coroutine)


def _flush() -> None:
    with suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()


def _object(error: FunctionError) -> bytes:
    return dumps(error.said or {"errorType": error.error_type, "errorMessage": error.error_message}).encode()


def main(descriptor: int) -> None:
    """Serve on `descriptor`; the environment says which handler and which function."""
    line = Line(descriptor)
    records = Records()
    logging.getLogger().addHandler(records)
    level = os.environ.get("AWS_LAMBDA_LOG_LEVEL", "").upper()
    if level := _LEVELS.get(level, level):
        with suppress(ValueError):  # as in Lambda, what is no level changes nothing
            logging.getLogger().setLevel(level)
    try:
        handler = load_handler(os.environ["_HANDLER"])
    except FunctionInitError as error:
        line.send_error(INIT_ERROR, reported(error.error_type, str(error), error.stack_trace))
        sys.exit(1)
    PythonWorker(line, _identity(os.environ), handler).serve(records)


def _identity(environ: Any) -> FunctionIdentity:
    return FunctionIdentity(
        name=environ["AWS_LAMBDA_FUNCTION_NAME"],
        arn="",
        memory_size=int(environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"]),
        version=environ["AWS_LAMBDA_FUNCTION_VERSION"],
        log_stream_name=environ["AWS_LAMBDA_LOG_STREAM_NAME"],
    )
