"""What is true at the moment of a scrape, as Prometheus' families."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from poller.model import CircuitState, MappingState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from poller.model import Workers


class ShardSnapshot(Protocol):
    """What the gauges of a shard show."""

    @property
    def shard(self) -> str: ...
    @property
    def iterator_age(self) -> float | None: ...
    @property
    def checkpoint_age(self) -> float: ...


class SpoolSnapshot(Protocol):
    """What the gauges of a spool show."""

    @property
    def entries(self) -> int: ...
    @property
    def bytes(self) -> int: ...


class ParkedSnapshot(Protocol):
    """What the gauges of parked keys show."""

    @property
    def keys(self) -> int: ...
    @property
    def records(self) -> int: ...


class MappingSnapshot(Protocol):
    """What the gauges of a mapping show."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def in_flight_invocations(self) -> int: ...
    @property
    def in_flight_records(self) -> int: ...
    @property
    def buffered_bytes(self) -> int: ...
    @property
    def receivers(self) -> int: ...
    @property
    def shards(self) -> Sequence[ShardSnapshot]: ...
    @property
    def circuit(self) -> str | None: ...
    @property
    def spool(self) -> Sequence[SpoolSnapshot]: ...
    @property
    def parked(self) -> ParkedSnapshot | None: ...


class FunctionSnapshot(Protocol):
    """What the gauges of a function show."""

    @property
    def name(self) -> str: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def workers(self) -> Workers | None: ...


class Snapshot(Protocol):
    """All that runs at one moment."""

    @property
    def mappings(self) -> Sequence[MappingSnapshot]: ...
    @property
    def functions(self) -> Sequence[FunctionSnapshot]: ...


