from __future__ import annotations

import asyncio
import inspect
import os
import sys
import threading
import time
from contextlib import suppress
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from poller.errors import FunctionInitError
from poller.model import FunctionError, Invocation, Refused, Reply, Returned
from poller.ports import current_invocation
from poller.runtimes import inline
from poller.runtimes.context import FunctionIdentity, LambdaContext
from poller.runtimes.inline import InlineRuntime

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio

FUNCTION = FunctionIdentity("orders", "arn:aws:lambda:eu-west-1:123456789012:function:orders", 128)


def an_invocation(event: Any = None) -> Invocation:
    return Invocation("request-1", event, time.time() + 30, FUNCTION.arn)


async def reply_of(handler: Callable[..., Any]) -> Reply:
    runtime = InlineRuntime(FUNCTION, handler, concurrency=1, timeout=30)
    reply = await runtime.invoke(an_invocation())
    await runtime.aclose()
    return reply


# --- loading a handler --------------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Writes modules into the current directory, which is an empty one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "modules", dict(sys.modules))

    def write(name: str, source: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)

    return write


def load_error(handler: str) -> FunctionInitError:
    with pytest.raises(FunctionInitError) as caught:
        inline.load(FUNCTION, handler, concurrency=1, timeout=30)
    return caught.value


@pytest.mark.parametrize(
    "handler", ["shop/orders:handler", "shop.orders:handler", "shop/orders.handler", "shop.orders.handler"]
)
async def test_a_handler_is_found_from_the_current_directory(
    module: Callable[[str, str], None], handler: str
) -> None:
    module("shop/orders.py", "def handler(event, context):\n    return 'found'\n")
    runtime = inline.load(FUNCTION, handler, concurrency=1, timeout=30)
    inline.load(FUNCTION, handler, concurrency=1, timeout=30)

    assert await runtime.invoke(an_invocation()) == Returned("found")
    assert sys.path.count(os.getcwd()) == 1
    await runtime.aclose()


async def test_a_handler_may_be_a_member_of_something_in_its_module(
    module: Callable[[str, str], None],
) -> None:
    module("orders.py", "class Shop:\n    def handle(event, context):\n        return 'found'\n")
    runtime = inline.load(FUNCTION, "orders:Shop.handle", concurrency=1, timeout=30)

    assert await runtime.invoke(an_invocation()) == Returned("found")
    await runtime.aclose()


@pytest.mark.parametrize(
    ("handler", "error_type", "message"),
    [
        ("orders", "Runtime.MalformedHandlerName", "Bad handler 'orders': it must be"),
        (":handler", "Runtime.MalformedHandlerName", "Bad handler ':handler': it must be"),
        ("orders.", "Runtime.MalformedHandlerName", "Bad handler 'orders.': it must be"),
        (
            "sys.exit",
            "Runtime.BuiltInModuleConflict",
            "Cannot use built-in module sys as a handler module",
        ),
        (
            "no/such.handler",
            "Runtime.ImportModuleError",
            "Unable to import module 'no/such': No module named 'no'",
        ),
        ("good.other", "Runtime.HandlerNotFound", "Handler 'other' missing on module 'good'"),
        ("good.number", "Runtime.HandlerNotFound", "Handler 'number' missing on module 'good'"),
        ("typo.handler", "Runtime.UserCodeSyntaxError", "Syntax error in module 'typo': "),
        ("exits.handler", "Runtime.ExitError", "Error: Runtime exited with error: exit status 3"),
        ("fails.handler", "KeyError", "'TABLE'"),
    ],
)
async def test_what_cannot_be_loaded_is_an_init_error_in_lambdas_words(
    module: Callable[[str, str], None], handler: str, error_type: str, message: str
) -> None:
    module("good.py", "number = 1\n")
    module("typo.py", "def handler(:\n")
    module("exits.py", "import sys\nsys.exit(3)\n")
    module("fails.py", "import os\ndef load():\n    raise KeyError('TABLE')\nload()\n")

    error = load_error(handler)

    assert error.error_type == error_type
    assert str(error).startswith(message)


async def test_the_stack_of_an_init_error_begins_in_the_users_module(
    module: Callable[[str, str], None], tmp_path: Path
) -> None:
    module("fails.py", "def load():\n    raise KeyError('TABLE')\nload()\n")
    module("typo.py", "def handler(:\n")

    assert load_error("fails:handler").stack_trace == (
        f'  File "{tmp_path}/fails.py", line 3, in <module>\n    load()\n',
        f"  File \"{tmp_path}/fails.py\", line 2, in load\n    raise KeyError('TABLE')\n",
    )
    (trace,) = load_error("typo:handler").stack_trace
    assert trace == f'  File "{tmp_path}/typo.py" Line 1\n    def handler(:\n'


