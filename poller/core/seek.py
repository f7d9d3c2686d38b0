"""Moving a mapping to another place in its stream: what may be asked, and what it means for each shard.

A place becomes a checkpoint that says the same whatever starting position the mapping has:

===================  ==============================================================================
TRIM_HORIZON         nothing yet
a time               nothing yet, since that time
LATEST               nothing yet, since now; a shard that is finished stays so
a sequence number    done up to and including that record, as a checkpoint of a running mapping is
===================  ==============================================================================

A shard that is finished is read again when it is moved to anywhere else. Its children are moved only when they are named or all
shards are; until their parent is finished again they wait, as they did at first.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from poller.core.positions import position
from poller.core.shards import SKEW
from poller.errors import SeekRefused
from poller.model import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

Effect = Literal["repeats", "skips", "repeats or skips", "nothing"]

#: Digits of the longest number that is taken for a time. Sequence numbers have 20 and more.
TIME_DIGITS = 12
#: Shards that a message lists.
NAMED = 8
_CHOICES = "TRIM_HORIZON, LATEST, a time (2026-01-31T12:00:00Z, or seconds since 1970) or a sequence number"


@dataclass(frozen=True, slots=True)
class Target:
    """A place in a stream."""

    kind: Literal["TRIM_HORIZON", "LATEST", "TIME", "SEQUENCE_NUMBER"]
    sequence_number: str = ""
    time: float = 0.0
    """Unix time."""


@dataclass(frozen=True, slots=True)
class Move:
    """What becomes of one shard."""

    shard: str
    after: Checkpoint
    effect: Effect
    says: str
    """The same for a reader: from where to where, and what that repeats or skips."""


def parse(text: str, now: float) -> Target:
    """Read what a user wrote; raises SeekRefused for what is no place."""
    name = text.strip().upper()
    if name in ("TRIM_HORIZON", "LATEST"):
        return Target("TRIM_HORIZON" if name == "TRIM_HORIZON" else "LATEST")
    if name.isascii() and name.isdigit() and len(name) > TIME_DIGITS:
        return Target("SEQUENCE_NUMBER", sequence_number=name)
    time = _time(text)
    if not 0 <= time <= now:
        raise SeekRefused(f"{text}: must be a time since 1970 that is not in the future")
    return Target("TIME", time=time)


def _time(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text.strip().upper())
    except ValueError as error:
        raise SeekRefused(f"{text}: must be {_CHOICES}") from error
    if moment.tzinfo is None:
        raise SeekRefused(f"{text}: must name its offset from UTC, like 2026-01-31T12:00:00Z")
    return moment.timestamp()


def check(target: Target, source: str, shard: str | None) -> None:
    """Raise SeekRefused when `target` is not for this kind of source, or not for this many shards."""
    if source == "sqs":
        raise SeekRefused("SQS keeps the position of a queue itself: there is nothing to move")
    if source == "dynamodb" and target.kind == "TIME":
        raise SeekRefused(
            "a DynamoDB stream cannot be read from a time: use TRIM_HORIZON, LATEST or a sequence number"
        )
    if target.kind == "SEQUENCE_NUMBER" and shard is None:
        raise SeekRefused("a sequence number belongs to one shard: name it with --shard")


def moves(
    checkpoints: Mapping[str, Checkpoint], target: Target, shard: str | None, now: float
) -> tuple[Move, ...]:
    """What becomes of `shard`, or of every shard; raises SeekRefused when there is none to move."""
    if not checkpoints:
        raise SeekRefused("it has no checkpoints yet: it begins at its starting_position")
    if shard is not None and shard not in checkpoints:
        known = ", ".join(sorted(checkpoints)[:NAMED])
        raise SeekRefused(f"it has no checkpoint in a shard {shard}; it has in {known}")
    wanted = sorted(checkpoints) if shard is None else [shard]
    return tuple(_move(name, checkpoints[name], target, now) for name in wanted)


def _move(shard: str, before: Checkpoint, target: Target, now: float) -> Move:
    if target.kind == "LATEST":
        after, place = Checkpoint(since=now - SKEW), "the latest"
        effect: Effect = "nothing" if before.finished else "skips"
    else:
        after = Checkpoint(target.sequence_number, since=target.time)
        place, effect = _place(after), _effect(before, after)
    if effect == "nothing":
        return Move(shard, before, effect, f"stays at {_place(before)}")
    window = "; its open window begins anew" if before.window else ""
    return Move(shard, after, effect, f"from {_place(before)} to {place}: {_meaning(effect, before)}{window}")


def _effect(before: Checkpoint, after: Checkpoint) -> Effect:
    old, new = position(before), position(after)
    if before.sequence_number and after.since and not before.finished:
        return "repeats or skips"  # nothing tells when the record of a sequence number came
    if old == new:
        old, new = f"{before.since:020.6f}", f"{after.since:020.6f}"
    return "nothing" if old == new else "skips" if old < new else "repeats"


def _meaning(effect: Effect, before: Checkpoint) -> str:
    if effect == "skips":
        return "skips what lies between and is not done yet"
    if effect == "repeats or skips":
        return "repeats what is done and came since then, skips what is not done and came before"
    if before.finished:
        return "opens it again and repeats what it still holds after that"
    if before.sequence_number:
        return "repeats what it still holds between them"
    return "takes in what it holds between them"


def _place(checkpoint: Checkpoint) -> str:
    if checkpoint.finished:
        return "its end"
    if checkpoint.sequence_number:
        return f"record {checkpoint.sequence_number}"
    if checkpoint.since:
        return datetime.fromtimestamp(checkpoint.since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return "its beginning"
