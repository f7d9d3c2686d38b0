"""This worker's part of the shards of one mapping: `ShardKeeper` in a fleet, where a lease says who reads which shard.

What is different from a daemon of its own::

    listed --> added to the table, with its parents --> a lease of it is claimed --> reading --> all done: its children are
                                                               ^                      |  |       added, then it is finished
                                                               |       evicted, or drained and handed over
                                                               '----------------------'  '--> progress goes with the lease

* `lease_keeper` decides what is read here, as the table says whose parents are finished; nothing begins by itself.
* Progress is written with renewals of the lease and with its release only, so who has lost a lease writes nothing.
* A mapping that is paused by command gives its leases up: others read on. To stop it everywhere, pause it everywhere. One whose
  circuit is open keeps them, as the function fails for others too.
* Shards that others have found, read and finished are known from the looks at the table.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import anyio

from poller.core.retry import backoff
from poller.engine.reading import Reading
from poller.engine.shard_keeper import ShardKeeper
from poller.engine.tenancy import Tenancy, Watched
from poller.errors import PollerError
from poller.model import Lease, Shard

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from poller.engine.invoker import Invoker
    from poller.engine.lease_keeper import LeaseKeeper
    from poller.engine.shard_keeper import StreamPlan
    from poller.engine.status import ShardStatus
    from poller.model import Checkpoint
    from poller.ports import CheckpointStore, Reader, Source

#: Seconds between two looks at rows that another worker may be adding.
ADDING = 1.0


class LeasedShardKeeper(ShardKeeper):
    """Runs this worker's part of one mapping on a stream; see `poller.engine.child.Runner`."""

    def __init__(
        self,
        plan: StreamPlan,
        source: Source,
        store: CheckpointStore,
        invoker: Invoker,
        leases: LeaseKeeper,
    ) -> None:
        """`leases` are those of the whole worker, kept in `store`."""
        super().__init__(plan, source, store, invoker)
        self._leases = leases
        self._tenancies: dict[str, Tenancy] = {}
        # The parents that the table knows of each shard, and the shards that a listing has shown.
        self._parents: dict[str, frozenset[str]] = {}
        self._listed: set[str] = set()
        self._wanted = True

    # --- life -----------------------------------------------------------------------------------------------------------

    async def _load(self) -> dict[str, Checkpoint]:
        rows = await self._rows()
        while rows and not any(row.counter for row in rows.values()):
            # Nobody has claimed any, so another worker may be adding them right now: what it has not come to yet would be taken
            # for shards that came later, and read from their beginning.
            if {shard.id for shard in await self._source.shards()} <= rows.keys():
                break
            await anyio.sleep(ADDING)
            before, rows = rows, await self._rows()
            if rows.keys() == before.keys():
                break
        self._parents = {shard: frozenset(row.parents) for shard, row in rows.items()}
        return {shard: row.checkpoint for shard, row in rows.items()}

    async def _rows(self) -> dict[str, Lease]:
        leases = (await self._leases.store.list()).leases
        return {lease.shard: lease for lease in leases if lease.mapping == self._name}

    async def _leave(self) -> None:
        for tenancy in self._tenancies.values():
            # One that was claimed last may have been cancelled before it began.
            tenancy.ended.set()
        self._leases.withdraw(self._name)
        await self._leases.vacated(self._name)

    def close(self) -> None:
        """Receive no more, and leave the shards to others; what is at work goes on."""
        self._wanted = False
        self._leases.withdraw(self._name)
        self.hold()

    def hold(self) -> None:
        """Receive no more, and keep the leases; what is at work goes on."""
        super().close()

    def open(self) -> None:
        """Receive again after `close` or `hold`."""
        super().open()
        self._wanted = True
        self._begin_ready()

    def quiet(self) -> None:
        """Receive no more, for good; `run` returns when what is at work is done."""
        self._leases.withdraw(self._name)
        super().quiet()

    def _begin_ready(self) -> None:
        if self._tasks is not None and self._wanted and not self._quieted.is_set():
            self._leases.enlist(self._name, self._admit)

    # --- which shards there are -----------------------------------------------------------------------------------------

    async def _learn(self, shards: Iterable[Shard]) -> None:
        shards = list(shards)
        self._follow()
        await super()._learn(shards)
        for shard in shards:
            known = self._tree.shard(shard.id)
            if known.parents and not self._parents.get(shard.id, frozenset()).issuperset(known.parents):
                await self._save(shard.id, self.checkpoints.get(shard.id))
        self._listed.update(shard.id for shard in shards)

    async def _save(self, shard: str, checkpoint: Checkpoint | None) -> None:
        """Make a row of the table, or add parents to it."""
        parents = self._tree.shard(shard).parents
        if checkpoint is None:
            return  # its row was not made, for a stop
        lease = Lease(self._name, shard, parents, checkpoint=checkpoint)
        if await self._insist(partial(self._leases.store.add, lease)):
            self._parents[shard] = self._parents.get(shard, frozenset()).union(parents)
            self.checkpoints.setdefault(shard, checkpoint)
            self._first.pop(shard, None)

    def _follow(self) -> None:
        """Take in what the last look at the table has shown of the shards that are not read here."""
        survey = self._leases.survey
        if survey is None:
            return
        for (mapping, shard), lease in survey.leases.items():
            if mapping == self._name and shard in self._tree and shard not in self._tenancies:
                self.checkpoints[shard] = lease.checkpoint
                self._parents[shard] = self._parents.get(shard, frozenset()).union(lease.parents)
                if lease.checkpoint.finished:
                    self._tree.finish(shard)

    async def _forget(self, listed: set[str]) -> None:
        await super()._forget(listed)
        self._listed.intersection_update(listed)
        for shard in self._parents.keys() - self.checkpoints.keys():
            del self._parents[shard]

    # --- shards ---------------------------------------------------------------------------------------------------------

    def _admit(self, lease: Lease) -> Tenancy:
        """Begin to read a shard whose lease was claimed."""
        shard = lease.shard
        former = self._tenancies.get(shard)
        tenancy = self._tenancies[shard] = Tenancy(
            lease,
            self.door,
            partial(self._leases.holds, lease.key),
            lambda: self.checkpoints[shard],
            lambda: self._reading.get(shard),
            self._world.wall,
            lambda: self._sweep(shard),
            former,
        )
        if former is None:
            self.checkpoints[shard] = lease.checkpoint
        if self._tasks is None:
            tenancy.ended.set()
        else:
            self._tasks.start_soon(self._occupy, tenancy)
        return tenancy

    async def _occupy(self, tenancy: Tenancy) -> None:
        """Read a shard until its end, or until its lease is to be handed over or is gone."""
        lease, shard = tenancy.lease, tenancy.lease.shard
        try:
            with tenancy.scope:
                if tenancy.former:
                    await tenancy.former.over()
                    self.checkpoints[shard] = lease.checkpoint
                    tenancy.former = None
                known = await self._known(lease)
                now, first = self._world.wall(), lease.counter == 1
                start = self._tree.begin(shard, lease.checkpoint, now, first=first)
                await self._keep_reading(known, start)
        finally:
            if tenancy.former is None:
                self._opening.pop(shard, None)
                self.health.forget(shard)
                self._tree.release(shard)
            tenancy.ended.set()
            self._sweep(shard)

    def _sweep(self, shard: str) -> None:
        """Forget the tenancy of a shard that is nobody's here any more."""
        tenancy = self._tenancies.get(shard)
        if tenancy and tenancy.is_over:
            del self._tenancies[shard]

    async def _known(self, lease: Lease) -> Shard:
        """The shard as a listing has it: another worker may have found it, and its row does not tell a reader enough."""
        tries = 0
        while lease.shard not in self._listed:
            try:
                listed = await self._source.shards()
            except PollerError as error:
                pause = backoff(tries, self._world.chance())
                tries += 1
                self._opening[lease.shard] = f"cannot be found: {error}"
                self.health.failed(lease.shard, str(error), pause)
                await anyio.sleep(pause)
            else:
                # One that is not listed at all is learned from its row: to open it will say that it is gone.
                await self._learn([*listed, Shard(lease.shard, lease.parents)])
        return self._tree.shard(lease.shard)

    def _begin_reading(self, shard: Shard, reader: Reader) -> Reading:
        tenancy = self._tenancies[shard.id]
        return Reading(self, shard, Watched(reader, tenancy), tenancy.door, tenancy.fence)

    def _is_quiet(self, shard: str) -> bool:
        return self._tenancies[shard].draining or super()._is_quiet(shard)

    async def _finish(self, shard: Shard, children: Collection[Shard]) -> None:
        tenancy = self._tenancies[shard.id]
        tenancy.finishing = True
        self._opening.pop(shard.id, None)
        self.health.forget(shard.id)
        await self._learn(self._tree.acquainted(children))
        self.checkpoints[shard.id] = replace(self.checkpoints[shard.id], window="", finished=True)
        tenancy.completing = True
        if await self._leases.complete(tenancy.lease.key):
            self._tree.finish(shard.id)
        self._ended.set()

    def _noted(self, shard: str) -> None:
        """It is written with the next renewal."""

    # --- what it is doing -----------------------------------------------------------------------------------------------

    @property
    def trouble(self) -> str | None:
        """Why the source cannot be read, or leases not be kept, at the moment."""
        return self.health.trouble or self._leases.trouble_of(self._name)

    def shards(self) -> tuple[ShardStatus, ...]:
        """The shards that this worker reads, in the order of their ids."""
        wall = self._world.wall()
        return tuple(self._status(shard, wall) for shard in sorted(self._tenancies))

    def _unsaved(self, shard: str) -> float:
        return self._leases.unwritten((self._name, shard))
