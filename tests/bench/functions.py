"""The handler of the measured mappings: it touches every message and does nothing else."""

from __future__ import annotations

from typing import Any


async def handler(event: dict[str, Any], context: Any) -> None:
    for message in event["Records"]:
        len(message["body"])
