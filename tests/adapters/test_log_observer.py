from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

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
)
from poller.telemetry import log_observer
from poller.telemetry.log_observer import LogObserver
from tests.adapters.logbook import Log, restored

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def restored_loggers() -> Iterator[None]:
    with restored():
        yield


def invoked(outcome: Outcome, failed: int = 0) -> Invoked:
    return Invoked("orders", "f", "id-1", records=10, failed=failed, outcome=outcome, duration=0.2)


def test_a_failed_invocation_says_what_failed_and_what_happens_next() -> None:
    out = Log()
    error = FunctionError("ValueError", "no such order", ('  File "h.py", line 1\n    raise\n',))
    LogObserver().invoked(invoked(Failed(error), failed=10))
    line = out.line()
    assert line["level"] == "warning"
    assert line["message"] == (
        "f failed: ValueError: no such order; its 10 records come back after the queue's visibility timeout,"
        " unless that was their last try"
    )
    assert (line["mapping"], line["function"], line["request_id"]) == ("orders", "f", "id-1")
    assert (line["error_type"], line["records"]) == ("ValueError", 10)
    assert line["stack_trace"] == list(error.stack_trace)


def test_a_person_sees_the_stack_trace_of_a_function_below_the_line() -> None:
    out = Log(json=False)
    error = FunctionError("E", "a\nb", ('  File "h.py", line 1\n    raise\n', "\x1b"))
    LogObserver().invoked(invoked(Failed(error), failed=10))
    first, *rest = out.text().splitlines()
    assert "f failed: E: a\\nb; its" in first
    assert rest == ['      File "h.py", line 1', "        raise", "    ", "    \\x1b"]


def test_a_timeout_is_called_one() -> None:
    out = Log()
    LogObserver().invoked(invoked(Failed(FunctionError("T", "3 s", timed_out=True)), failed=10))
    assert out.line()["message"].startswith("f timed out: T: 3 s")


def test_a_partial_failure_is_information() -> None:
    out = Log()
    LogObserver().invoked(invoked(PartlyFailed(frozenset("ab")), failed=2))
    line = out.line()
    assert (line["level"], line["request_id"]) == ("info", "id-1")
    assert line["message"].startswith("f did not finish 2 of 10 records")


def test_stale_receipts_are_a_warning_with_an_example() -> None:
    out = Log()
    LogObserver().stale_receipts(StaleReceipts("orders", 3, "message-1"))
    line = out.line()
    assert (line["level"], line["mapping"], line["message_id"]) == ("warning", "orders", "message-1")


def test_a_failed_mapping_is_an_error_and_any_other_state_is_information() -> None:
    out = Log()
    observer = LogObserver()
    observer.state_changed(StateChanged("orders", MappingState.RUNNING))
    observer.state_changed(StateChanged("orders", MappingState.FAILED, "the queue is missing"))
    running, failed = out.lines()
    assert (running["level"], running["message"]) == ("info", "orders is running")
    assert (failed["level"], failed["message"]) == ("error", "orders is failed: the queue is missing")


@pytest.mark.parametrize(
    ("before", "state", "level", "message"),
    [
        (
            "closed",
            "open",
            "warning",
            "circuit open: 10 invocations in a row failed (ValueError: no such order); next probe in 8 s",
        ),
        (
            "half_open",
            "open",
            "warning",
            (
                "the probe failed, so the circuit stays open: 10 invocations in a row failed"
                " (ValueError: no such order); next probe in 8 s"
            ),
        ),
        ("open", "half_open", "info", "circuit half-open: probing with one batch"),
        ("half_open", "ramping", "info", "the probe succeeded: circuit ramping up"),
        ("ramping", "closed", "info", "circuit closed"),
    ],
)
def test_each_step_of_a_circuit_breaker_is_said(before: str, state: str, level: str, message: str) -> None:
    out = Log()
    error, probe_in = "ValueError: no such order", 8.2 if state == "open" else 0.0
    fact = CircuitChanged("orders", CircuitState(before), CircuitState(state), 10, error, probe_in)
    LogObserver().circuit_changed(fact)
    line = out.line()
    assert (line["level"], line["message"]) == (level, f"orders: {message}")
    assert (line["mapping"], line["circuit"]) == ("orders", state)


