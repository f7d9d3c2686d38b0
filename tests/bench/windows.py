"""A measured window of a process of ours: what was done in it, and the CPU seconds for that."""

from __future__ import annotations

import asyncio
import resource
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

REGION = "eu-west-1"
#: Seconds for which allocations are counted.
COUNTED = 1.0


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
        messages, used, at = self._begun
        return {
            "messages": self.messages - messages,
            "cpu": cpu() - used,
            "wall": time.monotonic() - at,
            "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }

    @contextmanager
    def allocations(self, measured: dict[str, float]) -> Iterator[None]:
        """Count while the block runs; add to `measured` how many each message took."""
        # Not before the window is over: it would be part of the memory.
        from tests.bench.allocations import Allocations, gross

        with TemporaryDirectory() as folder:
            file = Path(folder) / "allocations.bin"
            before, counted = self.messages, Allocations(file)
            try:
                yield
            finally:
                done, net = self.messages - before, counted.end()
            measured |= {"allocations": gross(file) / done, "kept": net / done}


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
        with count.allocations(measured):
            await asyncio.sleep(COUNTED)
        count.over = True
        for task in running:
            task.cancel()
    return measured
