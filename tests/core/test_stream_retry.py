from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.core.batch import ENVELOPE_SIZE, PAYLOAD_LIMIT
from poller.core.retry import (
    Bisect,
    Commit,
    Condition,
    Expiry,
    GiveUp,
    Retry,
    StreamBatch,
    StreamPolicy,
    TooLarge,
    decide_stream,
    expire,
    expires_at,
    is_too_large,
)
from poller.model import Failed, FunctionError, NotInvoked, PartlyFailed, Record, Succeeded

NOW = 1000.0
FAILED = Failed(FunctionError("ValueError", "no such click"))
BUSY = NotInvoked("no worker is free")
FOREVER = StreamPolicy()
BISECT = StreamPolicy(bisect_batch_on_function_error=True)


def record(number, arrived=NOW, size=100):
    return Record(str(number), None, size, {}, None, arrived)


# As text "10" comes before "9"; as a number, and in the shard, after it.
NINE, TEN, ELEVEN = RECORDS = (record(9), record(10), record(11))
BATCH = StreamBatch(RECORDS)


def decide(outcome, batch=BATCH, policy=FOREVER, now=NOW, chance=0.0):
    return decide_stream(outcome, batch, policy, now=now, chance=chance)


def partly(*numbers):
    return PartlyFailed(frozenset(map(str, numbers)))


def up_to(retries, **policy):
    return StreamPolicy(maximum_retry_attempts=retries, **policy)


# --- success ------------------------------------------------------------------------------------------------


def test_a_batch_that_succeeded_is_done():
    assert decide(Succeeded(), StreamBatch(RECORDS, attempts=5)) == Commit(RECORDS, None)


@pytest.mark.parametrize("policy", [FOREVER, BISECT, up_to(0)])
@pytest.mark.parametrize(
    ("failed", "done", "rest"),
    [
        (partly(10), [NINE], [TEN, ELEVEN]),  # it and everything after it is tried again
        (partly(11), [NINE, TEN], [ELEVEN]),
        (partly(11, 10), [NINE], [TEN, ELEVEN]),  # the lowest counts, as a number
    ],
)
def test_a_partial_response_commits_what_is_before_the_lowest_failure(policy, failed, done, rest):
    """The rest is a new batch with a fresh budget, whether or not the mapping bisects."""
    decision = decide(failed, StreamBatch(RECORDS, attempts=3), policy)
    assert decision == Commit(tuple(done), StreamBatch(tuple(rest), attempts=0))


def test_a_partial_response_that_names_the_first_record_settles_nothing():
    failed = partly(9, 11)
    assert decide(failed) == Retry(StreamBatch(RECORDS, attempts=1), NOW + 0.5)
    assert decide(failed, StreamBatch(RECORDS, 2), up_to(2)) == GiveUp(RECORDS, Condition.RETRIES, 3, failed)


def test_with_bisect_a_partial_response_that_names_the_first_record_halves_the_batch():
    assert decide(partly(9), policy=BISECT) == Bisect(StreamBatch((NINE,)), StreamBatch((TEN, ELEVEN)))


# --- failure ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retries", "attempts", "count"),
    [
        (0, 0, 1),  # 1 + 0 attempts
        (1, 1, 2),  # 1 + 1
        (3, 3, 4),  # 1 + 3
    ],
)
@pytest.mark.parametrize("outcome", [FAILED, partly(9)])
def test_a_batch_is_given_up_after_one_attempt_and_its_retries(outcome, retries, attempts, count):
    batch = StreamBatch(RECORDS, attempts)
    assert decide(outcome, batch, up_to(retries)) == GiveUp(RECORDS, Condition.RETRIES, count, outcome)


@pytest.mark.parametrize(("retries", "attempts"), [(1, 0), (3, 2), (-1, 0), (-1, 10_000)])
def test_before_that_the_same_batch_is_tried_again(retries, attempts):
    decision = decide(FAILED, StreamBatch(RECORDS, attempts), up_to(retries))
    assert isinstance(decision, Retry)
    assert decision.batch == StreamBatch(RECORDS, attempts + 1)


@pytest.mark.parametrize(
    ("attempts", "chance", "pause"),
    [
        (0, 0.0, 0.5),  # 1 * 2^0 = 1, its lower half
        (0, 0.5, 0.75),
        (3, 0.0, 4.0),  # 1 * 2^3 = 8, halved
        (6, 0.0, 30.0),  # 2^6 = 64, held at 60, halved
        (9999, 0.5, 45.0),
    ],
)
def test_pauses_double_up_to_a_minute(attempts, chance, pause):
    assert decide(FAILED, StreamBatch(RECORDS, attempts), chance=chance).at == NOW + pause


