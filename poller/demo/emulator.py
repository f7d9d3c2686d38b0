"""The emulator of AWS that the demo and the tests run against: ministack, a program in an environment of its
own.

It pins botocore to one version, so it cannot live in poller's environment; and it is the demo's need, not the
daemon's, so it is no dependency.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import aiohttp
import anyio
import anyio.to_thread

from poller.demo.child import free_port, start_child, stop_child, tail
from poller.errors import PollerError

if TYPE_CHECKING:
    from collections.abc import Callable
    from subprocess import Popen
    from types import TracebackType

#: The version that a new environment gets at least.
MINIMUM_VERSION = "1.5.33"

_HEALTH = "/_ministack/health"
_READY_WITHIN = 60.0
_STOPPED_WITHIN = 10.0
# They would reach into an interpreter that is not ours, or point at a real account.
_FOREIGN_SETTING = re.compile("PYTHON|COVERAGE_|AWS_")


class EmulatorError(PollerError):
    """The emulator cannot be installed or does not start."""


# --- finding or making it -----------------------------------------------------------------------------------


def find_ministack(say: Callable[[str], None] = print) -> Path:
    """Return the path of the program `ministack`: POLLER_MINISTACK, else the one on PATH, else poller's own.

    Its own is made on first use, in the user's cache folder; `say` hears about it. Blocks for as long as that
    takes. Raises EmulatorError with the cure.
    """
    if named := os.environ.get("POLLER_MINISTACK"):
        if not os.access(named, os.X_OK):
            raise EmulatorError(f"POLLER_MINISTACK is {named}, which is not a program")
        return Path(named)
    if found := shutil.which("ministack"):
        return Path(found)
    return _cached(_cache_folder() / f"ministack-{MINIMUM_VERSION}", say)


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "poller"


def _cached(folder: Path, say: Callable[[str], None]) -> Path:
    program, complete = folder / "bin" / "ministack", folder / "complete"
    if complete.exists():
        return program
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second maker waits for the first, then finds its work
            if not complete.exists():
                say(f"Installing the AWS emulator ministack once, into {folder} ...")
                _make(folder)
                complete.touch()
    except OSError as error:
        raise EmulatorError(f"cannot write to {folder.parent}: {error}; set XDG_CACHE_HOME") from error
    return program


def _make(folder: Path) -> None:
    # An environment knows its own path and cannot be renamed, so the program comes to its place last of all:
    # a half-made one never has it, and is made again from nothing.
    environment = [sys.executable, "-m", "venv", "--clear", str(folder)]
    install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    for command in (environment, [*install, f"ministack>={MINIMUM_VERSION}"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            raise EmulatorError(_cure(command, done.stderr or done.stdout))


def _cure(command: list[str], output: str) -> str:
    return (
        f"{output.strip()}\n"
        f"The AWS emulator could not be installed: `{' '.join(command)}` failed.\n"
        "Install it yourself (`pipx install ministack`) or set POLLER_MINISTACK to its program."
    )


# --- running it ---------------------------------------------------------------------------------------------


class Emulator:
    """One ministack on a free loopback port, with an empty state, for the length of the context.

    What it prints goes to `log`, in a temporary folder that is deleted at the end. Entering raises
    EmulatorError.
    """

    def __init__(self, program: Path | None = None) -> None:
        self._program = program
        self._process: Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="poller-emulator-", ignore_cleanup_errors=True)
        self.log = Path(self._folder.name) / "emulator.log"
        self.endpoint_url = ""
        self.version = ""

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process else None

    async def __aenter__(self) -> Self:
        try:
            program = self._program
            if program is None:
                program = await anyio.to_thread.run_sync(find_ministack)
            port = free_port()
            self.endpoint_url = f"http://127.0.0.1:{port}"
            self._process = self._start(program, port)
            self.version = await self._ready(self._process)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    def _start(self, program: Path, port: int) -> Popen[bytes]:
        quiet = {name: value for name, value in os.environ.items() if not _FOREIGN_SETTING.match(name)}
        settings = {"GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1", "TMPDIR": self._folder.name}
        return start_child([str(program)], env=quiet | settings, cwd=Path(self._folder.name), log=self.log)

    async def _ready(self, process: Popen[bytes]) -> str:
        with anyio.move_on_after(_READY_WITHIN):
            async with aiohttp.ClientSession() as http:
                while process.poll() is None:
                    if (version := await self._version(http)) is not None:
                        return version
                    await anyio.sleep(0.05)
        raise EmulatorError(f"the emulator did not start; its last words:\n{tail(self.log)}")

    async def _version(self, http: aiohttp.ClientSession) -> str | None:
        with suppress(aiohttp.ClientError, TimeoutError, ValueError):
            async with http.get(self.endpoint_url + _HEALTH) as reply:
                health = await reply.json()
                if reply.status == 200:
                    return str(health.get("version", "unknown"))
        return None

    async def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(stop_child, process, _STOPPED_WITHIN)
        self._folder.cleanup()