@pytest.mark.parametrize(
    ("event", "other", "reason", "level", "message"),
    [
        ("claimed", "", "", "info", "claimed"),
        ("claimed", "w2", "", "info", "claimed, w2 had it before"),
        ("handed over", "w2", "", "info", "handed over to w2"),
        ("released", "", "", "info", "released"),
        ("finished", "", "", "info", "finished"),
        ("lost", "", "it could not be renewed", "warning", "lost: it could not be renewed"),
    ],
)
def test_what_happens_to_a_lease_is_said(
    event: str, other: str, reason: str, level: str, message: str
) -> None:
    out = Log()
    LogObserver().lease_changed(LeaseChanged("orders", "shard-1", LeaseEvent(event), other, reason))
    line = out.line()
    assert (line["level"], line["message"]) == (level, f"orders: lease of shard-1 {message}")
    assert (line["mapping"], line["shard"]) == ("orders", "shard-1")


def test_a_table_that_is_down_is_said_once_for_all_leases() -> None:
    out = Log()
    observer = LogObserver(iter([0.0, 1.0]).__next__)
    for shard in ("shard-1", "shard-2"):
        observer.lease_changed(LeaseChanged("orders", shard, LeaseEvent.RENEWAL_FAILED, reason="too busy"))
    (line,) = out.lines()
    assert line["message"] == "trouble: leases cannot be renewed: too busy"


def test_the_same_trouble_is_said_once_a_minute_with_the_number_of_silent_ones() -> None:
    times = [0.0, 1.0, 59.0, 60.0, 61.0, 120.0]
    out = Log()
    observer = LogObserver(iter(times).__next__)
    for _ in times:
        observer.trouble(Trouble("orders", "no network", 2.0))
    lines = out.lines()
    first = "trouble: no network; next try in 2.0 s"
    assert [line["message"] for line in lines] == [
        first,
        f"{first} (and 2 times more since this was last said)",
        f"{first} (and 1 times more since this was last said)",
    ]
    assert {line["level"] for line in lines} == {"warning"}


def test_a_crash_shows_its_traceback() -> None:
    out = Log()
    observer = LogObserver()
    observer.state_changed(StateChanged("orders", MappingState.STARTING, "restarts", ValueError("a bug")))
    line = out.line()
    assert (line["level"], line["state"]) == ("error", "starting")
    assert line["exception"] == "ValueError: a bug"


def test_trouble_without_a_next_try_promises_none() -> None:
    out = Log()
    LogObserver().trouble(Trouble("orders", "delete refused", 0.0))
    assert out.line()["message"] == "trouble: delete refused"


def test_other_troubles_and_other_mappings_are_said_at_once() -> None:
    out = Log()
    observer = LogObserver(lambda: 0.0)
    for mapping, error in (("a", "x"), ("a", "y"), ("b", "x"), ("a", "x")):
        observer.trouble(Trouble(mapping, error, 1.0))
    assert len(out.lines()) == 3


def test_troubles_without_number_are_not_all_remembered() -> None:
    Log(logging.CRITICAL)
    observer = LogObserver(lambda: 0.0)
    for number in range(log_observer.MAX_KINDS + 50):
        observer.trouble(Trouble("a", str(number), 1.0))
    assert len(observer._recent._said) == log_observer.MAX_KINDS


def test_throttles_are_said_as_seldom_as_trouble() -> None:
    out = Log()
    observer = LogObserver(lambda: 0.0)
    observer.invoked(invoked(NotInvoked("no free slot")))
    observer.invoked(invoked(NotInvoked("no free slot")))
    assert out.line()["message"] == "f was not invoked: no free slot"


@pytest.mark.parametrize(
    "error",
    [
        "the canonical request is 'x-amz-security-token:SECRET'",
        "Authorization: SECRET",
        'aws_secret_access_key = "SECRET"',
    ],
)
def test_what_aws_quotes_of_a_request_is_not_logged(error: str) -> None:
    out = Log()
    observer = LogObserver()
    observer.trouble(Trouble("orders", error, 1.0))
    observer.state_changed(StateChanged("orders", MappingState.FAILED, error))
    observer.invoked(invoked(NotInvoked(error)))
    assert "SECRET" not in out.text()


