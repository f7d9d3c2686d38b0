"""The handlers of the measured mappings: they touch every record and do nothing else. Outside the measured window they also
look at the process that they are in, at a signal from the bench: at SIGUSR1 the event loop is watched from then on, SIGUSR2
begins and ends a count of allocations. What they find are lines of JSON in the file `BENCH_FINDINGS`.

To watch is to look at the clock every few milliseconds, from a timer: the CPU seconds since the look before are for how long
the loop was held up. CPU and not wall time, because what else the machine does is not the daemon's doing.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.bench.allocations import Allocations

#: Seconds between two looks, and those that are told of.
TICK, GAP = 0.002, 0.004


async def handler(event: dict[str, Any], context: Any) -> None:
    _loops or _begin()
    for message in event["Records"]:
        len(message["body"])


async def waiting(event: dict[str, Any], context: Any) -> None:
    """As a function does that calls something else."""
    _loops or _begin()
    await asyncio.sleep(WAIT)


async def kinesis(event: dict[str, Any], context: Any) -> None:
    _loops or _begin()
    for record in event["Records"]:
        len(record["kinesis"]["data"])


async def dynamodb(event: dict[str, Any], context: Any) -> None:
    _loops or _begin()
    for record in event["Records"]:
        len(record["dynamodb"]["NewImage"])


#: Seconds that `waiting` waits.
WAIT = 0.5
_loops: list[asyncio.AbstractEventLoop] = []
_counting: list[Allocations] = []


def _begin() -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, _watch)
    loop.add_signal_handler(signal.SIGUSR2, _count)
    _loops.append(loop)
    _tell("began")


def _tell(finding: str, value: float = 0.0) -> None:
    with Path(os.environ["BENCH_FINDINGS"]).open("a") as file:
        file.write(json.dumps([finding, time.monotonic(), value]) + "\n")


# --- the loop -----------------------------------------------------------------------------------------------------------


def _watch() -> None:
    _look(time.thread_time())


def _look(before: float) -> None:
    held_up = time.thread_time() - before
    if held_up > GAP:
        _tell("blocked", held_up)
    _loops[0].call_later(TICK, _look, time.thread_time())


# --- allocations --------------------------------------------------------------------------------------------------------


def _count() -> None:
    from tests.bench.allocations import Allocations

    if _counting:
        _tell("counted", _counting.pop().end())
    else:
        _counting.append(Allocations(Path(os.environ["BENCH_FINDINGS"]).with_name("allocations.bin")))
        _tell("counting")
