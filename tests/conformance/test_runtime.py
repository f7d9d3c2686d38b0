"""What every runtime promises, run over each of them. A new runtime adds one entry to `RUNTIMES`."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.to_thread
import pytest

import poller
from poller.aws.session import AwsSession
from poller.config import Aws
from poller.model import FunctionError, Invocation, Refused, Reply, Returned
from poller.runtimes import inline, process
from poller.runtimes._output import LINES_PER_SECOND
from poller.runtimes.context import FunctionIdentity
from poller.runtimes.http import Endpoint, HttpRuntime
from poller.runtimes.remote import LambdaRuntime
from tests.conformance.function_server import serving
from tests.conftest import FAKE_AWS
from tests.scripted_session import LOADER, Facts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from poller.ports import Runtime

pytestmark = pytest.mark.anyio

HERE = Path(__file__).parent
init_timeout: ContextVar[float] = ContextVar("init_timeout", default=10.0)
ARN = "arn:aws:lambda:eu-west-1:123456789012:function:orders"
LIMIT = 6 * 1024 * 1024 + 100


class Start(Protocol):
    def __call__(self, handler: str, *, concurrency: int = 2) -> Runtime: ...


def start_inline(handler: str, *, concurrency: int = 2) -> Runtime:
    function = FunctionIdentity("orders", ARN, 256)
    return inline.load(function, f"python_functions:{handler}", concurrency=concurrency, timeout=30)


def start_python(handler: str, *, concurrency: int = 2) -> Runtime:
    function = FunctionIdentity("orders", ARN, 256)
    return process.python(function, a_setting(handler), a_size(concurrency))


def start_command(handler: str, *, concurrency: int = 2) -> Runtime:
    function = FunctionIdentity("orders", ARN, 256)
    command = (sys.executable, "runtime_client.py")
    return process.command(function, command, a_setting(handler), a_size(concurrency))


def start_http(url: str, handler: str, *, concurrency: int = 2) -> Runtime:
    return HttpRuntime(Endpoint(f"{url}/python_functions:{handler}"))


def start_lambda(url: str, handler: str, *, concurrency: int = 2) -> Runtime:
    session = AwsSession(Aws(endpoint_url=f"{url}/python_functions:{handler}"), Facts())

    class WithSession(LambdaRuntime):
        async def aclose(self) -> None:
            await super().aclose()
            await session.__aexit__(None, None, None)

    return WithSession(lambda: session)


def a_setting(handler: str) -> process.Setting:
    # The suite's small client imports poller; a worker of `python` does not need that.
    environment = {"PYTHONPATH": str(Path(poller.__file__).parent.parent)}
    name = handler if ":" in handler else f"python_functions:{handler}"
    return process.Setting(environment, "eu-west-1", name, HERE)


def a_size(places: int) -> process.Size:
    return process.Size(places, init_timeout=init_timeout.get(), timeout=1)


WORKERS: dict[str, Start] = {"python": start_python, "command": start_command}
#: These are given the address of a server that runs the handlers.
ELSEWHERE: dict[str, Callable[..., Runtime]] = {"http": start_http, "lambda": start_lambda}
RUNTIMES: dict[str, Start] = {"inline": start_inline, **WORKERS}


@pytest.fixture(params=[*RUNTIMES, *ELSEWHERE])
def start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Start:
    monkeypatch.syspath_prepend(HERE)
    if request.param in RUNTIMES:
        return RUNTIMES[request.param]
    monkeypatch.setattr("botocore.session.create_loader", LOADER)
    for name, value in FAKE_AWS.items():
        monkeypatch.setenv(name, value)
    return partial(ELSEWHERE[request.param], request.getfixturevalue("function_server"))


def but_not(name: str) -> pytest.MarkDecorator:
    """Run over all runtimes except one, for which the promise is another one."""
    others = [one for one in (*RUNTIMES, *ELSEWHERE) if one != name]
    return pytest.mark.parametrize("start", others, indirect=True)


@pytest.fixture(scope="session")
def function_server() -> Iterator[str]:
    with serving() as url:
        yield url


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


@but_not("lambda")  # which numbers its invocations itself
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


@but_not("lambda")
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


@but_not("http")  # where they are most likely a page of something in between
async def test_bytes_that_are_not_json_are_a_text(start: Start) -> None:
    assert await invoke_once(start, "returns_bytes", {"text": "not json"}) == Returned("not json")
    assert await invoke_once(start, "returns_bytes", {"text": '{"a": [1, NaN]}'}) != Returned(None)


# --- what only a process of its own can promise -------------------------------------------------------------------------


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """No process and no descriptor more than before."""
    before = children(), len(os.listdir("/proc/self/fd"))
    yield
    assert (children(), len(os.listdir("/proc/self/fd"))) == before


def children() -> set[str]:
    """The processes whose parent this one is, zombies included."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                found.add(entry.name)
    return found


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize(
    ("handler", "event", "reason"),
    [
        ("dies_of", {"signal": signal.SIGKILL}, "Runtime exited with error: signal: killed"),
        ("dies_of", {"signal": signal.SIGSEGV}, "Runtime exited with error: signal: segmentation fault"),
        ("leaves", {"code": 0}, "Runtime exited without providing a reason"),
        ("leaves", {"code": 3}, "Runtime exited with error: exit status 3"),
    ],
)
async def test_a_worker_that_dies_fails_its_invocation_and_is_replaced(
    start_worker: Start, nothing_is_left: None, handler: str, event: Any, reason: str
) -> None:
    runtime = start_worker(handler, concurrency=1)
    for request_id in ("first", "second"):
        reply = await runtime.invoke(an_invocation(event, request_id))
        assert reply == FunctionError("Runtime.ExitError", f"RequestId: {request_id} Error: {reason}")
    await runtime.aclose()