def tell_everyday_facts(observer: LogObserver) -> None:
    observer.received(Received("orders", 10))
    observer.filtered_out(FilteredOut("orders", 1))
    observer.invoked(invoked(Succeeded()))
    observer.settled(Settled("orders", deleted=9))
    observer.api_request(ApiRequest("sqs", "ReceiveMessage", "ok", 0.1))


@pytest.mark.parametrize(("level", "seen"), [("info", 0), ("debug", 5)])
def test_everyday_facts_are_for_debugging_only(level: str, seen: int) -> None:
    out = Log(level)
    tell_everyday_facts(LogObserver())
    assert len(out.lines()) == seen


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_failed_batch_of_a_stream_is_not_said_to_come_back_from_a_queue() -> None:
    out = Log()
    failed = invoked(Failed(FunctionError("ValueError", "no")), failed=10)._replace(shard="shard-1")
    LogObserver().invoked(failed)
    line = out.line()
    assert line["message"] == (
        "f failed: ValueError: no; its 10 records are tried again or given up, as the mapping's policy says"
    )
    assert line["shard"] == "shard-1"


def test_records_that_a_stream_removed_are_an_error_that_says_how_many_seconds_are_lost() -> None:
    out = Log()
    LogObserver().trimmed(Trimmed("clicks", "shard-1", "49", 90.4))
    LogObserver().trimmed(Trimmed("clicks", "shard-1", "49", None))
    told, vague = out.lines()
    assert (told["level"], told["after"]) == ("error", "49")
    assert told["message"].startswith("shard-1 removed records before they were read, about 90 s of them:")
    assert vague["message"].startswith("shard-1 removed records before they were read: ")


def test_dropped_records_are_an_error_and_delivered_ones_a_warning() -> None:
    out = Log()
    LogObserver().dropped(Dropped("clicks", "shard-1", 3, "RecordAgeExceeded", "5", "7"))
    LogObserver().delivered(Delivered("clicks", "shard-1", 4, "RetryAttemptsExhausted"))
    dropped, delivered = out.lines()
    assert (dropped["level"], dropped["first"], dropped["last"]) == ("error", "5", "7")
    assert dropped["message"].startswith("shard-1: 3 records are given up and dropped: RecordAgeExceeded")
    assert (delivered["level"], delivered["mapping"]) == ("warning", "clicks")
    assert delivered["message"].endswith("sent to the on-failure destination: RetryAttemptsExhausted")


def test_what_went_to_the_destinations_of_a_queue_names_the_mapping() -> None:
    out = Log(level="debug")
    LogObserver().delivered(Delivered("orders", "", 4, "RetriesExhausted"))
    LogObserver().delivered(Delivered("orders", "", 4, "Success", succeeded=True))
    failure, success = out.lines()
    assert failure["message"].startswith("orders: 4 records are given up and sent to the on-failure")
    assert "shard" not in failure
    assert (success["level"], success["message"]) == (
        "debug",
        "orders: 4 records sent to the on-success destination",
    )
    quiet = Log()
    LogObserver().delivered(Delivered("orders", "", 4, "Success", succeeded=True))
    assert quiet.lines() == []


def test_what_a_destination_never_takes_is_an_error_each_time() -> None:
    out = Log()
    observer = LogObserver()
    for _ in range(2):
        observer.delivery_failed(DeliveryFailed("orders", "", "2 bytes; it takes 1", None, succeeded=True))
    assert [(line["level"], line["message"]) for line in out.lines()] == [
        ("error", "orders: the on-success destination never takes this: 2 bytes; it takes 1")
    ] * 2


def test_what_turns_out_to_be_too_large_when_it_comes_from_the_spool_is_said_to_stay_there() -> None:
    out = Log()
    LogObserver().delivery_failed(DeliveryFailed("orders", "", "2 bytes; it takes 1", None, spooled=True))
    (line,) = out.lines()
    assert line["message"] == (
        "orders: the on-failure destination never takes this; it stays in the spool: 2 bytes; it takes 1"
    )


