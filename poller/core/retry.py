"""Outcome x policy x now -> Decision: what becomes of a batch after an attempt.

*Queues.* A queue keeps its own position and offers a failed message again by itself, so nothing that ran is tried a second
time here (spec 4.1): what succeeded is acknowledged, what failed is left to the queue's visibility timeout and, through its
receive count, to its redrive policy. Only a batch that no handler saw (throttled, no worker) is tried again with its
receipts, with growing pauses, for as long as `patience` lasts; past that it is left too, as Lambda does. Beyond Lambda, a
mapping may say how often a message is tried at most: past that it is given up here, by its receive count, when it has failed.

*Streams.* A stream keeps nothing but an order, so a batch is tried here until it is done or given up (spec 5.4 to 5.6, 5.8):

    batch --> expire --> records past their age: GiveUp
                     --> the others: an attempt --> Commit    all of them, or those before the lowest failed one
                                                --> Bisect    two new batches, the first to be done before the second
                                                --> Retry     the same batch, later
                                                --> GiveUp    all of them

Attempts are counted per batch. Whatever changes a batch makes a new one, with nothing counted and no pause: since each
such step settles records or halves the batch, there can only be so many in a row. The exception is a batch that lost records
to their age, which is no success of the function: it keeps its count. A refusal (no handler ran) is not an attempt.

Batches hold their records in the order of the shard, which is the order of sequence numbers as integers; so "the lowest
failed" is the first of the batch, and no sequence number is ever compared as text.

Where Lambda's behaviour is not known: a partial response that names the first record leaves nothing to split off, so with
bisect on it halves the batch as an error does, or one bad record would take the good ones behind it along. Refusals never
split. Records that expire together are one document if they lie together. All times are Unix times here, as ages are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING, assert_never

from poller.core.batch import ENVELOPE_SIZE, PAYLOAD_LIMIT, size_of
from poller.model import Failed, NotInvoked, Outcome, PartlyFailed, Succeeded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poller.model import Record

#: First and longest pause before a batch that was not invoked is tried again, seconds (spec U3: the schedule is not known).
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0


@dataclass(frozen=True, slots=True)
class Settle:
    """Acknowledge `done`; stop keeping `failed`, which the source offers again when it would by itself; acknowledge `given_up`
    once a destination knows."""

    done: Sequence[Record]
    failed: Sequence[Record]
    given_up: Sequence[Record] = ()


@dataclass(frozen=True, slots=True)
class RetryAt:
    """Try the same batch again at `at`, on the clock that `decide` was given."""

    at: float


Decision = Settle | RetryAt


@dataclass(frozen=True, slots=True)
class Attempt:
    """What has happened to a batch so far: `refusals` times no handler ran, since `since` (seconds, any clock)."""

    refusals: int
    since: float


def decide(
    outcome: Outcome,
    records: Sequence[Record],
    attempt: Attempt,
    *,
    patience: float,
    now: float,
    chance: float,
    maximum_retry_attempts: int = -1,
) -> Decision:
    """Decide about a batch of a queue.

    `patience` is how many seconds a batch that was never invoked is kept; `chance` in [0, 1) spreads the retries of many
    batches. A message that has failed and was received more often than `maximum_retry_attempts` is given up; -1 for never.
    """
    match outcome:
        case Succeeded():
            return Settle(records, ())
        case PartlyFailed(ids):
            done = [record for record in records if record.id not in ids]
            return _settle(done, [record for record in records if record.id in ids], maximum_retry_attempts)
        case Failed():
            return _settle((), records, maximum_retry_attempts)
        case NotInvoked():
            at = now + backoff(attempt.refusals, chance)
            return RetryAt(at) if at < attempt.since + patience else Settle((), records)
        case _:
            assert_never(outcome)


def _settle(done: Sequence[Record], failed: Sequence[Record], maximum_retry_attempts: int) -> Settle:
    if maximum_retry_attempts < 0:
        return Settle(done, failed)
    again = [record for record in failed if record.receives <= maximum_retry_attempts]
    return Settle(done, again, [record for record in failed if record.receives > maximum_retry_attempts])


def backoff(tries: int, chance: float, first: float = FIRST_PAUSE, longest: float = LONGEST_PAUSE) -> float:
    """Seconds before try number `tries` + 1: doubling from `first` to `longest`, the upper half of it left to chance."""
    pause = min(longest, first * 2 ** min(tries, 30))
    return float(pause * (0.5 + chance / 2))


# --- streams ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StreamPolicy:
    """What a mapping says about failures, in Lambda's words; -1 is no limit."""

    maximum_retry_attempts: int = -1
    maximum_record_age_in_seconds: float = -1
    bisect_batch_on_function_error: bool = False


