"""Checkpoints and leases in a DynamoDB table, for daemons on many machines.

Each write is one UpdateItem on the condition that owner and counter are what the writer saw. When the condition fails, the
row is read back: it may be what this very write has left, its answer having been lost and the attempt repeated
(`core.leases.has_happened`); or only the checkpoint is ahead, and then the write is made without it.

A window's state that is too large for the lease is written before the lease that names it, and the former one is removed
after that. A process that is killed in between leaves pieces behind that nobody reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from poller.core.leases import has_happened
from poller.core.positions import position
from poller.errors import StoreError
from poller.model import Checkpoint, Lease, Listing
from poller.stores import _dynamodb_rows as rows
from poller.stores._dynamodb_rows import KEY, LEASE, OF_CHECKPOINT, WORKER
from poller.stores._dynamodb_table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from poller.aws.session import AwsSession
    from poller.model import LeaseKey, Worker
    from poller.stores._dynamodb_rows import Item

#: How often a window is looked for whose pieces are being replaced.
TRIES = 5
_OWNED = "#owner = :owner AND #counter = :counter"
_FREE = "attribute_not_exists(#owner) AND #counter = :counter"
_NOT_BEHIND = "#position <= :position"


class DynamoDbStore:
    """A `poller.ports.CheckpointStore` and `poller.ports.LeaseStore` in one table, shared by any number of processes."""

    def __init__(self, table: Table) -> None:
        self._table = table
        # The windows of the leases that this process has claimed, with their versions: what did not change is not written.
        self._windows: dict[LeaseKey, tuple[str, str]] = {}

    def __repr__(self) -> str:
        return f"<DynamoDbStore {self._table.name}>"

    @classmethod
    async def open(cls, name: str, session: AwsSession, region: str | None = None) -> DynamoDbStore:
        """Use the table `name` in `region`, or the session's own, making it when there is none; the session outlives the store.

        Raises StoreError when there is none and it may not be made, and for a table of another application.
        """
        table = Table(name, session, region=region)
        await table.open()
        return cls(table)

    async def aclose(self) -> None:
        """Nothing is kept back, so there is nothing to finish."""

    # --- checkpoints ----------------------------------------------------------------------------------------------------

    async def load(self, mapping: str) -> Mapping[str, Checkpoint]:
        found = await self._table.scan((f"{LEASE}{mapping}/",), consistent=True)
        whole = [(await self._whole(item))[0] for item in found]
        return {lease.shard: lease.checkpoint for lease in whole}

    async def save(self, mapping: str, shard: str, checkpoint: Checkpoint) -> bool:
        condition = f"attribute_not_exists(#position) OR {_NOT_BEHIND}"
        return await self._put_checkpoint(mapping, shard, checkpoint, condition)

    async def seek(self, mapping: str, shard: str, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            await self._put_checkpoint(mapping, shard, checkpoint, "")
            return
        key = rows.lease_key(mapping, shard)
        item = await self._table.get(key) or {}
        await self._table.delete(key)
        await self._remove_pieces(*self._window(item))

    async def _put_checkpoint(self, mapping: str, shard: str, checkpoint: Checkpoint, condition: str) -> bool:
        where = position(checkpoint)
        version = await self._put_pieces(checkpoint, f"{mapping}/{shard}/{where}/{checkpoint.since}")
        sets = rows.checkpoint_item(checkpoint, version) | rows.name_item(mapping, shard)
        values: Item = {"position": {"S": where}} if condition else {}
        key = rows.lease_key(mapping, shard)
        # Whoever claims it counts on from there.
        zero: Item = {"counter": {"N": "0"}}
        old = await self._table.update(key, sets, _absent(sets), condition, values, defaults=zero, old=True)
        if old is not None and (former := self._window(old))[0] != version:
            await self._remove_pieces(*former)
        return old is not None

    # --- leases ---------------------------------------------------------------------------------------------------------

    async def list(self) -> Listing:
        found = await self._table.scan((LEASE, WORKER))
        leases = [self._lease(item) for item in found if item[KEY]["S"].startswith(LEASE)]
        workers = [self._worker(item) for item in found if item[KEY]["S"].startswith(WORKER)]
        return Listing(leases, workers)

    async def beat(self, worker: Worker) -> None:
        await self._table.put(rows.worker_item(worker))

    async def leave(self, worker: Worker) -> None:
        counter = {"counter": {"N": str(worker.counter)}}
        await self._table.delete(rows.worker_key(worker.id), "#counter = :counter", counter)

    async def add(self, lease: Lease) -> None:
        key = rows.lease_key(lease.mapping, lease.shard)
        version = await self._put_pieces(lease.checkpoint, "/".join((*lease.key, "0")))
        parents: Item = {"parents": rows.texts(lease.parents)}
        row = key | rows.name_item(*lease.key) | rows.checkpoint_item(lease.checkpoint, version)
        row |= parents | {"counter": {"N": "0"}}
        if not await self._table.put(row, f"attribute_not_exists(#{KEY})"):
            await self._table.update(key, parents, condition=f"attribute_exists(#{KEY})")

    async def claim(self, lease: Lease, worker: str) -> Lease | None:
        sets: Item = {"owner": {"S": worker}, "counter": _next(lease)}
        item = await self._change(lease, sets, ("wanted_by",))
        if item is None:
            item = await self._table.get(rows.lease_key(*lease.key))
            if item is None or not has_happened(self._lease(item), lease, worker):
                return None
        whole, version = await self._whole(item)
        self._windows[lease.key] = (whole.checkpoint.window, version)
        return whole

    async def want(self, lease: Lease, worker: str) -> bool:
        asked, values = _is("wanted_by", lease.wanted_by)
        owner, more = _is("owner", lease.owner)
        condition = f"attribute_exists(#{KEY}) AND {owner} AND {asked}"
        key = rows.lease_key(*lease.key)
        if await self._table.update(key, {"wanted_by": {"S": worker}}, (), condition, values | more):
            return True
        item = await self._table.get(key)
        row = self._lease(item) if item else None
        return row is not None and (row.owner, row.wanted_by) == (lease.owner, worker)

    async def renew(self, lease: Lease, checkpoint: Checkpoint, load: float | None) -> Lease | None:
        sets: Item = {"counter": _next(lease)} | ({} if load is None else {"load": {"S": repr(load)}})
        return await self._move(lease, checkpoint, lease.owner, sets, () if sets.get("load") else ("load",))

    async def release(self, lease: Lease, checkpoint: Checkpoint, to: str = "") -> bool:
        sets: Item = {"counter": _next(lease)} | ({"owner": {"S": to}} if to else {})
        removes = ("wanted_by",) if to else ("wanted_by", "owner")
        released = await self._move(lease, checkpoint, to, sets, removes) is not None
        self._windows.pop(lease.key, None)
        return released

    async def _move(
        self, lease: Lease, checkpoint: Checkpoint, owner: str, sets: Item, removes: tuple[str, ...]
    ) -> Lease | None:
        """Change a lease and its checkpoint in one write, or without the checkpoint where that is ahead already."""
        where = {"position": {"S": position(checkpoint)}}
        known, former = self._windows.get(lease.key, ("", ""))
        writer = f"{lease.mapping}/{lease.shard}/{lease.owner}/{lease.counter}"
        same = former and known == checkpoint.window
        version = former if same else await self._put_pieces(checkpoint, writer)
        moved = rows.checkpoint_item(checkpoint, version)
        item = await self._change(lease, sets | moved, (*removes, *_absent(moved)), _NOT_BEHIND, where)
        if item is not None:
            self._windows[lease.key] = (checkpoint.window, version)
            if former and former != version:
                await self._remove_pieces(former, rows.pieces_of(known))
            return self._lease(item, checkpoint.window)
        item = await self._table.get(rows.lease_key(*lease.key))
        if item is None:
            return None
        row = self._lease(item)
        if not has_happened(row, lease, owner, checkpoint):
            if (row.owner, row.counter) != (lease.owner, lease.counter):
                return None
            item = await self._change(lease, sets, removes)
        return None if item is None else (await self._whole(item))[0]

    async def _change(
        self,
        lease: Lease,
        sets: Item,
        removes: tuple[str, ...],
        condition: str = "",
        values: Item | None = None,
    ) -> Item | None:
        owned, more = (_OWNED, {"owner": {"S": lease.owner}}) if lease.owner else (_FREE, {})
        conditions = f"{owned} AND {condition}" if condition else owned
        values = {"counter": {"N": str(lease.counter)}, **more, **(values or {})}
        return await self._table.update(rows.lease_key(*lease.key), sets, removes, conditions, values)

    # --- rows -----------------------------------------------------------------------------------------------------------

    def _lease(self, item: Item, window: str = "") -> Lease:
        with rows.understood(self._table.name, item):
            return rows.lease_of(item, window)

    def _worker(self, item: Item) -> Worker:
        with rows.understood(self._table.name, item):
            return rows.worker_of(item)

    def _window(self, item: Item) -> tuple[str, int]:
        with rows.understood(self._table.name, item):
            return rows.stored_window(item)

    # --- windows --------------------------------------------------------------------------------------------------------

    async def _whole(self, item: Item) -> tuple[Lease, str]:
        """The lease of a row with the state of its window, and the version of that."""
        for _ in range(TRIES):
            version, number = self._window(item)
            if not version:
                return self._lease(item, item.get("window", {"S": ""})["S"]), ""
            found = [await self._table.get(rows.piece_key(version, at)) for at in range(number)]
            whole = [piece for piece in found if piece]
            if len(whole) == number:
                return self._lease(item, "".join(piece["state"]["S"] for piece in whole)), version
            # Replaced meanwhile: then the row names others by now.
            item = await self._table.get({KEY: item[KEY]}) or item
        raise StoreError(
            f"{self!r}: the window of {item[KEY]['S']} is not there: seek the shard to a position"
        )

    async def _put_pieces(self, checkpoint: Checkpoint, writer: str) -> str:
        version = rows.window_version(checkpoint, writer)
        if version:
            for piece in rows.pieces(checkpoint, version):
                await self._table.put(piece)
        return version

    async def _remove_pieces(self, version: str, number: int) -> None:
        for at in range(number):
            await self._table.delete(rows.piece_key(version, at))


def _next(lease: Lease) -> dict[str, str]:
    return {"N": str(lease.counter + 1)}


def _absent(item: Item) -> tuple[str, ...]:
    """The attributes of a checkpoint that this one does not have."""
    return tuple(name for name in OF_CHECKPOINT if name not in item)


def _is(name: str, value: str) -> tuple[str, Item]:
    """The condition that an attribute has this value, or is not there for an empty one."""
    if not value:
        return f"attribute_not_exists(#{name})", {}
    return f"#{name} = :{name}", {name: {"S": value}}
