"""One execution environment of Lambda: a process that holds a function warm and runs one invocation at a time.

    STARTING --asks for work--> IDLE --run--> BUSY --replies--> FINISHING --asks for work--> IDLE
       |                          |             |                   |
       +--------------------------+-------------+-------------------+--end, or its process ends--> ENDING --reaped--> GONE

STARTING: the function's init code runs, for at most `init_timeout`.
IDLE: nothing runs; only now may it be given an invocation.
BUSY: exactly one invocation runs, and its answer is open.
FINISHING: the caller has its answer, and the process has not come back yet. A worker in our own protocol does so in the
same breath; one that speaks Lambda's Runtime API in its next request.
ENDING: the process group has been told to end, and is killed a moment later. Nothing it says counts any more.
GONE: reaped. Every open answer was given before: the law of this file is that an answer is given once, whatever happens.

A worker never comes back from ENDING: what timed out, crashed or broke the protocol is replaced, not repaired.
"""

from __future__ import annotations

from enum import Enum
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from poller.core import response
from poller.model import FunctionError, Reply
from poller.runtimes._process import GRACE, Process, exit_reason

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence

    from poller.model import Invocation
    from poller.runtimes._output import Budget
    from poller.runtimes._process import Launch


_CUT_OFF = "the runtime's connection was closed or misused during init"


class State(Enum):
    """See the theory above."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    FINISHING = "finishing"
    ENDING = "ending"
    GONE = "gone"


class Link(Protocol):
    """How invocations and replies travel. It calls the worker's `asked`, `replied`, `init_failed`, `broken`, `hung_up`."""

    @property
    def environment(self) -> Mapping[str, str]:
        """Variables by which the process finds its end."""
        ...

    @property
    def keep(self) -> Sequence[int]:
        """Descriptors that the process inherits."""
        ...

    def started(self) -> None:
        """The process runs: let go of its end."""
        ...

    def send(self, invocation: Invocation) -> None:
        """Hand over one invocation. Does not raise: a process that is gone is noticed elsewhere."""
        ...

    def drain(self) -> None:
        """Take in what the process has said so far."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


class Owner(Protocol):
    """Who hears of a worker's changes, from the event loop."""

    def freed(self, worker: Worker) -> None:
        """It is IDLE, for the first time or again."""
        ...

    def init_failed(self, worker: Worker, failure: Callable[[str], FunctionError]) -> None:
        """It never became IDLE, and is ENDING or GONE."""
        ...

    def ending(self, worker: Worker) -> None:
        """It will not be IDLE again, whatever it still does."""
        ...

    def gone(self, worker: Worker) -> None:
        """It is GONE."""
        ...


