"""What the pipeline of a mapping and the work on its batches share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from poller.engine.breaker import GuardedDispatch
from poller.engine.dispatch import Dispatch
from poller.engine.door import Door
from poller.engine.health import Health
from poller.engine.settle import Settler

if TYPE_CHECKING:
    from poller.engine.breaker import Breaker
    from poller.engine.invoker import Invoker, World
    from poller.ports import Observer, Reader


@dataclass(frozen=True, slots=True)
class Parts:
    """One set for each reader; the health is that of the mapping, and so is the door, or behind that."""

    reader: Reader
    door: Door
    health: Health
    dispatch: Dispatch
    settler: Settler
    observer: Observer
    world: World


def build(
    mapping: str,
    reader: Reader,
    invoker: Invoker,
    maximum_concurrency: int | None,
    door: Door | None = None,
    health: Health | None = None,
    breaker: Breaker | None = None,
) -> Parts:
    """The parts around `reader`; a door, a health and a breaker may be shared by several. The door is the breaker's by default,
    or one behind it."""
    door = door or (breaker.door if breaker else Door())
    dispatch = (
        GuardedDispatch(invoker, breaker, door, maximum_concurrency)
        if breaker
        else Dispatch(invoker, door, maximum_concurrency)
    )
    return Parts(
        reader,
        door,
        health or Health(mapping, invoker.observer),
        dispatch,
        Settler(mapping, reader, invoker.observer),
        invoker.observer,
        invoker.world,
    )
