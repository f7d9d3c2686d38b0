from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.core.retry import Attempt, RetryAt, Settle, backoff, decide
from poller.model import Failed, FunctionError, NotInvoked, PartlyFailed, Record, Succeeded

A, B, C = (Record(name, None, 100, {}, name) for name in "abc")
BATCH = [A, B, C]
FAILED = Failed(FunctionError("ValueError", "no such order"))
BUSY = NotInvoked("no worker is free")

NOTHING = ()
NOW = 1000.0


@pytest.mark.parametrize(
    ("outcome", "done", "failed"),
    [
        (Succeeded(), BATCH, NOTHING),  # acknowledge all
        (PartlyFailed(frozenset("b")), [A, C], [B]),  # 3 - 1 = 2 are done, in their order
        (PartlyFailed(frozenset("ca")), [B], [A, C]),  # 3 - 2 = 1 is done; failed in the batch's order
        (PartlyFailed(frozenset("abc")), [], BATCH),  # 3 - 3 = 0 are done
        (FAILED, NOTHING, BATCH),  # a queue offers it again by itself, so it is never tried again here
    ],
)
def test_a_batch_that_a_handler_saw_is_settled(outcome, done, failed):
    decision = decide(outcome, BATCH, Attempt(0, NOW), patience=30, now=NOW, chance=0.0)
    assert decision == Settle(done, failed)


@pytest.mark.parametrize(
    ("refusals", "waited", "patience", "chance", "decision"),
    [
        (0, 0.0, 30, 0.0, RetryAt(NOW + 0.5)),  # 1 * 2^0 = 1, its lower half: 1 * 0.5
        (0, 0.0, 30, 0.5, RetryAt(NOW + 0.75)),  # 1 * (0.5 + 0.5 / 2)
        (3, 0.0, 30, 0.0, RetryAt(NOW + 4.0)),  # 1 * 2^3 = 8, halved
        (6, 0.0, 90, 0.0, RetryAt(NOW + 30.0)),  # 2^6 = 64, held at 60, halved
        (5, 13.0, 30, 0.0, RetryAt(NOW + 16.0)),  # 13 + 16 = 29 < 30
        (5, 14.0, 30, 0.0, Settle((), BATCH)),  # 14 + 16 = 30: no longer within patience
        (0, 29.0, 30, 0.5, RetryAt(NOW + 0.75)),  # 29 + 0.75 < 30
        (0, 29.0, 29.75, 0.5, Settle((), BATCH)),  # 29 + 0.75 = 29.75
        (0, 0.0, 0, 0.0, Settle((), BATCH)),  # no patience at all
    ],
)
def test_a_batch_that_no_handler_saw_is_tried_again_until_patience_ends(
    refusals, waited, patience, chance, decision
):
    attempt = Attempt(refusals, since=NOW - waited)
    assert decide(BUSY, BATCH, attempt, patience=patience, now=NOW, chance=chance) == decision


@pytest.mark.parametrize(
    ("tries", "chance", "pause"),
    [
        (0, 0.0, 0.5),  # 1 * 2^0 * 0.5
        (1, 0.0, 1.0),  # 1 * 2^1 * 0.5
        (4, 0.0, 8.0),  # 1 * 2^4 * 0.5
        (4, 0.5, 12.0),  # 16 * 0.75
        (6, 0.0, 30.0),  # min(60, 64) * 0.5
        (10_000, 0.0, 30.0),  # no overflow however long it lasts
    ],
)
def test_pauses_double_up_to_a_minute(tries, chance, pause):
    assert backoff(tries, chance) == pause


@pytest.mark.parametrize(
    ("tries", "pause"),
    [
        (0, 0.05),  # 0.1 * 0.5
        (2, 0.2),  # 0.1 * 2^2 * 0.5
        (5, 1.0),  # min(2, 0.1 * 2^5 = 3.2) * 0.5
    ],
)
def test_pauses_can_have_other_bounds(tries, pause):
    assert backoff(tries, 0.0, first=0.1, longest=2.0) == pytest.approx(pause)


chances = st.floats(0, 1, exclude_max=True)


@given(st.integers(0, 1000), chances)
def test_a_pause_lies_in_the_upper_half_of_its_longest(tries, chance):
    longest = min(60.0, 2.0 ** min(tries, 10))
    assert longest / 2 <= backoff(tries, chance) <= longest


@given(st.integers(0, 1000), chances)
def test_pauses_never_shrink_while_chance_is_the_same(tries, chance):
    assert backoff(tries, chance) <= backoff(tries + 1, chance)


@given(
    ids=st.sets(st.sampled_from("abcdefgh")),
    named=st.frozensets(st.sampled_from("abcdefgh"), min_size=1),
)
def test_every_record_is_either_done_or_failed(ids, named):
    batch = [Record(name, None, 1, {}, name) for name in sorted(ids)]
    decision = decide(PartlyFailed(named), batch, Attempt(0, 0.0), patience=1, now=0.0, chance=0.0)
    assert isinstance(decision, Settle)
    assert sorted([*decision.done, *decision.failed]) == sorted(batch)
    assert {record.id for record in decision.failed} == ids & named


# --- giving up ----------------------------------------------------------------------------------------------------------


def received(*receives):
    return [Record(f"m{place}", None, 1, {}, None, receives=count) for place, count in enumerate(receives)]


def parted(outcome, records, maximum_retry_attempts):
    decision = decide(
        outcome,
        records,
        Attempt(0, 0.0),
        patience=30,
        now=1.0,
        chance=0.0,
        maximum_retry_attempts=maximum_retry_attempts,
    )
    return tuple(
        [record.id for record in part] for part in (decision.done, decision.failed, decision.given_up)
    )


@pytest.mark.parametrize(
    ("maximum_retry_attempts", "failed", "given_up"),
    [
        (-1, ["m0", "m1", "m2"], []),
        (0, [], ["m0", "m1", "m2"]),
        (2, ["m0", "m1"], ["m2"]),
        (3, ["m0", "m1", "m2"], []),
    ],
)
def test_a_message_that_failed_is_given_up_when_it_was_received_more_often_than_it_may_be_retried(
    maximum_retry_attempts, failed, given_up
):
    records = received(1, 2, 3)
    assert parted(FAILED, records, maximum_retry_attempts) == ([], failed, given_up)


def test_of_a_partly_failed_batch_only_what_failed_can_be_given_up():
    outcome = PartlyFailed(frozenset({"m1", "m2"}))
    assert parted(outcome, received(5, 5, 1), 2) == (["m0"], ["m2"], ["m1"])


def test_success_is_success_however_often_it_took():
    assert parted(Succeeded(), received(9, 9), 0) == (["m0", "m1"], [], [])


def test_what_no_handler_saw_is_never_given_up():
    decision = decide(
        NotInvoked("busy"),
        received(9),
        Attempt(3, 0.0),
        patience=30,
        now=30.0,
        chance=0.0,
        maximum_retry_attempts=0,
    )
    assert [record.id for record in decision.failed] == ["m0"]
    assert decision.given_up == ()
