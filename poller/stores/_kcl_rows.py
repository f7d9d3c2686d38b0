"""What the rows of a lease table of the Kinesis Client Library look like, and back.

One row a shard, under its id (`leaseKey`). The KCL writes::

    leaseOwner, leaseCounter       who reads it; renewals, claims, releases and checkpoints each add one
    checkpointOwner                while a lease changes hands, from 3.0 on: who still reads it; leaseOwner is the heir
    checkpoint, checkpointSubSequenceNumber, ownerSwitchesSinceCheckpoint
    parentShardId, childShardIds   sets of shard ids
    pendingCheckpoint, ...SubSequenceNumber, ...State    an application's two-phase checkpoint
    startingHashKey, endingHashKey, throughputKBps, entityType

It reads the attributes that it knows and changes them one by one, so others stay where they are: `pollerSince`, `pollerLoad`
and `pollerWantedBy` are ours. It has no place for the rows of our workers: up to 3.4 it takes every row for a lease, and one
without a counter ends its scan. From 3.5 on its own workers and its leader may have rows here, which `entityType` tells apart.

*Checkpoints.* ``(number, sub)`` means that the records inside the record `number` are done up to `sub`. A record that is no
aggregate has 0, which looks like the first one of an aggregate; whoever begins there reads the record again and drops what is
not behind. That is what our readers do with a number, so these go both ways as they are. That all of a record is done, however
much is in it, is written as the largest number there can be, and the KCL then drops all of it.

*Where nothing is done*, the checkpoint is a word: TRIM_HORIZON, LATEST (which means from when somebody begins) or AT_TIMESTAMP
(at a time that only the application's own configuration has). Our time goes beside it. SHARD_END is a shard that is finished,
and says nothing of its last record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poller.core.positions import position
from poller.core.shards import SKEW
from poller.errors import StoreError
from poller.model import Checkpoint, Lease

if TYPE_CHECKING:
    from collections.abc import Mapping

    from poller.stores._dynamodb_rows import Item

KEY = "leaseKey"
OWNER = "leaseOwner"
COUNTER = "leaseCounter"
FORMER = "checkpointOwner"
CHECKPOINT = "checkpoint"
SUB = "checkpointSubSequenceNumber"
SWITCHES = "ownerSwitchesSinceCheckpoint"
PARENTS = "parentShardId"
PENDING = ("pendingCheckpoint", "pendingCheckpointSubSequenceNumber", "pendingCheckpointState")
SINCE, LOAD, WANTED_BY = "pollerSince", "pollerLoad", "pollerWantedBy"

#: The sub-sequence number of a record that is done, whatever is in it. A record of 10 MB has no room for so many.
WHOLE_RECORD = 2**31 - 1

_KIND = "entityType"
_LEASE = "LEASE"
#: Those of an application that reads several streams.
_OF_MANY = ("streamName", "shardId")
_SHARD_END = "SHARD_END"
_NOT_BEGUN = ("TRIM_HORIZON", "AT_TIMESTAMP")
_NOTHING_DONE = (*_NOT_BEGUN, "LATEST")


@dataclass(frozen=True, slots=True)
class Origin:
    """What the file says of the mapping of a table."""

    mapping: str
    position: str
    """TRIM_HORIZON, LATEST or AT_TIMESTAMP: the word for where nothing is done, as the KCL would have it."""
    timestamp: float | None = None
    """Unix time, with AT_TIMESTAMP."""


# --- reading ------------------------------------------------------------------------------------------------------------


def is_lease(item: Mapping[str, Any]) -> bool:
    """Whether a row is a lease, as far as the KCL says."""
    return _text(item, _KIND) in ("", _LEASE)


def lease_of(item: Mapping[str, Any], origin: Origin, now: float) -> Lease:
    """The lease of a row. `now` is the Unix time at which a lease at LATEST begins. Raises StoreError for any other row."""
    shard = str(item[KEY]["S"])
    if any(name in item for name in _OF_MANY):
        raise StoreError(
            f"{shard}: the table of an application that reads several streams: only those of one stream can be taken over"
        )
    try:
        counter, checkpoint = int(item[COUNTER]["N"]), _checkpoint(item, origin, now)
    except (KeyError, ValueError):
        raise StoreError(f"{shard}: no lease of the KCL, which have leaseCounter and checkpoint") from None
    former, owner = _text(item, FORMER), _text(item, OWNER)
    load = _text(item, LOAD)
    return Lease(
        origin.mapping,
        shard,
        tuple(sorted(item.get(PARENTS, {"SS": ()})["SS"])),
        former or owner,
        counter,
        checkpoint,
        float(load) if load else None,
        owner if former else _text(item, WANTED_BY),
    )


def heir_of(item: Mapping[str, Any]) -> str:
    """The worker of the KCL that a lease is to be handed to; empty for nobody."""
    return _text(item, OWNER) if FORMER in item else ""


def has_begun(item: Mapping[str, Any]) -> bool:
    """Whether the shard was begun, as the KCL sees it: from then on it may remove the rows of its parents."""
    word = _text(item, CHECKPOINT)
    # At the horizon with a time beside it is where somebody has sought to.
    return word not in _NOT_BEGUN or (word == "TRIM_HORIZON" and SINCE in item)


def _checkpoint(item: Mapping[str, Any], origin: Origin, now: float) -> Checkpoint:
    text = str(item[CHECKPOINT]["S"])
    if text == _SHARD_END:
        return Checkpoint(finished=True)
    if text not in _NOTHING_DONE:
        sub = int(item.get(SUB, {"N": "0"})["N"])
        checkpoint = Checkpoint(text, None if sub >= WHOLE_RECORD else sub)
        try:
            position(checkpoint)
        except StoreError as error:
            raise StoreError(f"{item[KEY]['S']}: {error}") from None
        return checkpoint
    if since := _text(item, SINCE):
        return Checkpoint(since=float(since))
    if text == "LATEST":
        return Checkpoint(since=now - SKEW)
    if text == "TRIM_HORIZON":
        return Checkpoint()
    if origin.timestamp is None:
        raise StoreError(
            f"{item[KEY]['S']}: begins AT_TIMESTAMP, and only the application's configuration has the time: give the mapping"
            " starting_position = AT_TIMESTAMP with that starting_position_timestamp"
        )
    return Checkpoint(since=origin.timestamp)


def _text(item: Mapping[str, Any], name: str) -> str:
    value = item.get(name)
    return str(value["S"]) if value else ""


# --- writing ------------------------------------------------------------------------------------------------------------


def told(checkpoint: Checkpoint) -> Checkpoint:
    """What is left of a checkpoint when it comes back. Raises StoreError for what cannot be written."""
    position(checkpoint)
    if checkpoint.window:
        raise StoreError("a lease table of the KCL has no room for the state of a tumbling window")
    if checkpoint.finished:
        return Checkpoint(finished=True)
    if not checkpoint.sequence_number:
        return Checkpoint(since=checkpoint.since)
    sub = checkpoint.sub_sequence_number
    return Checkpoint(checkpoint.sequence_number, None if sub is None or sub >= WHOLE_RECORD else sub)


def checkpoint_item(checkpoint: Checkpoint, word: str) -> Item:
    """The attributes of a checkpoint as `told`; `word` is for a time to begin at."""
    if checkpoint.finished:
        return {CHECKPOINT: {"S": _SHARD_END}, SUB: number(0)}
    if checkpoint.sequence_number:
        sub = checkpoint.sub_sequence_number
        return {
            CHECKPOINT: {"S": checkpoint.sequence_number},
            SUB: number(WHOLE_RECORD if sub is None else sub),
        }
    if checkpoint.since:
        return {CHECKPOINT: {"S": word}, SUB: number(0), SINCE: since_value(checkpoint)}
    return {CHECKPOINT: {"S": "TRIM_HORIZON"}, SUB: number(0)}


def since_value(checkpoint: Checkpoint) -> dict[str, str]:
    """The time at which a shard begins of which nothing is done."""
    return {"S": repr(checkpoint.since)}


def parents_item(parents: tuple[str, ...]) -> Item:
    """The attribute of a lease's parents: a set is never empty."""
    return {PARENTS: {"SS": sorted(set(parents))}} if parents else {}


