"""A lease that is held, and its tenant: what reads the shard while it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import anyio

if TYPE_CHECKING:
    from poller.model import Checkpoint, Lease


class Tenant(Protocol):
    """What reads the shard of a lease, from when the lease is claimed."""

    def checkpoint(self) -> Checkpoint:
        """How far it is done."""
        ...

    def load(self) -> float | None:
        """What it costs, in the unit of `Lease.load`; None when that is not known yet."""
        ...

    def lag(self) -> float | None:
        """The age of its oldest record that is not done, in seconds; None when that is not known."""
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
class Holding:
    """What a `LeaseKeeper` knows of one of its leases."""

    lease: Lease
    """As it was written last."""
    renewed: float
    """When that write was asked for."""
    tenant: Tenant
    written: Checkpoint
    """The checkpoint of the last write."""
    asked: float | None = None
    """When the change that is open was asked for first."""
    renewing: bool = False
    draining: anyio.CancelScope | None = None
    """While it is to be handed over."""
    writing: anyio.Lock = field(default_factory=anyio.Lock)
