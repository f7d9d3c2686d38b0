"""Turns a log record into text: one line for a person, or one JSON object for a machine.

Much of what is logged was written by others: error messages, warnings, a handler's own logging. So the text
of a record can neither start a line of its own, nor steer a terminal, nor make the formatting fail, nor be of
any size.
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from typing import Any

import orjson

from poller.ports import current_invocation

MAX_TEXT = 8 * 1024
MAX_LINE = 64 * 1024

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
# Control characters, line separators, bidirectional overrides, lone surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class SafeFormatter(logging.Formatter):
    """Formats any record; one whose contents raise is reduced to its bare message."""

    def format(self, record: logging.LogRecord) -> str:
        try:
            line = self.line(record)
        except Exception:
            line = self.line(_bare(record))
        return line if len(line) <= MAX_LINE else self.line(_bare(record))

    def line(self, record: logging.LogRecord) -> str:
        """Return `record` as text."""
        raise NotImplementedError

    def exception(self, record: logging.LogRecord) -> str:
        """Return the traceback and stack of `record`; empty without them."""
        parts = (self.formatException(record.exc_info) if record.exc_info else "", record.stack_info or "")
        return clip("\n".join(filter(None, parts)), 2 * MAX_TEXT)


class HumanFormatter(SafeFormatter):
    """`time LEVEL message key=value ...`, tracebacks indented below."""

    def line(self, record: logging.LogRecord) -> str:
        extras = _extras(record)
        block = [*_stack(extras.pop("stack_trace", ())), *self.exception(record).splitlines()]
        time = (
            datetime.fromtimestamp(record.created).astimezone().isoformat(" ", timespec="milliseconds")[:23]
        )
        pairs = "".join(f" {escape(text(key))}={_quoted(value)}" for key, value in extras.items())
        head = f"{time} {record.levelname:<7} {escape(clip(record.getMessage()))}{pairs}"
        return "\n    ".join([head, *(escape(part) for part in block)])


class JsonFormatter(SafeFormatter):
    """One JSON object a line."""

    def line(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.")
            + f"{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": clip(record.getMessage()),
        }
        for key, value in _extras(record).items():
            fields.setdefault(text(key), value)
        if exception := self.exception(record):
            fields["exception"] = exception
        return _dumps(fields)


def text(value: object) -> str:
    """Return `value` as a string, whatever its __str__ does."""
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__} that cannot be shown>"


def clip(value: str, limit: int = MAX_TEXT) -> str:
    """Return the first `limit` characters, and say how many are missing."""
    return value if len(value) <= limit else f"{value[:limit]}… ({len(value) - limit} more characters)"


def escape(value: str) -> str:
    """Return `value` with what could start a line or steer a terminal written out."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), value)


def _extras(record: logging.LogRecord) -> dict[Any, Any]:
    extras = {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
    invocation = current_invocation.get()
    if invocation is not None:
        extras.setdefault("request_id", invocation.request_id)
    return extras


def _bare(record: logging.LogRecord) -> logging.LogRecord:
    bare = logging.makeLogRecord(
        {"created": record.created, "msecs": record.msecs, "levelno": record.levelno}
    )
    bare.name, bare.levelname, bare.msg = text(record.name), text(record.levelname), text(record.msg)
    return bare


def _stack(lines: Any) -> list[str]:
    """A function's own stack trace, whose entries may hold several lines each."""
    return clip("\n".join(map(text, lines)), 2 * MAX_TEXT).splitlines()


def _quoted(value: object) -> str:
    shown = escape(clip(text(value)))
    plain = shown and not any(mark in shown for mark in ' ="')
    return shown if plain else '"' + shown.replace('"', '\\"') + '"'


def _dumps(fields: dict[str, Any]) -> str:
    try:
        return orjson.dumps(fields, default=text).decode()
    except TypeError:  # a lone surrogate, an integer of more than 64 bits, an endless structure
        plain = {escape(key): escape(text(value)) for key, value in fields.items()}
        return orjson.dumps(plain).decode()