def key_item(shard: str) -> Item:
    """The key of a lease."""
    return {KEY: {"S": shard}}


def number(value: int) -> dict[str, str]:
    """A number."""
    return {"N": str(value)}


# --- conditions ---------------------------------------------------------------------------------------------------------


def owned_by(owner: str) -> tuple[str, Item]:
    """The condition that a lease is read by `owner`, or by nobody."""
    if not owner:
        return f"attribute_not_exists(#{OWNER}) AND attribute_not_exists(#{FORMER})", {}
    alone = f"attribute_not_exists(#{FORMER}) AND #{OWNER} = :owner"
    return f"(#{FORMER} = :owner OR ({alone}))", {"owner": {"S": owner}}


def stands_at(checkpoint: Checkpoint) -> tuple[str, Item]:
    """The condition that a row has this checkpoint."""
    if checkpoint.sequence_number or checkpoint.finished:
        values = checkpoint_item(checkpoint, "")
        return f"#{CHECKPOINT} = :{CHECKPOINT} AND #{SUB} = :{SUB}", values
    words = {word.lower(): {"S": word} for word in _NOTHING_DONE}
    return f"#{CHECKPOINT} IN ({', '.join(f':{word}' for word in words)})", words


def is_still(item: Item) -> tuple[str, Item]:
    """The condition that a row has the checkpoint that `item` has."""
    values = {name: item[name] for name in (CHECKPOINT, SUB) if name in item}
    condition = f"#{CHECKPOINT} = :{CHECKPOINT} AND "
    return condition + (f"#{SUB} = :{SUB}" if SUB in item else f"attribute_not_exists(#{SUB})"), values