@pytest.mark.parametrize(
    ("count", "first", "second"),
    [
        (2, 1, 1),
        (3, 1, 2),  # the odd one goes to the second half
        (4, 2, 2),
        (10_000, 5000, 5000),
    ],
)
def test_a_batch_that_failed_is_halved_without_using_up_its_retries(count, first, second):
    records = [record(number) for number in range(count)]
    decision = decide(FAILED, StreamBatch(records), up_to(0, bisect_batch_on_function_error=True))
    assert decision == Bisect(StreamBatch(records[:first]), StreamBatch(records[-second:]))


def test_a_single_record_is_not_halved():
    alone = StreamBatch((NINE,))
    assert decide(FAILED, alone, BISECT) == Retry(StreamBatch((NINE,), 1), NOW + 0.5)


def test_the_final_invoke_of_a_window_is_tried_again_and_given_up_like_any_other():
    policy = up_to(1, bisect_batch_on_function_error=True, maximum_record_age_in_seconds=60)
    assert decide(FAILED, StreamBatch(()), policy) == Retry(StreamBatch((), 1), NOW + 0.5)
    assert decide(FAILED, StreamBatch((), 1), policy) == GiveUp((), Condition.RETRIES, 2, FAILED)


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [FOREVER, BISECT, up_to(0)])
def test_a_refusal_is_not_an_attempt_and_splits_nothing(policy):
    batch = StreamBatch(RECORDS, attempts=0, refusals=100)
    assert decide(BUSY, batch, policy) == Retry(StreamBatch(RECORDS, attempts=0, refusals=101), NOW + 30)


def test_the_pauses_of_refusals_have_their_own_count():
    first = decide(BUSY, StreamBatch(RECORDS, attempts=5))
    assert first.at == NOW + 0.5
    assert decide(BUSY, first.batch).at == NOW + 1.0
    assert decide(FAILED, first.batch).batch == StreamBatch(RECORDS, attempts=6, refusals=0)


# --- size ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retries", [0, 2, 10_000])
def test_a_record_that_is_too_large_has_used_up_its_attempts_at_once(retries):
    decision = decide(TooLarge(), StreamBatch((NINE,)), up_to(retries))
    assert decision == GiveUp((NINE,), Condition.RETRIES, 1 + retries, TooLarge())


def test_without_a_limit_a_record_that_is_too_large_waits_until_it_expires():
    policy = StreamPolicy(maximum_record_age_in_seconds=60)
    batch = StreamBatch((NINE,), attempts=20)
    decision = decide(TooLarge(), batch, policy, now=NOW + 59)
    assert decision == Retry(StreamBatch((NINE,), attempts=21), NOW + 60)
    assert expire(decision.batch, policy, decision.at).given_up[0].condition == Condition.AGE


def test_records_that_are_too_large_together_are_halved():
    assert decide(TooLarge(), policy=up_to(0)) == Bisect(StreamBatch((NINE,)), StreamBatch((TEN, ELEVEN)))


