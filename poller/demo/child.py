"""Programs that the demo starts, and that never outlive it."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from subprocess import Popen

# The kernel kills the program when the thread that started it is gone, even if that was by `kill -9`. It is
# asked for in the child, by a program of its own: code between fork and exec is not safe in a process with
# threads.
_LAUNCH = """
import ctypes, os, sys
try:
    ctypes.CDLL(None).prctl(1, 9)
except (OSError, AttributeError):
    pass
os.execv(sys.argv[1], sys.argv[1:])
"""


def start_child(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None, log: Path
) -> Popen[bytes]:
    """Start `command`, an absolute path and its arguments, with all its output in the file `log`.

    It gets a session of its own: Ctrl-C reaches the whole foreground group, and a child is stopped in its turn.
    """
    with open(log, "wb") as output:
        return subprocess.Popen(
            [sys.executable, "-ISc", _LAUNCH, *command],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop_child(process: Popen[bytes], patience: float) -> int:
    """Ask a child to end, insist after `patience` seconds, and return its exit status. Blocks."""
    process.terminate()
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def free_port() -> int:
    """Return a loopback port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tail(log: Path, lines: int = 10) -> str:
    """Return the last lines of a log, for a message about what went wrong."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join(text.splitlines()[-lines:])
