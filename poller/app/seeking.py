"""Moving a mapping to another place in its stream, through the daemon that has its store or through the store itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poller.core import seek

if TYPE_CHECKING:
    from poller.config import Mapping
    from poller.ports import CheckpointStore


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


async def carry_out(
    store: CheckpointStore, mapping: Mapping, wish: Wish, now: float
) -> tuple[seek.Move, ...]:
    """Move the checkpoints, while nothing reads their shards, and say what has become of each.

    Cut short, some are moved and others are not; the same again moves all of them.
    """
    moves = await planned(store, mapping, wish, now)
    for move in moves:
        if move.effect != "nothing":
            await store.seek(mapping.name, move.shard, move.after)
    return moves


def told(moves: tuple[seek.Move, ...]) -> list[dict[str, Any]]:
    """The moves as JSON has them."""
    return [{"shard": move.shard, "effect": move.effect, "says": move.says} for move in moves]
