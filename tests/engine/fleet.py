"""A fleet over one scripted stream and one table: workers that come, go, die and are cut off, and a ledger of what they did."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import anyio

from poller.engine.lease_keeper import LeaseKeeper
from poller.errors import PollerError, StoreError
from poller.model import Worker
from poller.stores.memory import MemoryStore
from tests.engine.fakes import OK, Function, Recorder, world
from tests.engine.stream_fakes import Clicks, Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from poller.engine.invoker import World
    from poller.model import Listing

VERBS = frozenset(
    {"load", "save", "seek", "list", "beat", "leave", "add", "claim", "want", "renew", "release"}
)


class Way:
    """One worker's way to the table: it can be cut, and a write's answer can be lost on it."""

    def __init__(self, table: MemoryStore) -> None:
        self._table = table
        self.cut = False
        self.calls: list[str] = []
        self.loses: set[str] = set()
        self.slow: dict[str, float] = {}
        self.refuses: set[str] = set()
        #: Shards whose rows cannot be made.
        self.unwritten: set[str] = set()
        #: Shards whose rows are left out by the first look that could show them.
        self.late: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._table, name)
        if name not in VERBS:
            return verb

        async def call(*arguments: Any) -> Any:
            self.calls.append(name)
            await anyio.sleep(self.slow.get(name, 0))
            if self.cut or name in self.refuses:
                raise StoreError("the table is out of reach")
            if name == "add" and arguments[0].shard in self.unwritten:
                raise StoreError("too busy")
            answer = await verb(*arguments)
            if name == "list":
                answer = self._as_shown(answer)
            await anyio.lowlevel.checkpoint()
            if name in self.loses:
                self.loses.discard(name)
                raise StoreError("the answer is lost")
            return answer

        return call

    def mend(self) -> None:
        """All is well from here on."""
        self.cut = False
        self.loses.clear()
        self.unwritten.clear()
        self.late.clear()
        self.slow = {}

    def _as_shown(self, listing: Listing) -> Listing:
        late = self.late.intersection(lease.shard for lease in listing.leases)
        self.late -= late
        return replace(listing, leases=[lease for lease in listing.leases if lease.shard not in late])


@dataclass(frozen=True)
class Entry:
    """One invocation."""

    at: float
    worker: str
    ids: tuple[str, ...]
    keys: tuple[str | None, ...]


@dataclass
class Fleet:
    """What the workers share, and what they did."""

    stream: Stream = field(default_factory=Stream)
    table: MemoryStore = field(default_factory=MemoryStore)
    seconds: float = 0.1
    """What an invocation takes."""
    settings: dict[str, Any] = field(default_factory=dict)
    begun: list[Entry] = field(default_factory=list)
    done: list[Entry] = field(default_factory=list)
    members: dict[str, Member] = field(default_factory=dict)
    world: World = field(default_factory=world)

    def member(self, name: str, **more: Any) -> Member:
        assert name not in self.members, "a name is for one life"
        member = self.members[name] = Member(name, self, {**self.settings, **more})
        return member

    @property
    def handled(self) -> list[str]:
        return [id_ for entry in self.done for id_ in entry.ids]

    async def owners(self) -> dict[str, str]:
        return {lease.shard: lease.owner for lease in (await self.table.list()).leases}

    async def finished(self) -> set[str]:
        return {lease.shard for lease in (await self.table.list()).leases if lease.checkpoint.finished}


class Member:
    """One worker: its leases, and its part of the mapping."""

    def __init__(self, name: str, fleet: Fleet, settings: dict[str, Any]) -> None:
        self.name = name
        self.fleet = fleet
        self.way = Way(fleet.table)
        self.observer = Recorder()
        self.leases = LeaseKeeper(Worker(name, frozenset()), self.way, self.observer, fleet.world)  # type: ignore[arg-type]
        self.clicks = Clicks(
            stream=fleet.stream,
            store=self.way,  # type: ignore[arg-type]
            function=Function(handler=self._handle),
            observer=self.observer,
            world=fleet.world,
            leases=self.leases,
            **settings,
        )
        self.seconds: float | None = None
        self.reply: Callable[[Any], Awaitable[Any]] | None = None
        self.began: Callable[[tuple[str, ...]], None] = lambda _: None
        self.keeper: Any = None
        self.process = anyio.CancelScope()
        self.ended = anyio.Event()

    async def _handle(self, call: Any) -> Any:
        records = call.invocation.event["Records"]
        ids = tuple(record["messageId"] for record in records)
        entry = Entry(anyio.current_time(), self.name, ids, tuple(record["group"] for record in records))
        self.fleet.begun.append(entry)
        self.began(ids)
        await anyio.sleep(self.fleet.seconds if self.seconds is None else self.seconds)
        answer = OK if self.reply is None else await self.reply(call)
        if answer is OK:
            self.fleet.done.append(entry)
        return answer

    @property
    def shards(self) -> set[str]:
        return {lease.shard for lease in self.leases.leases}

    @property
    def events(self) -> list[str]:
        return [fact.event for fact in self.observer.facts if hasattr(fact, "event")]

    # --- life -----------------------------------------------------------------------------------------------------------

    async def live(self) -> None:
        """From the start to `stop` or `kill`."""
        try:
            with self.process:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self.leases.run)
                    await self._run()
                    self.leases.quiet()
        finally:
            self.ended.set()

    async def _run(self) -> None:
        """Run the mapping; what cannot be opened now is tried again, as its child does."""
        try:
            async with self.clicks.open() as self.keeper:
                await self.keeper.run()
        except PollerError:
            await anyio.sleep(1.0)
            await self._run()

    async def stop(self) -> None:
        """As at SIGTERM."""
        self.keeper.quiet()
        await self.ended.wait()

    def kill(self) -> None:
        """As kill -9: what it still wants to write on its way out does not arrive."""
        self.way.cut = True
        self.process.cancel()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Member]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.live)
            yield self
            self.kill()
