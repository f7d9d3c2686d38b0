from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from poller import __version__
from poller.model import (
    ApiRequest,
    CircuitChanged,
    CircuitState,
    Delivered,
    DeliveryFailed,
    Dropped,
    Failed,
    FilteredOut,
    FunctionError,
    Invoked,
    LeaseChanged,
    LeaseEvent,
    MappingState,
    NotInvoked,
    Outcome,
    Parked,
    PartlyFailed,
    Received,
    Settled,
    Spooled,
    StaleReceipts,
    StateChanged,
    Succeeded,
    Trimmed,
    Trouble,
    Unparked,
    Workers,
)
from poller.telemetry import metrics as module
from poller.telemetry.gauges import Gauges
from poller.telemetry.metrics import Metrics
from poller.telemetry.observers import Fanout


@dataclass(frozen=True)
class Shard:
    shard: str
    iterator_age: float | None
    checkpoint_age: float = 0.0


@dataclass(frozen=True)
class Waiting:
    entries: int
    bytes: int


@dataclass(frozen=True)
class ParkedKeys:
    keys: int
    records: int


@dataclass(frozen=True)
class Mapping:
    name: str = "orders"
    state: MappingState = MappingState.RUNNING
    in_flight_invocations: int = 2
    in_flight_records: int = 20
    buffered_bytes: int = 4096
    receivers: int = 5
    shards: tuple[Shard, ...] = ()
    circuit: CircuitState | None = None
    spool: tuple[Waiting, ...] = ()
    parked: ParkedKeys | None = None


@dataclass(frozen=True)
class Function:
    name: str = "f"
    in_flight: int = 2
    workers: Workers | None = None


@dataclass(frozen=True)
class Status:
    mappings: tuple[Mapping, ...] = ()
    functions: tuple[Function, ...] = ()


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain; version=0.0.4")
    families = text_string_to_metric_families(body.decode())
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for f in families
        for sample in f.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((f"poller_{name}", frozenset(labels.items())))


def invoked(outcome: Outcome, failed: int = 0) -> Invoked:
    return Invoked("orders", "f", "id", records=10, failed=failed, outcome=outcome, duration=0.2)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(Status)


def test_a_successful_invocation_counts_its_run_its_records_and_its_duration(metrics: Metrics) -> None:
    metrics.invoked(invoked(Succeeded()))
    assert value(metrics, "invocations_total", function="f") == 1
    assert value(metrics, "errors_total", function="f") == 0
    assert value(metrics, "duration_seconds_sum", function="f") == 0.2
    assert value(metrics, "duration_seconds_bucket", function="f", le="0.1") == 0
    assert value(metrics, "duration_seconds_bucket", function="f", le="0.25") == 1
    assert value(metrics, "invoked_events_total", mapping="orders") == 10
    assert value(metrics, "failed_invoke_events_total", mapping="orders") == 0


@pytest.mark.parametrize("timed_out", [False, True])
def test_a_function_error_and_a_timeout_count_as_errors(metrics: Metrics, timed_out: bool) -> None:
    metrics.invoked(invoked(Failed(FunctionError("E", "no", timed_out=timed_out)), failed=10))
    assert value(metrics, "invocations_total", function="f") == 1
    assert value(metrics, "errors_total", function="f") == 1
    assert value(metrics, "failed_invoke_events_total", mapping="orders") == 10


def test_a_partial_failure_fails_events_but_is_no_error(metrics: Metrics) -> None:
    metrics.invoked(invoked(PartlyFailed(frozenset({"a", "b"})), failed=2))
    assert value(metrics, "errors_total", function="f") == 0
    assert value(metrics, "failed_invoke_events_total", mapping="orders") == 2


def test_a_reply_that_makes_no_sense_fails_events_but_is_no_error(metrics: Metrics) -> None:
    error = FunctionError("Poller.ResponseNotAnObject", "17")
    metrics.invoked(invoked(Failed(error, returned=True), failed=10))
    assert value(metrics, "invocations_total", function="f") == 1
    assert value(metrics, "errors_total", function="f") == 0
    assert value(metrics, "failed_invoke_events_total", mapping="orders") == 10


def test_a_throttle_is_neither_an_invocation_nor_an_error(metrics: Metrics) -> None:
    metrics.invoked(invoked(NotInvoked("no slot"), failed=10))
    assert value(metrics, "throttles_total", function="f") == 1
    assert value(metrics, "invocations_total", function="f") == 0
    assert value(metrics, "errors_total", function="f") == 0
    assert value(metrics, "duration_seconds_count", function="f") == 0
    assert value(metrics, "invoked_events_total", mapping="orders") is None


