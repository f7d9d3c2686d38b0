"""The handlers of the measured mappings: they touch every record and do nothing else. Behind the measured window the event loop
is watched.

A look at the clock every few milliseconds, from a timer: the CPU seconds since the look before are for how long the loop was
held up. CPU and not wall time, because what else the machine does is not the daemon's doing.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

#: Seconds between two looks, and those that are told of.
TICK, GAP = 0.002, 0.004


async def handler(event: dict[str, Any], context: Any) -> None:
    _loops or _begin()
    for message in event["Records"]:
        len(message["body"])


async def kinesis(event: dict[str, Any], context: Any) -> None:
    _loops or _begin()
    for record in event["Records"]:
        len(record["kinesis"]["data"])


async def dynamodb(event: dict[str, Any], context: Any) -> None:
    _loops or _begin()
    for record in event["Records"]:
        len(record["dynamodb"]["NewImage"])


_loops: list[asyncio.AbstractEventLoop] = []


def _begin() -> None:
    _loops.append(asyncio.get_running_loop())
    _loops[0].call_later(float(os.environ["BENCH_WATCH_AFTER"]), _watch)


def _watch() -> None:
    _look(time.thread_time())


def _look(before: float) -> None:
    held_up = time.thread_time() - before
    if held_up > GAP:
        with Path(os.environ["BENCH_BLOCKS"]).open("a") as file:
            file.write(f"{time.monotonic()} {held_up}\n")
    _loops[0].call_later(TICK, _look, time.thread_time())
