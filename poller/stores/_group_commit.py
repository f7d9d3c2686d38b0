"""One thread that does all the work on one blocking medium, taking in everything that waits at a time.

An fsync costs milliseconds however much it covers. While the thread is in one, requests gather; then it takes all of them
into the next transaction. So thousands of shards cost few fsyncs, and a lone save still begins at once.

A request that was handed over is carried out whether or not its caller still waits: a cancelled caller costs an answer that
nobody hears, never the thread or the order of requests.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from poller.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Requests handed over and not answered yet; further callers wait. A request holds no bytes that its caller does not hold.
MAX_WAITING = 10_000
#: Requests in one transaction.
MAX_GROUP = 2_000
#: Seconds that closing waits for the medium.
CLOSE_TIMEOUT = 5.0

R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)


class Medium(Protocol[R_contra]):
    """Something that blocks; used from one thread only."""

    def answer(self, requests: Sequence[R_contra]) -> Sequence[object]:
        """Carry out `requests` in order and make all of them durable.

        Returns their answers, a StoreError for one that failed alone; raises StoreError when all of them failed.
        """
        ...

    def close(self) -> None:
        """Let go of the medium."""
        ...


class _Job(NamedTuple):
    request: Any
    answered: asyncio.Future[object]


class GroupCommit(Generic[R]):
    """Hands requests from one event loop to the thread of one medium."""

    def __init__(self, name: str, open_medium: Callable[[], Medium[R]]) -> None:
        self.groups = 0
        """Transactions so far."""
        self._name = name
        self._open_medium = open_medium
        self._loop = asyncio.get_running_loop()
        self._inbox: SimpleQueue[_Job | None] = SimpleQueue()
        self._room = asyncio.Semaphore(MAX_WAITING)
        self._opened: asyncio.Future[StoreError | None] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._closing = False

    async def open(self) -> None:
        """Open the medium, in its thread. Raises the StoreError of that."""
        # A daemon: a disk that never answers must not keep the process from ending.
        threading.Thread(target=self._work, name=self._name, daemon=True).start()
        try:
            problem = await self._opened
        except asyncio.CancelledError:
            self._close()
            raise
        if problem:
            self._closing = True
            raise problem

    async def ask(self, request: R) -> Any:
        """Return the answer to `request` once it is durable; raises StoreError when it is not."""
        await self._room.acquire()
        if self._closing:
            self._room.release()
            raise StoreError(f"{self._name} is closed")
        job = _Job(request, self._loop.create_future())
        self._inbox.put(job)
        answer = await job.answered
        if isinstance(answer, StoreError):
            # One failure may answer many requests, and an exception object belongs to one raise.
            raise StoreError(str(answer)) from answer
        return answer

    async def aclose(self) -> None:
        """Finish what was asked and close the medium; raises StoreError when that takes longer than `CLOSE_TIMEOUT`."""
        self._close()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._ended.wait()
        except TimeoutError:
            raise StoreError(
                f"{self._name} did not finish within {CLOSE_TIMEOUT:g} s: its last writes may be missing"
            ) from None

    def _close(self) -> None:
        if not self._closing:
            self._closing = True
            self._inbox.put(None)

    # --- in the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            medium = self._open_medium()
        except Exception as error:
            self._tell(self._end_opening, _as_store_error(error))
            self._tell(self._ended.set)
            return
        self._tell(self._end_opening, None)
        while jobs := self._next():
            self._tell(self._settle, jobs, self._answers(medium, [job.request for job in jobs]))
        with suppress(Exception):  # everything is durable already, and the next opening finds what is wrong
            medium.close()
        self._tell(self._ended.set)

    def _next(self) -> list[_Job]:
        """Wait for a request and take all that are there; none at the end."""
        jobs: list[_Job] = []
        job = self._inbox.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) == MAX_GROUP:
                return jobs
            try:
                job = self._inbox.get_nowait()
            except Empty:
                return jobs
        if jobs:
            self._inbox.put(None)  # the end again, after this group; nothing is asked behind it
        return jobs

    def _answers(self, medium: Medium[R], requests: Sequence[R]) -> Sequence[object]:
        self.groups += 1
        try:
            return medium.answer(requests)
        except (
            Exception
        ) as error:  # the thread outlives everything: a dead one would leave its callers waiting
            return [_as_store_error(error)] * len(requests)

    def _tell(self, callback: Callable[..., object], *args: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(callback, *args)

    # --- back on the loop -----------------------------------------------------------------------------------------------

    def _end_opening(self, problem: StoreError | None) -> None:
        if not self._opened.done():
            self._opened.set_result(problem)

    def _settle(self, jobs: Sequence[_Job], answers: Sequence[object]) -> None:
        for job, answer in zip(jobs, answers, strict=True):
            self._room.release()
            if not job.answered.done():
                job.answered.set_result(answer)


def _as_store_error(error: Exception) -> StoreError:
    if isinstance(error, StoreError):
        return error
    problem = StoreError(f"the state store failed: {type(error).__name__}: {error}")
    problem.__cause__ = error
    return problem
