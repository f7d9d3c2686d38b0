"""Outcome x policy x now -> Decision: what becomes of a batch after an attempt.

A queue keeps its own position and offers a failed message again by itself, so nothing that ran is tried a second time here
(spec 4.1): what succeeded is acknowledged, what failed is left to the queue's visibility timeout and, through its receive
count, to its redrive policy. Only a batch that no handler saw (throttled, no worker) is tried again with its receipts, with
growing pauses, for as long as `patience` lasts; past that it is left too, as Lambda does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from poller.model import Failed, NotInvoked, PartlyFailed, Succeeded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poller.model import Outcome, Record

#: First and longest pause before a batch that was not invoked is tried again, seconds (spec U3: the schedule is not known).
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0


@dataclass(frozen=True, slots=True)
class Settle:
    """Acknowledge `done`; stop keeping `failed`, which the source offers again when it would by itself."""

    done: Sequence[Record]
    failed: Sequence[Record]


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
) -> Decision:
    """Decide about a batch of a queue.

    `patience` is how many seconds a batch that was never invoked is kept; `chance` in [0, 1) spreads the retries of many
    batches.
    """
    match outcome:
        case Succeeded():
            return Settle(records, ())
        case PartlyFailed(ids):
            return Settle(
                [record for record in records if record.id not in ids],
                [record for record in records if record.id in ids],
            )
        case Failed():
            return Settle((), records)
        case NotInvoked():
            at = now + backoff(attempt.refusals, chance)
            return RetryAt(at) if at < attempt.since + patience else Settle((), records)
        case _:
            assert_never(outcome)


def backoff(tries: int, chance: float, first: float = FIRST_PAUSE, longest: float = LONGEST_PAUSE) -> float:
    """Seconds before try number `tries` + 1: doubling from `first` to `longest`, the upper half of it left to chance."""
    pause = min(longest, first * 2 ** min(tries, 30))
    return float(pause * (0.5 + chance / 2))
