"""Tells systemd how the daemon is, by sd_notify. Without systemd every call does nothing."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Systemd:
    """The service manager that started this process, if there is one.

    No call blocks or raises: a manager that does not listen is not worth a lost record.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self.watchdog_interval = _watchdog_interval(environ) if self._address else None
        """Seconds between two signs of life; None when nobody watches."""

    def ready(self) -> None:
        """All is started, or reloaded."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The stop begins."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Show one line in `systemctl status`."""
        self._send("STATUS=" + " ".join(text.split()))

    async def watchdog(self, healthy: Callable[[], bool]) -> None:
        """Give a sign of life while `healthy`, until cancelled.

        It comes from the event loop, so a loop that is stuck gives none and systemd restarts the daemon.
        """
        while self.watchdog_interval is not None:
            if healthy():
                self._send("WATCHDOG=1")
            await anyio.sleep(self.watchdog_interval)
        await anyio.sleep_forever()

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
                notify.setblocking(False)
                notify.sendto(message.encode(errors="replace"), self._address)
        except OSError:
            return


def _address(name: str) -> str | None:
    if name.startswith("@"):
        return "\0" + name[1:]
    return name if name.startswith("/") else None


def _watchdog_interval(environ: Mapping[str, str]) -> float | None:
    period, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if pid and pid != str(os.getpid()):
        return None
    if not period.isdecimal() or int(period) == 0:
        return None
    # Half of it, as sd_watchdog_enabled(3) advises: one late beat is not death.
    return int(period) / 1_000_000 / 2
