"""What is measured. Each scenario runs once a round, one after the other, so that all of a round share a minute.

A throughput scenario returns CPU seconds of the measured process, its messages and its wall time for a window after a
warm-up; the canned endpoint's own share of a core in that window shows that it was not the limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from tests.bench import processes
from tests.bench.canned_reply import IDLE
from tests.bench.processes import Endpoint, Mapped, daemon, dynamodb, kinesis, queue, run_loop

if TYPE_CHECKING:
    from collections.abc import Callable

Figures = dict[str, float]

#: The baseline of each kind of source.
BASELINES = {"sqs": "aiobotocore", "kinesis": "kinesis-aiobotocore", "dynamodb": "dynamodb-aiobotocore"}
#: What others use instead.
OTHERS = {"sqs": "sqs-consumer", "kinesis": "async-kinesis"}
#: What the variants of each are compared with.
PLAIN = {"sqs": "poller", "kinesis": "kinesis", "dynamodb": "dynamodb"}
IDLE_QUEUES = 200
IDLE_SHARDS = 1000
#: Seconds; two long polls.
IDLE_WINDOW = 40.0
#: For which a busy daemon's loop is watched.
WATCHED = 2.0
TEN = "scaling_config.maximum_concurrency = 10"
_PASS = "filter_criteria.filters = [{{ pattern = {} }}]"
HALF = _PASS.format('{ body = { status = ["paid"] } }')
#: Of a reply of the busy streams.
THOUSAND = 'batch_size = 1000\nstarting_position = "TRIM_HORIZON"'
KINESIS_HALF = _PASS.format('{ data = { status = ["paid"] } }')
DYNAMODB_HALF = _PASS.format('{ dynamodb = { NewImage = { status = { S = ["paid"] } } } }')
LANES = "parallelization_factor = 10"
#: Poller without the pauses that the quota of a shard wants.
UNPACED = "tests.bench.unpaced"


@dataclass(frozen=True)
class Timing:
    """Seconds."""

    warm_up: float
    seconds: float


@dataclass(frozen=True)
class Bar:
    """What issue or design ask of a figure: at least or at most `value`."""

    figure: str
    value: float
    unit: str
    at_most: bool = False

    def met(self, measured: float) -> bool:
        return measured <= self.value if self.at_most else measured >= self.value

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.value:g}{self.unit}"


#: As long as the loop may be held up.
UNBLOCKED = Bar("longest", 20, " ms", at_most=True)


@dataclass(frozen=True)
class Scenario:
    """One line of the report, or several."""

    name: str
    title: str
    run: Callable[[Endpoint, Timing], Figures]
    bars: tuple[Bar, ...] = ()
    once: bool = False
    """Measured in the first round only, because it repeats itself inside or lasts long."""
    throughput: str = ""
    """The kind of source of which it measures the throughput."""


# --- throughput ---------------------------------------------------------------------------------------------------------


def _finish(figures: Figures, before: dict[str, float], after: dict[str, float], done: str) -> Figures:
    """Add what follows from the figures and from what the endpoint served meanwhile; `done` is its word for that."""
    if not figures["messages"]:
        raise RuntimeError("nothing was done")
    per_cpu, per_wall = figures["messages"] / figures["cpu"], figures["messages"] / figures["wall"]
    served = (after["cpu"] - before["cpu"]) / (after[done] - before.get(done, 0))
    return {
        **figures,
        "per_cpu": per_cpu,
        "per_wall": per_wall,
        "us": 1e6 / per_cpu,
        # By message and not by time, because the endpoint served the warm-up too.
        "endpoint_share": served * per_wall,
    }


def _loop(name: str, done: str = "deleted") -> Callable[[Endpoint, Timing], Figures]:
    return _measured(partial(run_loop, name), done)


def _measured(
    process: Callable[[str, float, float], Figures], done: str
) -> Callable[[Endpoint, Timing], Figures]:
    """Of a process that measures itself, given the endpoint's URL, warm-up and seconds."""

    def run(endpoint: Endpoint, timing: Timing) -> Figures:
        before = endpoint.stats()
        measured = process(endpoint.url, timing.warm_up, timing.seconds)
        return _finish(measured, before, endpoint.stats(), done)

    return run


