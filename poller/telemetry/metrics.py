"""Counts the facts and shows them in Prometheus' text format, named after Lambda's CloudWatch metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    Info,
    ProcessCollector,
)
from prometheus_client.exposition import generate_latest

from poller import __version__
from poller.model import Failed, LeaseEvent, NotInvoked
from poller.telemetry._series import Counter, Histogram
from poller.telemetry.gauges import Gauges

if TYPE_CHECKING:
    from collections.abc import Callable

    from poller.model import (
        ApiRequest,
        CircuitChanged,
        Delivered,
        DeliveryFailed,
        Dropped,
        FilteredOut,
        Invoked,
        LeaseChanged,
        Parked,
        Received,
        Settled,
        Spooled,
        StaleReceipts,
        StateChanged,
        Trimmed,
        Trouble,
        Unparked,
    )
    from poller.telemetry._series import Count, Durations
    from poller.telemetry.gauges import Snapshot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: Seconds; the last one is the longest timeout that Lambda knows.
DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)
#: Seconds; a long poll lasts up to 20.
API_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 21)
#: An endpoint chooses its error codes, so the number of series that they make has an end.
MAX_API_SERIES = 500

_OF_MAPPING = {
    "polled_events": "Records read from the source.",
    "filtered_out_events": "Records that no filter pattern matched.",
    "invoked_events": "Records in invocations; a retry counts again.",
    "failed_invoke_events": "Records that an invocation did not finish.",
    "deleted_events": "Records whose deletion the source confirmed.",
    "released_events": "Records given back to the source at once.",
    "committed_events": "Records of a stream that are done, so that a checkpoint may pass them.",
    "dropped_events": "Records of a stream given up without an on-failure destination, or too large for it.",
    "on_failure_destination_delivered_events": "Records given up that the on-failure destination has taken.",
    "on_success_destination_delivered_events": "Records that succeeded and of which the on-success destination knows.",
    "destination_delivery_failures": "Times that a destination did not take a batch; it is tried again.",
    "parked_events": "Records put aside because their key is parked.",
    "unparked_events": "Parked records that were handled after all.",
    "trims": "Times that a stream removed records before they were read.",
    "empty_receives": "Receives that brought nothing.",
    "stale_receipts": "Records processed but not deleted, because their receipt had expired.",
    "lease_claims": "Times that this worker took the lease of a shard.",
    "lease_handoffs": "Times that it gave one back, or to another worker, with its checkpoint.",
    "lease_losses": "Times that it lost one: not renewed in time, or taken by another worker.",
    "lease_renewal_failures": "Times that a renewal could not be written; it is tried again.",
    "circuit_breaker_trips": "Times that the circuit breaker opened, failed probes not counted.",
    "troubles": "Times that the source could not be read, or could not settle records.",
}
_OF_FUNCTION = {
    "invocations": "Handler runs, failed ones included.",
    "errors": "Handler runs that failed or timed out.",
    "throttles": "Invocations refused before a handler ran.",
}


class _MappingCounters(NamedTuple):
    polled_events: Count
    filtered_out_events: Count
    invoked_events: Count
    failed_invoke_events: Count
    deleted_events: Count
    released_events: Count
    committed_events: Count
    dropped_events: Count
    on_failure_destination_delivered_events: Count
    on_success_destination_delivered_events: Count
    destination_delivery_failures: Count
    parked_events: Count
    unparked_events: Count
    trims: Count
    empty_receives: Count
    stale_receipts: Count
    lease_claims: Count
    lease_handoffs: Count
    lease_losses: Count
    lease_renewal_failures: Count
    circuit_breaker_trips: Count
    troubles: Count


class _FunctionSeries(NamedTuple):
    invocations: Count
    errors: Count
    throttles: Count
    duration: Durations


class Metrics:
    """The observer behind /metrics. `status` is asked once a scrape."""

    def __init__(self, status: Callable[[], Snapshot]) -> None:
        self._status = status
        self._registry = registry = CollectorRegistry()
        self._gauges = Gauges()
        self._mapping_families = _families("mapping", _OF_MAPPING, registry)
        self._function_families = _families("function", _OF_FUNCTION, registry)
        self._durations = Histogram(
            "duration_seconds", "How long the handler ran.", ["function"], DURATION_BUCKETS, registry
        )
        self._requests = Counter(
            "api_requests", "Requests to AWS.", ["service", "operation", "outcome"], registry
        )
        self._request_durations = Histogram(
            "api_request_duration_seconds",
            "How long a request to AWS took, a long poll's waiting included.",
            ["service", "operation"],
            API_BUCKETS,
            registry,
        )
        # To look a series up costs more than to count does.
        self._mappings: dict[str, _MappingCounters] = {}
        self._functions: dict[str, _FunctionSeries] = {}
        self._api: dict[tuple[str, str, str], tuple[Count, Durations]] = {}
        self._register_process()

    def _register_process(self) -> None:
        self._registry.register(self._gauges)
        Info("poller_build", "Which poller runs.", registry=self._registry).info({"version": __version__})
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self) -> tuple[bytes, str]:
        """Return the body of a scrape and its content type."""
        snapshot = self._status()
        # A counter has to be seen at 0, or rate() misses its first increase.
        for mapping in snapshot.mappings:
            self._mapping(mapping.name)
        for function in snapshot.functions:
            self._function(function.name)
        self._gauges.snapshot = snapshot
        return generate_latest(self._registry), CONTENT_TYPE

    def forget(self, mapping: str) -> None:
        """Drop the series of a mapping that was removed."""
        self._gauges.leases.pop(mapping, None)
        if self._mappings.pop(mapping, None) is not None:
            for family in self._mapping_families.values():
                family.remove(mapping)

    # --- facts ---

    def received(self, fact: Received) -> None:
        counters = self._mapping(fact.mapping)
        if fact.records:
            counters.polled_events.inc(fact.records)
        else:
            counters.empty_receives.inc()

    def filtered_out(self, fact: FilteredOut) -> None:
        self._mapping(fact.mapping).filtered_out_events.inc(fact.records)

    def invoked(self, fact: Invoked) -> None:
        function = self._function(fact.function)
        if isinstance(fact.outcome, NotInvoked):
            function.throttles.inc()
            return
        function.invocations.inc()
        function.duration.observe(fact.duration)
        if isinstance(fact.outcome, Failed) and not fact.outcome.returned:
            function.errors.inc()
        counters = self._mapping(fact.mapping)
        counters.invoked_events.inc(fact.records)
        if fact.failed:
            counters.failed_invoke_events.inc(fact.failed)

    def settled(self, fact: Settled) -> None:
        counters = self._mapping(fact.mapping)
        if fact.deleted:
            counters.deleted_events.inc(fact.deleted)
        if fact.released:
            counters.released_events.inc(fact.released)
        if fact.committed:
            counters.committed_events.inc(fact.committed)

    def stale_receipts(self, fact: StaleReceipts) -> None:
        self._mapping(fact.mapping).stale_receipts.inc(fact.records)

    def trimmed(self, fact: Trimmed) -> None:
        self._mapping(fact.mapping).trims.inc()

    def dropped(self, fact: Dropped) -> None:
        self._mapping(fact.mapping).dropped_events.inc(fact.records)

    def delivered(self, fact: Delivered) -> None:
        counters = self._mapping(fact.mapping)
        if fact.succeeded:
            counters.on_success_destination_delivered_events.inc(fact.records)
        else:
            counters.on_failure_destination_delivered_events.inc(fact.records)

    def spooled(self, fact: Spooled) -> None:
        """What waits is a gauge and read from the status."""

    def delivery_failed(self, fact: DeliveryFailed) -> None:
        self._mapping(fact.mapping).destination_delivery_failures.inc()

    def parked(self, fact: Parked) -> None:
        self._mapping(fact.mapping).parked_events.inc(fact.records)

    def unparked(self, fact: Unparked) -> None:
        self._mapping(fact.mapping).unparked_events.inc(fact.records)

    def state_changed(self, fact: StateChanged) -> None:
        """The state is a gauge and read from the status."""

    def circuit_changed(self, fact: CircuitChanged) -> None:
        if fact.tripped:
            self._mapping(fact.mapping).circuit_breaker_trips.inc()

    def lease_changed(self, fact: LeaseChanged) -> None:
        counters = self._mapping(fact.mapping)
        match fact.event:
            case LeaseEvent.RENEWAL_FAILED:
                counters.lease_renewal_failures.inc()
                return
            case LeaseEvent.CLAIMED:
                counters.lease_claims.inc()
            case LeaseEvent.HANDED_OVER | LeaseEvent.RELEASED:
                counters.lease_handoffs.inc()
            case LeaseEvent.LOST:
                counters.lease_losses.inc()
        held = self._gauges.leases
        held[fact.mapping] = held.get(fact.mapping, 0) + (1 if fact.event is LeaseEvent.CLAIMED else -1)

    def trouble(self, fact: Trouble) -> None:
        self._mapping(fact.mapping).troubles.inc()

    def api_request(self, fact: ApiRequest) -> None:
        series = self._api.get((fact.service, fact.operation, fact.outcome))
        requests, durations = series or self._api_series(fact.service, fact.operation, fact.outcome)
        requests.inc()
        durations.observe(fact.duration)

    # --- series ---

    def _mapping(self, name: str) -> _MappingCounters:
        counters = self._mappings.get(name)
        if counters is None:
            families = self._mapping_families
            counters = _MappingCounters(**{key: family.of(name) for key, family in families.items()})
            self._mappings[name] = counters
        return counters

    def _function(self, name: str) -> _FunctionSeries:
        series = self._functions.get(name)
        if series is None:
            counters = {key: family.of(name) for key, family in self._function_families.items()}
            series = _FunctionSeries(**counters, duration=self._durations.of(name))
            self._functions[name] = series
        return series

    def _api_series(self, service: str, operation: str, outcome: str) -> tuple[Count, Durations]:
        durations = self._request_durations.of(service, operation)
        if len(self._api) >= MAX_API_SERIES:
            return self._requests.of(service, operation, "other"), durations
        series = self._requests.of(service, operation, outcome), durations
        self._api[service, operation, outcome] = series
        return series


def _families(label: str, texts: dict[str, str], registry: CollectorRegistry) -> dict[str, Counter]:
    return {name: Counter(name, text, [label], registry) for name, text in texts.items()}
