"""What is measured. Each scenario runs once a round, one after the other, so that all of a round share a minute.

A throughput scenario returns CPU seconds of the measured process, its messages and its wall time for a window after a
warm-up; the canned endpoint's own share of a core in that window shows that it was not the limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.bench import processes
from tests.bench.canned import IDLE
from tests.bench.processes import Endpoint, daemon, run_loop

if TYPE_CHECKING:
    from collections.abc import Callable

Figures = dict[str, float]

BASELINE = "aiobotocore"
IDLE_QUEUES = 200
#: Seconds; two long polls.
IDLE_WINDOW = 40.0
TEN = "scaling_config.maximum_concurrency = 10"
HALF = 'filter_criteria.filters = [{ pattern = { body = { status = ["paid"] } } }]'


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


@dataclass(frozen=True)
class Scenario:
    """One line of the report, or several."""

    name: str
    title: str
    run: Callable[[Endpoint, Timing], Figures]
    bars: tuple[Bar, ...] = ()
    once: bool = False
    """Measured in the first round only, because it repeats itself inside or lasts long."""
    throughput: bool = True


# --- throughput ---------------------------------------------------------------------------------------------------------


def _finish(figures: Figures, before: dict[str, float], after: dict[str, float]) -> Figures:
    """Add what follows from the figures and from what the endpoint served meanwhile."""
    if not figures["messages"]:
        raise RuntimeError("nothing was deleted")
    per_cpu, per_wall = figures["messages"] / figures["cpu"], figures["messages"] / figures["wall"]
    served = (after["cpu"] - before["cpu"]) / (after["deleted"] - before.get("deleted", 0))
    return {
        **figures,
        "per_cpu": per_cpu,
        "per_wall": per_wall,
        "batch_us": 1e7 / per_cpu,
        # By message and not by time, because the endpoint served the warm-up too.
        "endpoint_share": served * per_wall,
    }


def _loop(name: str) -> Callable[[Endpoint, Timing], Figures]:
    def run(endpoint: Endpoint, timing: Timing) -> Figures:
        before = endpoint.stats()
        measured = run_loop(name, endpoint.url, timing.warm_up, timing.seconds)
        return _finish(measured, before, endpoint.stats())

    return run


def _poller(more: str) -> Callable[[Endpoint, Timing], Figures]:
    def run(endpoint: Endpoint, timing: Timing) -> Figures:
        with daemon(endpoint.url, ["busy"], more) as running:
            running.ready()
            processes.pause(timing.warm_up)
            served, before = endpoint.stats(), running.metrics()
            processes.pause(timing.seconds)
            after = running.metrics()
            figures = {
                "messages": after["poller_deleted_events_total"] - before["poller_deleted_events_total"],
                "cpu": after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"],
                "wall": after["at"] - before["at"],
                "rss": after["process_resident_memory_bytes"],
            }
            then = endpoint.stats()
            if then["deleted"] - served.get("deleted", 0) < figures["messages"]:
                raise RuntimeError("the daemon claims more deletions than the endpoint has seen")
            return _finish(figures, served, then)

    return run


# --- standing still, and starting ---------------------------------------------------------------------------------------


def _idle(endpoint: Endpoint, timing: Timing) -> Figures:
    queues = [f"{IDLE}{number}" for number in range(IDLE_QUEUES)]
    with daemon(endpoint.url, queues) as running:
        start = running.ready()
        processes.pause(timing.warm_up + 3)
        served, before = endpoint.stats(), running.metrics()
        processes.pause(IDLE_WINDOW)
        after, then = running.metrics(), endpoint.stats()
    wall = after["at"] - before["at"]
    receives = then["ReceiveMessage"] - served["ReceiveMessage"]
    return {
        "core": 100 * (after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]) / wall,
        "mb": after["process_resident_memory_bytes"] / 1e6,
        "receives": 60 * receives / wall / IDLE_QUEUES,
        "ready": start,
    }


def _start(endpoint: Endpoint, timing: Timing) -> Figures:
    with daemon(endpoint.url, [f"{IDLE}{number}" for number in range(10)]) as running:
        ready = running.ready()
        used = running.metrics()["process_cpu_seconds_total"]
    return {"ready": ready, "start_cpu": used}


def _check(endpoint: Endpoint, timing: Timing) -> Figures:
    return {"check": processes.check(endpoint.url)}


SCENARIOS = (
    Scenario(
        "poller",
        "poller: receive, event, handler, delete",
        _poller(TEN),
        (Bar("ratio", 3, " x"),),
    ),
    Scenario(
        "poller-filter",
        "the same, a filter passes half",
        _poller(f"{TEN}\n{HALF}"),
        (Bar("of_poller", 80, " %"),),
    ),
    Scenario(
        "poller-default",
        "poller, concurrency not limited",
        _poller(""),
        (Bar("ratio", 3, " x"),),
    ),
    Scenario("wire", "wire alone: receive, delete", _loop("wire")),
    Scenario(BASELINE, "aiobotocore loop", _loop(BASELINE)),
    Scenario("boto3", "boto3 loop", _loop("boto3")),
    Scenario(
        "idle",
        f"{IDLE_QUEUES} idle mappings",
        _idle,
        (
            Bar("core", 1, " % of a core", True),
            Bar("mb", 150, " MB", True),
            Bar("receives", 3.05, " a minute", True),
        ),
        once=True,
        throughput=False,
    ),
    Scenario("start", "10 mappings, ready", _start, (Bar("ready", 2, " s", True),), throughput=False),
    Scenario("check", "`poller check`", _check, (Bar("check", 0.6, " s", True),), throughput=False),
)
