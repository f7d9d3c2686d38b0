"""The time limit of invocations that run in this process: one timer for all of a function's.

They all have the same time, so it ends in the order in which they began, and the timer is that of the oldest; it goes on to
the next one when it rings. An invocation whose time is over is cancelled at every turn of the loop until it ends, as anyio's
scopes do it. A scope for each would cost more than everything else about a short invocation.
"""

from __future__ import annotations

import asyncio


class Run:
    """One invocation that has begun."""

    __slots__ = ("before", "cancels", "due", "task")

    def __init__(self, task: asyncio.Task[object], due: float) -> None:
        self.task = task
        self.due = due
        self.before = task.cancelling()
        self.cancels = 0


class TimeLimit:
    """`seconds` for each of the invocations that are begun; used from one event loop."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._running: dict[Run, None] = {}
        self._timer: asyncio.Handle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self) -> Run:
        """Let the time of an invocation begin in the current task."""
        loop = self._loop = self._loop or asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        run = Run(task, loop.time() + self.seconds)
        self._running[run] = None
        if self._timer is None:
            self._timer = loop.call_at(run.due, self._ring, loop)
        return run

    def end(self, run: Run) -> bool:
        """End what `begin` began; True when its time was over and nothing else has cancelled its task."""
        del self._running[run]
        for _ in range(run.cancels):
            run.task.uncancel()
        return run.cancels > 0 and run.task.cancelling() <= run.before

    def close(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for run in self._running:
            if run.due > now:
                self._timer = self._timer or loop.call_at(run.due, self._ring, loop)
                return
            run.cancels += 1
            run.task.cancel()
            self._timer = self._timer or loop.call_soon(self._ring, loop)
