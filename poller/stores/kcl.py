"""The lease table of an application of the Kinesis Client Library, in place: a mapping goes on where the KCL stands, and back.

Every write is conditional on the owner and the counter that the writer saw, as the KCL's own are, and adds one to the counter:
so of a worker of the KCL and one of ours that both believe to own a lease, one cannot write any more. While the KCL hands a
lease over (from 3.0 on), its owner is who still reads it; it is claimed from there only when its counter stands still. When
the KCL's leader has asked one of ours for a lease, the heir is told as somebody who asks for it, and is handed it.

*The checkpoint moves forward only.* Text that sorts has no place in these rows, so a checkpoint is written on the condition
that the row still has the one that the writer knows, and looked at again when it has not.

*Parents without rows.* The KCL removes the row of a finished shard as soon as its children are begun, when the stream still
lists that shard. Here such a shard shows up as finished, or it would look new and be read once more. What is added as finished
gets no row either: the KCL would look for those of its children. It is remembered instead.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from poller.core.leases import has_happened
from poller.core.positions import position
from poller.errors import StoreError
from poller.model import Checkpoint, Lease, Listing
from poller.stores import _kcl_rows as rows
from poller.stores._dynamodb_table import Layout, Table
from poller.stores._kcl_rows import (
    COUNTER,
    FORMER,
    KEY,
    LOAD,
    OWNER,
    PENDING,
    SINCE,
    SWITCHES,
    WANTED_BY,
    Origin,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from poller.aws.session import AwsSession
    from poller.stores._dynamodb_rows import Item

__all__ = ["KclStore", "Origin"]

#: How often a checkpoint is looked at that somebody else moves.
TRIES = 5
KCL = Layout(
    KEY,
    "lease_table = ",
    "no lease table of the KCL, whose key is leaseKey, but one with the key {keys}: name the application's own, or a new one",
)
_EXISTS = f"attribute_exists(#{KEY})"


class KclStore:
    """The `poller.ports.CheckpointStore` and `poller.ports.Leases` of one mapping on a Kinesis stream.

    Tumbling windows have no place in it. Rows that are no leases, which the KCL has in its tables from 3.5 on, are left alone.
    """

    def __init__(self, table: Table, origin: Origin, wall: Callable[[], float] = time.time) -> None:
        self._table = table
        self._origin = origin
        self._wall = wall
        # Shards that were added as finished, with their parents: these have no rows.
        self._passed: dict[str, tuple[str, ...]] = {}

    def __repr__(self) -> str:
        return f"<KclStore {self._table.name} of {self._origin.mapping}>"

    @classmethod
    async def open(
        cls, name: str, session: AwsSession, origin: Origin, region: str | None = None
    ) -> KclStore:
        """Use the table `name` in `region`, or the session's own, making it as the KCL would when there is none.

        The session outlives the store. Raises StoreError when there is none and it may not be made, for a table that is not
        the KCL's, for one of an application that reads several streams, and for a row that cannot be understood.
        """
        table = Table(name, session, KCL, region)
        await table.open()
        store = cls(table, origin)
        await store.load(origin.mapping)
        return store

    async def aclose(self) -> None:
        """Nothing is kept back, so there is nothing to finish."""

    # --- checkpoints ----------------------------------------------------------------------------------------------------

    async def load(self, mapping: str) -> Mapping[str, Checkpoint]:
        listing = self._listing(await self._table.scan(consistent=True))
        return {lease.shard: lease.checkpoint for lease in listing.leases}

    async def save(self, mapping: str, shard: str, checkpoint: Checkpoint) -> bool:
        checkpoint = rows.told(checkpoint)
        key = rows.key_item(shard)
        for _ in range(TRIES):
            item = await self._table.get(key)
            if item is None:
                if await self._put(shard, checkpoint, ()):
                    return True
                continue
            if position(checkpoint) < position(self._lease(item).checkpoint):
                return False
            sets, removes = self._moved(checkpoint)
            if await self._table.update(key, sets, removes, *rows.is_still(item)):
                return True
        raise self._restless(shard)

    async def seek(self, mapping: str, shard: str, checkpoint: Checkpoint | None) -> None:
        self._passed.pop(shard, None)
        key = rows.key_item(shard)
        if checkpoint is None:
            await self._table.delete(key)
            return
        checkpoint = rows.told(checkpoint)
        # A word that the KCL knows without a time of its own: it repeats what is before ours, and loses nothing.
        sets, removes = self._moved(checkpoint, "TRIM_HORIZON")
        if not (checkpoint.sequence_number or checkpoint.finished):
            sets, removes = sets | {SINCE: rows.since_value(checkpoint)}, PENDING
        await self._table.update(key, sets, removes, defaults={COUNTER: rows.number(0)})

    # --- leases ---------------------------------------------------------------------------------------------------------

    async def list(self) -> Listing:
        """The leases; the heirs are workers of the KCL that are to be handed one of them."""
        return self._listing(await self._table.scan())

    async def add(self, lease: Lease) -> None:
        checkpoint = rows.told(lease.checkpoint)
        if checkpoint.finished:
            self._passed[lease.shard] = lease.parents
        elif await self._put(lease.shard, checkpoint, lease.parents):
            return
        if parents := rows.parents_item(lease.parents):
            await self._table.update(rows.key_item(lease.shard), parents, condition=_EXISTS)

    async def claim(self, lease: Lease, worker: str) -> Lease | None:
        sets: Item = {OWNER: {"S": worker}, COUNTER: rows.number(lease.counter + 1)}
        if lease.checkpoint.since:
            # What LATEST means is fixed now, for all who read the shard after this worker.
            sets[SINCE] = rows.since_value(lease.checkpoint)
        adds = {SWITCHES: rows.number(1)} if lease.owner not in ("", worker) else {}
        item = await self._change(lease, sets, (WANTED_BY, FORMER), adds=adds)
        if item is not None:
            return self._lease(item)
        row = await self._row(lease)
        return row if row and has_happened(row, lease, worker) else None

    async def want(self, lease: Lease, worker: str) -> bool:
        condition, values = rows.owned_by(lease.owner)
        asked = f"attribute_not_exists(#{WANTED_BY})"
        if lease.wanted_by:
            asked, values = f"#{WANTED_BY} = :asked", values | {"asked": {"S": lease.wanted_by}}
        whole = f"{_EXISTS} AND {condition} AND {asked}"
        sets: Item = {WANTED_BY: {"S": worker}}
        if await self._table.update(rows.key_item(lease.shard), sets, (), whole, values):
            return True
        row = await self._row(lease)
        return row is not None and (row.owner, row.wanted_by) == (lease.owner, worker)

    async def renew(self, lease: Lease, checkpoint: Checkpoint, load: float | None) -> Lease | None:
        sets: Item = {} if load is None else {LOAD: {"S": repr(load)}}
        return await self._move(lease, checkpoint, lease.owner, sets, () if sets else (LOAD,))

    async def release(self, lease: Lease, checkpoint: Checkpoint, to: str = "") -> bool:
        sets: Item = {OWNER: {"S": to}} if to else {}
        removes = (WANTED_BY, FORMER) if to else (WANTED_BY, FORMER, OWNER)
        return await self._move(lease, checkpoint, to, sets, removes) is not None

    async def _move(
        self, lease: Lease, checkpoint: Checkpoint, owner: str, sets: Item, removes: tuple[str, ...]
    ) -> Lease | None:
        """Change a lease and its checkpoint in one write, or without the checkpoint where that is no further on."""
        checkpoint = rows.told(checkpoint)
        known, stands = lease.checkpoint, rows.stands_at(lease.checkpoint)
        switches = int(bool(owner) and owner != lease.owner)
        sets = sets | {COUNTER: rows.number(lease.counter + 1)}
        for _ in range(TRIES):
            if checkpoint != known and position(checkpoint) >= position(known):
                moved, gone = self._moved(checkpoint, switches=switches)
                item = await self._change(lease, sets | moved, removes + gone, stands)
            else:
                adds = {SWITCHES: rows.number(switches)} if switches else {}
                item = await self._change(lease, sets, removes, adds=adds)
            if item is not None:
                return self._lease(item)
            item = await self._table.get(rows.key_item(lease.shard))
            if item is None:
                return None
            row = self._lease(item)
            if has_happened(row, lease, owner, checkpoint):
                return row
            if (row.owner, row.counter) != (lease.owner, lease.counter):
                return None
            known, stands = row.checkpoint, rows.is_still(item)
        raise self._restless(lease.shard)

    async def _change(
        self,
        lease: Lease,
        sets: Item,
        removes: tuple[str, ...],
        stands: tuple[str, Item] = ("", {}),
        adds: Item | None = None,
    ) -> Item | None:
        condition, values = rows.owned_by(lease.owner)
        condition = f"#{COUNTER} = :counter AND {condition}" + (f" AND {stands[0]}" if stands[0] else "")
        values = values | stands[1] | {"counter": rows.number(lease.counter)}
        return await self._table.update(
            rows.key_item(lease.shard), sets, removes, condition, values, adds=adds
        )

    # --- rows -----------------------------------------------------------------------------------------------------------

    def _moved(
        self, checkpoint: Checkpoint, word: str = "", switches: int = 0
    ) -> tuple[Item, tuple[str, ...]]:
        """What to set and what to remove for a new checkpoint, as the KCL does: what was pending is over."""
        sets = rows.checkpoint_item(checkpoint, word or self._origin.position)
        sets |= {SWITCHES: rows.number(switches)}
        return sets, PENDING if SINCE in sets else (*PENDING, SINCE)

    async def _put(self, shard: str, checkpoint: Checkpoint, parents: tuple[str, ...]) -> bool:
        """Make the row; False when there is one."""
        row = rows.key_item(shard) | rows.parents_item(parents) | {COUNTER: rows.number(0)}
        return await self._table.put(row | self._moved(checkpoint)[0], f"attribute_not_exists(#{KEY})")

    async def _row(self, lease: Lease) -> Lease | None:
        item = await self._table.get(rows.key_item(lease.shard))
        return self._lease(item) if item else None

    def _lease(self, item: Item) -> Lease:
        try:
            return rows.lease_of(item, self._origin, self._wall())
        except StoreError as error:
            raise StoreError(f"{self._table.where}: {error}") from None

    def _listing(self, items: Iterable[Item]) -> Listing:
        items = [item for item in items if rows.is_lease(item)]
        leases = {lease.shard: lease for lease in map(self._lease, items)}
        passed = dict(self._passed)
        for item in items:
            if rows.has_begun(item):
                passed |= dict.fromkeys(leases[item[KEY]["S"]].parents, ())
        done = Checkpoint(finished=True)
        for shard, parents in passed.items():
            leases.setdefault(shard, Lease(self._origin.mapping, shard, parents, checkpoint=done))
        # No workers: who has a row and then none has left, and a worker of the KCL never has one.
        heirs = frozenset((self._origin.mapping, heir) for item in items if (heir := rows.heir_of(item)))
        return Listing(tuple(leases.values()), (), foreign_heirs=heirs)

    def _restless(self, shard: str) -> StoreError:
        return StoreError(f"{self._table.where}: {shard}: its checkpoint changes all the time")