def _poller(mapped: Mapped, *, tls: bool = False) -> Callable[[Endpoint, Timing], Figures]:
    on_queue = mapped.resource.startswith("sqs:")
    module, settled, done = (
        ("poller", "poller_deleted_events_total", "deleted")
        if on_queue
        else (UNPACED, "poller_committed_events_total", "read")
    )

    def run(endpoint: Endpoint, timing: Timing) -> Figures:
        url, ca_bundle = (endpoint.secure_url, endpoint.ca_bundle) if tls else (endpoint.url, None)
        with daemon(url, [mapped], module, ca_bundle=ca_bundle) as running:
            running.ready()
            processes.pause(timing.warm_up)
            served, before = endpoint.stats(), running.metrics()
            processes.pause(timing.seconds)
            after, then = running.metrics(), endpoint.stats()
            # To look at the process costs something, so it is not done in the window.
            watched = running.watch()
            processes.pause(WATCHED)
            figures = {
                "messages": after[settled] - before[settled],
                "cpu": after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"],
                "wall": after["at"] - before["at"],
                "rss": after["process_resident_memory_bytes"],
                "longest": 1000 * max(running.blocks(watched), default=0.0),
                **running.allocations(settled),
            }
            # What of a stream was in hand at the beginning of the window was served before it.
            if then[done] - (served.get(done, 0) if on_queue else 0) < figures["messages"]:
                raise RuntimeError("the daemon claims more than the endpoint has seen")
            return _finish(figures, served, then, done)

    return run


# --- standing still, and starting ---------------------------------------------------------------------------------------


def _idle(mappings: list[Mapped], operation: str, readers: int) -> Callable[[Endpoint, Timing], Figures]:
    def run(endpoint: Endpoint, timing: Timing) -> Figures:
        with daemon(endpoint.url, mappings) as running:
            start = running.ready()
            processes.pause(timing.warm_up + 3)
            served, before = endpoint.stats(), running.metrics()
            processes.pause(IDLE_WINDOW)
            after, then = running.metrics(), endpoint.stats()
        wall = after["at"] - before["at"]
        reads = then[operation] - served[operation]
        cpu = after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]
        return {
            "core": 100 * cpu / wall,
            "mb": after["process_resident_memory_bytes"] / 1e6,
            "reads": 60 * reads / wall / readers,
            "read_us": 1e6 * cpu / reads,
            "ready": start,
        }

    return run


def _blocked(mapped: Mapped) -> Callable[[Endpoint, Timing], Figures]:
    def run(endpoint: Endpoint, timing: Timing) -> Figures:
        with daemon(endpoint.url, [mapped], UNPACED) as running:
            running.ready()
            processes.pause(timing.warm_up)
            begun, before = running.watch(), endpoint.stats()
            processes.pause(timing.seconds)
            then, blocks = endpoint.stats(), running.blocks(begun)
        return {
            "records": (then["read"] - before["read"]) / (then["GetRecords"] - before["GetRecords"]),
            "longest": 1000 * max(blocks, default=0.0),
            "typical": 1000 * median(blocks or [0.0]),
        }

    return run


def _start(endpoint: Endpoint, timing: Timing) -> Figures:
    with daemon(endpoint.url, [queue(f"{IDLE}{number}") for number in range(10)]) as running:
        ready = running.ready()
        used = running.metrics()["process_cpu_seconds_total"]
    return {"ready": ready, "start_cpu": used}


def _check(endpoint: Endpoint, timing: Timing) -> Figures:
    return {"check": processes.check(endpoint.url)}