class Gauges(Collector):
    """What is true at the moment of the scrape: read then, so that it costs nothing in between."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None
        self.leases: dict[str, int] = {}
        """How many are held, by mapping."""

    def collect(self) -> Iterator[Metric]:
        if self.snapshot is None:
            return
        mappings, functions = self.snapshot.mappings, self.snapshot.functions
        running = GaugeMetricFamily(
            "poller_concurrent_executions", "Handler runs in flight.", labels=["function"]
        )
        for function in functions:
            running.add_metric([function.name], function.in_flight)
        yield running
        yield from _workers(functions)
        for name, (text, read) in _MAPPING_GAUGES.items():
            family = GaugeMetricFamily(f"poller_{name}", text, labels=["mapping"])
            for mapping in mappings:
                family.add_metric([mapping.name], read(mapping))
            yield family
        yield _states(mappings)
        yield _circuits(mappings)
        yield from _shards(mappings)
        yield from _spools(mappings)
        yield from _parked(mappings)
        held = GaugeMetricFamily(
            "poller_lease_held", "Shards that this worker reads under a lease.", labels=["mapping"]
        )
        for name, count in self.leases.items():
            held.add_metric([name], count)
        yield held


_MAPPING_GAUGES: dict[str, tuple[str, Callable[[MappingSnapshot], int]]] = {
    "in_flight_invocations": ("Invocations in flight.", lambda mapping: mapping.in_flight_invocations),
    "in_flight_records": ("Records received and not yet settled.", lambda mapping: mapping.in_flight_records),
    "buffered_bytes": ("Bytes of records held in memory.", lambda mapping: mapping.buffered_bytes),
    "receivers": ("Receives that run side by side.", lambda mapping: mapping.receivers),
}


_WORKER_COUNTERS: dict[str, tuple[str, Callable[[Workers], float]]] = {
    "worker_starts": ("Worker processes started: cold starts.", lambda workers: workers.started),
    "worker_crashes": ("Worker processes that ended by themselves.", lambda workers: workers.crashed),
    "billed_duration_seconds": (
        "Duration of the invocations in workers as Lambda would bill it, cold starts included.",
        lambda workers: workers.billed_seconds,
    ),
    "init_duration_seconds": ("Duration of cold starts.", lambda workers: workers.init_seconds),
    "dropped_log_lines": (
        "Lines that workers printed beyond what may be logged.",
        lambda workers: workers.dropped_lines,
    ),
}


def _workers(functions: Iterable[FunctionSnapshot]) -> Iterator[Metric]:
    known = [(function.name, function.workers) for function in functions if function.workers is not None]
    states = GaugeMetricFamily("poller_workers", "Worker processes.", labels=["function", "state"])
    memory = GaugeMetricFamily(
        "poller_worker_memory_bytes_max", "The most that a worker process has used.", labels=["function"]
    )
    for name, workers in known:
        for state in ("starting", "idle", "busy", "ending"):
            states.add_metric([name, state], getattr(workers, state))
        memory.add_metric([name], workers.peak_memory)
    yield from (states, memory)
    for counter, (text, read) in _WORKER_COUNTERS.items():
        family = CounterMetricFamily(f"poller_{counter}", text, labels=["function"])
        for name, workers in known:
            family.add_metric([name], read(workers))
        yield family


def _states(mappings: Iterable[MappingSnapshot]) -> GaugeMetricFamily:
    text = "1 for the state that the mapping is in, 0 for the others."
    family = GaugeMetricFamily("poller_mapping_state", text, labels=["mapping", "state"])
    for mapping in mappings:
        for state in MappingState:
            family.add_metric([mapping.name, state.value], float(mapping.state == state))
    return family


def _circuits(mappings: Iterable[MappingSnapshot]) -> GaugeMetricFamily:
    text = "1 for the state that the circuit breaker is in, 0 for the others; for mappings that have one."
    family = GaugeMetricFamily("poller_circuit_breaker_state", text, labels=["mapping", "state"])
    for mapping in mappings:
        if mapping.circuit is not None:
            for state in CircuitState:
                family.add_metric([mapping.name, state.value], float(mapping.circuit == state))
    return family


def _spools(mappings: Iterable[MappingSnapshot]) -> Iterator[GaugeMetricFamily]:
    labels = ["mapping", "kind"]
    batches = GaugeMetricFamily(
        "poller_spooled_batches", "What waits in the spool: deliveries of batches.", labels=labels
    )
    size = GaugeMetricFamily("poller_spool_bytes", "Bytes of what waits in the spool.", labels=labels)
    for mapping in mappings:
        batches.add_metric([mapping.name, "delivery"], sum(one.entries for one in mapping.spool))
        size.add_metric([mapping.name, "delivery"], sum(one.bytes for one in mapping.spool))
    yield from (batches, size)


def _shards(mappings: Iterable[MappingSnapshot]) -> Iterator[GaugeMetricFamily]:
    ages = GaugeMetricFamily(
        "poller_iterator_age_seconds",
        "How far behind the end of its shard a mapping is: the age of the oldest record that is not done, 0 for none.",
        labels=["mapping", "shard"],
    )
    oldest = GaugeMetricFamily(
        "poller_iterator_age_seconds_max",
        "The highest iterator age of a mapping's shards.",
        labels=["mapping"],
    )
    unsaved = GaugeMetricFamily(
        "poller_checkpoint_age_seconds",
        "For how long progress has been waiting to be saved.",
        labels=["mapping", "shard"],
    )
    for mapping in mappings:
        known = [shard.iterator_age for shard in mapping.shards if shard.iterator_age is not None]
        if known:
            oldest.add_metric([mapping.name], max(known))
        for shard in mapping.shards:
            unsaved.add_metric([mapping.name, shard.shard], shard.checkpoint_age)
            if shard.iterator_age is not None:
                ages.add_metric([mapping.name, shard.shard], shard.iterator_age)
    yield from (ages, oldest, unsaved)


def _parked(mappings: Iterable[MappingSnapshot]) -> Iterator[GaugeMetricFamily]:
    keys = GaugeMetricFamily(
        "poller_parked_keys",
        "Keys whose records wait in the spool, because one of them failed.",
        labels=["mapping"],
    )
    records = GaugeMetricFamily(
        "poller_parked_records", "Records that wait under parked keys.", labels=["mapping"]
    )
    for mapping in mappings:
        if mapping.parked is not None:
            keys.add_metric([mapping.name], mapping.parked.keys)
            records.add_metric([mapping.name], mapping.parked.records)
    yield from (keys, records)
