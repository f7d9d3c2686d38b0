"""What a worker prints, as log lines with function and request id.

The pipe is always read, so that a worker never waits for it; what a function prints beyond its budget is counted
and dropped. The daemon therefore spends a bounded time and a bounded memory on any flood.
"""

from __future__ import annotations

import logging
import os
import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

#: Of one function in a second, and at most twice that at once.
LINES_PER_SECOND = 2_000
BYTES_PER_SECOND = 1024 * 1024
#: Bytes of one line; the rest of a longer one is dropped.
MAX_LINE = 8 * 1024
#: Bytes of one read: all that a pipe holds.
_PIPE = 64 * 1024

_log = logging.getLogger("poller.function")
# The format of Lambda's runtime client for Python: [LEVEL]<tab>time<tab>request id<tab>message.
_LEVELS = {
    b"[DEBUG]": logging.DEBUG,
    b"[WARN": logging.WARNING,
    b"[ERROR": logging.ERROR,
    b"[CRITI": logging.CRITICAL,
}


class Budget:
    """How much of what one function prints is logged; shared by its workers."""

    def __init__(self, function: str, clock: Callable[[], float]) -> None:
        self.function = function
        self._clock = clock
        self._lines: float = LINES_PER_SECOND
        self._bytes: float = BYTES_PER_SECOND
        self._filled = clock()
        self._dropped = 0
        self.dropped_lines = 0
        """Since the start."""
        self._told = clock()

    def allows(self, size: int) -> bool:
        """Tell whether a line of `size` bytes may be logged."""
        if self._lines < 1 or self._bytes < size:
            self._fill()
        return self._lines >= 1 and self._bytes >= size

    def take(self, size: int) -> bool:
        """Count a line of `size` bytes that is logged; False when it may not be."""
        if not self.allows(size):
            return False
        self._lines -= 1
        self._bytes -= size
        return True

    def drop(self, lines: int) -> None:
        """Count lines that are not logged."""
        self._dropped += lines
        self.dropped_lines += lines
        if self._clock() - self._told >= 1:
            self.tell()

    def _fill(self) -> None:
        now = self._clock()
        seconds, self._filled = now - self._filled, now
        self._lines = min(self._lines + seconds * LINES_PER_SECOND, 2.0 * LINES_PER_SECOND)
        self._bytes = min(self._bytes + seconds * BYTES_PER_SECOND, 2.0 * BYTES_PER_SECOND)

    def tell(self) -> None:
        """Log how much was dropped since this was last said."""
        if self._dropped:
            _log.warning(
                "%d lines that %s printed were dropped: it may print %d lines and %d bytes a second",
                self._dropped,
                self.function,
                LINES_PER_SECOND,
                BYTES_PER_SECOND,
                extra={"function": self.function, "dropped": self._dropped},
            )
            self._dropped, self._told = 0, self._clock()


class Output:
    """The reading end of one worker's standard output and standard error, in the order in which it wrote."""

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptor: int, budget: Budget) -> None:
        self.request_id = ""
        """Whose invocation prints; empty between two of them."""
        self._loop = loop
        self._descriptor = descriptor
        self._budget = budget
        self._rest = b""
        self._cut = False
        """Whether what comes belongs to a line whose beginning is logged, or dropped, and no more of it is."""
        self._pending = select.poll()
        self._pending.register(descriptor, select.POLLIN)
        loop.add_reader(descriptor, self.read)

    def read(self) -> None:
        """Log what is there now, at most one pipe full of it."""
        # Mostly there is nothing, and to be told so by poll costs a third of what an exception does.
        if self._descriptor < 0 or not self._pending.poll(0):
            return
        data = os.read(self._descriptor, _PIPE)
        if data:
            self._take(data)
        else:
            self.close()

    def close(self) -> None:
        """Log what is left, and let go of the pipe."""
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1
            self.end_line()
            self._budget.tell()

    def end_line(self) -> None:
        """Log the line that was not ended: what comes next was not printed by the same invocation."""
        if self._rest:
            self._say(self._rest)
            self._rest = b""
        self._cut = False

    def _take(self, data: bytes) -> None:
        if not self._budget.allows(0):
            self._flood(data)
            return
        *lines, rest = (self._rest + data).split(b"\n")
        if self._cut:
            if not lines:
                return
            del lines[0]
            self._cut = False
        for number, line in enumerate(lines):
            if not self._say(line):
                self._budget.drop(len(lines) - number - 1)
                break
        if len(rest) > MAX_LINE:
            self._say(rest[:MAX_LINE])
            rest, self._cut = b"", True
        self._rest = rest

    def _flood(self, data: bytes) -> None:
        # Counting line breaks costs a thousandth of taking lines apart.
        unfinished = not data.endswith(b"\n")
        self._budget.drop(data.count(b"\n") + unfinished - self._cut)
        self._rest, self._cut = b"", unfinished

    def _say(self, line: bytes) -> bool:
        if not self._budget.take(len(line)):
            self._budget.drop(1)
            return False
        if not line:
            return True
        level = logging.INFO
        if line.startswith(b"["):
            level = next((number for mark, number in _LEVELS.items() if line.startswith(mark)), level)
        extra = {"function": self._budget.function}
        if self.request_id:
            extra["request_id"] = self.request_id
        _log.log(level, "%s", line[:MAX_LINE].decode(errors="replace").rstrip("\r"), extra=extra)
        return True
