"""The shard tree: which shards may be read now, from where, and which may be forgotten.

A shard is open until it is split or merged; then it is closed and its keys go on in its children. The law is that no record
of a child is read before the last record of its parents, and that no shard is read twice or left out. Each shard is in one
of four states:

=========  ==========================================================================================
waiting    known, not begun; *ready* once all of its parents are finished, or were never known
reading    begun and not ended; `release` puts it back to waiting (a lost lease, a pause)
finished   closed, and all of its records are done; it stays known, so that nobody begins it again
forgotten  the source has dropped it, and all of its children are finished
=========  ==========================================================================================

A parent that was never known has been trimmed away by the source, so there is nothing to wait for. A parent that was known is
waited for even when a listing leaves it out: listings are eventually consistent, so only `finish` ends a shard. When the
source answers that a shard is gone, that is such an end too.

Listings only ever add to the tree. So it does not matter in which order shards are listed, or how often. They have to be
complete, or a parent that was left out would be taken for one that was trimmed away. The children that a source names at the
end of a shard are no listing: one that is merged from a parent which is unknown here (that of a shard which was split since
the last listing) is not `acquainted`, and has to wait for the next listing. Checkpoints name no parents, and where there is no
checkpoint at all the first listing says what existed when the mapping began.

What a shard that is new to the mapping gets is a checkpoint before its first record:

================  ==================================================  ===================================
starting at       shards of the first listing                         all later ones
================  ==================================================  ===================================
TRIM_HORIZON      nothing yet                                         nothing yet: from their beginning
AT_TIMESTAMP      nothing yet, since the timestamp                    nothing yet: from their beginning
LATEST            open: nothing yet, since now*; closed: finished     nothing yet: from their beginning
================  ==================================================  ===================================

(*) Where the end was then can only be found by the time later on, and no record may fall between two clocks: so it is `SKEW`
seconds less. The first start has no need of it and asks for the end itself, unless it was held up for longer than that.

A shard is closed when the source says so or the listing has a child of it. These checkpoints are saved, in the order in which
they are given, before anything is begun: parents come first, so a start that was cut short leaves no child behind whose parent
would look new. Then where a shard is read from follows from its checkpoint: after its sequence number; without one, at its
`since`; without that, at the trim horizon. The starting position has no part in it, so a checkpoint that a command has put
somewhere means the same to every mapping. A start that was cut short may bring records from before the starting position, and
loses none.
"""

from __future__ import annotations

from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Literal

from poller.model import Checkpoint, Shard, StartAt

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

StartingPosition = Literal["TRIM_HORIZON", "LATEST", "AT_TIMESTAMP"]

#: Seconds by which our clock may be ahead of the source's.
SKEW = 10.0


def held_up(start: StartAt, now: float) -> StartAt:
    """`start` for a reader that is opened only now (Unix time): the records that came since the first listing are wanted, so a
    latest that is another one by now has to be sought."""
    if start.kind == "LATEST" and now >= start.timestamp + SKEW:
        return StartAt("AT_TIMESTAMP", timestamp=start.timestamp - SKEW)
    return start


