"""Moving a mapping to another place in its stream, through the daemon that has its store or through the store itself."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import anyio

from poller.core import seek
from poller.core.leases import FAILOVER_TIME
from poller.errors import PollerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from poller.app.state import SharedStore
    from poller.config import Mapping
    from poller.model import Lease
    from poller.ports import CheckpointStore

#: Seconds between two looks at leases that somebody has.
LOOK = 1.0


@dataclass(frozen=True, slots=True)
class Wish:
    """Where to, for one shard or for all."""

    to: str
    shard: str | None = None


def check(mapping: Mapping, wish: Wish, now: float) -> None:
    """Raise SeekRefused for a wish that makes no sense for this mapping, whatever its checkpoints are."""
    seek.check(seek.parse(wish.to, now), mapping.source, wish.shard)


async def planned(store: CheckpointStore, mapping: Mapping, wish: Wish, now: float) -> tuple[seek.Move, ...]:
    """What would become of each shard; raises SeekRefused and StoreError."""
    check(mapping, wish, now)
    return seek.moves(await store.load(mapping.name), seek.parse(wish.to, now), wish.shard, now)


@dataclass(frozen=True, slots=True)
class Taking:
    """How leases are taken for a seek, where the state is shared."""

    worker: str
    """A name that nobody else has."""
    failover_time: float = FAILOVER_TIME


async def carry_out(
    store: SharedStore, mapping: Mapping, wish: Wish, now: float, taking: Taking | None = None
) -> tuple[seek.Move, ...]:
    """Move the checkpoints, while nothing reads their shards, and say what has become of each.

    Cut short, some are moved and others are not; the same again moves all of them. In a shared state the leases of the shards
    are taken meanwhile; raises PollerError when another daemon has one.
    """
    moves = await planned(store, mapping, wish, now)
    moving = {move.shard: move for move in moves if move.effect != "nothing"}
    if taking is None:
        for move in moving.values():
            await store.seek(mapping.name, move.shard, move.after)
        return moves
    async with _taken(store, mapping.name, moving, taking) as leases:
        for shard, move in moving.items():
            await store.seek(mapping.name, shard, move.after)
            if shard in leases:
                leases[shard] = replace(leases[shard], checkpoint=move.after)
    return moves


@asynccontextmanager
async def _taken(
    store: SharedStore, mapping: str, shards: Collection[str], taking: Taking
) -> AsyncIterator[dict[str, Lease]]:
    """The leases of `shards`, taken for the length of the context; released with the checkpoints that they have then.

    Of one that is finished nobody takes the lease, and in a table of the KCL it may have none.
    """
    rows = await _free(store, mapping, shards, taking.failover_time)
    taken: dict[str, Lease] = {}
    try:
        for shard in shards:
            if rows[shard].checkpoint.finished:
                continue
            lease = await store.claim(rows[shard], taking.worker)
            if lease is None:
                raise _read_by_another(mapping, shard)
            taken[shard] = lease
        yield taken
    finally:
        for lease in taken.values():
            await store.release(lease, lease.checkpoint)


async def _free(
    store: SharedStore, mapping: str, shards: Collection[str], failover_time: float
) -> dict[str, Lease]:
    """The rows of `shards`, once nobody has them, or those who have them gave no sign of life for the failover time."""
    first = rows = await _rows(store, mapping)
    with anyio.move_on_after(failover_time):
        while owned := [shard for shard in shards if rows[shard].owner]:
            for shard in owned:
                if rows[shard].counter != first[shard].counter:
                    raise _read_by_another(mapping, shard, rows[shard].owner)
            await anyio.sleep(LOOK)
            rows = await _rows(store, mapping)
    return rows


async def _rows(store: SharedStore, mapping: str) -> dict[str, Lease]:
    return {lease.shard: lease for lease in (await store.list()).leases if lease.mapping == mapping}


def _read_by_another(mapping: str, shard: str, owner: str = "another daemon") -> PollerError:
    return PollerError(f"{shard} is read by {owner}: poller pause {mapping} at every daemon, then again")


def told(moves: tuple[seek.Move, ...]) -> list[dict[str, Any]]:
    """The moves as JSON has them."""
    return [{"shard": move.shard, "effect": move.effect, "says": move.says} for move in moves]
