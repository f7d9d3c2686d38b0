"""The signals of the daemon, as a stream.

The handlers stay until the process ends. A loop's own ones are taken away before it closes, and a second Ctrl-C that falls into
that gap would turn a clean stop into a KeyboardInterrupt, or a SIGTERM into a death by signal.
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

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """What came since `catch`, one by one. For one loop of the main thread."""

    def __init__(self) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[signal.Signals](math.inf)
        self._loop: asyncio.AbstractEventLoop | None = None

    def catch(self) -> None:
        """Take the signals over from the interpreter, inside the running loop."""
        self._loop = asyncio.get_running_loop()
        for number in SIGNALS:
            signal.signal(number, self._caught)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._send.send_nowait, signal.Signals(number))

    async def __aiter__(self) -> AsyncIterator[signal.Signals]:
        async for number in self._receive:
            yield number
