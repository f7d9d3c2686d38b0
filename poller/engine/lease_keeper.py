"""One worker of a fleet: holds leases, renews them, hands them over, notices that they are lost.

`core.leases` says what to do; this does it. Three loops that never wait for each other:

* *beat*: says that this worker is there;
* *look*: reads the table and carries out this worker's part of the plan;
* *upkeep*: renews what is held, with its checkpoint, and gives up in time what cannot be renewed. It needs no look, and no
  delivery is in its way, so neither a slow table scan nor a slow function lets a lease expire.

A holding here::

    claimed --> held --> draining --> released, to an heir or to nobody
                  |          |
                  '----------'-----> lost: the tenant is told at once and nothing more of it is written

What reads the shard is the *tenant* of the lease. Whether a write has happened whose answer did not come is left open: the
same write is tried again and recognised by the store, and counts from when it was asked for first.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, TypeVar, TypeVarTuple

import anyio

from poller.core.leases import (
    FAILOVER_TIME,
    HELD,
    RENEWALS,
    Claim,
    HandOff,
    Held,
    Lost,
    Release,
    Renew,
    Want,
    look_interval,
    plan,
    upkeep,
)
from poller.core.sightings import Sightings
from poller.core.survey import survey
from poller.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio.abc import TaskGroup

    from poller.core.leases import Action
    from poller.core.survey import Survey
    from poller.model import Checkpoint, Lease, LeaseKey, Listing, Worker
    from poller.ports import LeaseStore

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: Seconds between two looks at what is held.
TICK = 0.5
#: Claims at a time: a fleet of one may take ten thousand.
CLAIMING = 100
#: Failover times for which a worker leaves alone what it got stuck on, and after which the row of a dead worker is removed.
SHUNNED = 3.0
BURIED = 60.0


class Tenant(Protocol):
    """What reads the shard of a lease, from when the lease is claimed."""

    def checkpoint(self) -> Checkpoint:
        """How far it is done."""
        ...

    def load(self) -> float | None:
        """What it costs, in the unit of `Lease.load`; None when that is not known yet."""
        ...

    def progresses(self) -> bool:
        """Whether it moves on, or waits for something that it knows."""
        ...

    async def drain(self) -> None:
        """Receive no more; return when what is in flight is done, or was given back."""
        ...

    def evict(self) -> None:
        """Stop at once; the lease is gone. Called once at the end, after a release as well."""
        ...


@dataclass(slots=True, eq=False)
class _Holding:
    lease: Lease
    renewed: float
    tenant: Tenant
    asked: float | None = None
    """When the change that is open was asked for first."""
    renewing: bool = False
    draining: anyio.CancelScope | None = None
    writing: anyio.Lock = field(default_factory=anyio.Lock)


class LeaseKeeper:
    """Keeps the leases of one worker. `run` works until `quiet` and then until everything is handed back."""

    def __init__(
        self,
        worker: Worker,
        store: LeaseStore,
        open_tenant: Callable[[Lease], Tenant],
        failover_time: float = FAILOVER_TIME,
    ) -> None:
        self.worker = worker
        self.trouble: str | None = None
        """Why the table cannot be used at the moment."""
        self.survey: Survey | None = None
        """What the last look has come to."""
        self._store = store
        self._open_tenant = open_tenant
        self._failover_time = failover_time
        self._held: dict[LeaseKey, _Holding] = {}
        self._claiming: set[LeaseKey] = set()
        # Claims of which it is not known whether they have happened: the counter, and when they were asked for first.
        self._asked: dict[LeaseKey, tuple[int, float]] = {}
        self._shunned: dict[LeaseKey, float] = {}
        self._places = anyio.Semaphore(CLAIMING)
        self._sightings = Sightings()
        self._quieted = anyio.Event()

    def __repr__(self) -> str:
        return f"<LeaseKeeper {self.worker.id}: {len(self._held)} leases>"

    @property
    def leases(self) -> tuple[Lease, ...]:
        """What is held, as it was written last."""
        return tuple(holding.lease for holding in self._held.values())

    # --- life -----------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until quiet, and give everything back."""
        async with anyio.create_task_group() as background:
            async with anyio.create_task_group() as tasks:
                background.start_soon(self._beat)
                background.start_soon(self._look, tasks)
                background.start_soon(self._upkeep, tasks)
                await self._quieted.wait()
                for holding in list(self._held.values()):
                    tasks.start_soon(self._hand_over, holding, "")
            background.cancel_scope.cancel()
        await self._try(self._store.leave, self.worker)

    def quiet(self) -> None:
        """Take nothing more, and hand back what is held when it is drained."""
        self.worker = replace(self.worker, mappings=frozenset())
        self._quieted.set()

    # --- being there ----------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        while True:
            self.worker = replace(self.worker, counter=self.worker.counter + 1)
            await self._try(self._store.beat, self.worker)
            await anyio.sleep(self._failover_time / RENEWALS)

    # --- looking --------------------------------------------------------------------------------------------------------

    async def _look(self, tasks: TaskGroup) -> None:
        leases, is_new = 0, True
        while not self._quieted.is_set():
            asked = anyio.current_time()
            listing = await self._try(self._store.list)
            if listing is not None:
                leases = len(listing.leases)
                self._see(listing, asked)
                # One that is new waits for the others that are new, so that it does not take what is for all of them.
                if not is_new:
                    self._carry_out(tasks)
                    self._bury(listing, tasks)
                is_new = False
            with anyio.move_on_after(look_interval(leases)):
                await self._quieted.wait()

    def _see(self, listing: Listing, asked: float) -> None:
        self._sightings = self._sightings.fold(listing, asked, anyio.current_time())
        self.survey = survey(listing, self._sightings, self._failover_time)

    def _carry_out(self, tasks: TaskGroup) -> None:
        assert self.survey
        now = anyio.current_time()
        counters = {key: holding.lease.counter for key, holding in self._held.items()}
        shunned = {key for key, until in self._shunned.items() if until > now}
        for action in plan(self.survey, self.worker, counters, shunned):
            self._act(action, tasks)

    def _act(self, action: Action, tasks: TaskGroup) -> None:
        holding = self._held.get(action.lease.key)
        match action:
            case Claim(lease):
                tasks.start_soon(self._claim, lease, self._sightings.at)
            case Want(lease):
                tasks.start_soon(self._try, self._store.want, lease, self.worker.id)
            case HandOff(_, to) if holding:
                tasks.start_soon(self._hand_over, holding, to)
            case Release() if holding:
                tasks.start_soon(self._hand_over, holding, "")
            case Lost() if holding:
                self._evict(holding)

    def _bury(self, listing: Listing, tasks: TaskGroup) -> None:
        """Remove the rows of those who have been dead for long; one of the living does it."""
        present = self._sightings.present(self._failover_time)
        if self.worker.id == min(present, default=""):
            dead = set(self._sightings.gone(BURIED * self._failover_time))
            for worker in listing.workers:
                if worker.id in dead:
                    tasks.start_soon(self._try, self._store.leave, worker)

    # --- taking ---------------------------------------------------------------------------------------------------------

    async def _claim(self, lease: Lease, looked: float) -> None:
        if lease.key in self._claiming:
            return  # a look in the meantime may show what the first claim has done already
        self._claiming.add(lease.key)
        async with self._places:
            if not self._quieted.is_set():
                await self._take(lease, looked)
        self._claiming.discard(lease.key)

    async def _take(self, lease: Lease, looked: float) -> None:
        # From the look on, its owner may have handed it over, which leaves the same as the claim.
        before = self._asked.get(lease.key)
        asked = looked if before is None or before[0] != lease.counter else before[1]
        self._asked[lease.key] = (lease.counter, asked)
        try:
            row = await self._store.claim(lease, self.worker.id)
        except StoreError as error:
            self.trouble = str(error)
            return
        del self._asked[lease.key]
        if row is None or anyio.current_time() - asked >= HELD * self._failover_time:
            return  # by now it may be another's
        holding = self._held[lease.key] = _Holding(row, asked, self._open_tenant(row))
        if self._quieted.is_set():
            await self._hand_over(holding, "")

    # --- keeping --------------------------------------------------------------------------------------------------------

    async def _upkeep(self, tasks: TaskGroup) -> None:
        while True:
            now = anyio.current_time()
            held = [
                Held(one.lease, one.renewed, not one.renewing and one.tenant.progresses())
                for one in self._held.values()
            ]
            for action in upkeep(held, now, self._failover_time):
                holding = self._held[action.lease.key]
                if isinstance(action, Renew):
                    holding.renewing = True
                    tasks.start_soon(self._renew, holding)
                else:
                    self._give_up(holding)
            await anyio.sleep(TICK)

    def _give_up(self, holding: _Holding) -> None:
        if not holding.tenant.progresses():
            self._shunned[holding.lease.key] = anyio.current_time() + SHUNNED * self._failover_time
        self._evict(holding)

    async def _renew(self, holding: _Holding) -> None:
        async with holding.writing:
            asked = holding.asked = holding.asked or anyio.current_time()
            lease, tenant = holding.lease, holding.tenant
            if self._held.get(lease.key) is holding:
                try:
                    row = await self._store.renew(lease, tenant.checkpoint(), tenant.load())
                except StoreError as error:
                    self.trouble = str(error)
                else:
                    self._renewed(holding, row, asked)
            holding.renewing = False
        heir = holding.lease.wanted_by
        if (
            self._held.get(lease.key) is holding
            and self.survey
            and heir in self.survey.present - {self.worker.id}
        ):
            await self._hand_over(holding, heir)

    def _renewed(self, holding: _Holding, row: Lease | None, asked: float) -> None:
        self.trouble = None
        if self._held.get(holding.lease.key) is not holding:
            return
        if row is None:
            self._evict(holding)
        else:
            holding.lease, holding.renewed, holding.asked = row, asked, None

    # --- giving ---------------------------------------------------------------------------------------------------------

    async def _hand_over(self, holding: _Holding, to: str) -> None:
        """Drain the tenant, then release; tried again until it is, or the lease is lost."""
        if holding.draining:
            return
        with anyio.CancelScope() as holding.draining:
            await holding.tenant.drain()
            while True:
                if await self._release(holding, to):
                    return
                await anyio.sleep(TICK)

    async def _release(self, holding: _Holding, to: str) -> bool:
        async with holding.writing:
            try:
                await self._store.release(holding.lease, holding.tenant.checkpoint(), to)
            except StoreError as error:
                self.trouble = str(error)
                return False
        # False means that it is another's already: the same to us.
        holding.draining = None
        self._evict(holding)
        return True

    def _evict(self, holding: _Holding) -> None:
        if holding.draining:
            holding.draining.cancel()
        del self._held[holding.lease.key]
        holding.tenant.evict()

    async def _try(self, call: Callable[[*Ts], Awaitable[T]], *arguments: *Ts) -> T | None:
        """Ask the table; None when it cannot be used now: whoever asks, asks again."""
        try:
            answer = await call(*arguments)
        except StoreError as error:
            self.trouble = str(error)
            return None
        self.trouble = None
        return answer
