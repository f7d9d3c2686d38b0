"""How a value from outside (a record, a reply, a pattern) is quoted in a message: JSON, one line, cut off."""

from __future__ import annotations

import json

#: Characters of a quotation; enough to recognise a value, short enough for a log line.
LIMIT = 100

_encoder = json.JSONEncoder(ensure_ascii=False, default=lambda value: f"<{type(value).__name__}>")


def quote(value: object) -> str:
    """Render `value` as JSON of at most `LIMIT` characters and an ellipsis. Never raises."""
    text = ""
    try:
        for chunk in _encoder.iterencode(value):
            text += chunk
            if len(text) > LIMIT:
                break
    except (TypeError, ValueError, RecursionError):
        text = f"<{type(value).__name__}>"
    if len(text) > LIMIT:
        text = text[:LIMIT] + "…"
    # A lone surrogate is legal in JSON and in a Python string, and breaks every stream it is written to.
    return text.encode("utf-8", "backslashreplace").decode()
