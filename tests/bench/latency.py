"""`python -m tests.bench.latency`: seconds from PutRecord to the handler, for a mapping that polls a steadily used shard.

Against the emulator, which answers in a few milliseconds; a figure to read, nothing fails.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from anyio.from_thread import start_blocking_portal

from poller.demo.emulator import Emulator
from tests.bench.processes import pause
from tests.e2e.harness import Daemon, running, until
from tests.e2e.stream_harness import DataStream, mapping

if TYPE_CHECKING:
    from collections.abc import Iterator

WARM_UP = 10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.latency")
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--every", type=float, default=0.5, help="seconds between two of them, about")
    asked = parser.parse_args()
    with emulator() as url:
        took = sorted(latencies(url, asked.records, asked.every))
    print(
        f"{len(took)} records, one every {asked.every:g} s: median {1000 * median(took):.0f} ms, "
        f"p95 {1000 * took[int(len(took) * 0.95)]:.0f} ms, longest {1000 * took[-1]:.0f} ms"
    )


@contextmanager
def emulator() -> Iterator[str]:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(Emulator()) as running:
        yield running.endpoint_url


def latencies(url: str, records: int, every: float) -> list[float]:
    stream = DataStream(url)
    put: list[float] = []
    with TemporaryDirectory() as folder:
        daemon = Daemon(Path(folder), url, mapping(stream.arn, "stamped"))
        with running(daemon):
            for number in range(WARM_UP + records):
                put.append(time.time())
                stream.put([f"k-{number}"])
                # Not in step with the reads, which are spread evenly.
                pause(every * (0.8 + 0.4 * (number * math.sqrt(2) % 1)))
            until(lambda: len(daemon.handled()) >= len(put), "all are handled")
            daemon.stop()
        handled = {one["text"]: one["at"] for one in map(json.loads, daemon.handled())}
    return [handled[f"k-{number}"] - put[number] for number in range(WARM_UP, len(put))]


if __name__ == "__main__":
    sys.exit(main())
