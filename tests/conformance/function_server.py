"""Serves the suite's handlers over HTTP: as an endpoint of `http` does, and as Lambda's Invoke API does.

POST /python_functions:double                                       200 and the result, or 500 and Lambda's error object
POST /python_functions:double/2015-03-31/functions/ARN/invocations  200 either way; X-Amz-Function-Error tells them apart
"""

from __future__ import annotations

import asyncio
import inspect
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from poller.model import FunctionError, Invocation
from poller.runtimes._python import encode_result, error_of, load_handler
from poller.runtimes.context import FunctionIdentity, LambdaContext

if TYPE_CHECKING:
    from collections.abc import Iterator

API = "2015-03-31"
MEMORY = 256


class _Exchange(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        handler, _, rest = self.path.removeprefix("/").partition("/")
        invoke = rest.startswith(API)
        result = run(load_handler(handler), event, self._invocation(invoke))
        failed = isinstance(result, FunctionError)
        body = error_body(result) if isinstance(result, FunctionError) else result
        self.send_response(500 if failed and not invoke else 200)
        if failed and invoke:
            self.send_header("X-Amz-Function-Error", "Unhandled")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _invocation(self, invoke: bool) -> Invocation:
        if invoke:  # Lambda numbers its invocations by itself
            return Invocation(str(uuid4()), None, 0.0, "")
        header = self.headers
        return Invocation(
            header["Lambda-Runtime-Aws-Request-Id"],
            None,
            int(header["Lambda-Runtime-Deadline-Ms"]) / 1000,
            header["Lambda-Runtime-Invoked-Function-Arn"],
        )

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 100

    def handle_error(self, *_: Any) -> None:
        """A client that went away is what a time limit looks like."""


def run(handler: Any, event: Any, invocation: Invocation) -> bytes | FunctionError:
    identity = FunctionIdentity("orders", "", MEMORY)
    try:
        result = handler(event, LambdaContext(identity, invocation))
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
    except BaseException as error:
        return error_of(error, invocation.request_id)
    return encode_result(result, invocation.request_id)


def error_body(error: FunctionError) -> bytes:
    own = (__file__, asyncio.__path__[0])
    trace = [line for line in error.stack_trace if not any(folder in line for folder in own)]
    shape = {"errorType": error.error_type, "errorMessage": error.error_message, "stackTrace": trace}
    return json.dumps(shape).encode()


@contextmanager
def serving() -> Iterator[str]:
    """The URL of a server that runs for the length of the context."""
    with _Server(("127.0.0.1", 0), _Exchange) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
