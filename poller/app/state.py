"""What `[daemon] state` names: where checkpoints, leases and what waits are kept.

It is opened when something of the configuration needs it first. A state that several daemons share (a table of DynamoDB, or a
SQLite file with `fleet = true`) has leases in it, which one `LeaseKeeper` keeps for all mappings of the process; it has neither
a spool nor jobs, as these belong to one daemon.
"""

from __future__ import annotations

import os
import secrets
import socket
from typing import TYPE_CHECKING

import anyio

from poller.app import lease_tables
from poller.aws.session import AwsSession
from poller.engine.lease_keeper import LeaseKeeper
from poller.errors import StoreError
from poller.model import Worker
from poller.ports import Spooling
from poller.stores.memory import MemoryStore

if TYPE_CHECKING:
    from typing import Protocol

    from poller.config import Config
    from poller.engine.invoker import World
    from poller.ports import CheckpointStore, Jobs, LeaseStore, Observer, Spool

    class SharedStore(CheckpointStore, LeaseStore, Protocol):
        """What every store is."""


#: Seconds that a transaction waits for those of other processes on the same file.
PATIENCE = 5.0


def worker_id() -> str:
    """A name of this life of the process that nobody had before."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


class State:
    """The store of the daemon, and its leases where it is shared. `run` keeps them."""

    def __init__(self, config: Config, observer: Observer, world: World) -> None:
        self.leases: LeaseKeeper | None = None
        """Set once a shared state is open."""
        self._whole = config
        self._config = config.daemon
        self._observer = observer
        self._world = world
        # Its own: a reload may replace the one that mappings use.
        self._session = AwsSession(config.aws, observer)
        self._store: SharedStore | None = None
        self._opening = anyio.Lock()
        self._begun = anyio.Event()

    async def store(self) -> SharedStore:
        """The store; raises StoreError when it cannot be used."""
        async with self._opening:
            if self._store is None:
                store = await self._open()
                if self._config.shares:
                    # Before the store is known: whoever gets that without leases would read everything alone.
                    store = await self._beside(store)
                    self.leases = self._keeper(store)
                    self._begun.set()
                self._store = store
            return self._store

    async def _beside(self, store: SharedStore) -> SharedStore:
        try:
            return await lease_tables.beside(store, self._whole, self._session)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await store.aclose()
            raise

    async def _open(self) -> SharedStore:
        kind, _, place = self._config.state.partition(":")
        if kind == "memory":
            return MemoryStore()
        if kind == "dynamodb":
            from poller.stores.dynamodb import DynamoDbStore

            return await DynamoDbStore.open(place, self._session)
        from poller.stores.sqlite import SqliteStore

        if self._config.shares:
            return await SqliteStore.open(place, PATIENCE, shared=True)
        return await SqliteStore.open(place)

    def _keeper(self, store: LeaseStore) -> LeaseKeeper:
        return LeaseKeeper(
            Worker(worker_id(), frozenset()),
            store,
            self._observer,
            self._world,
            failover_time=self._config.failover_time,
            checkpoint_interval=self._config.checkpoint_interval,
        )

    async def run(self) -> None:
        """Keep the leases, if there are any, until `quiet`; then say that this worker is gone."""
        await self._begun.wait()
        if self.leases:
            await self.leases.run()

    def quiet(self) -> None:
        """Take no more leases, and give back what is held."""
        self._begun.set()
        if self.leases:
            self.leases.quiet()

    async def spool(self) -> Spool:
        """What the store keeps besides; raises StoreError when that is nothing, or it cannot be used."""
        return (await self._spooling()).spool

    async def jobs(self) -> Jobs:
        """As `spool`."""
        return (await self._spooling()).jobs

    async def _spooling(self) -> Spooling:
        if self._config.shares:
            shared = " with fleet = true" if self._config.fleet else ""
            raise StoreError(
                f"[daemon] state = {self._config.state}{shared} is shared by several daemons and has neither a spool nor"
                " replays: that takes a sqlite:PATH of one daemon"
            )
        store = await self.store()
        assert isinstance(store, Spooling)
        return store

    async def aclose(self) -> None:
        """Finish what is being saved."""
        if self._store is not None:
            await self._store.aclose()
        await self._session.__aexit__(None, None, None)