@pytest.mark.parametrize(
    ("sizes", "extra", "too_large"),
    [
        ([PAYLOAD_LIMIT - ENVELOPE_SIZE], 0, False),
        ([PAYLOAD_LIMIT - ENVELOPE_SIZE + 1], 0, True),
        ([PAYLOAD_LIMIT - ENVELOPE_SIZE], 1, True),
        ([PAYLOAD_LIMIT // 2, PAYLOAD_LIMIT // 2], 0, True),
        ([], 0, False),
    ],
)
def test_the_limit_is_on_the_whole_event(sizes, extra, too_large):
    assert is_too_large([record(9, size=size) for size in sizes], extra) is too_large


# --- age ----------------------------------------------------------------------------------------------------

MINUTE = StreamPolicy(maximum_record_age_in_seconds=60)


@pytest.mark.parametrize(
    ("arrivals", "policy", "at"),
    [
        ([990, 980, 1000], MINUTE, 1040),  # 980 + 60
        ([990, 980, 1000], FOREVER, math.inf),
        ([0, 990], MINUTE, 1050),  # what never arrived has no age
        ([0], MINUTE, math.inf),
        ([], MINUTE, math.inf),
    ],
)
def test_a_batch_expires_with_its_oldest_record(arrivals, policy, at):
    assert expires_at([record(9, arrived) for arrived in arrivals], policy) == at


@pytest.mark.parametrize("outcome", [FAILED, BUSY, TooLarge()])
def test_a_pause_ends_when_the_first_record_expires(outcome):
    batch = StreamBatch((record(9, NOW - 30),), attempts=10, refusals=10)  # 60 s, halved: just the same
    assert decide(outcome, batch, MINUTE, chance=0.9).at == NOW + 30
    batch = StreamBatch((record(9, NOW - 59.75),), attempts=0, refusals=0)
    assert decide(outcome, batch, MINUTE).at == NOW + 0.25


@pytest.mark.parametrize("outcome", [FAILED, BUSY])
def test_a_record_that_expired_during_an_attempt_is_not_paused_for(outcome):
    assert decide(outcome, StreamBatch((record(9, NOW - 90),)), MINUTE).at == NOW


def test_the_last_retry_decides_before_age_does():
    old = StreamBatch((record(9, NOW - 90),))
    policy = up_to(0, maximum_record_age_in_seconds=60)
    assert decide(FAILED, old, policy).condition == Condition.RETRIES


def test_only_the_records_that_are_too_old_are_given_up():
    old, live = record(9, NOW - 60), [record(number, NOW - 59) for number in range(10, 15)]
    expiry = expire(StreamBatch([old, *live]), MINUTE, NOW)
    assert expiry == Expiry((GiveUp((old,), Condition.AGE, 1, None),), StreamBatch(live))


def test_records_that_expire_together_are_given_up_together_when_they_are_neighbours():
    ages = [60, 70, 10, 80, 10]
    a, b, c, d, e = (record(number, NOW - age) for number, age in enumerate(ages))
    expiry = expire(StreamBatch([a, b, c, d, e], attempts=2), MINUTE, NOW)
    assert [each.records for each in expiry.given_up] == [(a, b), (d,)]
    assert expiry.live == StreamBatch([c, e], attempts=2)  # no success of the function, so no fresh budget


@pytest.mark.parametrize(("attempts", "count"), [(0, 1), (1, 1), (8, 8)])
def test_a_batch_that_expires_as_a_whole_tells_its_attempts_and_at_least_one(attempts, count):
    batch = StreamBatch((record(9, NOW - 60),), attempts, refusals=4)
    assert expire(batch, MINUTE, NOW) == Expiry((GiveUp(batch.records, Condition.AGE, count, None),), None)


@pytest.mark.parametrize("policy", [FOREVER, MINUTE])
@pytest.mark.parametrize("records", [RECORDS, (), (record(9, 0.0),)])
def test_a_batch_in_which_nothing_is_too_old_stays_as_it_is(policy, records):
    batch = StreamBatch(records, 3, 1)
    expiry = expire(batch, policy, NOW)
    assert expiry == Expiry((), batch)
    assert expiry.live is batch


@given(
    st.floats(1, 2e9), st.integers(60, 604_800), st.integers(0, 20), st.floats(0, 1e6), st.floats(0, 0.999)
)
def test_at_the_time_of_a_retry_a_batch_has_either_expired_or_its_pause_is_over(
    arrived, age, attempts, elapsed, chance
):
    policy = StreamPolicy(maximum_record_age_in_seconds=age)
    now = arrived + elapsed
    retry = decide(FAILED, StreamBatch((record(9, arrived),), attempts), policy, now, chance)
    assert retry.at >= now
    assert expire(retry.batch, policy, retry.at).live is None or retry.at - now >= 0.499


# --- laws ---------------------------------------------------------------------------------------------------


def run(records, poison, policy, *, names_failures, attempts_at):
    """Take a batch to its end as the engine does; return what was done and what was given up, in order."""
    todo, done, given_up = [StreamBatch(records)], [], []
    while todo:
        batch = todo.pop(0)
        attempts_at.append(tuple(each.id for each in batch.records))
        bad = [each.id for each in batch.records if each.id in poison]
        outcome = Succeeded() if not bad else PartlyFailed(frozenset(bad)) if names_failures else FAILED
        match decide(outcome, batch, policy):
            case Commit(records_done, rest):
                done += records_done
                todo[:0] = [rest] if rest else []
            case Retry(again, _):
                todo.insert(0, again)
            case Bisect(first, second):
                todo[:0] = [first, second]
            case GiveUp(lost):
                given_up.append(lost)
    return done, given_up


@given(
    count=st.integers(1, 40),
    poison=st.sets(st.integers(0, 39), max_size=8),
    retries=st.integers(0, 3),
    bisect=st.booleans(),
    names_failures=st.booleans(),
)
def test_every_record_is_done_or_given_up_once_and_in_order(count, poison, retries, bisect, names_failures):
    records = [record(number) for number in range(count)]
    bad = {str(number) for number in poison if number < count}
    policy = up_to(retries, bisect_batch_on_function_error=bisect)
    attempts_at = []
    done, given_up = run(records, bad, policy, names_failures=names_failures, attempts_at=attempts_at)
    lost = [each for batch in given_up for each in batch]
    assert sorted([*done, *lost], key=lambda each: int(each.id)) == records
    assert done == sorted(done, key=lambda each: int(each.id))
    assert bad <= {each.id for each in lost}
    if bisect:
        assert {each.id for each in lost} == bad  # a good record never shares the fate of a bad one
        for name in bad:
            assert attempts_at.count((name,)) == 1 + retries


def test_the_recorded_case_of_a_batch_of_three_whose_last_record_fails():
    """One invoke of three records, then 1 + 3 of the single one."""
    attempts_at = []
    done, given_up = run(list(RECORDS), {"11"}, up_to(3), names_failures=True, attempts_at=attempts_at)
    assert attempts_at == [("9", "10", "11")] + [("11",)] * 4
    assert (done, given_up) == ([NINE, TEN], [[ELEVEN]])