def test_a_function_that_fails_as_a_destination_is_not_said_to_have_records() -> None:
    out = Log()
    failed = Failed(FunctionError("ValueError", "no"))
    LogObserver().invoked(Invoked("orders", "undo", "r-1", 0, 0, failed, 0.1))
    (line,) = out.lines()
    assert line["message"] == "undo failed: ValueError: no; what it was sent as a destination is sent again"


def test_what_is_spooled_is_a_warning_that_says_why() -> None:
    out = Log()
    LogObserver().spooled(
        Spooled("clicks", "shard-1", 4, "RetryAttemptsExhausted", "Authorization: abc denied")
    )
    LogObserver().spooled(Spooled("orders", "", 1, "RetriesExhausted", ""))
    stream, queue = out.lines()
    assert (stream["level"], stream["mapping"], stream["shard"]) == ("warning", "clicks", "shard-1")
    assert stream["message"] == (
        "shard-1: 4 records are given up and spooled until their destination takes them:"
        " RetryAttemptsExhausted; it says: Authorization: *** denied"
    )
    assert queue["message"].endswith("until their destination takes them: RetriesExhausted")
    assert "shard" not in queue


def test_a_destination_for_which_the_spool_waits_is_said_once_a_minute_beside_what_shards_say() -> None:
    out = Log()
    observer = LogObserver()
    for _ in range(2):
        observer.delivery_failed(DeliveryFailed("clicks", "shard-1", "down", 2.0))
        observer.delivery_failed(DeliveryFailed("clicks", "", "down", 30.0, spooled=True))
    _, spooled = out.lines()
    assert spooled["message"] == "what is spooled waits for its destination: down; next try in 30.0 s"


def test_a_destination_that_is_down_is_said_once_a_minute() -> None:
    out = Log()
    observer = LogObserver()
    for _ in range(3):
        observer.delivery_failed(DeliveryFailed("clicks", "shard-1", "Throttled: slow down", 2.0))
    (line,) = out.lines()
    assert line["message"] == (
        "shard-1 waits for its on-failure destination: Throttled: slow down; next try in 2.0 s"
    )


def test_a_parked_key_is_a_warning_with_its_error_and_what_follows_it_is_for_debugging() -> None:
    out = Log(level="debug")
    observer = LogObserver()
    observer.parked(Parked("clicks", "shard-1", "user-17", 1, "ValueError", "no such order"))
    observer.parked(Parked("clicks", "shard-1", "user-18", 1, "", "the function named it"))
    observer.parked(Parked("clicks", "shard-1", "user-17", 4))
    observer.unparked(Unparked("clicks", "user-17", 4, free=False))
    observer.unparked(Unparked("clicks", "user-17", 0, free=True))
    first, second, *others = out.lines()
    assert (first["level"], first["mapping"], first["shard"], first["key"]) == (
        "warning",
        "clicks",
        "shard-1",
        "user-17",
    )
    assert first["message"] == (
        "shard-1: the key user-17 is parked: ValueError: no such order; its records wait in the spool, "
        "poller resume takes them up"
    )
    assert "is parked: the function named it;" in second["message"]
    assert [(line["level"], line["message"]) for line in others] == [
        ("debug", "shard-1: 4 records follow their parked key"),
        ("debug", "4 parked records of the key user-17 are handled"),
        ("info", "nothing of the key user-17 is parked any more: its records are live again"),
    ]


def test_no_more_of_a_key_is_logged_than_tells_it_from_others() -> None:
    out = Log()
    LogObserver().parked(Parked("clicks", "shard-1", "k" * 300, 1, "ValueError", "x"))
    LogObserver().parked(Parked("clicks", "shard-1", "k" * 300, 1))
    LogObserver().unparked(Unparked("clicks", "k" * 300, 1, free=False))
    (line,) = out.lines()
    assert line["key"] == "k" * 64 + "… (236 more characters)"
    assert "k" * 65 not in line["message"]
