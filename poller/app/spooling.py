"""Makes the spooler of a mapping: of a stream or of a queue, in the state that its checkpoints are in or would be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poller.engine.delivery import Overflow
from poller.engine.spooler import Spooler, SpoolPlan
from poller.model import SpoolLimits

if TYPE_CHECKING:
    from collections.abc import Callable

    from poller.app.state import State
    from poller.config import Config, Mapping
    from poller.engine.invoker import World
    from poller.ports import Destination, Observer


def uses_state(config: Config) -> bool:
    """Whether anything of `config` keeps something in the state."""
    return any(mapping.source != "sqs" or mapping.spools for mapping in config.mappings)


def limits(mapping: Mapping) -> SpoolLimits:
    """The most that may wait of `mapping`, for whatever reason."""
    return SpoolLimits(mapping.spool.maximum_entries, mapping.spool.maximum_megabytes * 2**20)


def spooler(
    mapping: Mapping,
    config: Config,
    state: State,
    destination: Callable[[str], Destination],
    observer: Observer,
    world: World,
) -> Spooler | None:
    """What delivers the spooled of `mapping`, also when it spools no more: its file may have said so before.

    `destination` makes the destination that a file names, or named. None when no state is kept that has a spool.
    """
    if not (config.daemon.keeps_spool and uses_state(config)):
        return None
    return Spooler(SpoolPlan(mapping.name, limits(mapping), state.spool, destination), observer, world)


def overflow(mapping: Mapping, destination: str, spooler: Spooler | None) -> Overflow | None:
    """Where goes what `destination`, one of the mapping's, does not take; None where it is tried until it does."""
    if spooler is None or not mapping.spools:
        return None
    return Overflow(spooler, destination, mapping.maximum_delivery_attempts)
