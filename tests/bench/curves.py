"""What `tests.bench.scale` measures: curves of cost against load, one point after the other.

A busy point's cost is CPU a message or record, an idle one's CPU a second, both as the kernel's clock of the process has them;
what was done is what the endpoint has seen, so that nobody asks the daemon anything in a window.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from statistics import median
from typing import TYPE_CHECKING, Literal

from tests.bench.canned_reply import IDLE, ONCE
from tests.bench.functions import WAIT
from tests.bench.processes import daemon, kinesis, pause, queue
from tests.bench.scenarios import TEN, THOUSAND, UNPACED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.bench.processes import Daemon, Endpoint, Mapped

#: Seconds of a long poll: each idle queue comes back once in so many.
LONG_POLL = 20.0
#: Seconds until the shards of a new daemon are read as rarely as they will be.
SHARDS_QUIET = 6.0
#: Seconds until several daemons have divided the shards.
SHARED_OUT = 8.0
#: Seconds for the longest start, on a busy machine.
OPENED_WITHIN = 180.0
#: Messages a second of the queues that share a load, and of one receive.
SHARED, RECEIVED = 2000, 10
#: Each queue that has one message only has it once in a run of the endpoint.
_fresh = count()


@dataclass(frozen=True)
class Timing:
    """Seconds, and how many windows the figure of a point is the median of."""

    warm_up: float = 1.5
    seconds: float = 2.0
    windows: int = 3
    watched: float = 2.0


@dataclass(frozen=True)
class Point:
    """One load, and what it cost."""

    x: int
    cost: float
    """In the unit of the curve."""
    mb: float
    longest: float
    """Milliseconds of CPU for which the loop was held up at the longest; below 4 none is told of."""
    core: float
    """Of a core, over the window."""
    rate: float
    """Messages, records or reads a second."""
    endpoint: float
    """Of a core, over the window."""
    ready: float
    """Seconds from the start of the process until it is ready, or, with shards, until all are read."""


@dataclass(frozen=True)
class Curve:
    """One cost against one load."""

    name: str
    title: str
    load: str
    """What x counts."""
    unit: str
    """Of the cost."""
    rate: str
    """What `Point.rate` counts."""
    loads: tuple[int, ...]
    measure: Callable[[Endpoint, Timing, tuple[int, ...]], Iterator[Point]]
    panel: str = ""
    """Curves of one panel are drawn over each other."""
    idle: bool = False
    """The cost is that of all x together, not of each message."""


# --- one point ----------------------------------------------------------------------------------------------------------


def _windows(
    endpoint: Endpoint, running: Daemon, done: str, seconds: float, windows: int
) -> dict[str, float]:
    """The medians of several windows."""
    found: list[dict[str, float]] = []
    for _ in range(windows):
        before, used = endpoint.stats(), running.cpu()
        pause(seconds)
        spent, after = running.cpu() - used, endpoint.stats()
        wall, number = after["wall"] - before["wall"], after.get(done, 0) - before.get(done, 0)
        if not number:
            raise RuntimeError("nothing was done")
        each = 1e6 * spent / number
        served = (after["cpu"] - before["cpu"]) / wall
        found.append({"each": each, "core": spent / wall, "rate": number / wall, "endpoint": served})
    return {name: median(one[name] for one in found) for name in found[0]}


def _point(
    x: int, cost: float, found: dict[str, float], running: Daemon, ready: float, watched: float
) -> Point:
    mb = running.resident() / 1e6
    since = running.watch()
    pause(watched)
    longest = 1000 * max(running.blocks(since), default=0.0)
    return Point(x, cost, mb, longest, found["core"], found["rate"], found["endpoint"], ready)


def _busy(
    load: Callable[[int], list[Mapped]],
    done: str,
    module: str = "poller",
    *,
    x_is: Literal["in the mappings", "concurrency", "processes"] = "in the mappings",
) -> Callable[[Endpoint, Timing, tuple[int, ...]], Iterator[Point]]:
    def measure(endpoint: Endpoint, timing: Timing, loads: tuple[int, ...]) -> Iterator[Point]:
        for x in loads:
            places = x if x_is == "concurrency" else 1000
            processes = x if x_is == "processes" else 0
            with daemon(endpoint.url, load(x), module, concurrency=places, processes=processes) as running:
                ready = running.ready()
                pause(timing.warm_up + (SHARED_OUT if processes else 0.0))
                found = _windows(endpoint, running, done, timing.seconds, timing.windows)
                yield _point(x, found["each"], found, running, ready, timing.watched)

    return measure


def _idle_queues(endpoint: Endpoint, timing: Timing, loads: tuple[int, ...]) -> Iterator[Point]:
    """All daemons at the same time, because a window has to be as long as a poll, and they do next to nothing in it."""
    with ExitStack() as stack:
        running: list[tuple[int, Daemon, float]] = []
        for x in loads:
            # One brings a message, for the handler's module has to run once to watch the loop.
            names = [f"{ONCE}{next(_fresh)}", *(f"{IDLE}{number}" for number in range(1, x))]
            one = stack.enter_context(daemon(endpoint.url, [queue(name) for name in names]))
            running.append((x, one, one.ready()))
        pause(timing.warm_up)
        used = [one.cpu() for _, one, _ in running]
        before = endpoint.stats()
        pause(LONG_POLL)
        spent = [one.cpu() - earlier for (_, one, _), earlier in zip(running, used, strict=True)]
        after = endpoint.stats()
        memory = [one.resident() / 1e6 for _, one, _ in running]
        since = [one.watch() for _, one, _ in running]
        # As long, for they may come back all together.
        pause(LONG_POLL)
        served = (after["cpu"] - before["cpu"]) / LONG_POLL
        for (x, one, ready), cpu, mb, watched in zip(running, spent, memory, since, strict=True):
            core = cpu / LONG_POLL
            longest = 1000 * max(one.blocks(watched), default=0.0)
            yield Point(x, 1000 * core, mb, longest, core, x / LONG_POLL, served, ready)


def _idle_shards(endpoint: Endpoint, timing: Timing, loads: tuple[int, ...]) -> Iterator[Point]:
    for x in loads:
        sought = endpoint.stats().get("GetShardIterator", 0)
        # The first page of the first shard has one record.
        with daemon(endpoint.url, [kinesis(f"{ONCE}{x}", THOUSAND)]) as running:
            ready = _opened(endpoint, running, sought + x)
            pause(timing.warm_up + SHARDS_QUIET)
            found = _windows(endpoint, running, "GetRecords", timing.seconds, timing.windows)
            yield _point(x, 1000 * found["core"], found, running, ready, timing.watched)


def _opened(endpoint: Endpoint, running: Daemon, iterators: float) -> float:
    """Wait until so many iterators were sought in all: one a shard. Return the seconds since the start of the process."""
    running.ready()
    while (took := time.monotonic() - running.begun) < OPENED_WITHIN:
        if endpoint.stats().get("GetShardIterator", 0) >= iterators:
            return took
        pause(0.1)
    raise RuntimeError("the daemon does not open all shards")


# --- the curves ---------------------------------------------------------------------------------------------------------


def _shared(queues: int) -> list[Mapped]:
    period = 1000 * RECEIVED * queues // SHARED
    return [queue(f"paced-{period}-{next(_fresh)}") for _ in range(queues)]


QUEUES = (1, 10, 100, 300, 1000)
SHARDS = (1, 10, 100, 1000, 2500, 5000)
SIZES = (10, 100, 1000, 10_000, 100_000, 262_144)
CONCURRENCY = (1, 4, 16, 64, 250, 1000)
PROCESSES = (1, 2)
CURVES = (
    Curve(
        "queues-idle",
        "Idle queues, one mapping each",
        "queues",
        "CPU ms a second, all together",
        "receives a second",
        QUEUES,
        _idle_queues,
        panel="idle",
        idle=True,
    ),
    Curve(
        "shards-idle",
        "Idle shards of one Kinesis stream, one mapping",
        "shards",
        "CPU ms a second, all together",
        "reads a second",
        SHARDS,
        _idle_shards,
        panel="idle",
        idle=True,
    ),
    Curve(
        "queues-busy",
        f"{SHARED:,} messages a second, ten at a time, spread over the queues",
        "queues",
        "CPU us a message",
        "messages a second",
        QUEUES,
        _busy(_shared, "deleted"),
        panel="the same load over more queues",
    ),
    Curve(
        "size-sqs",
        "SQS: bytes of a message's body, batches of 10",
        "bytes",
        "CPU us a message",
        "messages a second",
        SIZES,
        _busy(lambda size: [queue(f"size-{size}", TEN)], "deleted"),
        panel="size",
    ),
    Curve(
        "size-kinesis",
        "Kinesis: bytes of a record's data, one shard, batches of up to 1,000 records or 6 MB",
        "bytes",
        "CPU us a record",
        "records a second",
        SIZES,
        _busy(lambda size: [kinesis(f"busy-1-{size}", THOUSAND)], "read", UNPACED),
        panel="size",
    ),
    Curve(
        "concurrency",
        f"Invocations at a time, `[daemon] concurrency`; a handler that waits {WAIT:g} s; batches of 10",
        "invocations at a time",
        "CPU us a message",
        "messages a second",
        CONCURRENCY,
        _busy(lambda _: [queue("busy", function="waiting")], "deleted", x_is="concurrency"),
        panel="concurrency",
    ),
    Curve(
        "processes-sqs",
        "`--processes N`, SQS as in the bench: at 10 invocations at a time for each process",
        "processes",
        "CPU us a message",
        "messages a second",
        PROCESSES,
        _busy(lambda _: [queue("busy", TEN)], "deleted", x_is="processes"),
        panel="processes",
    ),
    Curve(
        "processes-kinesis",
        "`--processes N`, Kinesis as in the bench: 4 shards",
        "processes",
        "CPU us a record",
        "records a second",
        PROCESSES,
        _busy(lambda _: [kinesis("busy-4", THOUSAND)], "read", UNPACED, x_is="processes"),
        panel="processes",
    ),
)
