"""JSON as it travels to workers and back: fast where it is ordinary, and complete where it is not."""

from __future__ import annotations

import json
from typing import Any

import orjson


def encode(value: Any) -> bytes:
    """Write an event."""
    try:
        return orjson.dumps(value)
    except TypeError:  # a lone surrogate, or an integer of more than 64 bits
        return json.dumps(value).encode()


def decode(body: bytes) -> Any:
    """Read JSON as Lambda's runtimes write it, NaN included; raises ValueError."""
    try:
        return orjson.loads(body)
    except ValueError:
        try:
            return json.loads(body)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
