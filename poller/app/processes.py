"""Several daemons on one machine: started, kept alive and stopped together.

This process reads no source and keeps no state: it starts the others, which share theirs, passes signals on to them, and starts
again, after a growing pause, what ended without being told to. One that says that its configuration is wrong (exit code 2) ends
all of them.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
from contextlib import suppress
from subprocess import PIPE
from typing import TYPE_CHECKING

import anyio

from poller.app.signals import Signals
from poller.core.retry import backoff
from poller.telemetry.systemd import Systemd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyio.abc import Process

_log = logging.getLogger("poller")
#: Exit code of a daemon whose configuration is wrong.
WRONG = 2
#: Seconds after which a daemon that ended begins with short pauses again.
SETTLED = 60.0


class Processes:
    """`count` daemons, each started with `command` and `--process` with its number."""

    def __init__(self, command: Sequence[str], count: int) -> None:
        self._command = command
        self._count = count
        self._running: dict[int, Process] = {}
        self._stopping = anyio.Event()
        self._code = 0
        self._systemd = Systemd()

    def __repr__(self) -> str:
        return f"<Processes: {len(self._running)} of {self._count} run>"

    async def run(self) -> int:
        """Run until stopped by a signal; returns the exit code."""
        signals = Signals()
        signals.catch()
        async with anyio.create_task_group() as background:
            background.start_soon(self._obey, signals)
            background.start_soon(self._systemd.watchdog, lambda: True)
            async with anyio.create_task_group() as tasks:
                for number in range(self._count):
                    tasks.start_soon(self._keep, number)
                self._systemd.ready()
            background.cancel_scope.cancel()
        return self._code

    async def _obey(self, signals: Signals) -> None:
        async for received in signals:
            if received is signal.SIGHUP:
                self._pass_on(signal.SIGHUP)
            else:
                self._stopping.set()
                self._systemd.stopping()
                # A daemon that gets a second one stops at once.
                self._pass_on(signal.SIGTERM)

    def _pass_on(self, number: signal.Signals) -> None:
        for process in self._running.values():
            with suppress(ProcessLookupError):
                process.send_signal(number)

    async def _keep(self, number: int) -> None:
        """Keep one daemon running."""
        tries = 0
        while not self._stopping.is_set():
            began = anyio.current_time()
            try:
                code = await self._run_once(number)
                how = f"ended with {code}"
            except OSError as error:
                # No memory for one more, say: the others have theirs.
                code, how = 1, f"cannot be started: {error}"
            if self._stopping.is_set():
                self._code = self._code or (1 if code else 0)
                return
            if code == WRONG:
                self._code = WRONG
                self._stopping.set()
                self._pass_on(signal.SIGTERM)
                return
            tries = 0 if anyio.current_time() - began > SETTLED else tries + 1
            pause = backoff(tries, random.random())
            _log.warning("process %d %s; started again in %.1f s", number, how, pause)
            with anyio.move_on_after(pause):
                await self._stopping.wait()

    async def _run_once(self, number: int) -> int:
        # The notifications of systemd are this process's, as it is the main one.
        environment = {name: value for name, value in os.environ.items() if name not in _OF_SYSTEMD}
        process = await anyio.open_process(
            [*self._command, "--process", str(number)],
            stdin=PIPE,  # closes with this process, however that ends; then they stop
            stdout=None,
            stderr=None,
            env=environment,
            start_new_session=True,  # Ctrl-C of a terminal is passed on once, by this process
        )
        self._running[number] = process
        if self._stopping.is_set():
            process.terminate()
        try:
            return await process.wait()
        finally:
            del self._running[number]
            with suppress(ProcessLookupError):
                process.kill()


_OF_SYSTEMD = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})


def command_of(config: str, log_level: str, log_format: str) -> list[str]:
    """How one daemon is started."""
    options = ["-c", config, "--log-level", log_level, "--log-format", log_format]
    return [sys.executable, "-m", "poller", "run", *options]
