"""Invocations a second of the runtimes in processes: `python -m tests.bench.invocations`.

Two workers and two callers, as the engine has them for a function of concurrency 2; events of SQS with 1 and with 10
records; the same handler over `python`, and over `command` with Lambda's own runtime client (awslambdaric). The two take
turns, round by round, so that they share the minutes of a busy machine. What is given is the median of the rounds.

Then latency at half the measured load: the callers invoke on a timetable, and what counts is how long each took.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

import anyio
import uvloop

from poller.model import Invocation, Returned
from poller.runtimes import process
from poller.runtimes.context import FunctionIdentity

if TYPE_CHECKING:
    from collections.abc import Callable

    from poller.runtimes.process import ProcessRuntime

WORKERS = 2
CALLERS = 2
ARN = "arn:aws:lambda:eu-west-1:123456789012:function:bench"
HANDLER = "def handler(event, context):\n    return {'batchItemFailures': []}\n"
RECORD = {
    "messageId": "059f36b4-87a3-44ab-83d2-661975830a7d",
    "receiptHandle": "AQEBwJnKyrHigUMZj6rYigCgxlaS3SLy0a" * 8,
    "body": json.dumps({"order": 7, "status": "paid", "note": "x" * 150}),
    "attributes": {
        "ApproximateReceiveCount": "1",
        "SentTimestamp": "1545082649183",
        "SenderId": "AIDAIENQZJOLO23YVJ4VO",
        "ApproximateFirstReceiveTimestamp": "1545082649185",
    },
    "messageAttributes": {},
    "md5OfBody": "e4e68fb7bd0e697a0ae8f1bb342846b3",
    "eventSource": "aws:sqs",
    "eventSourceARN": "arn:aws:sqs:eu-west-1:123456789012:orders",
    "awsRegion": "eu-west-1",
}
EVENTS = {1: {"Records": [RECORD]}, 10: {"Records": [RECORD] * 10}}


def start_python(folder: Path) -> ProcessRuntime:
    setting = process.Setting({}, "eu-west-1", "bench_handler:handler", folder)
    return process.python(FunctionIdentity("bench", ARN, 128), setting, _size())


def start_command(folder: Path) -> ProcessRuntime:
    setting = process.Setting({}, "eu-west-1", "bench_handler.handler", folder)
    command = (sys.executable, "-m", "awslambdaric", "bench_handler.handler")
    return process.command(FunctionIdentity("bench", ARN, 128), command, setting, _size())


def _size() -> process.Size:
    return process.Size(WORKERS, minimum_workers=WORKERS)


STARTS: dict[str, Callable[[Path], ProcessRuntime]] = {"python": start_python, "command": start_command}


def invocation(size: int) -> Invocation:
    return Invocation("f1b0e3a4-2c51-4a35-8b0e-7a7d3a5c9b11", EVENTS[size], time.time() + 30, ARN)


async def throughput(runtime: ProcessRuntime, size: int, seconds: float) -> tuple[float, float, float]:
    """Invocations a second, and the CPU microseconds of each: the daemon's and the worker's."""
    end, count = time.perf_counter() + seconds, 0
    cpu, theirs = time.process_time(), cpu_of_workers(runtime)

    async def call() -> None:
        nonlocal count
        while time.perf_counter() < end:
            # As the engine does: it leaves the time limit to a runtime that keeps the time.
            assert isinstance(await runtime.invoke(invocation(size)), Returned)
            count += 1

    started = time.perf_counter()
    async with anyio.create_task_group() as tasks:
        for _ in range(CALLERS):
            tasks.start_soon(call)
    took = time.perf_counter() - started
    own = time.process_time() - cpu
    return count / took, 1e6 * own / count, 1e6 * (cpu_of_workers(runtime) - theirs) / count


def cpu_of_workers(runtime: ProcessRuntime) -> float:
    """Seconds of CPU that the present workers have used."""
    pids = [worker.process.pid for worker in runtime._pool.workers]
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1e9


async def latency(runtime: ProcessRuntime, size: int, rate: float, seconds: float) -> float:
    """Milliseconds of the 99th percentile, at `rate` invocations a second."""
    took: list[float] = []
    started = time.perf_counter()

    async def call(own: int) -> None:
        for number in range(own, int(rate * seconds), CALLERS):
            if (pause := started + number / rate - time.perf_counter()) > 0:
                await anyio.sleep(pause)
            begun = time.perf_counter()
            await runtime.invoke(invocation(size))
            took.append(time.perf_counter() - begun)

    async with anyio.create_task_group() as tasks:
        for own in range(CALLERS):
            tasks.start_soon(call, own)
    return 1000 * quantiles(took, n=100)[98]


async def measure(rounds: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bench_handler.py").write_text(HANDLER)
        runtimes = {kind: start(folder) for kind, start in STARTS.items()}
        for size in EVENTS:
            rates: dict[str, list[float]] = {kind: [] for kind in runtimes}
            costs: dict[str, list[list[float]]] = {kind: [] for kind in runtimes}
            for _ in range(rounds):
                for kind, runtime in runtimes.items():
                    await throughput(runtime, size, 0.5)
                    rate, *cost = await throughput(runtime, size, seconds)
                    rates[kind].append(rate)
                    costs[kind].append(cost)
            for kind, runtime in runtimes.items():
                rate = median(rates[kind])
                daemon, worker = (median(one) for one in zip(*costs[kind], strict=True))
                p99 = await latency(runtime, size, rate / 2, seconds)
                print(
                    f"{kind:8} batch {size:2}: {rate:8.0f}/s (rounds {', '.join(f'{one:.0f}' for one in rates[kind])}),"
                    f" daemon {daemon:4.0f} us and worker {worker:4.0f} us each, p99 at half load {p99:.2f} ms"
                )
            ratios = [one / other for one, other in zip(rates["python"], rates["command"], strict=True)]
            print(f"python / command, batch {size:2}: {median(ratios):.1f} times")
        for runtime in runtimes.values():
            await runtime.aclose()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.invocations")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measured window")
    asked = parser.parse_args()
    uvloop.run(measure(asked.rounds, asked.seconds))


if __name__ == "__main__":
    main()
