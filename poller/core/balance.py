"""How loads are spread over workers: who takes what is free, and what has to move so that all carry about the same.

Every worker does this arithmetic for itself, on a table that it read a moment before or after the others did. So the result
has to be the same for equal input, and nearly the same for nearly equal input:

* What is free goes to the worker that follows it on a ring of hashes, unless that one carries `FULL` averages already. Loads
  tremble, and "the least loaded of all" would be another one at every look, so that nobody took it; few are near that limit.
  Somebody who has too much with it gives away something else, in peace.
* When a part of a plan has been carried out already, the rest of it still comes out as before: who took something was not
  full without it, and who did not is as attractive as it was.
* Nothing moves while all loads lie within `OUTER` of the average. Only a worker outside of it is treated, until it is within
  `INNER`, so that the noise of loads does not bring it back at once. A move that would not halve the difference of two
  workers is none: it would come back, or change places with the next.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from hashlib import blake2b
from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: Lowest and highest part of the average load that is let be: 1.1 / 0.9 is 1.22.
OUTER = (0.9, 1.1)
#: Where treatment ends.
INNER = (0.95, 1.05)
#: A worker that carries so much of the average takes nothing more if others can.
FULL = 1.25
#: Workers that are looked at on the ring before the least loaded one is taken.
PROBES = 64

Key = tuple[str, str]


class Item(NamedTuple):
    """Something with a weight that one worker is to take."""

    key: Key
    weight: float
    turn: int = 0
    """How many had their chance to take it and did not."""


class Move(NamedTuple):
    """Something that is better off elsewhere."""

    key: Key
    giver: str
    taker: str


# --- what is free -------------------------------------------------------------------------------------------------------


def place(items: Iterable[Item], loads: dict[str, float], workers: Sequence[str]) -> dict[Key, str]:
    """Say which of `workers` takes each item, and add its weight to `loads`, which has an entry for each of them.

    At least one worker is needed.
    """
    ordered = sorted(items, key=lambda item: (-item.weight, item.key))
    if not ordered:
        return {}
    mean = (sum(loads[name] for name in workers) + sum(item.weight for item in ordered)) / len(workers)
    ring = _ring(workers)
    placed: dict[Key, str] = {}
    left: list[Item] = []
    for item in ordered:
        taker = _first_on(ring, item, loads, FULL * mean)
        if taker is None:
            left.append(item)
        else:
            placed[item.key] = taker
            loads[taker] += item.weight
    return placed | _to_the_least(left, loads, workers)


def _ring(workers: Iterable[str]) -> list[tuple[int, str]]:
    """Eight points a worker, so that no two of them follow each other everywhere."""
    points: list[tuple[int, str]] = []
    for name in workers:
        digest = blake2b(name.encode(), digest_size=64).digest()
        points += [(int.from_bytes(digest[at : at + 8], "big"), name) for at in range(0, 64, 8)]
    points.sort()
    return points


def _first_on(
    ring: Sequence[tuple[int, str]], item: Item, loads: Mapping[str, float], full: float
) -> str | None:
    digest = blake2b("/".join(item.key).encode(), digest_size=8).digest()
    start = bisect_left(ring, (int.from_bytes(digest, "big"), ""))
    passed: set[str] = set()
    turn = item.turn
    for step in range(min(PROBES, len(ring))):
        name = ring[(start + step) % len(ring)][1]
        if name in passed or loads[name] >= full:
            continue
        if not turn:
            return name
        turn -= 1
        passed.add(name)
    return None


def _to_the_least(items: Iterable[Item], loads: dict[str, float], workers: Sequence[str]) -> dict[Key, str]:
    heap = [(loads[name], name) for name in workers]
    heapify(heap)
    placed: dict[Key, str] = {}
    for item in items:
        skipped = [heappop(heap) for _ in range(item.turn % len(heap))]
        name = placed[item.key] = heap[0][1]
        loads[name] += item.weight
        heapreplace(heap, (loads[name], name))
        for entry in skipped:
            heappush(heap, entry)
    return placed


# --- what has to move ---------------------------------------------------------------------------------------------------


def relieve(
    loads: dict[str, float], takers: Sequence[str], movable: Mapping[str, Sequence[tuple[float, Key]]]
) -> list[Move]:
    """Say what moves to which of `takers`, and carry it out on `loads`.

    `movable` has the weight and the key of all that may move, by who has it. Each moves once at most.
    """
    mean = sum(loads.values()) / len(loads)
    movable = {name: held for name, held in movable.items() if held}
    over = {name for name in movable if loads[name] > OUTER[1] * mean}
    under = {name for name in takers if loads[name] < OUTER[0] * mean}
    if not over and not under:
        return []
    givers = [(-loads[name], name) for name in movable]
    needy = [(loads[name], name) for name in takers]
    heapify(givers)
    heapify(needy)
    sacks: dict[str, list[tuple[float, Key]]] = {}
    moves: list[Move] = []
    while givers:
        giver, taker = givers[0][1], needy[0][1]
        too_much = giver in over and loads[giver] > INNER[1] * mean
        too_little = taker in under and loads[taker] < INNER[0] * mean
        if not too_much and not too_little:
            break
        sack = sacks.get(giver) or sacks.setdefault(giver, sorted(movable[giver]))
        at = _best(sack, loads[giver], loads[taker], mean)
        if at is None:
            heappop(givers)  # nothing of it would help anybody, as the neediest comes first
            continue
        weight, key = sack.pop(at)
        moves.append(Move(key, giver, taker))
        loads[giver] -= weight
        loads[taker] += weight
        heapreplace(needy, (loads[taker], taker))
        if sack:
            heapreplace(givers, (-loads[giver], giver))
        else:
            heappop(givers)
    return moves


def _best(sack: Sequence[tuple[float, Key]], giver: float, taker: float, mean: float) -> int | None:
    """Which one to move: the heaviest that leaves both of them within bounds, else the lightest if it helps at all."""
    room = min(giver - OUTER[0] * mean, OUTER[1] * mean - taker)
    at = bisect_right(sack, room, key=lambda entry: entry[0]) - 1
    at = max(at, 0)
    return at if sack[at][0] <= 0.75 * (giver - taker) else None