async def test_a_worker_is_warm_from_one_invocation_to_the_next(start_worker: Start) -> None:
    runtime = start_worker("pid")
    first = await runtime.invoke(an_invocation())
    assert first == await runtime.invoke(an_invocation())
    await until(lambda: repr(runtime) == "<Pool orders: 1 idle, 0 waiting>")
    await runtime.aclose()
    assert isinstance(first, Returned)
    assert not lives(first.payload)


async def test_an_error_may_have_six_megabytes_and_no_more(start_worker: Start) -> None:
    runtime = start_worker("fails_at_length")
    fits = await runtime.invoke(an_invocation({"count": 6_000_000}))
    assert isinstance(fits, FunctionError)
    assert (fits.error_type, len(fits.error_message)) == ("LookupError", 6_000_000)

    for _ in range(2):
        reply = await runtime.invoke(an_invocation({"count": 9_000_000}))
        assert isinstance(reply, FunctionError)
        assert reply.error_type == "Function.ResponseSizeTooLarge"
    workers = runtime.workers()
    assert workers is not None
    assert workers.started == 1
    await runtime.aclose()


@pytest.mark.slow
async def test_bytes_that_take_more_room_as_a_text_arrive_whole() -> None:
    reply = await invoke_once(start_python, "returns_zeros", {"count": LIMIT})
    assert reply == Returned("\0" * LIMIT)


async def test_an_init_error_is_the_functions_error(start_worker: Start, nothing_is_left: None) -> None:
    runtime = start_worker("broken_functions:handler")
    reply = await runtime.ready("request-1")
    assert isinstance(reply, FunctionError)
    assert (reply.error_type, reply.error_message) == ("LookupError", "no table ORDERS")
    assert 'raise LookupError("no table ORDERS")' in reply.stack_trace[-1]
    assert await runtime.invoke(an_invocation()) == reply
    await runtime.aclose()


@pytest.mark.slow
async def test_an_init_that_hangs_is_given_up_after_a_second_try(
    start_worker: Start, nothing_is_left: None
) -> None:
    init_timeout.set(0.3)
    runtime = start_worker("hanging_functions:handler")
    with anyio.fail_after(10):
        reply = await runtime.ready("request-1")
    text = "RequestId: request-1 Error: Task timed out after 1.00 seconds"
    assert reply == FunctionError("Sandbox.Timedout", text, timed_out=True)
    await runtime.aclose()


async def test_an_init_that_fails_once_is_tried_again(
    start_worker: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_is_left: None
) -> None:
    plain = a_setting

    def marked(handler: str) -> process.Setting:
        setting = plain(handler)
        return replace(setting, environment={**setting.environment, "MARK": str(tmp_path / "mark")})

    monkeypatch.setitem(globals(), "a_setting", marked)
    assert await invoke_once(start_worker, "second_time_functions:handler") == Returned("at last")


async def test_a_cold_start_is_no_part_of_the_time_limit(start_worker: Start) -> None:
    runtime = start_worker("pid")
    runtime.open()
    assert await runtime.ready("request-1") is None
    assert repr(runtime) == "<Pool orders: 1 idle, 0 waiting>"
    assert isinstance(await runtime.invoke(an_invocation()), Returned)
    await runtime.aclose()