# --- which code runs where ----------------------------------------------------------------------------------


async def test_an_async_handler_runs_on_the_loop_and_a_plain_one_in_a_thread() -> None:
    async def on_the_loop(event: Any, context: Any) -> Any:
        return threading.current_thread() is threading.main_thread()

    class Callable_:
        async def __call__(self, event: Any, context: Any, *, flag: bool = True) -> Any:
            return threading.current_thread() is threading.main_thread()

    def in_a_thread(event: Any, context: Any) -> Any:
        return threading.current_thread() is threading.main_thread()

    assert await reply_of(on_the_loop) == Returned(True)
    assert await reply_of(Callable_()) == Returned(True)
    assert await reply_of(partial(on_the_loop)) == Returned(True)
    assert await reply_of(in_a_thread) == Returned(False)


async def test_the_current_invocation_is_known_to_the_handler_and_to_nobody_after_it() -> None:
    def plain(event: Any, context: Any) -> Any:
        invocation = current_invocation.get()
        return invocation.request_id if invocation else None

    async def asynchronous(event: Any, context: Any) -> Any:
        return plain(event, context)

    assert await reply_of(plain) == Returned("request-1")
    assert await reply_of(asynchronous) == Returned("request-1")
    assert current_invocation.get() is None


async def test_the_remaining_time_is_never_below_zero() -> None:
    late = LambdaContext(FUNCTION, Invocation("late", None, time.time() - 5, FUNCTION.arn))
    early = LambdaContext(FUNCTION, an_invocation())

    assert late.get_remaining_time_in_millis() == 0
    assert 29_000 < early.get_remaining_time_in_millis() <= 30_000


async def test_a_handler_may_keep_what_it_likes_in_its_context() -> None:
    # Decorators for Lambda's handlers put parameters and secrets there.
    context: Any = LambdaContext(FUNCTION, an_invocation())
    context.parameters = {"vat": 19}
    context.identity.tenant = "acme"

    assert (context.parameters, context.identity.tenant) == ({"vat": 19}, "acme")
    assert not hasattr(LambdaContext(FUNCTION, an_invocation()), "parameters")


async def test_the_context_writes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    context = LambdaContext(FUNCTION, an_invocation())
    context.log("order 7\n")
    context.log(8)

    assert capsys.readouterr().out == "order 7\n8"
    assert repr(context) == "LambdaContext(aws_request_id=request-1, function_name=orders)"


# --- results ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "payload"),
    [
        ({}, {}),
        ({"batchItemFailures": [{"itemIdentifier": "1"}]}, {"batchItemFailures": [{"itemIdentifier": "1"}]}),
        ({"price": Decimal("1.10"), "count": Decimal(3)}, {"price": 1.1, "count": 3}),
        ({1: ("a", None), None: True}, {"1": ["a", None], "null": True}),
        ({"b": b"text"}, {"b": "text"}),
        (float("inf"), float("inf")),
        (b'{"raw": 1}', {"raw": 1}),
        (b"\xff", "\udcff"),
        ("\ud800", "\ud800"),
    ],
)
async def test_a_result_is_marshalled_as_by_lambdas_client(result: Any, payload: Any) -> None:
    def handler(event: Any, context: Any) -> Any:
        return result

    assert await reply_of(handler) == Returned(payload)


async def test_not_a_number_stays_one() -> None:
    async def handler(event: Any, context: Any) -> Any:
        return [float("nan"), Decimal("NaN")]

    reply = await reply_of(handler)

    assert isinstance(reply, Returned)
    assert [value != value for value in reply.payload] == [True, True]


async def test_bytes_of_a_reply_are_counted_rather_than_characters() -> None:
    def handler(event: Any, context: Any) -> Any:
        return "é" * (3 * 1024 * 1024 + 50)

    reply = await reply_of(handler)

    assert isinstance(reply, FunctionError)
    assert reply.error_type == "Function.ResponseSizeTooLarge"