class ShardTree:
    """The shards of one stream as one mapping knows them.

    `checkpoints` are all that are stored for the mapping. `timestamp` (Unix time) is for AT_TIMESTAMP.
    """

    def __init__(
        self, checkpoints: Mapping[str, Checkpoint], position: StartingPosition, timestamp: float = 0.0
    ) -> None:
        self._position = position
        self._timestamp = timestamp
        self._first = not checkpoints
        self._learned = False
        self._shards = {name: Shard(name) for name in checkpoints}
        # Of unknown parents too: that a parent has a finished child is what tells that it is none to begin with.
        self._children: dict[str, set[str]] = {}
        self._finished = {name for name, checkpoint in checkpoints.items() if checkpoint.finished}
        self._reading: set[str] = set()
        # To be read from the end that they have when they begin for the first time.
        self._latest: set[str] = set()

    def __repr__(self) -> str:
        waiting = len(self._shards) - len(self._reading) - len(self._finished)
        return f"<ShardTree {len(self._reading)} reading, {waiting} waiting, {len(self._finished)} finished>"

    def __contains__(self, shard_id: str) -> bool:
        return shard_id in self._shards

    # --- what the source says ---------------------------------------------------------------------------------------------

    def learn(self, shards: Iterable[Shard], now: float) -> dict[str, Checkpoint]:
        """Take in a listing, or children that are `acquainted`; return the checkpoints of what is new, parents first.

        They are to be saved in this order before a shard is begun. Raises `graphlib.CycleError` for a listing in which a
        shard descends from itself.
        """
        new = self._link(shards)
        lineage = {name: new.intersection(self._shards[name].parents) for name in sorted(new)}
        order = list(TopologicalSorter(lineage).static_order())
        first = self._first and not self._learned
        self._learned = True
        # Children first: whether a shard is over and done with can follow from a child that is new as well.
        made = {name: self._begins(name, first=first, now=now) for name in reversed(order)}
        return {name: made[name] for name in order}

    def acquainted(self, children: Collection[Shard]) -> list[Shard]:
        """Of the children that were named at the end of a shard, those whose parents are all known: they may be learned."""
        known = self._shards.keys()
        return [child for child in children if known >= set(child.parents)]

    def _link(self, shards: Iterable[Shard]) -> set[str]:
        """Enter shards and their descent; return those that were not known."""
        new: set[str] = set()
        for shard in shards:
            if shard.id not in self._shards:
                new.add(shard.id)
            # A checkpoint names no parents, and one call of a source names them more fully than another: so the union.
            known = self._shards.get(shard.id, shard)
            parents = tuple(sorted({*known.parents, *shard.parents}))
            closed, hash_range = known.closed or shard.closed, known.hash_range or shard.hash_range
            self._shards[shard.id] = Shard(shard.id, parents, closed, hash_range)
            for parent in shard.parents:
                self._children.setdefault(parent, set()).add(shard.id)
        return new

    def _begins(self, name: str, *, first: bool, now: float) -> Checkpoint:
        checkpoint = self._first_checkpoint(name, now) if first else self._later_checkpoint(name)
        if checkpoint.finished:
            self._finished.add(name)
        return checkpoint

    def _first_checkpoint(self, name: str, now: float) -> Checkpoint:
        if self._position == "TRIM_HORIZON":
            return Checkpoint()
        if self._position == "AT_TIMESTAMP":
            return Checkpoint(since=self._timestamp)
        if self._shards[name].closed or name in self._children:
            return Checkpoint(finished=True)
        self._latest.add(name)
        return Checkpoint(since=now - SKEW)

    def _later_checkpoint(self, name: str) -> Checkpoint:
        # A parent that turns up when a child is finished already was forgotten, and a listing has brought it back. When
        # the child is not finished the parent may never have been read: then it is, and the child waits from there on.
        return Checkpoint(finished=not self._finished.isdisjoint(self._children.get(name, ())))

    # --- what may be read -------------------------------------------------------------------------------------------------

    def ready(self) -> list[Shard]:
        """Shards that may begin now, in the order of their ids; none before the first listing was learned."""
        if not self._learned:
            return []
        busy = self._finished | self._reading
        names = sorted(self._shards.keys() - busy)
        return [self._shards[name] for name in names if not self.waits_for(name)]

    def shard(self, shard_id: str) -> Shard:
        """A shard that is known, with all that listings have said of it."""
        return self._shards[shard_id]

    def waits_for(self, shard_id: str) -> frozenset[str]:
        """The parents of a shard that are not finished."""
        parents = self._shards[shard_id].parents
        return frozenset(self._shards.keys() & parents) - self._finished

    def begin(self, shard_id: str, checkpoint: Checkpoint, now: float, *, first: bool = True) -> StartAt:
        """A reader is opened on a shard that is ready: say where, given its checkpoint as it is; `now` is Unix time.

        `first` is False when another worker may have read it before, who can have known another end.
        """
        self._reading.add(shard_id)
        # Finished once, and moved back by a command since.
        self._finished.discard(shard_id)
        is_latest = first and shard_id in self._latest
        self._latest.discard(shard_id)
        if checkpoint.sequence_number:
            number, sub = checkpoint.sequence_number, checkpoint.sub_sequence_number
            return StartAt("AFTER_SEQUENCE_NUMBER", number, sub)
        if not checkpoint.since:
            return StartAt("TRIM_HORIZON")
        if is_latest:
            return held_up(StartAt("LATEST", timestamp=checkpoint.since + SKEW), now)
        return StartAt("AT_TIMESTAMP", timestamp=checkpoint.since)

    def release(self, shard_id: str) -> None:
        """The reader of a shard is closed before the end: it may begin again."""
        self._reading.discard(shard_id)

    def finish(self, shard_id: str) -> None:
        """All records of a closed shard are done, by whomever, or the source no longer has it."""
        self._shards.setdefault(shard_id, Shard(shard_id))
        self._reading.discard(shard_id)
        self._finished.add(shard_id)

    def revived(self, listed: Collection[Shard]) -> list[str]:
        """Shards of a complete listing that are finished here and not there: open, and without children."""
        parents = {parent for shard in listed for parent in shard.parents}
        return [
            shard.id
            for shard in listed
            if shard.id in self._finished and not shard.closed and shard.id not in parents
        ]

    # --- what may go ------------------------------------------------------------------------------------------------------

    def forgettable(self, listed: Collection[str]) -> list[str]:
        """Shards whose checkpoints are of no more use, given the ids of a complete listing.

        A finished shard is kept as long as it is listed, because it would look new; without known children, because it
        may have some; and until these are finished, because a listing may leave it out by mistake. So an open shard
        keeps its parents, and no more than these.
        """
        return [
            name
            for name in sorted(self._finished.difference(listed))
            if (children := self._children.get(name))
            and self._finished.issuperset(children & self._shards.keys())
        ]

    def forget(self, shard_ids: Iterable[str]) -> None:
        """Drop shards that are forgettable, once their checkpoints are removed."""
        for name in shard_ids:
            del self._shards[name]
            self._finished.discard(name)
        known = self._shards.keys()
        self._children = {
            parent: children
            for parent, children in self._children.items()
            if parent in known or not known.isdisjoint(children)
        }
