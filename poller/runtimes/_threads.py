"""Threads for code that cannot be stopped.

A pool of the event loop's own waits for its threads when the process ends, and anyio's limiter forgets a
thread when its caller gives up. Here a place is taken until the thread has really ended its job, and a thread
that never ends one keeps neither `aclose` nor the process from ending.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from contextvars import Context, copy_context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class _Job(Generic[T]):
    __slots__ = ("call", "context", "done", "loop")

    def __init__(self, call: Callable[[], T], context: Context, loop: asyncio.AbstractEventLoop) -> None:
        self.call = call
        self.context = context
        self.loop = loop
        self.done: asyncio.Future[T] = loop.create_future()


class Threads(Generic[T]):
    """At most `places` threads, started when needed and kept; used from one event loop."""

    def __init__(self, name: str, places: int) -> None:
        self._name = name
        self._places = places
        self._idle: list[SimpleQueue[_Job[T] | None]] = []
        self._inboxes: list[SimpleQueue[_Job[T] | None]] = []
        self._busy = 0
        self._changed = asyncio.Event()
        self.abandoned = 0
        """Jobs that still run though their caller was cancelled."""

    async def run(self, call: Callable[[], T]) -> T | None:
        """Run `call`, which must not raise, in a thread with the caller's context variables.

        Waits for a place. Returns None, without running it, when abandoned jobs hold every place. When
        cancelled, `call` runs on and keeps its place until it ends. Raises RuntimeError, and it was not run, when
        the system has no more threads.
        """
        while self._busy >= self._places:
            if self.abandoned >= self._places:
                return None
            await self._changed.wait()
        job = _Job(call, copy_context(), asyncio.get_running_loop())
        inbox = self._idle.pop() if self._idle else self._start()
        self._busy += 1
        inbox.put(job)
        try:
            return await job.done
        except asyncio.CancelledError:
            if job.done.cancelled():  # else it ended at the same moment and is no longer running
                self.abandoned += 1
                self._tell()
            raise

    def widen(self, places: int) -> None:
        """Allow `places` threads from now on; those that are too many end with nothing but the rest."""
        self._places = places
        self._tell()

    def close(self) -> None:
        """Let every thread end after its present job; waits for none of them."""
        for inbox in self._inboxes:
            inbox.put(None)

    def _start(self) -> SimpleQueue[_Job[T] | None]:
        inbox: SimpleQueue[_Job[T] | None] = SimpleQueue()
        threading.Thread(target=self._work, args=(inbox,), name=self._name, daemon=True).start()
        self._inboxes.append(inbox)
        return inbox

    def _work(self, inbox: SimpleQueue[_Job[T] | None]) -> None:
        while (job := inbox.get()) is not None:
            result = job.context.run(job.call)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                job.loop.call_soon_threadsafe(self._ended, inbox, job.done, result)
            del job, result  # an idle thread must not keep the last event alive

    def _ended(self, inbox: SimpleQueue[_Job[T] | None], done: asyncio.Future[T], result: T) -> None:
        self._busy -= 1
        self._idle.append(inbox)
        if done.cancelled():
            self.abandoned -= 1
        else:
            done.set_result(result)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