def _streams(
    source: str, mapped: Callable[[str, str], Mapped], half: str, bars: tuple[Bar, ...]
) -> tuple[Scenario, ...]:
    """The scenarios that both kinds of stream have."""

    def one(name: str, title: str, stream: str, *more: str, bars: tuple[Bar, ...] = ()) -> Scenario:
        run = _poller(mapped(stream, "\n".join((THOUSAND, *more))))
        return Scenario(source + name, f"{source}: {title}", run, bars, throughput=source)

    return (
        one("", "4 shards, 1,000 records a reply and batch", "busy-4", bars=bars),
        one("-1", "the same, 1 shard", "busy-1", bars=bars),
        one("-filter", "4 shards, a filter passes half", "busy-4", half),
        one("-lanes", "4 shards, parallelization_factor 10", "busy-4", LANES),
        Scenario(
            f"{source}-wire",
            "GetRecords over the wire alone",
            _loop(f"{source}-wire", "read"),
            throughput=source,
        ),
        Scenario(
            BASELINES[source],
            "aiobotocore GetRecords loop",
            _loop(BASELINES[source], "read"),
            throughput=source,
        ),
    )


SCENARIOS = (
    Scenario(
        "poller",
        "poller: receive, event, handler, delete",
        _poller(queue("busy", TEN)),
        (Bar("per_cpu", 50_000, ""), Bar("ratio", 7, " x"), Bar("other", 7, " x"), UNBLOCKED),
        throughput="sqs",
    ),
    Scenario(
        "poller-tls",
        "the same over TLS",
        _poller(queue("busy", TEN), tls=True),
        (Bar("of_plain", 60, " %"),),
        throughput="sqs",
    ),
    Scenario(
        "poller-filter",
        "the same, a filter passes half",
        _poller(queue("busy", f"{TEN}\n{HALF}")),
        (Bar("of_plain", 80, " %"),),
        throughput="sqs",
    ),
    Scenario(
        "poller-default",
        "poller, concurrency not limited",
        _poller(queue("busy")),
        (Bar("ratio", 7, " x"),),
        throughput="sqs",
    ),
    Scenario("wire", "wire alone: receive, delete", _loop("wire"), throughput="sqs"),
    Scenario(BASELINES["sqs"], "aiobotocore loop", _loop(BASELINES["sqs"]), throughput="sqs"),
    Scenario("boto3", "boto3 loop", _loop("boto3"), throughput="sqs"),
    Scenario(
        "sqs-consumer",
        "sqs-consumer (Node), 10 consumers",
        _measured(processes.run_sqs_consumer, "deleted"),
        throughput="sqs",
    ),
    *_streams(
        "kinesis",
        kinesis,
        KINESIS_HALF,
        (Bar("per_cpu", 250_000, ""), Bar("ratio", 6, " x"), Bar("other", 15, " x"), UNBLOCKED),
    ),
    Scenario("async-kinesis", "async-kinesis consumer", _loop("async-kinesis", "read"), throughput="kinesis"),
    *_streams(
        "dynamodb",
        dynamodb,
        DYNAMODB_HALF,
        (Bar("per_cpu", 60_000, ""), Bar("ratio", 6, " x"), UNBLOCKED),
    ),
    Scenario(
        "idle",
        f"{IDLE_QUEUES} idle mappings",
        _idle([queue(f"{IDLE}{number}") for number in range(IDLE_QUEUES)], "ReceiveMessage", IDLE_QUEUES),
        (
            Bar("core", 1, " % of a core", True),
            Bar("mb", 150, " MB", True),
            Bar("reads", 3.05, " a minute", True),
        ),
        once=True,
    ),
    Scenario(
        "idle-shards",
        f"{IDLE_SHARDS} idle Kinesis shards",
        _idle([kinesis(f"{IDLE}{IDLE_SHARDS}", THOUSAND)], "GetRecords", IDLE_SHARDS),
        (Bar("reads", 72, " a minute", True),),
        once=True,
    ),
    Scenario(
        "blocked",
        "10,000 records of 1 KB a reply",
        _blocked(kinesis("overfull-1", THOUSAND)),
        (UNBLOCKED,),
    ),
    Scenario(
        "blocked-limit",
        "as many as poller asks for",
        _blocked(kinesis("full-1", THOUSAND)),
        (UNBLOCKED,),
    ),
    Scenario("start", "10 mappings, ready", _start, (Bar("ready", 2, " s", True),)),
    Scenario("check", "`poller check`", _check, (Bar("check", 0.6, " s", True),)),
)