class Worker:
    """One process and its link."""

    def __init__(self, loop: asyncio.AbstractEventLoop, owner: Owner, init_timeout: float) -> None:
        self.state = State.STARTING
        self.runs = 0
        """Invocations so far, the present one included."""
        self.since = loop.time()
        """Loop time at which it came into its present state."""
        self.init_duration: float | None = None
        """Seconds; None until it has been idle once, and after its first invocation was reported."""
        self.invocation: Invocation | None = None
        # The clock of uvloop's loops goes by milliseconds, and that of a loop's present round stands still.
        self._begun = 0.0
        self.duration = 0.0
        """Seconds from the start of the present or last invocation to its reply; set when that has come."""
        self.exit_reason = ""
        """How it ended, when it did so by itself and with nobody to tell it to."""
        self.crashed = False
        """Whether it ended by itself."""
        self.timed_out = False
        """Whether its last invocation came to its time limit."""
        self.looked_at = 0.0
        """Loop time at which its memory was last read."""
        self._loop = loop
        self._owner = owner
        self._init_timeout = init_timeout
        self._answer: asyncio.Future[Reply] | None = None
        self._failed = False

    def start(self, launch: Launch, link: Link, budget: Budget) -> None:
        """Spawn the process; raises OSError when that is not possible, and the worker is then nothing."""
        self.launch = launch
        self._link = link
        self.process = Process(self._loop, launch, budget, self._exited, keep=link.keep)
        link.started()
        self._init_timer = self._loop.call_later(self._init_timeout, self._init_too_long)

    def run(self, invocation: Invocation) -> asyncio.Future[Reply]:
        """Start an invocation on an IDLE worker; the future gets the reply, whatever happens to the process."""
        assert self.state is State.IDLE
        self.state = State.BUSY
        self.runs += 1
        self.since = self._loop.time()
        self._begun = perf_counter()
        self.invocation = invocation
        self.process.output.request_id = invocation.request_id
        self._answer = answer = self._loop.create_future()
        self._link.send(invocation)
        return answer

    def end(self) -> None:
        """End the process and all that it started, whatever it is doing; an open answer is given when it has ended."""
        if self.state not in (State.ENDING, State.GONE):
            if self.state is State.BUSY:
                self.duration = perf_counter() - self._begun
            self._leave(State.ENDING)
            self._init_timer.cancel()
            self.process.end()
            self._owner.ending(self)

    def time_out(self, limit: float) -> None:
        """End the process because its invocation has run for `limit` seconds, and give that as its answer."""
        assert self.invocation is not None
        reply = response.timed_out(self.invocation.request_id, limit)
        self.timed_out = True
        self.end()
        self._give(reply)

    # --- what the link hears --------------------------------------------------------------------------------------------

    def asked(self) -> None:
        """The process asks for work."""
        if self.state is State.STARTING:
            self._init_timer.cancel()
            self.init_duration = self._loop.time() - self.since
            self._take_output()
        elif self.state is State.FINISHING:
            self.process.output.request_id = ""
        else:
            return
        self._leave(State.IDLE)
        self._owner.freed(self)

    def replied(self, reply: Reply) -> None:
        """The invocation has ended."""
        if self.state is State.BUSY:
            self._take_output()
            self.duration = perf_counter() - self._begun
            self._leave(State.FINISHING)
            self._give(reply)

    def init_failed(self, error: FunctionError) -> None:
        """The process reports that its init code failed; it is about to exit."""
        if self.state is State.STARTING:
            self._fail(lambda _: error)
            self.end()

    def broken(self) -> None:
        """The process does not keep to the protocol, or cannot any more."""
        starting = self.state is State.STARTING
        self.end()
        if starting:
            self._fail(lambda request_id: _exit_error(request_id, _CUT_OFF))

    def hung_up(self) -> None:
        """The process has closed its end: most likely it exits, and how is worth a moment."""
        if self.state is State.IDLE:
            self._owner.ending(self)
        self._loop.call_later(GRACE, self.broken)

    def _take_output(self) -> None:
        # What it printed before it said so is in the pipe by now, and belongs to what has ended.
        self.process.output.read()
        self.process.output.end_line()

    # --- how it ends ----------------------------------------------------------------------------------------------------

    def _leave(self, state: State) -> None:
        self.state = state
        self.since = self._loop.time()

    def _give(self, reply: Reply) -> None:
        answer, self._answer, self.invocation = self._answer, None, None
        if answer is not None and not answer.done():
            answer.set_result(reply)

    def _fail(self, failure: Callable[[str], FunctionError]) -> None:
        if not self._failed:
            self._failed = True
            self._owner.init_failed(self, failure)

    def _init_too_long(self) -> None:
        self.end()
        self._fail(lambda request_id: response.timed_out(request_id, self._init_timeout))

    def _exited(self, code: int) -> None:
        # A reply, or a reported init error, that was written before the end still counts.
        if self.state is not State.ENDING:
            self._link.drain()
        self._init_timer.cancel()
        self.crashed = self.state is not State.ENDING
        starting, idle = self.state is State.STARTING, self.state is State.IDLE
        self._leave(State.GONE)
        reason = exit_reason(code)
        if self.invocation is not None:
            self._give(_exit_error(self.invocation.request_id, reason))
        self._link.close()
        if starting:
            self._fail(lambda request_id: _exit_error(request_id, reason))
        self.exit_reason = reason if idle else ""
        self._owner.gone(self)


def _exit_error(request_id: str, reason: str) -> FunctionError:
    return FunctionError("Runtime.ExitError", f"RequestId: {request_id} Error: {reason}")
