"""What every runtime promises, run over each of them. A new runtime adds one entry to `RUNTIMES`."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.to_thread
import pytest

import poller
from poller.model import FunctionError, Invocation, Refused, Reply, Returned
from poller.runtimes import inline, process
from poller.runtimes.context import FunctionIdentity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poller.ports import Runtime

pytestmark = pytest.mark.anyio

HERE = Path(__file__).parent
#: Seconds; a cold start of the machine at its busiest takes less.
INIT_TIMEOUT = 10.0
ARN = "arn:aws:lambda:eu-west-1:123456789012:function:orders"
LIMIT = 6 * 1024 * 1024 + 100


class Start(Protocol):
    def __call__(self, handler: str, *, concurrency: int = 2) -> Runtime: ...


def start_inline(handler: str, *, concurrency: int = 2) -> Runtime:
    function = FunctionIdentity("orders", ARN, 256)
    return inline.load(function, f"python_functions:{handler}", concurrency=concurrency)


def start_python(handler: str, *, concurrency: int = 2) -> Runtime:
    function = FunctionIdentity("orders", ARN, 256)
    return process.python(function, a_setting(handler), a_size(concurrency))


def start_command(handler: str, *, concurrency: int = 2) -> Runtime:
    function = FunctionIdentity("orders", ARN, 256)
    command = (sys.executable, "runtime_client.py")
    return process.command(function, command, a_setting(handler), a_size(concurrency))


def a_setting(handler: str) -> process.Setting:
    # The suite's small client imports poller; a worker of `python` must not need that.
    environment = {"PYTHONPATH": str(Path(poller.__file__).parent.parent)}
    return process.Setting(environment, "eu-west-1", f"python_functions:{handler}", HERE)


def a_size(places: int) -> process.Size:
    return process.Size(places, init_timeout=INIT_TIMEOUT, timeout=INIT_TIMEOUT)


WORKERS: dict[str, Start] = {"python": start_python, "command": start_command}
RUNTIMES: dict[str, Start] = {"inline": start_inline, **WORKERS}


@pytest.fixture(params=RUNTIMES)
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Start:
    monkeypatch.syspath_prepend(HERE)
    return RUNTIMES[request.param]


@pytest.fixture(params=WORKERS)
def start_worker(request: pytest.FixtureRequest) -> Start:
    return WORKERS[request.param]


@pytest.fixture
def line() -> Iterator[socket.socket]:
    """Where a hanging handler reports, and what it waits for."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        yield server


def an_invocation(event: Any = None, request_id: str = "request-1") -> Invocation:
    return Invocation(request_id, {} if event is None else event, time.time() + 30, ARN)


async def invoke_once(start: Start, handler: str, event: Any = None) -> Reply:
    runtime = start(handler)
    reply = await runtime.invoke(an_invocation(event))
    await runtime.aclose()
    return reply


def accept(server: socket.socket) -> socket.socket:
    line, _ = server.accept()
    assert line.recv(100) == b"running\n"
    return line


async def run_into_timeout(runtime: Runtime, server: socket.socket) -> socket.socket:
    """Start a hanging invocation and cancel it once it runs; closing the returned socket ends its handler."""
    event = {"port": server.getsockname()[1]}
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.invoke, an_invocation(event))
            line = await anyio.to_thread.run_sync(accept, server)
            tasks.cancel_scope.cancel()
    return line


@pytest.mark.parametrize("handler", ["double", "double_async"])
async def test_the_reply_is_what_the_handler_returned(start: Start, handler: str) -> None:
    assert await invoke_once(start, handler, {"number": 21}) == Returned({"doubled": 42})


async def test_a_handler_without_a_result_replies_null(start: Start) -> None:
    assert await invoke_once(start, "nothing", {"number": 1}) == Returned(None)


