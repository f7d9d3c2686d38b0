"""The signals of the daemon, as a stream.

The handlers stay until the process ends. A loop's own ones are taken away before it closes, and a second Ctrl-C that falls into
that gap would turn a clean stop into a KeyboardInterrupt, or a SIGTERM into a death by signal.

SIGHUP is kept from the moment when the file is read, before there is a loop: systemd starts nothing again that died of it, and
what has changed in the file since must not be missed. SIGTERM and Ctrl-C end a process that has begun nothing as ever.
"""

from __future__ import annotations

import asyncio
import math
import signal
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import FrameType

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """What came since `catch`, one by one, after a SIGHUP since `keep_hangups`. For one loop of the main thread."""

    def __init__(self) -> None:
        self._send: MemoryObjectSendStream[signal.Signals]
        self._receive: MemoryObjectReceiveStream[signal.Signals]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._kept = False

    def keep_hangups(self) -> None:
        """Note that SIGHUP came, from now on, for when there is a loop."""
        signal.signal(signal.SIGHUP, self._keep)

    def _keep(self, number: int, frame: FrameType | None) -> None:
        self._kept = True

    def catch(self) -> None:
        """Take the signals over from the interpreter, inside the running loop."""
        self._loop = asyncio.get_running_loop()
        self._send, self._receive = anyio.create_memory_object_stream[signal.Signals](math.inf)
        for number in SIGNALS:
            signal.signal(number, self._caught)
        if self._kept:
            self._send.send_nowait(signal.SIGHUP)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._send.send_nowait, signal.Signals(number))

    async def __aiter__(self) -> AsyncIterator[signal.Signals]:
        async for number in self._receive:
            yield number
