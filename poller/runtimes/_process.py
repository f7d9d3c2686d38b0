"""One operating-system process with all that it starts: spawned apart, watched, killed whole, reaped.

It leads a session and so a process group of its own. The kernel tells of its end through a pidfd while it is still a
zombie: only then is it certain that its number, and its group's, belong to nobody else, so the rest of the group is
killed first and the process reaped after. What it left behind in other sessions is out of reach.

It does not outlive the daemon either, however that ends: it inherits the reading end of a pipe whose writing end only the
daemon has, and the kernel has been told to answer the end of that pipe with SIGKILL for the whole group.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from poller.runtimes._output import Output

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence

    from poller.runtimes._output import Budget

#: Seconds between SIGTERM and SIGKILL.
GRACE = 0.5
#: How often, `GRACE` apart, killed processes that were adopted are looked for before they are left.
ADOPTED_LOOKS = 10


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker may use. None leaves it as the daemon has it."""

    memory_limit: int | None = None
    """Megabytes of address space, of each of its processes."""
    open_files: int | None = None
    nice: int | None = None
    user: str | None = None


@dataclass(frozen=True, slots=True)
class Launch:
    """What is started."""

    argv: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    working_directory: str | None = None
    limits: Limits = field(default_factory=Limits)


def exit_reason(code: int) -> str:
    """Say in Lambda's words how a process ended; a negative `code` is a signal."""
    if code > 0:
        return f"Runtime exited with error: exit status {code}"
    if code < 0:
        name = (signal.strsignal(-code) or f"signal {-code}").lower()
        return f"Runtime exited with error: signal: {name}"
    return "Runtime exited without providing a reason"


class Process:
    """A running process. `exited` is called once, from the event loop, when it has ended and is reaped."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        launch: Launch,
        budget: Budget,
        exited: Callable[[int], None],
        *,
        keep: Sequence[int] = (),
    ) -> None:
        """Start it; raises OSError when that is not possible. `keep` are descriptors that it inherits."""
        self._loop = loop
        self._exited = exited
        self._kill_timer: asyncio.TimerHandle | None = None
        with ExitStack() as theirs, ExitStack() as ours:
            reading, writing = os.pipe()
            ours.callback(os.close, reading)
            theirs.callback(os.close, writing)
            fuse, self._fuse = os.pipe()
            ours.callback(os.close, self._fuse)
            theirs.callback(os.close, fuse)
            self._popen = _spawn(launch, writing, (*keep, fuse))
            ours.callback(_end_now, self._popen)
            self.pid = self._popen.pid
            _arm(fuse, self.pid)
            self._watch = os.pidfd_open(self.pid)
            ours.pop_all()
        self.output = Output(loop, reading, budget)
        loop.add_reader(self._watch, self._ended)

    def end(self) -> None:
        """Ask the whole group to end; kill it when it does not within `GRACE`."""
        if self._kill_timer is None and self._watch >= 0:
            self._signal(signal.SIGTERM)
            self._kill_timer = self._loop.call_later(GRACE, self._signal, signal.SIGKILL)

    def peak_memory(self) -> int:
        """Bytes of memory that it has used at most; 0 when that cannot be told."""
        # Not ru_maxrss: across fork and exec that begins with what the daemon uses.
        try:
            with open(f"/proc/{self.pid}/status", "rb") as status:
                for line in status:
                    if line.startswith(b"VmHWM:"):
                        return int(line.split()[1]) * 1024
        except OSError:
            pass
        return 0

    def _signal(self, number: signal.Signals) -> None:
        if self._watch >= 0:  # else it is reaped, and its number may be another's
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def _ended(self) -> None:
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        self._signal(signal.SIGKILL)
        code = self._popen.wait()  # at once: it is a zombie
        self._loop.remove_reader(self._watch)
        os.close(self._watch)
        os.close(self._fuse)
        self._watch = -1
        self.output.read()
        self._exited(code)
        self.output.close()
        self._adopted(ADOPTED_LOOKS)

    def _adopted(self, looks: int) -> None:
        # As process 1 of a container the daemon inherits what the process had started, and has to reap it.
        with suppress(ChildProcessError):  # the usual case: nothing of that group is ours
            while os.waitpid(-self.pid, os.WNOHANG)[0]:
                pass
            if looks:
                self._loop.call_later(GRACE, self._adopted, looks - 1)


def _arm(fuse: int, group: int) -> None:
    fcntl.fcntl(fuse, fcntl.F_SETOWN, -group)
    fcntl.fcntl(fuse, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fuse, fcntl.F_SETFL, fcntl.fcntl(fuse, fcntl.F_GETFL) | os.O_ASYNC)


def _end_now(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _spawn(launch: Launch, output: int, keep: Sequence[int]) -> subprocess.Popen[bytes]:
    limits = launch.limits
    user, group, groups = _identity(limits.user)
    return subprocess.Popen(
        ["/bin/sh", "-c", _limited(limits), "sh", *launch.argv],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd=launch.working_directory,
        env=dict(launch.environment),
        pass_fds=keep,
        start_new_session=True,
        user=user,
        group=group,
        extra_groups=groups,
    )


def _limited(limits: Limits) -> str:
    # A shell of a millisecond, because limits have to be in force before the program begins, and code between fork and
    # exec is not safe in a process with threads.
    words = ["ulimit -c 0"]
    if limits.memory_limit is not None:
        words.append(f"ulimit -v {limits.memory_limit * 1024}")
    if limits.open_files is not None:
        words.append(f"ulimit -n {limits.open_files}")
    nice = f"nice -n {limits.nice} " if limits.nice else ""
    return " && ".join([*words, f'exec {nice}"$@"'])


def _identity(user: str | None) -> tuple[int | None, int | None, list[int] | None]:
    if user is None:
        return None, None, None
    import pwd

    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise FileNotFoundError(f"there is no user {user}") from None
    return entry.pw_uid, entry.pw_gid, os.getgrouplist(user, entry.pw_gid)
