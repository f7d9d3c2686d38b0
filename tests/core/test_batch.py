from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.core import envelope
from poller.core.batch import ENVELOPE_SIZE, PAYLOAD_LIMIT, Batch, BatchLimits
from poller.model import Record


def record(name: str, size: int = 100) -> Record:
    return Record(name, None, size, {"messageId": name}, name)


def records(number: int, size: int = 100) -> list[Record]:
    return [record(f"m{at}", size) for at in range(number)]


def test_an_empty_batch_waits_for_ever():
    assert Batch(BatchLimits(10, window=5)).wait(now=1e9) is None


def test_without_a_window_a_batch_is_due_at_once():
    batch = Batch(BatchLimits(10))
    batch.add(records(1), now=50.0)
    assert batch.wait(now=50.0) == 0


def test_the_window_opens_with_the_first_record():
    batch = Batch(BatchLimits(10, window=5))
    batch.add([], now=10.0)
    batch.add(records(1), now=50.0)
    batch.add(records(1), now=53.0)
    assert batch.wait(now=53.0) == 2.0
    assert batch.wait(now=56.0) == -1.0


def test_a_batch_that_is_full_by_count_is_due_before_its_window_ends():
    batch = Batch(BatchLimits(2, window=300))
    assert batch.add(records(3), now=0.0) == records(3)[2:]
    assert batch.room == 0
    assert batch.wait(now=0.0) == 0


def test_the_room_shrinks_with_each_record():
    batch = Batch(BatchLimits(10))
    batch.add(records(3), now=0.0)
    assert batch.room == 7


def test_the_record_that_would_pass_the_size_limit_starts_the_remainder():
    limits = BatchLimits(100, size=ENVELOPE_SIZE + 250)
    sent = [record("a"), record("b"), record("c"), record("d", 10)]
    batch = Batch(limits)
    # 100 + 100 fit into 250, the third does not; the small fourth must not overtake it.
    assert batch.add(sent, now=0.0) == sent[2:]
    assert batch.records == sent[:2]


@pytest.mark.parametrize(("spare", "taken"), [(0, 2), (-1, 1)])
def test_the_size_limit_is_met_to_the_byte(spare, taken):
    batch = Batch(BatchLimits(100, size=ENVELOPE_SIZE + 200 + spare))
    batch.add(records(2), now=0.0)
    assert len(batch.records) == taken


def test_a_batch_that_is_full_by_size_is_due_before_its_window_ends():
    batch = Batch(BatchLimits(100, window=300, size=ENVELOPE_SIZE + 100))
    batch.add(records(1), now=0.0)
    assert batch.wait(now=0.0) == 0


def test_a_record_that_is_too_large_by_itself_travels_alone():
    batch = Batch(BatchLimits(100, window=300))
    huge = record("huge", PAYLOAD_LIMIT + 1)
    assert batch.add([huge, record("next")], now=0.0) == [record("next")]
    assert batch.records == [huge]
    assert batch.wait(now=0.0) == 0


def test_a_batch_goes_on_without_some_of_its_records_and_in_the_same_window():
    batch = Batch(BatchLimits(3, window=5))
    first, second, third = records(3)
    batch.add([first, second], now=10.0)
    batch.keep([second])
    assert (batch.records, batch.size, batch.room) == ([second], ENVELOPE_SIZE + 100, 2)
    assert batch.wait(now=11.0) == 4.0
    batch.keep([])
    assert batch.wait(now=12.0) is None
    batch.add([third], now=13.0)
    assert batch.wait(now=13.0) == 5.0


def test_the_limit_is_lambdas_six_megabytes():
    assert BatchLimits(10).size == 6 * 1024 * 1024


def test_a_batch_says_how_full_it_is():
    batch = Batch(BatchLimits(10))
    batch.add(records(2), now=0.0)
    assert repr(batch) == f"<Batch 2/10 records, {ENVELOPE_SIZE + 200} bytes>"


@given(st.lists(st.text(max_size=30), min_size=1, max_size=20))
def test_the_size_of_a_batch_is_that_of_its_encoded_event(bodies):
    built = [
        Record(str(at), None, len(orjson.dumps({"body": body})) + 1, {"body": body}, at)
        for at, body in enumerate(bodies)
    ]
    batch = Batch(BatchLimits(100))
    batch.add(built, now=0.0)
    assert batch.size == len(orjson.dumps(envelope.event(batch.records)))


@given(
    sizes=st.lists(st.integers(1, 400)),
    count=st.integers(1, 10),
    size=st.integers(ENVELOPE_SIZE, 1000),
    chunk=st.integers(1, 10),
)
def test_batches_keep_every_record_once_in_order_and_within_the_limits(sizes, count, size, chunk):
    sent = [record(f"m{at}", size) for at, size in enumerate(sizes)]
    limits = BatchLimits(count, size=size)
    batches: list[Batch] = [Batch(limits)]
    for start in range(0, len(sent), chunk):
        rest = sent[start : start + chunk]
        while rest := batches[-1].add(rest, now=0.0):
            batches.append(Batch(limits))
    assert [each for batch in batches for each in batch.records] == sent
    for batch in batches:
        assert len(batch.records) <= count
        assert batch.size <= size or len(batch.records) == 1
    assert all(batch.records for batch in batches[:-1])
