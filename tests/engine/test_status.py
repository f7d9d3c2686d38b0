"""The board's totals."""

from __future__ import annotations

from poller.engine.status import IDLE, Board, Load, Totals
from poller.model import (
    ApiRequest,
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


def invoked(outcome, failed=0):
    return Invoked("orders", "ship", "r-1", 10, failed, outcome, 0.1)


def test_a_mapping_begins_with_zeros():
    assert Board().of("orders") == Totals()


def test_records_are_added_up_a_mapping():
    board = Board()
    board.received(Received("orders", 10))
    board.received(Received("orders", 0))
    board.received(Received("clicks", 3))
    board.filtered_out(FilteredOut("orders", 2))
    board.settled(Settled("orders", deleted=5, left=1, released=2))
    board.settled(Settled("orders", deleted=1))
    board.stale_receipts(StaleReceipts("orders", 4, "m1"))
    assert board.of("orders") == Totals(received=10, filtered=2, deleted=6, released=2, stale=4)
    assert board.of("clicks") == Totals(received=3)


def test_what_becomes_of_a_streams_records_is_added_up():
    board = Board()
    board.settled(Settled("clicks", committed=5))
    board.dropped(Dropped("clicks", "s-1", 2, "RecordAgeExceeded", "1", "2"))
    board.delivered(Delivered("clicks", "s-1", 3, "RetryAttemptsExhausted"))
    board.delivered(Delivered("clicks", "s-1", 9, "Success", succeeded=True))
    board.spooled(Spooled("clicks", "s-1", 7, "RetryAttemptsExhausted", "AccessDenied"))
    board.parked(Parked("clicks", "s-1", "k", 4))
    board.unparked(Unparked("clicks", "k", 3, free=False))
    assert board.of("clicks") == Totals(committed=5, dropped=2, delivered=3, parked=4, unparked=3)


def test_the_last_error_of_a_stream_names_what_its_shard_waits_for():
    board = Board()
    board.trimmed(Trimmed("clicks", "s-1", "1", 2.0))
    assert board.of("clicks").last_error == "s-1: records were removed before they were read"
    board.delivery_failed(DeliveryFailed("clicks", "s-1", "AccessDenied", 1.0))
    assert board.of("clicks").last_error == "AccessDenied"


def test_a_mapping_that_only_polls_an_empty_queue_has_no_totals():
    board = Board()
    board.received(Received("orders", 0))
    assert board.totals == {}


def test_invocations_are_counted_by_their_outcome():
    board = Board()
    board.invoked(invoked(Succeeded()))
    board.invoked(invoked(PartlyFailed(frozenset({"m1"})), failed=1))
    assert board.of("orders") == Totals(invoked=20, failed=1)
    board.invoked(invoked(Failed(FunctionError("ValueError", "no such order")), failed=10))
    assert board.of("orders") == Totals(invoked=30, failed=11, last_error="ValueError: no such order")


def test_a_refused_batch_is_throttled_and_not_invoked():
    board = Board()
    board.invoked(invoked(NotInvoked("no worker is free"), failed=10))
    assert board.of("orders") == Totals(throttled=1, last_error="no worker is free")


def test_the_last_trouble_of_the_source_is_remembered():
    board = Board()
    board.trouble(Trouble("orders", "no route to host", 1.0))
    assert board.of("orders").last_error == "no route to host"


def test_facts_that_are_not_about_records_change_nothing():
    board = Board()
    board.state_changed(StateChanged("orders", MappingState.RUNNING))
    board.api_request(ApiRequest("sqs", "ReceiveMessage", "ok", 0.1))
    board.lease_changed(LeaseChanged("orders", "shard-1", LeaseEvent.CLAIMED))
    assert board.totals == {}


def test_a_mapping_can_be_forgotten():
    board = Board()
    board.received(Received("orders", 10))
    board.forget("orders")
    board.forget("never seen")
    assert board.of("orders") == Totals()


def test_the_load_of_a_mapping_is_that_of_its_parts():
    assert Load(1, 2, 3, 4, 5) + Load(10, 20, 30, 40, 50) + IDLE == Load(11, 22, 33, 44, 55)
