"""The stores as the conformance suites open them: each over a medium that is empty at first and outlives the store."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

from poller.aws.session import AwsSession
from poller.config import Aws
from poller.stores.by_mapping import ByMapping
from poller.stores.dynamodb import DynamoDbStore
from poller.stores.kcl import KclStore, Origin
from poller.stores.memory import MemoryStore
from poller.stores.sqlite import SqliteStore
from tests.engine.fakes import Recorder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    import pytest

    from poller.ports import CheckpointStore, LeaseStore
    from tests.servers import Server

    class Store(CheckpointStore, LeaseStore, Protocol):
        """Both at once."""

    class Open(Protocol):
        def __call__(self) -> AbstractAsyncContextManager[Store]: ...


REGION = "eu-west-1"


class InMemory:
    """Opens the same store again and again, as the other media do."""

    def __init__(self) -> None:
        self._store = MemoryStore()

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Store]:
        yield self._store
        await self._store.aclose()


class InSqlite:
    def __init__(self, place: Path, *, shared: bool) -> None:
        self._path = place / "poller.db"
        self._shared = shared

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Store]:
        patience = 5.0 if self._shared else 0.0
        store = await SqliteStore.open(self._path, patience=patience, shared=self._shared)
        try:
            yield store
        finally:
            await store.aclose()


class InDynamoDb:
    """A table of its own on some server."""

    def __init__(self, endpoint_url: str) -> None:
        self._config = Aws(region=REGION, endpoint_url=endpoint_url)
        self._table = f"leases-{uuid4()}"

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Store]:
        async with AwsSession(self._config, Recorder()) as session:
            store = await DynamoDbStore.open(self._table, session)
            try:
                yield store
            finally:
                await store.aclose()


class InKcl:
    """A lease table of the KCL for each of two mappings, and a table of our own for the workers."""

    def __init__(self, endpoint_url: str) -> None:
        self._own = InDynamoDb(endpoint_url)
        self._config = Aws(region=REGION, endpoint_url=endpoint_url)
        self._tables = {mapping: f"kcl-{uuid4()}" for mapping in ("click", "clicks")}

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Store]:
        async with AwsSession(self._config, Recorder()) as session, self._own() as own:
            stores = {
                mapping: await KclStore.open(table, session, Origin(mapping, "AT_TIMESTAMP"))
                for mapping, table in self._tables.items()
            }
            yield ByMapping(own, stores)


LOCAL = ("memory", "sqlite", "sqlite-shared")
REMOTE = ("dynamodb-ministack", "dynamodb-local")
STORES = (*LOCAL, *REMOTE)
#: Lease tables that are the KCL's, which have no room for windows.
KCL = ("kcl-ministack", "kcl-local")


def medium(request: pytest.FixtureRequest, place: Path) -> Open:
    """What `request.param` names of `STORES` and `KCL`; servers are started by the first who needs them."""
    if request.param == "memory":
        return InMemory()
    if request.param.startswith("sqlite"):
        return InSqlite(place, shared=request.param == "sqlite-shared")
    kind, _, where = request.param.partition("-")
    server: Server = request.getfixturevalue("emulator" if where == "ministack" else "dynamodb_local")
    return (InKcl if kind == "kcl" else InDynamoDb)(server.endpoint_url)
