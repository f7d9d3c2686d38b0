"""Where a curve of cost against load bends, and why.

Where is computed from the run; why is what profiles (py-spy, perf) of the points said, and holds as long as the code that
they named does what it did. `CURVES` of `tests.bench.curves` are named here.
"""

from __future__ import annotations

from itertools import pairwise
from statistics import linear_regression
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.curves import Point

#: A cost that is so many times another one is not the same any more: less is the noise of a shared machine.
BEND = 1.5
#: Of a core: with no more left, what there is to do waits.
FULL = 0.95

WHY = {
    "queues-idle": """\
A queue is one long poll every 20 s, one at a time. The rest is the housekeeping of the daemon, which costs as much as
some sixty queues. The start grows too: a mapping asks for its queue's URL and attributes, through the SDK.""",
    "shards-idle": """\
A shard is read about once a second. A read costs several times less when there are many, because one turn of the loop
serves some of them, on warm caches. Where the reads fill the core, shards are read less often, and all together cost
that core. A quarter of a read is the call (signing, HTTP, JSON); most of the rest is the engine's waiting for records
that do not come: a task, cancel scopes and timers for each read, a turn of the pipeline. The start bends earlier than
the cost: the iterator of each shard is sought first, of 40 shards at a time, while those that are open already are
read twice a second in their first seconds, and leave less and less of the core to the others. A longer
`idle_interval_in_seconds` divides the reads, but not those of the start.""",
    "queues-busy": """\
What counts is how much comes together, not over how many queues it is spread. That a message costs more than at full
speed (below, by size) is because of the load: here each batch wakes the process for itself, and the same code takes
longer on caches that others have used meanwhile. Nearly all of the difference is time in Python, little in the
kernel. One queue alone cost 91 us a message at 200 messages a second, 47 at 2,000, 29 at 10,000, and 18 at full
speed.""",
    "size-sqs": """\
Up to 1 KB a message is its envelope, a receipt and attributes, and its tenth of two calls. Beyond, bytes count: each
is copied out of the socket, joined to a reply, and parsed by orjson into a string. At 256 KB a third of the CPU is
copying alone. Replies of more than 1 MB (from about 100 KB a message) are parsed in slices, so that the loop is not
held up; that copies once more.""",
    "size-kinesis": """\
A thousand records share one call, so the base of a record is an eighth of a message's, and bytes count from below 1
KB on, base64 makes a third more of them. From 10 KB up the cost of a byte stays the same; a third to half of the CPU
is copying. From 4 KB on reads ask for fewer records (about 4 MB a page), and larger batches than 6 MB there are none,
so fewer share what is done once.""",
    "concurrency": """\
At one invocation at a time there are two batches a second, and these few messages pay for the housekeeping of the
daemon and for cold caches. What is flat after that is the invocation: one that waits is a timer and a suspended
coroutine, and nothing looks at the others when one ends. Memory grows with what is in hand, ten messages and their
event each.""",
    "processes-sqs": """\
Daemons on one queue know nothing of each other, so the cost of a message stays. What they do together is bounded by
what the endpoint and everybody else leave of the cores: see the last columns.""",
    "processes-kinesis": """\
The daemons divide the shards by leases in one SQLite file, which costs a write a second for each busy shard.""",
}


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """How much y grows for each x: least squares."""
    return linear_regression(xs, ys).slope


def each(points: Sequence[Point], *, idle: bool) -> list[float]:
    """The cost of one at each point: of a message, or of what the load counts, less the cost at the first point."""
    if not idle:
        return [point.cost for point in points]
    first = points[0]
    return [(point.cost - first.cost) / (point.x - first.x) for point in points[1:]]


def where(points: Sequence[Point], load: str, *, idle: bool) -> str:
    """In a sentence or two."""
    costs = each(points, idle=idle)
    shown = points[1:] if idle else points
    return " ".join(filter(None, (_level(shown, costs, load), _full(points, load))))


def _level(points: Sequence[Point], costs: Sequence[float], load: str) -> str:
    low = min(costs)
    flat = [cost < BEND * low for cost in costs]
    if all(flat):
        return f"No bend from {points[0].x:,} to {points[-1].x:,} {load}."
    said: list[str] = []
    for (before, was), (after, now) in pairwise(zip(points, flat, strict=True)):
        if was != now:
            said.append(f"{'flat from' if now else 'dearer from'} {after.x:,} on (at {before.x:,} it is not)")
    times = max(costs) / low
    most = points[costs.index(max(costs))]
    return f"{'; '.join(said).capitalize()}. Dearest at {most.x:,} {load}: {times:,.1f} times the least."


def _full(points: Sequence[Point], load: str) -> str:
    full = [point for point in points if point.core >= FULL]
    return f"The core is full at {', '.join(f'{point.x:,}' for point in full)} {load}." if full else ""
