"""Handlers of the tests of destinations: one refuses poison, one is a destination itself. Lines survive a kill."""

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path
from typing import Any

from ledger_handlers import write


def _mapping(context: Any) -> str:
    return str(context.invoked_function_arn.rpartition(":")[2])


async def refuse(event: dict[str, Any], context: Any) -> None:
    """Refuse any batch of a stream that holds poison; note the others, with the mapping."""
    texts = [b64decode(one["kinesis"]["data"]).decode() for one in event["Records"]]
    if bad := [text for text in texts if text.endswith("!")]:
        raise ValueError(f"poison: {bad[0]}")
    write([f"{_mapping(context)} {text}" for text in texts])


async def sort_out(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Name the messages that are poison; note the others, with the mapping."""
    bad = [one["messageId"] for one in event["Records"] if one["body"].endswith("!")]
    write([f"{_mapping(context)} {one['body']}" for one in event["Records"] if one["messageId"] not in bad])
    return {"batchItemFailures": [{"itemIdentifier": one} for one in bad]}


def keep(event: dict[str, Any], context: Any) -> None:
    """Keep a document, unless the test says that this is down."""
    if Path("end-is-down").exists():
        raise ConnectionError("the end is down")
    with open("own-end", "a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")