@pytest.mark.parametrize("handler", ["fails", "fails_async"])
async def test_an_exception_is_a_reply_with_the_stack_of_the_handler_only(start: Start, handler: str) -> None:
    reply = await invoke_once(start, handler, {"order": 7})

    assert isinstance(reply, FunctionError)
    assert (reply.error_type, reply.error_message, reply.timed_out) == ("LookupError", "no order 7", False)
    assert len(reply.stack_trace) == 1
    assert reply.stack_trace[0].startswith('  File "')
    assert "python_functions.py" in reply.stack_trace[0]
    assert f"in {handler}\n    raise LookupError" in reply.stack_trace[0]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (None, "Runtime exited without providing a reason"),
        (0, "Runtime exited without providing a reason"),
        (127, "Runtime exited with error: exit status 127"),
        ("no more", "Runtime exited with error: exit status 1"),
    ],
)
async def test_a_handler_that_exits_fails_its_invocation_only(start: Start, code: Any, reason: str) -> None:
    runtime = start("exits")
    for request_id in ("first", "second"):
        reply = await runtime.invoke(an_invocation({"code": code}, request_id))
        assert reply == FunctionError("Runtime.ExitError", f"RequestId: {request_id} Error: {reason}")
    await runtime.aclose()


async def test_a_result_that_is_not_json_is_a_marshal_error(start: Start) -> None:
    reply = await invoke_once(start, "returns_rubbish")

    text = "Unable to marshal response: Object of type object is not JSON serializable"
    assert reply == FunctionError("Runtime.MarshalError", text)


async def test_a_reply_may_have_six_megabytes_and_no_more(start: Start) -> None:
    fits = await invoke_once(start, "returns_characters", {"count": LIMIT - 2})
    too_large = await invoke_once(start, "returns_characters", {"count": LIMIT - 1})

    assert fits == Returned("x" * (LIMIT - 2))
    text = "Response payload size exceeded maximum allowed payload size (6291556 bytes)."
    assert too_large == FunctionError("Function.ResponseSizeTooLarge", text)


async def test_the_context_has_lambdas_members_and_types(start: Start) -> None:
    reply = await invoke_once(start, "describes_context")

    assert isinstance(reply, Returned)
    context = reply.payload
    assert 0 < context.pop("remaining") <= 30_000
    assert "/[$LATEST]" in context.pop("log_stream_name")
    assert context == {
        "function_name": "orders",
        "function_version": "$LATEST",
        "memory_limit_in_mb": "256",
        "log_group_name": "/aws/lambda/orders",
        "invoked_function_arn": ARN,
        "aws_request_id": "request-1",
        "client_context": None,
        "tenant_id": None,
        "identity": [None, None],
    }


@pytest.mark.parametrize("handler", ["hangs", "hangs_async"])
async def test_invocations_run_side_by_side(start: Start, line: socket.socket, handler: str) -> None:
    runtime = start(handler, concurrency=2)
    event = {"port": line.getsockname()[1]}
    replies: list[Reply] = []

    async def invoke() -> None:
        replies.append(await runtime.invoke(an_invocation(event)))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(invoke)
            tasks.start_soon(invoke)
            lines = [await anyio.to_thread.run_sync(accept, line) for _ in range(2)]
            for each in lines:
                each.close()

    assert replies == [Returned(True), Returned(True)]
    await runtime.aclose()


@pytest.mark.parametrize("handler", ["hangs", "hangs_async"])
async def test_an_invocation_can_be_cancelled_while_its_handler_hangs(
    start: Start, line: socket.socket, handler: str
) -> None:
    runtime = start(handler)

    hanging = await run_into_timeout(runtime, line)

    with anyio.fail_after(10), hanging:
        await runtime.aclose()


@pytest.mark.parametrize("handler", ["hangs", "hangs_async"])
async def test_the_next_invocation_runs_after_a_time_out(
    start: Start, line: socket.socket, handler: str
) -> None:
    runtime = start(handler, concurrency=2)
    for hanging in [await run_into_timeout(runtime, line), await run_into_timeout(runtime, line)]:
        hanging.close()
    replies: list[Reply] = []

    async def invoke() -> None:
        # A place may come back a moment after its handler was let go.
        reply: Reply = Refused("not yet")
        while isinstance(reply, Refused):
            await anyio.lowlevel.checkpoint()
            reply = await runtime.invoke(an_invocation({"port": line.getsockname()[1]}))
        replies.append(reply)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(invoke)
            (await anyio.to_thread.run_sync(accept, line)).close()

    assert replies == [Returned(True)]
    await runtime.aclose()
