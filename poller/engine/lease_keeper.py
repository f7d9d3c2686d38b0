"""One worker of a fleet: holds leases, renews them, hands them over, notices that they are lost.

`core.leases` says what to do; this does it. Three loops that never wait for each other:

* *beat*: says that this worker is there (see `presence`);
* *look*: reads the table and carries out this worker's part of the plan;
* *upkeep*: renews what is held, with its checkpoint, and gives up in time what cannot be renewed. It needs no look, and no
  delivery is in its way, so neither a slow table scan nor a slow function lets a lease expire.

A holding here::

    claimed --> held --> draining --> released, to an heir or to nobody
                  |          |
                  '----------'-----> lost: the tenant is told at once and nothing more of it is written

What reads the shard is the *tenant* of the lease. A mapping is enlisted while it can take tenants in; who withdraws it gives
its leases back, and takes no more. A mapping that is paused is withdrawn, so that others read its shards.

Who goes lets the others know, hands its leases to those that stay (see `succession`), gives back what is handed to it
meanwhile, and removes its row last.

Checkpoints are written with renewals only: a lease whose checkpoint moves is renewed more often than an idle one. Whether a
write has happened whose answer did not come is left open: the same write is tried again and recognised by the store, and counts
from when it was asked for first.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from poller.core.leases import (
    CHECKPOINT_INTERVAL,
    FAILOVER_TIME,
    Claim,
    HandOff,
    Held,
    Lost,
    Release,
    Renew,
    Want,
    holds,
    look_interval,
    plan,
    portion,
    upkeep,
)
from poller.core.sightings import Sightings
from poller.core.survey import survey
from poller.engine.fleet_status import fleet_status
from poller.engine.holding import Holding
from poller.engine.lease_table import LeaseTable
from poller.engine.presence import Presence
from poller.engine.succession import PATIENCE, Succession
from poller.errors import StoreError
from poller.model import LeaseChanged, LeaseEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from anyio.abc import TaskGroup

    from poller.core.leases import Action
    from poller.core.survey import Survey
    from poller.engine.holding import Tenant
    from poller.engine.invoker import World
    from poller.engine.status import FleetStatus
    from poller.model import Checkpoint, Lease, LeaseKey, Listing, Worker
    from poller.ports import LeaseStore, Observer

#: Seconds between two looks at what is held.
TICK = 0.5
#: Claims at a time: a fleet of one may take ten thousand.
CLAIMING = 100
#: Failover times for which a worker leaves alone what it got stuck on, and after which the row of a dead worker is removed.
SHUNNED = 3.0
BURIED = 60.0
#: Facts that are kept for `/status`.
HISTORY = 100


class LeaseKeeper:
    """Keeps the leases of one worker. `run` works until `quiet` and then until everything is handed back."""

    def __init__(
        self,
        worker: Worker,
        store: LeaseStore,
        observer: Observer,
        world: World,
        *,
        failover_time: float = FAILOVER_TIME,
        checkpoint_interval: float = CHECKPOINT_INTERVAL,
    ) -> None:
        """`failover_time` has to be that of all workers on the table."""
        self.store = store
        self.failover_time = failover_time
        self.survey: Survey | None = None
        """What the last look has come to."""
        self.history: deque[tuple[float, LeaseChanged]] = deque(maxlen=HISTORY)
        """What has happened last to leases of this worker, with Unix times, the latest last."""
        self._observer = observer
        self._world = world
        self._table = LeaseTable(store)
        self._presence = Presence(worker, self._table, failover_time, self._lag)
        self._succession = Succession(self._table, self._presence, lambda: self.leases, self._surveyed)
        self._checkpoint_interval = checkpoint_interval
        self._openers: dict[str, Callable[[Lease], Tenant]] = {}
        self._dividers: dict[str, Callable[[], None]] = {}
        # Mappings that were enlisted when the table was looked at last.
        self._ripe: frozenset[str] = frozenset()
        self._changed = anyio.Event()
        self._tasks: TaskGroup | None = None
        self._held: dict[LeaseKey, Holding] = {}
        self._claiming: set[LeaseKey] = set()
        # Claims of which it is not known whether they have happened: the counter, and when they were asked for first.
        self._asked: dict[LeaseKey, tuple[int, float]] = {}
        self._shunned: dict[LeaseKey, float] = {}
        self._places = anyio.Semaphore(CLAIMING)
        self._sightings = Sightings()
        self._listed: tuple[Worker, ...] = ()
        self._stale: Mapping[str, str] = {}
        self._quieted = anyio.Event()

    def __repr__(self) -> str:
        return f"<LeaseKeeper {self.worker.id}: {len(self._held)} leases>"

    @property
    def worker(self) -> Worker:
        """This worker, with the mappings that it runs."""
        return self._presence.worker

    @property
    def trouble(self) -> str | None:
        """Why the table cannot be used at the moment."""
        return self._table.trouble

    def trouble_of(self, mapping: str) -> str | None:
        """The same, where the leases of a mapping are in a table of their own."""
        return self.trouble or self._stale.get(mapping)

    @property
    def leases(self) -> tuple[Lease, ...]:
        """What is held, as it was written last."""
        return tuple(holding.lease for holding in self._held.values())

    def holds(self, key: LeaseKey) -> bool:
        """Whether this worker has the lease, for certain: who is not sure must begin nothing more."""
        holding = self._held.get(key)
        return holding is not None and holds(self._world.clock() - holding.renewed, self.failover_time)

    def status(self) -> FleetStatus:
        """The fleet as the last look has shown it."""
        return fleet_status(
            self.worker.id,
            self.trouble or next(iter(self._stale.values()), None),
            self.survey,
            self._sightings,
            self._listed,
            self.history,
        )

    def unwritten(self, key: LeaseKey) -> float:
        """Seconds since the last write of a lease whose checkpoint has moved since; 0 when it has not."""
        holding = self._held.get(key)
        if holding is None or holding.tenant.checkpoint() == holding.written:
            return 0.0
        return anyio.current_time() - holding.renewed

    # --- mappings -------------------------------------------------------------------------------------------------------

    def enlist(self, mapping: str, open_tenant: Callable[[Lease], Tenant]) -> None:
        """Take leases of `mapping` from now on; `open_tenant` is called with each that is claimed."""
        self._openers[mapping] = open_tenant
        self._presence.runs(self.worker.mappings | {mapping})

    def divide(self, mapping: str, looked: Callable[[], None]) -> None:
        """Divide what `mapping`, of a queue, may do with the other workers that run it; `looked` is called when `portion` may
        have changed."""
        self._dividers[mapping] = looked
        self._presence.runs(self.worker.mappings | {mapping})

    def portion(self, mapping: str, total: int) -> int:
        """This worker's part of `total`; nothing before the table was looked at."""
        if self.survey is None:
            return 0
        present = self.survey.present
        others = {one.id for one in self._listed if mapping in one.mappings and one.id in present}
        return portion(total, others | {self.worker.id}, self.worker.id)

    def withdraw(self, mapping: str) -> None:
        """Take no more leases of `mapping`, and give back what is held of it as it is drained."""
        self._openers.pop(mapping, None)
        self._dividers.pop(mapping, None)
        self._presence.runs(self.worker.mappings - {mapping})
        if self._tasks:
            for holding in self._of(mapping):
                self._tasks.start_soon(self._bequeath, holding)

    async def vacated(self, mapping: str) -> None:
        """Return when no lease of `mapping` is held, or nothing runs any more that could give it back."""
        while self._tasks and self._of(mapping):
            await self._changed.wait()

    def _of(self, mapping: str) -> list[Holding]:
        return [holding for holding in self._held.values() if holding.lease.mapping == mapping]

    # --- life -----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until quiet, and give everything back."""
        async with anyio.create_task_group() as background:
            try:
                async with anyio.create_task_group() as tasks:
                    self._tasks = tasks
                    background.start_soon(self._presence.beat)
                    background.start_soon(self._look, tasks)
                    background.start_soon(self._upkeep, tasks)
                    await self._quieted.wait()
                    for holding in list(self._held.values()):
                        tasks.start_soon(self._bequeath, holding)
            finally:
                self._tasks = None
            await self._succession.hand_on(self._listed)
            with anyio.move_on_after(PATIENCE):
                await self._presence.rest()
            background.cancel_scope.cancel()
        await self._presence.leave()

    def quiet(self) -> None:
        """Take nothing more, and hand back what is held when it is drained."""
        self._presence.runs(frozenset())
        self._quieted.set()

    def _lag(self) -> float:
        return max((holding.tenant.lag() or 0.0 for holding in self._held.values()), default=0.0)

    # --- looking --------------------------------------------------------------------------------------------------------

    async def _look(self, tasks: TaskGroup) -> None:
        leases = 0
        while not self._quieted.is_set():
            asked, enlisted = anyio.current_time(), self.worker.mappings
            try:
                listing = await self.store.list()
            except StoreError as error:
                self._table.fails("look", error)
            else:
                self._table.works("look")
                leases = len(listing.leases)
                self._see(listing, asked)
                self._carry_out(tasks)
                self._bury(listing, tasks)
                # One that is new waits for the others that are new, so that it does not take what is for all of them.
                self._ripe = enlisted
            with anyio.move_on_after(look_interval(leases)):
                await self._quieted.wait()

    def _see(self, listing: Listing, asked: float) -> None:
        self._sightings = self._sightings.fold(listing, asked, anyio.current_time())
        self._listed, self._stale = tuple(listing.workers), listing.stale
        self.survey = survey(listing, self._sightings, self.failover_time)
        for looked in list(self._dividers.values()):
            looked()

    def _carry_out(self, tasks: TaskGroup) -> None:
        assert self.survey
        now = anyio.current_time()
        counters = {key: holding.lease.counter for key, holding in self._held.items()}
        shunned = {key for key, until in self._shunned.items() if until > now}
        me = replace(self.worker, mappings=self.worker.mappings & self._ripe)
        for action in plan(self.survey, me, counters, shunned):
            self._act(action, tasks)

    def _act(self, action: Action, tasks: TaskGroup) -> None:
        holding = self._held.get(action.lease.key)
        match action:
            case Claim(lease):
                tasks.start_soon(self._claim, lease, self._sightings.at)
            case Want(lease):
                tasks.start_soon(self._table.attempt, self.store.want, lease, self.worker.id)
            case HandOff(_, to) if holding:
                tasks.start_soon(self._hand_over, holding, to)
            case Release() if holding:
                tasks.start_soon(self._hand_over, holding, "")
            case Lost(lease) if holding:
                self._lose(holding, f"{lease.owner or 'nobody'} has it by now", lease.owner)

    def _bury(self, listing: Listing, tasks: TaskGroup) -> None:
        """Remove the rows of those who have been dead for long; one of the living does it."""
        present = self._sightings.present(self.failover_time)
        if self.worker.id == min(present, default=""):
            dead = set(self._sightings.gone(BURIED * self.failover_time))
            for worker in listing.workers:
                if worker.id in dead:
                    tasks.start_soon(self._table.attempt, self.store.leave, worker)

    # --- taking ---------------------------------------------------------------------------------------------------------

    async def _claim(self, lease: Lease, looked: float) -> None:
        if lease.key in self._claiming:
            return  # a look in the meantime may show what the first claim has done already
        self._claiming.add(lease.key)
        async with self._places:
            if lease.mapping in self._openers and not self._quieted.is_set():
                await self._take(lease, looked)
        self._claiming.discard(lease.key)

    async def _take(self, lease: Lease, looked: float) -> None:
        # From the look on, its owner may have handed it over, which leaves the same as the claim.
        before = self._asked.get(lease.key)
        asked = looked if before is None or before[0] != lease.counter else before[1]
        self._asked[lease.key] = (lease.counter, asked)
        try:
            row = await self.store.claim(lease, self.worker.id)
        except StoreError as error:
            self._table.fails("other", error)
            return
        self._table.works("other")
        del self._asked[lease.key]
        if row is None or not holds(anyio.current_time() - asked, self.failover_time):
            return  # by now it may be another's
        opener = self._openers.get(lease.mapping)
        if opener is None:
            # It was withdrawn meanwhile. Should this fail, the lease expires.
            await self._table.attempt(self.store.release, row, row.checkpoint)
            return
        holding = self._held[lease.key] = Holding(row, asked, opener(row), row.checkpoint)
        self._tell(lease, LeaseEvent.CLAIMED, lease.owner if lease.owner != self.worker.id else "")
        if self._quieted.is_set():
            await self._bequeath(holding)

    # --- keeping --------------------------------------------------------------------------------------------------------

    async def _upkeep(self, tasks: TaskGroup) -> None:
        while True:
            now = anyio.current_time()
            held = [
                Held(
                    one.lease,
                    one.renewed,
                    not one.renewing and one.tenant.progresses(),
                    one.tenant.checkpoint() != one.written,
                )
                for one in self._held.values()
            ]
            for action in upkeep(held, now, self.failover_time, self._checkpoint_interval):
                holding = self._held[action.lease.key]
                if isinstance(action, Renew):
                    holding.renewing = True
                    tasks.start_soon(self._renew, holding)
                else:
                    self._give_up(holding)
            await anyio.sleep(TICK)

    def _give_up(self, holding: Holding) -> None:
        reason = f"it could not be renewed within {self.failover_time:g} s"
        if not holding.tenant.progresses():
            self._shunned[holding.lease.key] = anyio.current_time() + SHUNNED * self.failover_time
            reason = "its reader does not get on"
        self._lose(holding, reason)

    async def _renew(self, holding: Holding) -> None:
        async with holding.writing:
            asked = holding.asked = holding.asked or anyio.current_time()
            lease, tenant = holding.lease, holding.tenant
            if self._held.get(lease.key) is holding:
                checkpoint = tenant.checkpoint()
                try:
                    row = await self.store.renew(lease, checkpoint, tenant.load())
                except StoreError as error:
                    self._table.fails("renewal", error)
                    self._tell(lease, LeaseEvent.RENEWAL_FAILED, reason=str(error))
                else:
                    self._renewed(holding, row, asked, checkpoint)
            holding.renewing = False
        heir = holding.lease.wanted_by
        if (
            self._held.get(lease.key) is holding
            and heir != self.worker.id
            and self._takes(heir, lease.mapping)
        ):
            await self._hand_over(holding, heir)

    def _takes(self, worker: str, mapping: str) -> bool:
        return self.survey is not None and self.survey.takes(worker, mapping)

    def _renewed(self, holding: Holding, row: Lease | None, asked: float, checkpoint: Checkpoint) -> None:
        self._table.works("renewal")
        if self._held.get(holding.lease.key) is not holding:
            return
        if row is None:
            self._lose(holding, "another worker has it by now")
        else:
            holding.lease, holding.renewed, holding.asked, holding.written = row, asked, None, checkpoint

    # --- giving ---------------------------------------------------------------------------------------------------------

    async def _hand_over(self, holding: Holding, to: str) -> None:
        """Drain the tenant, then release; tried again until it is, or the lease is lost."""
        if holding.draining:
            return
        with anyio.CancelScope() as holding.draining:
            await holding.tenant.drain()
            # The heir may have gone while the last batch was finished.
            await self._part_with(holding, to if self._takes(to, holding.lease.mapping) else "")

    async def _bequeath(self, holding: Holding) -> None:
        """Hand over a lease of a mapping that was withdrawn."""
        if holding.draining:
            return
        with anyio.CancelScope() as holding.draining:
            await holding.tenant.drain()
            await self._part_with(holding, await self._succession.heir(holding.lease))

    def _surveyed(self, listing: Listing, asked: float) -> Survey:
        sightings = self._sightings.fold(listing, asked, anyio.current_time())
        return survey(listing, sightings, self.failover_time)

    async def _part_with(self, holding: Holding, to: str) -> None:
        while True:
            if await self._release(holding, to) is not False:
                return
            await anyio.sleep(TICK)

    async def complete(self, key: LeaseKey) -> bool:
        """Release a lease whose tenant has a finished checkpoint; tried again until it is. False when it was lost."""
        while holding := self._held.get(key):
            released = await self._release(holding, "")
            if released is not False:
                return released is True
            await anyio.sleep(TICK)
        return False

    async def _release(self, holding: Holding, to: str) -> bool | None:
        """True when it is done, False when it has to be tried again, None when the lease is gone."""
        async with holding.writing:
            lease, checkpoint = holding.lease, holding.tenant.checkpoint()
            if self._held.get(lease.key) is not holding:
                return None
            try:
                released = await self.store.release(lease, checkpoint, to)
            except StoreError as error:
                self._table.fails("other", error)
                return False
            self._table.works("other")
        if self._held.get(lease.key) is not holding:
            return None
        holding.draining = None
        if not released:
            self._lose(holding, "another worker has it by now")
            return None
        event = LeaseEvent.HANDED_OVER if to else LeaseEvent.RELEASED
        self._tell(lease, LeaseEvent.FINISHED if checkpoint.finished else event, to)
        self._evict(holding)
        return True

    def _lose(self, holding: Holding, reason: str, other: str = "") -> None:
        self._tell(holding.lease, LeaseEvent.LOST, other, reason)
        self._evict(holding)

    def _evict(self, holding: Holding) -> None:
        if holding.draining:
            holding.draining.cancel()
        del self._held[holding.lease.key]
        self._succession.forget(holding.lease.key)
        if not self._held:
            self._table.works("renewal")
        holding.tenant.evict()
        self._changed.set()
        self._changed = anyio.Event()

    def _tell(self, lease: Lease, event: LeaseEvent, other: str = "", reason: str = "") -> None:
        fact = LeaseChanged(lease.mapping, lease.shard, event, other, reason)
        if event is not LeaseEvent.RENEWAL_FAILED:
            self.history.append((self._world.wall(), fact))
        self._observer.lease_changed(fact)