def test_receives_and_their_end_are_counted_by_mapping(metrics: Metrics) -> None:
    metrics.received(Received("orders", 10))
    metrics.received(Received("orders", 0))
    metrics.filtered_out(FilteredOut("orders", 3))
    metrics.settled(Settled("orders", deleted=5, left=1))
    metrics.settled(Settled("orders", released=1))
    metrics.stale_receipts(StaleReceipts("orders", 2, "message"))
    metrics.trouble(Trouble("orders", "no network", 1.0))
    expected = {
        "polled_events_total": 10,
        "empty_receives_total": 1,
        "filtered_out_events_total": 3,
        "deleted_events_total": 5,
        "released_events_total": 1,
        "stale_receipts_total": 2,
        "troubles_total": 1,
    }
    assert {name: value(metrics, name, mapping="orders") for name in expected} == expected


def test_what_becomes_of_a_streams_records_is_counted_by_mapping(metrics: Metrics) -> None:
    metrics.settled(Settled("clicks", committed=7))
    metrics.trimmed(Trimmed("clicks", "shard-1", "1", 2.0))
    metrics.dropped(Dropped("clicks", "shard-1", 3, "RecordAgeExceeded", "1", "3"))
    metrics.delivered(Delivered("clicks", "shard-1", 4, "RetryAttemptsExhausted"))
    metrics.delivered(Delivered("clicks", "shard-1", 5, "Success", succeeded=True))
    metrics.delivery_failed(DeliveryFailed("clicks", "shard-1", "throttled", 1.0))
    metrics.spooled(Spooled("clicks", "shard-1", 6, "RetryAttemptsExhausted", "throttled"))
    metrics.parked(Parked("clicks", "shard-1", "k", 5))
    metrics.unparked(Unparked("clicks", "k", 2, free=False))
    expected = {
        "committed_events_total": 7,
        "trims_total": 1,
        "dropped_events_total": 3,
        "on_failure_destination_delivered_events_total": 4,
        "on_success_destination_delivered_events_total": 5,
        "destination_delivery_failures_total": 1,
        "parked_events_total": 5,
        "unparked_events_total": 2,
    }
    assert {name: value(metrics, name, mapping="clicks") for name in expected} == expected


def test_what_waits_in_the_spool_is_shown_by_mapping_and_nothing_is_zero() -> None:
    spooling = Mapping("clicks", spool=(Waiting(3, 700), Waiting(1, 50)))
    metrics = Metrics(lambda: Status((spooling, Mapping("orders"))))
    for name, mapping, number in (
        ("spooled_batches", "clicks", 4),
        ("spool_bytes", "clicks", 750),
        ("spooled_batches", "orders", 0),
        ("spool_bytes", "orders", 0),
    ):
        assert value(metrics, name, mapping=mapping, kind="delivery") == number


def test_ages_are_shown_by_shard_and_the_highest_by_mapping() -> None:
    shards = (Shard("s-1", 2.5, 0.5), Shard("s-2", 60.0), Shard("s-3", None))
    metrics = Metrics(lambda: Status((Mapping("clicks", shards=shards), Mapping("orders"))))
    assert value(metrics, "iterator_age_seconds", mapping="clicks", shard="s-1") == 2.5
    assert value(metrics, "iterator_age_seconds", mapping="clicks", shard="s-3") is None
    assert value(metrics, "iterator_age_seconds_max", mapping="clicks") == 60
    assert value(metrics, "iterator_age_seconds_max", mapping="orders") is None
    assert value(metrics, "checkpoint_age_seconds", mapping="clicks", shard="s-1") == 0.5
    assert value(metrics, "checkpoint_age_seconds", mapping="clicks", shard="s-3") == 0


def test_parked_keys_are_shown_of_mappings_that_park() -> None:
    mappings = (
        Mapping("clicks", parked=ParkedKeys(2, 30)),
        Mapping("idle", parked=ParkedKeys(0, 0)),
        Mapping(),
    )
    metrics = Metrics(lambda: Status(mappings=mappings))
    assert value(metrics, "parked_keys", mapping="clicks") == 2
    assert value(metrics, "parked_records", mapping="clicks") == 30
    assert value(metrics, "parked_keys", mapping="idle") == 0
    assert value(metrics, "parked_keys", mapping="orders") is None


def test_requests_to_aws_are_counted_by_outcome_and_timed_by_operation(metrics: Metrics) -> None:
    metrics.api_request(ApiRequest("sqs", "ReceiveMessage", "ok", 0.3))
    metrics.api_request(ApiRequest("sqs", "ReceiveMessage", "ok", 0.3))
    metrics.api_request(ApiRequest("sqs", "ReceiveMessage", "AccessDenied", 0.1))
    operation = {"service": "sqs", "operation": "ReceiveMessage"}
    assert value(metrics, "api_requests_total", **operation, outcome="ok") == 2
    assert value(metrics, "api_requests_total", **operation, outcome="AccessDenied") == 1
    assert value(metrics, "api_request_duration_seconds_count", **operation) == 3