@dataclass(frozen=True, slots=True)
class StreamBatch:
    """Records that are tried together, in the order of their shard, and what has happened to them as a batch.

    There are none in the final invoke of a window. `attempts` failed; since the last of them `refusals` times no handler
    ran.
    """

    records: Sequence[Record]
    attempts: int = 0
    refusals: int = 0


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The event passes the payload limit: no handler gets to see it, and yet it is an attempt."""


StreamOutcome = Outcome | TooLarge


class Condition(StrEnum):
    """Why a batch is given up, as destinations are told."""

    RETRIES = "RetryAttemptsExhausted"
    AGE = "RecordAgeExceeded"


@dataclass(frozen=True, slots=True)
class Commit:
    """`done` are done. `rest` is a new batch, to be tried at once; None when that was all."""

    done: Sequence[Record]
    rest: StreamBatch | None = None


@dataclass(frozen=True, slots=True)
class Retry:
    """Try the same batch again at `at`, with what `expire` leaves of it then."""

    batch: StreamBatch
    at: float


@dataclass(frozen=True, slots=True)
class Bisect:
    """Two new batches in the place of one; `second` waits until `first` is done or given up."""

    first: StreamBatch
    second: StreamBatch


@dataclass(frozen=True, slots=True)
class GiveUp:
    """`records` are not tried again: a destination gets to know, then they count as done."""

    records: Sequence[Record]
    condition: Condition
    invoke_count: int
    outcome: StreamOutcome | None
    """What the last attempt came to; None when age, not an attempt, decided."""


StreamDecision = Commit | Retry | Bisect | GiveUp


def decide_stream(
    outcome: StreamOutcome, batch: StreamBatch, policy: StreamPolicy, *, now: float, chance: float
) -> StreamDecision:
    """Decide about a batch of a stream after an attempt."""
    match outcome:
        case Succeeded():
            return Commit(batch.records)
        case NotInvoked():
            again = replace(batch, refusals=batch.refusals + 1)
            return Retry(again, _retry_time(batch, batch.refusals, policy, now, chance))
        case PartlyFailed(ids):
            lowest = next((place for place, record in enumerate(batch.records) if record.id in ids), 0)
            if lowest:
                return Commit(batch.records[:lowest], StreamBatch(batch.records[lowest:]))
            return _failed(outcome, batch, policy, now, chance)
        case Failed() | TooLarge():
            return _failed(outcome, batch, policy, now, chance)
        case _:
            assert_never(outcome)


def _failed(
    outcome: PartlyFailed | Failed | TooLarge,
    batch: StreamBatch,
    policy: StreamPolicy,
    now: float,
    chance: float,
) -> StreamDecision:
    too_large = isinstance(outcome, TooLarge)
    if len(batch.records) > 1 and (policy.bisect_batch_on_function_error or too_large):
        half = len(batch.records) // 2
        return Bisect(StreamBatch(batch.records[:half]), StreamBatch(batch.records[half:]))
    attempts = batch.attempts + 1
    if (retries := policy.maximum_retry_attempts) >= 0:
        if too_large:
            # Waiting will not make it smaller: the attempts that are left to it are counted, not waited for.
            attempts = retries + 1
        if attempts > retries:
            return GiveUp(batch.records, Condition.RETRIES, attempts, outcome)
    at = _retry_time(batch, batch.attempts, policy, now, chance)
    return Retry(StreamBatch(batch.records, attempts), at)


def _retry_time(batch: StreamBatch, tries: int, policy: StreamPolicy, now: float, chance: float) -> float:
    """When to try again: never later than the first record expires, so that none is held up past its age."""
    return max(now, min(now + backoff(tries, chance), expires_at(batch.records, policy)))


def expires_at(records: Sequence[Record], policy: StreamPolicy) -> float:
    """When the first of `records` is too old; infinite when none will be. A record that never arrived has no age."""
    age = policy.maximum_record_age_in_seconds
    if age < 0:
        return math.inf
    return min((record.arrived + age for record in records if record.arrived > 0), default=math.inf)


@dataclass(frozen=True, slots=True)
class Expiry:
    """What age leaves of a batch: runs of neighbours that are too old, each given up by itself, and the others."""

    given_up: tuple[GiveUp, ...]
    live: StreamBatch | None


def expire(batch: StreamBatch, policy: StreamPolicy, now: float) -> Expiry:
    """Part a batch by age. It is asked before each attempt, and while a batch is still filling."""
    if now < expires_at(batch.records, policy):
        return Expiry((), batch)
    given_up: list[GiveUp] = []
    live: list[Record] = []
    # An attempt is told of even if there was none, as Lambda does.
    count = max(1, batch.attempts)
    age = policy.maximum_record_age_in_seconds
    for is_old, run in groupby(
        batch.records, lambda record: record.arrived > 0 and record.arrived + age <= now
    ):
        if is_old:
            given_up.append(GiveUp(tuple(run), Condition.AGE, count, None))
        else:
            live.extend(run)
    return Expiry(tuple(given_up), replace(batch, records=live) if live else None)


def is_too_large(records: Sequence[Record], extra: int = 0) -> bool:
    """Whether the event of `records` passes the payload limit; `extra` are the bytes of its other members."""
    return ENVELOPE_SIZE + extra + size_of(records) > PAYLOAD_LIMIT