async def test_a_caller_that_gives_up_leaves_a_start_to_who_comes_next(start_worker: Start) -> None:
    runtime = start_worker("pid")
    with anyio.CancelScope() as scope:
        scope.cancel()
        await runtime.ready("request-1")
    assert await runtime.ready("request-2") is None
    assert repr(runtime) == "<Pool orders: 1 idle, 0 waiting>"
    await runtime.aclose()


@pytest.mark.slow
async def test_a_time_out_ends_the_worker_even_when_it_ignores_sigterm(
    start_worker: Start, line: socket.socket, nothing_is_left: None
) -> None:
    runtime = start_worker("ignores_sigterm", concurrency=1)
    (await run_into_timeout(runtime, line)).close()
    await runtime.aclose()


async def test_what_a_worker_forks_ends_with_it(start_worker: Start, nothing_is_left: None) -> None:
    runtime = start_worker("forks_and_waits")
    reply = await runtime.invoke(an_invocation())
    assert isinstance(reply, Returned)
    assert lives(reply.payload)
    await runtime.aclose()
    await until(lambda: not lives(reply.payload))


async def test_a_handler_that_returns_twice_has_one_reply(start_worker: Start) -> None:
    runtime = start_worker("forks_and_returns_twice", concurrency=1)
    replies = [await runtime.invoke(an_invocation()) for _ in range(3)]
    assert replies == [Returned(True)] * 3
    await runtime.aclose()


async def test_what_a_worker_prints_is_logged_with_its_request(
    start_worker: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "poller.function")
    runtime = start_worker("prints")
    await runtime.invoke(an_invocation({}, "request-1"))
    await runtime.invoke(an_invocation({}, "request-2"))
    await runtime.aclose()

    for request_id in ("request-1", "request-2"):
        lines = [one.getMessage() for one in caplog.records if vars(one).get("request_id") == request_id]
        for text in ("to standard output", "to standard error", "from a child"):
            assert text in lines
        assert any("order 7 is odd" in text for text in lines)
    assert {vars(one)["function"] for one in caplog.records if "standard" in one.getMessage()} == {"orders"}


async def test_a_line_without_an_end_is_that_of_the_invocation_that_printed_it(
    start_worker: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "poller.function")
    runtime = start_worker("prints_without_an_end")
    for request_id in ("request-1", "request-2"):
        await runtime.invoke(an_invocation({}, request_id))
        printed = [one for one in caplog.records if one.getMessage().startswith("this is")]
        assert (printed[-1].getMessage(), vars(printed[-1])["request_id"]) == (
            f"this is {request_id}",
            request_id,
        )
    await runtime.aclose()


@pytest.mark.slow
async def test_a_flood_of_output_is_bounded_and_counted(
    start_worker: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "poller.function")
    runtime = start_worker("floods")
    started = time.monotonic()
    assert await runtime.invoke(an_invocation({"lines": 200_000})) == Returned(None)
    await runtime.aclose()

    logged = [one for one in caplog.records if one.getMessage().startswith("xxx")]
    dropped = sum(vars(one).get("dropped", 0) for one in caplog.records)
    allowed = LINES_PER_SECOND * (2 + time.monotonic() - started)
    assert 0 < len(logged) <= allowed
    # A line that is cut by the end of a read counts once or not at all.
    assert abs(len(logged) + dropped - 200_000) < 2_000


@pytest.mark.slow
async def test_crashes_side_by_side_leave_nothing_behind(start_worker: Start, nothing_is_left: None) -> None:
    runtime = start_worker("dies_of", concurrency=8)
    replies: list[Reply] = []

    async def invoke() -> None:
        while len(replies) < 24:
            replies.append(await runtime.invoke(an_invocation({"signal": signal.SIGSEGV})))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(invoke)
    assert len(replies) >= 24
    assert all(isinstance(one, FunctionError) for one in replies)
    await runtime.aclose()


async def test_an_event_may_have_six_megabytes(start: Start) -> None:
    size = 6 * 1024 * 1024 - 100
    assert await invoke_once(start, "measures", {"text": "x" * size}) == Returned(size)


async def test_text_that_is_no_unicode_arrives_as_it_is(start: Start) -> None:
    assert await invoke_once(start, "measures", {"text": "\ud800 and a half"}) == Returned(12)