async def test_a_coroutine_or_generator_in_place_of_a_result_is_a_marshal_error() -> None:
    async def late(event: Any, context: Any) -> None: ...

    def returns_coroutine(event: Any, context: Any) -> Any:
        return late(event, context)

    def generates(event: Any, context: Any) -> Any:
        yield 1

    async def generates_async(event: Any, context: Any) -> Any:
        yield 1

    for handler, kind in (
        (returns_coroutine, "coroutine"),
        (generates, "generator"),
        (generates_async, "async_generator"),
    ):
        text = f"Unable to marshal response: Object of type {kind} is not JSON serializable"
        assert await reply_of(handler) == FunctionError("Runtime.MarshalError", text)


async def test_a_result_that_contains_itself_is_a_marshal_error() -> None:
    def handler(event: Any, context: Any) -> Any:
        ring: list[Any] = []
        ring.append(ring)
        return ring

    reply = await reply_of(handler)

    text = "Unable to marshal response: Circular reference detected"
    assert reply == FunctionError("Runtime.MarshalError", text)
    assert reply.said == {
        "errorMessage": text,
        "errorType": "Runtime.MarshalError",
        "requestId": "request-1",
        "stackTrace": [],
    }


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt("stop"), GeneratorExit("stop"), asyncio.CancelledError("stop"), StopIteration("stop")],
)
async def test_whatever_the_handler_raises_is_its_own_failure(error: BaseException) -> None:
    def plain(event: Any, context: Any) -> Any:
        raise error

    async def asynchronous(event: Any, context: Any) -> Any:
        raise error

    async def asynchronous_later(event: Any, context: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        raise error

    replies = [await reply_of(handler) for handler in (plain, asynchronous, asynchronous_later)]

    # Python itself does not let a StopIteration out of a coroutine.
    in_coroutine = "RuntimeError" if isinstance(error, StopIteration) else type(error).__name__
    assert [reply.error_type for reply in replies if isinstance(reply, FunctionError)] == [
        type(error).__name__,
        in_coroutine,
        in_coroutine,
    ]


async def test_a_stack_trace_has_the_lines_and_no_marks_below_them() -> None:
    def handler(event: Any, context: Any) -> Any:
        return 1 + {"a": 1}["b"]

    reply = await reply_of(handler)
    assert isinstance(reply, FunctionError)
    (trace,) = reply.stack_trace
    assert trace.endswith(', in handler\n    return 1 + {"a": 1}["b"]\n')


async def test_a_cancelled_task_of_the_handlers_own_is_its_failure_too() -> None:
    async def handler(event: Any, context: Any) -> Any:
        other = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(other.cancel)
        await other

    assert isinstance(reply := await reply_of(handler), FunctionError)
    assert reply.error_type == "CancelledError"


async def test_a_handler_may_use_time_limits_of_its_own() -> None:
    async def handler(event: Any, context: Any) -> Any:
        with anyio.move_on_after(0):
            await anyio.sleep_forever()
        try:
            async with asyncio.timeout(0):
                await anyio.sleep_forever()
        except TimeoutError:
            return "went on"

    assert await reply_of(handler) == Returned("went on")


async def test_a_handler_is_ended_at_its_time_limit() -> None:
    async def hangs(event: Any, context: Any) -> Any:
        await anyio.sleep_forever()

    async def goes_on(event: Any, context: Any) -> Any:
        while True:
            with suppress(asyncio.CancelledError):
                await anyio.sleep_forever()

    async def cleans_up(event: Any, context: Any) -> Any:
        try:
            await anyio.sleep_forever()
        finally:
            raise LookupError

    release = threading.Event()

    def blocks(event: Any, context: Any) -> Any:
        release.wait()

    for handler in (hangs, goes_on, cleans_up, blocks):
        runtime = InlineRuntime(FUNCTION, handler, concurrency=1, timeout=0.02)
        reply = await runtime.invoke(an_invocation())
        await runtime.aclose()
        text = "RequestId: request-1 Error: Task timed out after 0.02 seconds"
        assert reply == FunctionError("Sandbox.Timedout", text, timed_out=True)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
    release.set()


async def test_each_invocation_has_the_whole_of_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, now = asyncio.get_running_loop(), 100.0
    monkeypatch.setattr(loop, "time", lambda: now)

    async def handler(event: Any, context: Any) -> Any:
        await event

    runtime = InlineRuntime(FUNCTION, handler, concurrency=3, timeout=10)
    replies: dict[str, Reply] = {}

    async def invoke(name: str) -> None:
        replies[name] = await runtime.invoke(an_invocation(waits[name]))

    waits = {name: loop.create_future() for name in ("first", "second", "third")}
    async with anyio.create_task_group() as tasks:
        for name in waits:
            tasks.start_soon(invoke, name)
            await anyio.wait_all_tasks_blocked()
            now += 4  # the last one begins after 8 seconds
        waits["second"].set_result(None)
        while len(replies) < 2:
            await anyio.lowlevel.checkpoint()
        now = 117.9
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        assert sorted(replies) == ["first", "second"]
        now = 118.0
    assert {name: isinstance(reply, Returned) for name, reply in replies.items()} == {
        "first": False,
        "second": True,
        "third": False,
    }
    await runtime.aclose()


async def test_who_is_cancelled_at_the_end_of_the_time_gets_no_reply() -> None:
    async def handler(event: Any, context: Any) -> Any:
        try:
            await anyio.sleep_forever()
        finally:
            invocation.cancel()

    runtime = InlineRuntime(FUNCTION, handler, concurrency=1, timeout=0.01)
    async with asyncio.TaskGroup() as tasks:
        invocation = tasks.create_task(runtime.invoke(an_invocation()))
    assert invocation.cancelled()
    await runtime.aclose()


async def test_a_handler_with_the_wrong_parameters_fails_when_invoked() -> None:
    def plain(event: Any) -> None: ...

    async def asynchronous(event: Any) -> None: ...

    for handler in (plain, asynchronous):
        reply = await reply_of(handler)
        assert isinstance(reply, FunctionError)
        assert reply.error_type == "TypeError"
        assert "takes 1 positional argument but 2 were given" in reply.error_message
        assert reply.stack_trace == ()


async def test_an_error_that_cannot_be_printed_is_still_reported() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError

    def handler(event: Any, context: Any) -> Any:
        raise Mute

    assert isinstance(reply := await reply_of(handler), FunctionError)
    assert (reply.error_type, reply.error_message) == ("Mute", "<Mute has no readable message>")


# --- time limits --------------------------------------------------------------------------------------------


async def cancelled_at(started: anyio.Event, runtime: InlineRuntime) -> bool:
    """Cancel an invocation once it has started; True when the cancellation came through."""
    with anyio.fail_after(10), anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def cancel() -> None:
                await started.wait()
                scope.cancel()

            tasks.start_soon(cancel)
            await runtime.invoke(an_invocation())
    return scope.cancelled_caught


@pytest.mark.parametrize("ending", ["returns", "raises", "waits again", "never ends"])
async def test_an_async_handler_cannot_outlive_its_cancellation(ending: str) -> None:
    started, forever = anyio.Event(), anyio.Event()

    async def handler(event: Any, context: Any) -> Any:
        started.set()
        try:
            await forever.wait()
        except asyncio.CancelledError:
            if ending == "returns":
                return "too late"
            if ending == "raises":
                raise LookupError from None
        try:
            while True:
                with suppress(asyncio.CancelledError):
                    await forever.wait()
        finally:
            if ending == "never ends":
                await forever.wait()

    assert await cancelled_at(started, InlineRuntime(FUNCTION, handler, concurrency=1, timeout=30))
    assert current_invocation.get() is None


async def test_a_cancelled_handler_has_time_to_clean_up() -> None:
    started, cleaned = anyio.Event(), anyio.Event()

    async def handler(event: Any, context: Any) -> Any:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(1000):
                    await anyio.lowlevel.checkpoint()
            cleaned.set()

    assert await cancelled_at(started, InlineRuntime(FUNCTION, handler, concurrency=1, timeout=30))
    assert cleaned.is_set()


async def test_closing_an_invocation_closes_its_handler() -> None:
    closed: list[bool] = []

    async def handler(event: Any, context: Any) -> Any:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            closed.append(True)

    invoking = InlineRuntime(FUNCTION, handler, concurrency=1, timeout=30).invoke(an_invocation())
    invoking.send(None)
    invoking.close()

    assert closed == [True]
    assert inspect.getcoroutinestate(invoking) == inspect.CORO_CLOSED


class Hanging:
    """A plain handler that reports each start and ends when told to."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.started: asyncio.Queue[None] = asyncio.Queue()
        self.go_on = threading.Semaphore(0)

    def __call__(self, event: Any, context: Any) -> Any:
        self.loop.call_soon_threadsafe(self.started.put_nowait, None)
        self.go_on.acquire()
        return "done"

    async def timed_out_in(self, runtime: InlineRuntime) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.invoke, an_invocation())
            await self.started.get()
            tasks.cancel_scope.cancel()


async def test_threads_of_timed_out_invocations_keep_their_places_until_they_end() -> None:
    handler = Hanging()
    runtime = InlineRuntime(FUNCTION, handler, concurrency=2, timeout=30)
    await handler.timed_out_in(runtime)
    await handler.timed_out_in(runtime)

    refused = await runtime.invoke(an_invocation())
    handler.go_on.release(3)
    with anyio.fail_after(10):
        while isinstance(reply := await runtime.invoke(an_invocation()), Refused):
            await anyio.lowlevel.checkpoint()

    assert refused == Refused("2 threads of timed-out invocations are still running")
    assert reply == Returned("done")
    handler.go_on.release(2)
    await runtime.aclose()


async def test_an_invocation_waits_for_a_place_as_long_as_one_may_come_free() -> None:
    handler = Hanging()
    runtime = InlineRuntime(FUNCTION, handler, concurrency=1, timeout=30)
    replies: list[Reply] = []

    async def invoke() -> None:
        replies.append(await runtime.invoke(an_invocation()))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(invoke)
            await handler.started.get()
            tasks.start_soon(invoke)
            await anyio.wait_all_tasks_blocked()
            handler.go_on.release(2)
    await runtime.aclose()

    assert replies == [Returned("done"), Returned("done")]


async def test_without_room_for_a_thread_nothing_was_invoked(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    runtime = InlineRuntime(FUNCTION, lambda event, context: "done", concurrency=1, timeout=30)
    with monkeypatch.context() as full:
        full.setattr("threading.Thread.start", no_room)
        for _ in range(2):
            assert await runtime.invoke(an_invocation()) == Refused(
                "no thread can be started: can't start new thread"
            )
    assert await runtime.invoke(an_invocation()) == Returned("done")
    await runtime.aclose()


async def test_an_invocation_that_waits_for_a_place_gets_it_when_there_are_more() -> None:
    handler = Hanging()
    runtime = InlineRuntime(FUNCTION, handler, concurrency=1, timeout=30)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.invoke, an_invocation())
            await handler.started.get()
            tasks.start_soon(runtime.invoke, an_invocation())
            await anyio.wait_all_tasks_blocked()
            runtime.widen(2)
            await handler.started.get()
            handler.go_on.release(2)
    await runtime.aclose()


async def test_an_invocation_that_waits_for_a_place_is_refused_when_the_last_one_is_abandoned() -> None:
    handler = Hanging()
    runtime = InlineRuntime(FUNCTION, handler, concurrency=1, timeout=30)
    replies: list[Reply] = []

    async def invoke() -> None:
        replies.append(await runtime.invoke(an_invocation()))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks, anyio.create_task_group() as hanging:
            hanging.start_soon(runtime.invoke, an_invocation())
            await handler.started.get()
            tasks.start_soon(invoke)
            await anyio.wait_all_tasks_blocked()
            hanging.cancel_scope.cancel()
    handler.go_on.release()
    await runtime.aclose()

    assert replies == [Refused("1 threads of timed-out invocations are still running")]


async def test_a_thread_that_ends_as_its_invocation_is_cancelled_is_free_again() -> None:
    handler = Hanging()
    runtime = InlineRuntime(FUNCTION, handler, concurrency=1, timeout=30)

    jobs_ended = runtime._threads._ended

    with anyio.fail_after(10):
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(runtime.invoke(an_invocation()))
            await handler.started.get()

            def end_and_cancel(*arguments: Any) -> None:
                jobs_ended(*arguments)
                task.cancel()

            runtime._threads._ended = end_and_cancel  # type: ignore[method-assign]
            handler.go_on.release()
    runtime._threads._ended = jobs_ended  # type: ignore[method-assign]
    handler.go_on.release()

    assert task.cancelled()
    assert runtime._threads.abandoned == 0
    assert await runtime.invoke(an_invocation()) == Returned("done")
    await runtime.aclose()


def test_a_hanging_thread_outlives_its_event_loop_quietly() -> None:
    ended = threading.Event()
    threads: list[threading.Thread] = []
    go_on = threading.Event()

    async def serve() -> None:
        started = asyncio.Event()
        loop = asyncio.get_running_loop()

        def handler(event: Any, context: Any) -> Any:
            threads.append(threading.current_thread())
            loop.call_soon_threadsafe(started.set)
            go_on.wait()
            ended.set()

        runtime = InlineRuntime(FUNCTION, handler, concurrency=1, timeout=30)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.invoke, an_invocation())
            await started.wait()
            tasks.cancel_scope.cancel()
        await runtime.aclose()

    anyio.run(serve)
    go_on.set()
    threads[0].join(10)

    assert ended.is_set()
    assert not threads[0].is_alive()
