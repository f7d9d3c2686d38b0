"""A measured window of a process of ours: what was done in it, and the CPU seconds for that."""

from __future__ import annotations

import asyncio
import resource
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

REGION = "eu-west-1"


def cpu() -> float:
    """CPU seconds of this process so far, user and system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Count:
    """Messages or records that are done, and the CPU seconds for them, over a window."""

    def __init__(self) -> None:
        self.messages = 0
        self.over = False
        """For a loop that does not always notice that it is cancelled."""
        self._begun = (0, 0.0, 0.0)

    def begin(self) -> None:
        self._begun = (self.messages, cpu(), time.monotonic())

    def end(self) -> dict[str, float]:
        self.over = True
        messages, used, at = self._begun
        return {
            "messages": self.messages - messages,
            "cpu": cpu() - used,
            "wall": time.monotonic() - at,
            "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }


async def window(
    loop: Callable[[Count], Coroutine[Any, Any, None]],
    count: Count,
    warm_up: float,
    seconds: float,
    loops: int,
) -> dict[str, float]:
    """Run so many of `loop` and measure `seconds` after `warm_up`."""
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(loop(count)) for _ in range(loops)]
        await asyncio.sleep(warm_up)
        count.begin()
        await asyncio.sleep(seconds)
        measured = count.end()
        for task in running:
            task.cancel()
    return measured
