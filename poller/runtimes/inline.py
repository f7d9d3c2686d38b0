"""Python handlers inside the daemon: `async def` on the event loop, `def` in a thread.

The cheapest runtime, and the one without isolation: code that blocks the loop blocks everything, and a thread
cannot be stopped. Trust the code, or choose another runtime.
"""

from __future__ import annotations

import asyncio
import inspect
from contextlib import suppress
from functools import partial
from types import coroutine
from typing import TYPE_CHECKING, Any

from poller.core.response import timed_out
from poller.model import Refused, Reply
from poller.ports import current_invocation
from poller.runtimes._python import error_of, load_handler, marshal
from poller.runtimes._threads import Threads
from poller.runtimes._time_limit import TimeLimit
from poller.runtimes.context import FunctionIdentity, LambdaContext

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

    from poller.model import Invocation

# A cancelled scope cancels again at every turn of the loop. A handler that has swallowed this many has had
# ample time to clean up, and will not end by itself.
_MAX_SWALLOWED_CANCELLATIONS = 100


def load(function: FunctionIdentity, handler: str, *, concurrency: int, timeout: float) -> InlineRuntime:
    """Import `handler` and return the runtime that runs it; raises `FunctionInitError`."""
    return InlineRuntime(function, load_handler(handler), concurrency=concurrency, timeout=timeout)


class InlineRuntime:
    """Runs one handler in this process, `timeout` seconds at most. At most `concurrency` threads, for a `def` handler."""

    keeps_time = True

    def __init__(
        self,
        function: FunctionIdentity,
        handler: Callable[[Any, Any], Any],
        *,
        concurrency: int,
        timeout: float,
    ) -> None:
        self._function = function
        self._handler = handler
        self._is_async = _is_async(handler)
        self._limit = TimeLimit(timeout)
        self._threads: Threads[Reply] = Threads(f"function {function.name}", concurrency)

    def open(self) -> None:
        """Nothing is started before it is needed."""

    async def ready(self, request_id: str) -> None:
        """Always: the handler was imported when it was loaded."""

    async def invoke(self, invocation: Invocation) -> Reply:
        """Run the handler on one event; see `poller.ports.Runtime`.

        An `async def` handler that is cancelled, or out of time, is closed when it goes on all the same. A `def` handler
        runs on in its thread, and takes that place of `concurrency` until it ends.
        """
        token = current_invocation.set(invocation)
        run = self._limit.begin()
        over = False
        try:
            try:
                if self._is_async:
                    context = LambdaContext(self._function, invocation)
                    return await _driven(self._handler, invocation.event, context, run.task)
                reply = await self._threads.run(partial(self._call, invocation))
            except RuntimeError as error:
                return Refused(f"no thread can be started: {error}")
            finally:
                over = self._limit.end(run)
                current_invocation.reset(token)
        except asyncio.CancelledError:
            if not over:
                raise
            return timed_out(invocation.request_id, self._limit.seconds)
        if reply is None:
            return Refused(f"{self._threads.abandoned} threads of timed-out invocations are still running")
        return reply

    def workers(self) -> None:
        """None: the code runs in the daemon."""

    def widen(self, concurrency: int) -> None:
        """Run up to `concurrency` invocations of a `def` handler from now on."""
        self._threads.widen(concurrency)

    async def aclose(self) -> None:
        """Let idle threads end. Threads of timed-out invocations are not waited for."""
        self._limit.close()
        self._threads.close()

    def _call(self, invocation: Invocation) -> Reply:
        try:
            result = self._handler(invocation.event, LambdaContext(self._function, invocation))
            return marshal(result, invocation.request_id)
        except BaseException as error:
            return error_of(error, invocation.request_id)


def _is_async(handler: Callable[[Any, Any], Any]) -> bool:
    # An instance with an `async def __call__` is as good as a function.
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)


async def _driven(
    handler: Callable[[Any, Any], Any], event: Any, context: LambdaContext, task: asyncio.Task[Any]
) -> Reply:
    try:
        running = handler(event, context)
    except Exception as error:  # the arguments do not fit: no code of the handler has run yet
        return error_of(error, context.aws_request_id)
    return await _drive(running, context.aws_request_id, task)


@coroutine
def _drive(
    running: Coroutine[Any, Any, Any], request_id: str, task: asyncio.Task[Any]
) -> Generator[Any, Any, Reply]:
    """Step the handler's coroutine by hand, in the caller's `task`.

    A task of its own would cost more than the whole rest, and a plain `await` could neither tell a handler
    that raises `CancelledError` from a caller that cancels, nor get rid of a handler that swallows it.
    """
    before = task.cancelling()
    cancelled: BaseException | None = None
    swallowed = 0
    step: Callable[[Any], Any] = running.send
    value: Any = None
    while True:
        try:
            waiting = step(value)
        except StopIteration as stop:
            reply: Reply = marshal(stop.value, request_id)
            break
        except BaseException as error:
            reply = error_of(error, request_id)
            break
        if cancelled is not None and swallowed > _MAX_SWALLOWED_CANCELLATIONS:
            _close(running)
            raise cancelled
        try:
            step, value = running.send, (yield waiting)
        except GeneratorExit:
            _close(running)
            raise
        except BaseException as error:
            step, value = running.throw, error
            if task.cancelling() > before:
                cancelled, swallowed = error, swallowed + 1
    if cancelled is not None and task.cancelling() > before:
        raise cancelled  # whatever it made of that: the caller did not wait for it
    return reply


def _close(running: Coroutine[Any, Any, Any]) -> None:
    with suppress(
        BaseException
    ):  # its clean-up may fail, or refuse to end: either way it is not resumed again
        running.close()
