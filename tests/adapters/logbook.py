from __future__ import annotations

import contextlib
import io
import logging
from typing import TYPE_CHECKING, Any

import orjson

from poller.telemetry import logs

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Take every setup back at the end, levels included."""
    names = ("", *logs._TALKATIVE)
    before = {name: logging.getLogger(name).level for name in names}
    try:
        yield
    finally:
        logs.shutdown()
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


class Log:
    """What was logged since `setup`; reading it ends the setup."""

    def __init__(self, level: str | int = "info", *, json: bool = True) -> None:
        self._stream = io.StringIO()
        logs.setup(self._stream, level, json=json)

    def text(self) -> str:
        logs.shutdown()
        return self._stream.getvalue()

    def lines(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.text().splitlines()]

    def line(self) -> dict[str, Any]:
        (line,) = self.lines()
        return line
