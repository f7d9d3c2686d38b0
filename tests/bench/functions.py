"""The handlers of the measured mappings: they touch every record and do nothing else."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

#: Seconds between two looks at the clock, and the gap that is told of.
TICK, GAP = 0.001, 0.01


async def handler(event: dict[str, Any], context: Any) -> None:
    for message in event["Records"]:
        len(message["body"])


async def kinesis(event: dict[str, Any], context: Any) -> None:
    for record in event["Records"]:
        len(record["kinesis"]["data"])


async def dynamodb(event: dict[str, Any], context: Any) -> None:
    for record in event["Records"]:
        len(record["dynamodb"]["NewImage"])


async def watched(event: dict[str, Any], context: Any) -> None:
    """As `kinesis`; the first one begins to watch the event loop, and writes down for how long it was blocked and when."""
    if not _watching:
        _watching.append(asyncio.get_running_loop())
        _look(time.monotonic())
    for record in event["Records"]:
        len(record["kinesis"]["data"])


_watching: list[asyncio.AbstractEventLoop] = []


def _look(before: float) -> None:
    now = time.monotonic()
    if now - before > GAP:
        with Path(os.environ["BENCH_BLOCKS"]).open("a") as file:
            file.write(f"{now} {now - before - TICK}\n")
    _watching[0].call_later(TICK, _look, time.monotonic())
