"""Keys that are parked: a record that fails for good goes to the spool, and what comes after it under its key goes there too.

So the other keys go on, and those of the parked key keep their order: first what lies in the spool, oldest first, then what
still lies in the stream. One `Parking` is shared by all shards and lanes of a mapping, and outlives them: after a restart, with
other lanes, and in the children of a shard, a key is still parked. Its life::

    live --> its record that failed is on its way in --> parked: all that comes is put behind it, before any attempt
     ^                                                     |
     '---- a look found nothing of it, and none came ------'   `unparking` takes its records out, oldest first

* A record is put into the spool first and then settled (law 1). Between the two a crash leaves it in both places: read again,
  it has the same id, and the spool takes no id twice.
* What is stored under a key only the spool knows, for what is put twice is there once. So a key becomes live again exactly when
  a look into the spool began and ended with none of its records on their way in, and found nothing. That is decided without
  an await, as is whether a record is diverted: no live record can overtake a parked one.
* A put that failed may have been carried out: its key is parked, until a look shows that it was not.
* A full spool takes nothing. The lane waits then, and asks again whether its records belong to a parked key at all: the room
  that it waits for may have come from the very key. Nothing counts as on its way in while it waits.

The counts are estimates between two `refresh`es; nothing is decided by them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import anyio

from poller.core.parking import entry_id
from poller.core.retry import Condition, TooLarge, backoff, is_too_large
from poller.errors import StoreError
from poller.model import Failed, FunctionError, Parked, SpoolEntry, Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from poller.core.retry import GiveUp, StreamOutcome
    from poller.engine.door import Door
    from poller.engine.invoker import World
    from poller.model import Checkpoint, Record, SpoolLimits, SpoolTotals
    from poller.ports import Observer, Spool

#: Keys that the status shows one by one, those that were parked first.
SHOWN = 10
#: Characters that are kept of an error's message.
MESSAGE_LIMIT = 1000
#: The longest pause, seconds, before a full spool is asked again: others may have made room in it.
LONGEST_WAIT = 10.0


class Packing(Protocol):
    """Takes records out of memory and back; see `core.stream_envelope`."""

    def pack(self, record: Record) -> bytes:
        """All that `unpack` needs to make the record again, in another process too, as JSON."""
        ...

    def unpack(self, shard_id: str, packed: bytes) -> Record:
        """The record that was packed; raises KeyError, TypeError or ValueError for what makes no sense."""
        ...

    def checkpoint(self, record: Record) -> Checkpoint:
        """The position after the record."""
        ...


@dataclass(frozen=True, slots=True)
class ParkingPlan:
    """What a mapping says about keys whose records fail for good."""

    mapping: str
    packing: Packing
    limits: SpoolLimits
    probe_interval: float
    """Seconds; 0 for no probes."""
    parks: bool = True
    """False when only what was parked before is kept apart, and no other key is parked."""


@dataclass(slots=True, eq=False)
class ParkedKey:
    """One key that is parked."""

    since: float
    """Unix time at which the oldest of what is stored was put there."""
    entries: int = 0
    size: int = 0
    error_type: str = ""
    error_message: str = ""
    failures: int = 0
    """Probes that failed in a row."""
    incoming: int = 0
    """Puts on their way in."""
    changes: int = 0
    """How often a put began or ended."""
    stored: bool = False
    """Whether the spool may hold anything of it."""
    asked: bool = False
    """Whether the spool was asked for the error."""

    def note_error(self, error_type: str, message: str) -> None:
        """Remember why it is parked."""
        self.error_type, self.error_message = error_type, message[:MESSAGE_LIMIT]


class Parking:
    """The parked keys of one mapping, and the way into the spool. `spool` is asked for nothing of other mappings."""

    def __init__(self, plan: ParkingPlan, spool: Spool, observer: Observer, world: World) -> None:
        self.plan = plan
        self.keys: dict[str, ParkedKey] = {}
        """Those that are parked, in the order in which they were."""
        self.obstacle = ""
        """Why the last put was not taken."""
        self.waiting = 0
        """Lanes that wait for room."""
        self.on_parked: Callable[[str], None] = lambda key: None
        """Is told of each key that is parked now and was not before."""
        self._spool = spool
        self._observer = observer
        self._world = world
        self._stale = False
        # Replaced when what they stand for has happened once more.
        self._room = anyio.Event()
        self._landed = anyio.Event()

    def __repr__(self) -> str:
        return f"<Parking {self.plan.mapping}: {len(self.keys)} keys>"

    # --- what is there --------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Take up what an earlier process has parked; raises StoreError."""
        for line in await self._totals():
            self.keys[line.key] = ParkedKey(line.oldest, line.entries, line.size, stored=True)
            self.on_parked(line.key)
        await self._read_errors()

    async def refresh(self) -> None:
        """Set the counts to what the spool says, if anything has changed; raises StoreError, and is to be called again then."""
        if not self._stale:
            return
        self._stale = False
        try:
            lines = await self._totals()
            await self._read_errors()
        except StoreError:
            self._stale = True
            raise
        stored = {line.key: line for line in lines}
        for key, parked in self.keys.items():
            if line := stored.get(key):
                parked.entries, parked.size, parked.since = line.entries, line.size, line.oldest
            else:
                parked.entries = parked.size = 0

    async def _totals(self) -> Sequence[SpoolTotals]:
        return (await self._spool.totals(self.plan.mapping, "parked")).get(self.plan.mapping, ())

    async def _read_errors(self) -> None:
        """The errors of the keys that are shown, where only the spool knows them."""
        for key, parked in list(self.keys.items())[:SHOWN]:
            if parked.asked or parked.error_type or parked.error_message:
                continue
            for entry in await self.take(key, limit=1):
                parked.note_error(entry.error_type, entry.error_message)
            parked.asked = True

    # --- the way in -----------------------------------------------------------------------------------------------------

    def held(self, records: Sequence[Record]) -> list[Record]:
        """Those of `records` that must wait behind others of their key. One that no function can ever get never waits."""
        keys = self.keys
        if not keys:
            return []
        return [record for record in records if record.key in keys and not is_too_large((record,))]

    def takes(self, given_up: GiveUp) -> bool:
        """Whether the record that is given up waits here, and its key with it, rather than going to a destination."""
        return (
            self.plan.parks
            and given_up.condition is Condition.RETRIES
            and not isinstance(given_up.outcome, TooLarge)
            and len(given_up.records) == 1
            and given_up.records[0].key is not None
        )

    async def put(self, shard: str, records: Sequence[Record], error: FunctionError | None = None) -> int:
        """Store `records`, which have keys, behind all others, and return how many of the first of them are.

        0 is for none, and `obstacle` says why. `error` is what made the keys of the records parked keys, if they were not.
        """
        at = self._world.wall()
        entries = [self._entry(shard, record, at, error) for record in records]
        keys = {entry.key for entry in entries}
        for key in keys:
            self._begin(key, at)
        # Until it is known, all may be stored.
        stored: Sequence[SpoolEntry] = entries
        try:
            stored = entries[: await self._put(entries)]
        except StoreError as failure:
            self.obstacle = f"waiting for the store of the parked records: {failure}"
            self._stale = True
            return 0
        finally:
            self._end(keys, {entry.key for entry in stored})
        self._count(shard, stored, error)
        return len(stored)

    def _entry(self, shard: str, record: Record, at: float, error: FunctionError | None) -> SpoolEntry:
        packing = self.plan.packing
        return SpoolEntry(
            kind="parked",
            mapping=self.plan.mapping,
            id=entry_id(shard, packing.checkpoint(record)),
            key=record.key or "",
            shard=shard,
            at=at,
            body=packing.pack(record),
            error_type=error.error_type if error else "",
            error_message=error.error_message[:MESSAGE_LIMIT] if error else "",
        )

    async def _put(self, entries: Sequence[SpoolEntry]) -> int:
        """Put all, or half of them, or half of these, until there is room."""
        count = len(entries)
        while not await self._spool.put(entries[:count], self.plan.limits):
            count //= 2
            if not count:
                limits = self.plan.limits
                self.obstacle = (
                    f"waiting for room among the parked records: the spool is full"
                    f" ({limits.entries:,} entries or {limits.size // 2**20:,} MB)"
                )
                break
        return count

    def _begin(self, key: str, at: float) -> None:
        parked = self.keys.get(key)
        if parked is None:
            parked = self.keys[key] = ParkedKey(at)
            self.on_parked(key)
        parked.incoming += 1
        parked.changes += 1

    def _end(self, keys: set[str], stored: set[str]) -> None:
        for key in keys:
            parked = self.keys[key]
            parked.incoming -= 1
            parked.changes += 1
            parked.stored |= key in stored
            if not (parked.stored or parked.incoming):
                del self.keys[key]  # there was no room for the record that would have parked it
        self._landed.set()
        self._landed = anyio.Event()

    def _count(self, shard: str, entries: Sequence[SpoolEntry], error: FunctionError | None) -> None:
        for entry in entries:
            parked = self.keys[entry.key]
            parked.entries += 1
            parked.size += len(entry.body)
            if error:
                parked.note_error(error.error_type, error.error_message)
            self._stale = True
        why = (error.error_type, error.error_message) if error else ("", "")
        for key, records in Counter(entry.key for entry in entries).items():
            self._observer.parked(Parked(self.plan.mapping, shard, key, records, *why))

    async def wait(self, door: Door, tries: int) -> bool:
        """Wait for room, or until it is worth asking again; False when the door is closed."""
        pause = backoff(tries, self._world.chance(), longest=LONGEST_WAIT)
        self._observer.trouble(Trouble(self.plan.mapping, self.obstacle, pause))
        room = self._room

        async def until_room() -> None:
            with anyio.move_on_after(pause):
                await room.wait()

        self.waiting += 1
        try:
            await door.unless_closed(until_room)
        finally:
            self.waiting -= 1
        return door.is_open

    # --- the way out ----------------------------------------------------------------------------------------------------

    async def take(self, key: str, *, after: int = 0, limit: int) -> Sequence[SpoolEntry]:
        """The oldest entries of `key` with numbers above `after`; they stay. Raises StoreError."""
        return await self._spool.take(self.plan.mapping, "parked", key=key, after=after, limit=limit)

    def record(self, entry: SpoolEntry) -> Record:
        """What `entry` holds, with a fresh event; raises StoreError when it makes no sense."""
        try:
            return self.plan.packing.unpack(entry.shard, entry.body)
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"record {entry.id} makes no sense: {error!r}") from error

    async def remove(self, key: str, entries: Sequence[SpoolEntry]) -> None:
        """Drop entries of `key`, which are done; raises StoreError."""
        await self._spool.remove(self.plan.mapping, [entry.number for entry in entries])
        parked = self.keys[key]
        parked.entries = max(0, parked.entries - len(entries))
        parked.size = max(0, parked.size - sum(len(entry.body) for entry in entries))
        self._stale = True
        self._make_room()

    async def settled(self, key: str) -> int | None:
        """Wait until nothing of `key` is on its way in; what `free` asks for, None when it is not parked any more."""
        while (parked := self.keys.get(key)) and parked.incoming:
            await self._landed.wait()
        return parked.changes if parked else None

    def free(self, key: str, settled: int) -> bool:
        """Let `key` be live again, now that a look which began at `settled` found nothing of it; False if something came."""
        if self.keys[key].changes != settled:
            return False
        del self.keys[key]
        self._make_room()
        return True

    def _make_room(self) -> None:
        self._room.set()
        self._room = anyio.Event()


def why(outcome: StreamOutcome | None) -> FunctionError:
    """Why a record waits that came to this."""
    match outcome:
        case Failed(error):
            return error
        case TooLarge():
            return FunctionError("", "its event passes 6 MB, so no function can get it")
        case _:
            return FunctionError("", "the function named it in batchItemFailures")
