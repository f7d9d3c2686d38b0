"""The daemon's log: lines that never hold up the event loop."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
import threading
from typing import TextIO

from poller.telemetry.log_format import HumanFormatter, JsonFormatter

#: Bytes of lines that wait for the stream; what comes on top is dropped and counted.
MAX_WAITING = 4 * 1024 * 1024
#: Seconds that a stop waits for the stream to take the last lines.
FLUSH_TIMEOUT = 1.0
#: Their debug logs hold signatures, session tokens and message bodies.
_TALKATIVE = ("aiobotocore", "aiohttp", "asyncio", "boto3", "botocore", "urllib3")


def setup(stream: TextIO | None = None, level: str | int = "info", *, json: bool | None = None) -> None:
    """Send everything that is logged in this process to `stream` (standard error by default).

    With `json` None a terminal gets lines for people and anything else gets JSON. Calling it again replaces
    the first setup. Raises ValueError for a level that does not exist.
    """
    number = _level(level)
    shutdown()
    stream = sys.stderr if stream is None else stream
    as_json = not stream.isatty() if json is None else json
    root = logging.getLogger()
    root.addHandler(Outlet(stream, JsonFormatter() if as_json else HumanFormatter()))
    root.setLevel(number)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    logging.captureWarnings(True)


def shutdown() -> None:
    """Write what waits, for at most a second, and take the setup back. Without a setup it does nothing."""
    root = logging.getLogger()
    for outlet in [handler for handler in root.handlers if isinstance(handler, Outlet)]:
        root.removeHandler(outlet)
        outlet.close()
        logging.captureWarnings(False)


def _level(level: str | int) -> int:
    if isinstance(level, int):
        return level
    names = logging.getLevelNamesMapping()
    if level.upper() not in names:
        raise ValueError(f"no log level {level!r}: one of debug, info, warning, error")
    return names[level.upper()]


class Outlet(logging.Handler):
    """Formats a record where it is logged, and writes it in a thread of its own.

    The standard QueueListener would do, but its stop waits without a limit and fails on a full queue, which
    is just what a stuck pipe makes.
    """

    def __init__(self, stream: TextIO, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._stream = stream
        self._descriptor = _duplicate(stream)
        self._waiting: list[bytes] = []
        self._size = 0
        self._dropped = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="poller-logs", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Hand over one record; never waits for the stream."""
        line = self._line(record)
        with self._changed:
            if self._size + len(line) > MAX_WAITING:
                self._dropped += 1
                return
            self._waiting.append(line)
            self._size += len(line)
            self._changed.notify()

    def close(self) -> None:
        """Write what waits, as far as the stream takes it within the time limit."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(FLUSH_TIMEOUT)
        super().close()

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode(errors="backslashreplace") + b"\n"

    def _run(self) -> None:
        while lines := self._take():
            self._write(b"".join(lines))
        if self._descriptor is not None:
            os.close(self._descriptor)

    def _write(self, data: bytes) -> None:
        if self._descriptor is not None:
            _write_file(self._descriptor, data)
            return
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(data.decode())
            self._stream.flush()

    def _take(self) -> list[bytes]:
        """Wait for lines and take them all; empty only when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            lines, self._waiting, self._size = self._waiting, [], 0
            dropped, self._dropped = self._dropped, 0
        if dropped:
            message = f"{dropped} log lines were dropped: the log's reader was too slow"
            fields = {"name": "poller", "levelno": logging.WARNING, "levelname": "WARNING", "msg": message}
            lines.append(self._line(logging.makeLogRecord(fields)))
        return lines


def _duplicate(stream: TextIO) -> int | None:
    """Return a descriptor of our own for the file below `stream`, None when there is none.

    A thread that is stuck inside a stream's buffer aborts the interpreter's exit; one stuck below it does not.
    """
    try:
        stream.flush()
        return os.dup(stream.fileno())
    except (OSError, ValueError):
        return None


def _write_file(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # whoever shares the terminal or pipe has made it non-blocking
            select.select([], [descriptor], [])
        except OSError:  # the reader is gone; there is nowhere left to say so
            return