def test_error_codes_without_number_do_not_make_series_without_number(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_API_SERIES", 2)
    for code in ("ok", "A", "B", "C", "ok"):
        metrics.api_request(ApiRequest("sqs", "ReceiveMessage", code, 0.1))
    operation = {"service": "sqs", "operation": "ReceiveMessage"}
    assert value(metrics, "api_requests_total", **operation, outcome="other") == 2
    assert value(metrics, "api_requests_total", **operation, outcome="ok") == 2


def test_gauges_show_the_status_at_the_moment_of_the_scrape() -> None:
    status = Status((Mapping(),), (Function(),))
    metrics = Metrics(lambda: status)
    assert value(metrics, "concurrent_executions", function="f") == 2
    assert value(metrics, "in_flight_invocations", mapping="orders") == 2
    assert value(metrics, "in_flight_records", mapping="orders") == 20
    assert value(metrics, "buffered_bytes", mapping="orders") == 4096
    assert value(metrics, "receivers", mapping="orders") == 5
    status = replace(status, functions=(Function(in_flight=7),))
    assert value(metrics, "concurrent_executions", function="f") == 7


def test_the_workers_of_a_function_are_shown_and_of_one_without_none() -> None:
    workers = Workers(
        idle=3, busy=2, started=9, crashed=1, billed_seconds=1.5, init_seconds=0.5, peak_memory=64
    )
    metrics = Metrics(lambda: Status((), (Function(workers=workers), Function("inline"))))
    states = {
        s: value(metrics, "workers", function="f", state=s) for s in ("starting", "idle", "busy", "ending")
    }
    assert states == {"starting": 0, "idle": 3, "busy": 2, "ending": 0}
    assert value(metrics, "worker_starts_total", function="f") == 9
    assert value(metrics, "worker_crashes_total", function="f") == 1
    assert value(metrics, "billed_duration_seconds_total", function="f") == 1.5
    assert value(metrics, "init_duration_seconds_total", function="f") == 0.5
    assert value(metrics, "worker_memory_bytes_max", function="f") == 64
    assert value(metrics, "dropped_log_lines_total", function="f") == 0
    assert value(metrics, "workers", function="inline", state="idle") is None


def test_exactly_one_state_of_a_mapping_is_1() -> None:
    metrics = Metrics(lambda: Status((Mapping(state=MappingState.PAUSED),)))
    states = {s: value(metrics, "mapping_state", mapping="orders", state=s.value) for s in MappingState}
    assert states == {s: float(s is MappingState.PAUSED) for s in MappingState}


def test_exactly_one_state_of_a_circuit_breaker_is_1_where_there_is_one() -> None:
    metrics = Metrics(lambda: Status((Mapping(circuit=CircuitState.HALF_OPEN), Mapping(name="clicks"))))
    states = {
        s: value(metrics, "circuit_breaker_state", mapping="orders", state=s.value) for s in CircuitState
    }
    assert states == {s: float(s is CircuitState.HALF_OPEN) for s in CircuitState}
    assert value(metrics, "circuit_breaker_state", mapping="clicks", state="closed") is None


def test_a_trip_is_counted_and_a_failed_probe_is_none() -> None:
    metrics = Metrics(lambda: Status((Mapping(),)))
    assert value(metrics, "circuit_breaker_trips_total", mapping="orders") == 0
    for before in (CircuitState.CLOSED, CircuitState.HALF_OPEN, CircuitState.RAMPING):
        metrics.circuit_changed(CircuitChanged("orders", before, CircuitState.OPEN, 10, "ValueError"))
    metrics.circuit_changed(
        CircuitChanged("orders", CircuitState.OPEN, CircuitState.HALF_OPEN, 10, "ValueError")
    )
    assert value(metrics, "circuit_breaker_trips_total", mapping="orders") == 2


def test_counters_of_what_runs_are_seen_at_0_before_the_first_fact() -> None:
    metrics = Metrics(lambda: Status((Mapping(),), (Function(),)))
    assert value(metrics, "polled_events_total", mapping="orders") == 0
    assert value(metrics, "errors_total", function="f") == 0


def test_a_removed_mapping_leaves_no_series() -> None:
    status = Status((Mapping(), Mapping(name="clicks")))
    metrics = Metrics(lambda: status)
    metrics.received(Received("orders", 1))
    metrics.render()
    status = Status((Mapping(name="clicks"),))
    metrics.forget("orders")
    metrics.forget("orders")
    labels = [dict(labels) for _, labels in samples(metrics)]
    assert not any(label.get("mapping") == "orders" for label in labels)
    assert any(label.get("mapping") == "clicks" for label in labels)


def test_a_change_of_state_is_left_to_the_status(metrics: Metrics) -> None:
    before = metrics.render()[0].count(b"mapping=")
    metrics.state_changed(StateChanged("orders", MappingState.RUNNING))
    assert metrics.render()[0].count(b"mapping=") == before


def test_the_process_and_the_version_are_shown(metrics: Metrics) -> None:
    shown = samples(metrics)
    names = {name for name, _ in shown}
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"} <= names
    assert "python_gc_collections_total" in names
    assert shown["poller_build_info", frozenset({("version", __version__)})] == 1
    assert not any(name.endswith("_created") for name in names)


def test_two_of_them_do_not_share_a_number(metrics: Metrics) -> None:
    metrics.received(Received("orders", 1))
    assert value(Metrics(Status), "polled_events_total", mapping="orders") is None


def test_a_registry_that_was_never_rendered_has_no_gauges() -> None:
    assert list(Gauges().collect()) == []


# --- several observers --------------------------------------------------------------------------------------------


class Recorder:
    def __init__(self) -> None:
        self.facts: list[object] = []

    def __getattr__(self, kind: str) -> object:
        return self.facts.append


class Broken(Recorder):
    def __getattr__(self, kind: str) -> object:
        def fail(fact: object) -> None:
            raise RuntimeError(kind)

        return fail


def tell_all(fanout: Fanout) -> list[object]:
    facts = (
        Received("m", 1),
        FilteredOut("m", 1),
        invoked(Succeeded()),
        Settled("m"),
        StaleReceipts("m", 1, "x"),
        StateChanged("m", MappingState.RUNNING),
        Trouble("m", "e", 1.0),
        ApiRequest("s", "o", "ok", 0.1),
        Trimmed("m", "shard-1", "1", 2.0),
        Dropped("m", "shard-1", 1, "RecordAgeExceeded", "1", "1"),
        Delivered("m", "shard-1", 1, "RecordAgeExceeded"),
        DeliveryFailed("m", "shard-1", "e", 1.0),
        Spooled("m", "shard-1", 1, "RecordAgeExceeded", "e"),
        Parked("m", "shard-1", "k", 1),
        Unparked("m", "k", 1, free=True),
    )
    fanout.received(facts[0])
    fanout.filtered_out(facts[1])
    fanout.invoked(facts[2])
    fanout.settled(facts[3])
    fanout.stale_receipts(facts[4])
    fanout.state_changed(facts[5])
    fanout.trouble(facts[6])
    fanout.api_request(facts[7])
    fanout.trimmed(facts[8])
    fanout.dropped(facts[9])
    fanout.delivered(facts[10])
    fanout.delivery_failed(facts[11])
    fanout.spooled(facts[12])
    fanout.parked(facts[13])
    fanout.unparked(facts[14])
    return list(facts)


def test_every_fact_reaches_every_observer_in_order() -> None:
    one, two = Recorder(), Recorder()
    facts = tell_all(Fanout(one, two))  # type: ignore[arg-type]
    assert one.facts == two.facts == facts


def test_an_observer_that_raises_harms_nobody_and_is_logged_once_a_kind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = Recorder()
    fanout = Fanout(Broken(), recorder)  # type: ignore[arg-type]
    facts = tell_all(fanout)
    tell_all(fanout)
    assert recorder.facts == facts * 2
    assert [record.fact for record in caplog.records] == [type(fact).__name__ for fact in facts]  # type: ignore[attr-defined]


def test_leases_are_counted_by_what_happens_to_them() -> None:
    metrics = Metrics(lambda: Status((Mapping(),)))
    for event in ("claimed", "claimed", "claimed", "claimed", "handed over", "released", "finished"):
        metrics.lease_changed(LeaseChanged("orders", "shard-1", LeaseEvent(event)))
    metrics.lease_changed(LeaseChanged("orders", "shard-1", LeaseEvent.RENEWAL_FAILED))
    assert value(metrics, "lease_held", mapping="orders") == 1
    metrics.lease_changed(LeaseChanged("orders", "shard-1", LeaseEvent.LOST))
    assert value(metrics, "lease_held", mapping="orders") == 0
    assert value(metrics, "lease_claims_total", mapping="orders") == 4
    assert value(metrics, "lease_handoffs_total", mapping="orders") == 2
    assert value(metrics, "lease_losses_total", mapping="orders") == 1
    assert value(metrics, "lease_renewal_failures_total", mapping="orders") == 1
    metrics.forget("orders")
    assert value(metrics, "lease_held", mapping="orders") is None
