"""A snapshot of all that runs, as frozen records: what `/status`, the gauges and `poller status` show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from poller.model import Failed, NotInvoked

if TYPE_CHECKING:
    from poller.model import (
        ApiRequest,
        CircuitChanged,
        CircuitState,
        Delivered,
        DeliveryFailed,
        Dropped,
        FilteredOut,
        Invoked,
        LeaseChanged,
        LeaseEvent,
        MappingState,
        Parked,
        Received,
        Settled,
        Spooled,
        StaleReceipts,
        StateChanged,
        Trimmed,
        Trouble,
        Unparked,
        Workers,
    )


@dataclass(slots=True)
class Totals:
    """Records of one mapping since the daemon started; `invoked` counts a record again for each attempt."""

    received: int = 0
    filtered: int = 0
    invoked: int = 0
    failed: int = 0
    deleted: int = 0
    committed: int = 0
    dropped: int = 0
    delivered: int = 0
    """Given up, and taken by the on-failure destination."""
    parked: int = 0
    """Put aside under their key, which is parked."""
    unparked: int = 0
    """Handled after they were parked."""
    released: int = 0
    throttled: int = 0
    """Batches, not records, that found no free worker."""
    stale: int = 0
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """What a mapping, or a part of it, has at work at the moment."""

    receivers: int = 0
    in_flight_invocations: int = 0
    in_flight_records: int = 0
    buffered_records: int = 0
    """Received and in no handler: they wait for one, or are being settled."""
    buffered_bytes: int = 0

    def __add__(self, other: Load) -> Load:
        return Load(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


IDLE = Load()


@dataclass(frozen=True, slots=True)
class ShardStatus:
    """One shard of a mapping now."""

    shard: str
    doing: str
    """reading, idle, throttled, working, retrying ..., waiting for its parent, at the concurrency limit, paused, circuit
    open."""
    sequence_number: str
    """Everything up to and including this record is done."""
    iterator_age: float | None
    """Seconds of records between what is done and the end of the shard; None when not known."""
    checkpoint_age: float
    """Seconds for which progress has been waiting to be saved."""
    open_records: int
    """Records received and not done."""


@dataclass(frozen=True, slots=True)
class SpoolStatus:
    """What is spooled for one destination of a mapping now."""

    destination: str
    """As the mapping named it when it was spooled."""
    entries: int
    bytes: int
    oldest: float
    """Unix time at which the first of them was spooled."""
    why: str
    """What the destination said last; empty while it takes them."""


@dataclass(frozen=True, slots=True)
class ParkedKeyStatus:
    """One parked key now."""

    key: str
    records: int
    bytes: int
    since: float
    """Unix time at which the oldest of its records was parked."""
    error_type: str
    error_message: str
    """Of the last record that failed."""
    doing: str
    """taken up, next try in ..., waits for poller resume."""


@dataclass(frozen=True, slots=True)
class ParkedStatus:
    """The parked keys of a mapping now."""

    keys: int
    records: int
    bytes: int
    oldest: float | None
    """Unix time at which the oldest record was parked; None for no records."""
    waiting: str
    """Why records cannot be parked at the moment; empty when they can."""
    first: tuple[ParkedKeyStatus, ...]
    """Those that were parked first, ten at most."""


@dataclass(frozen=True, slots=True)
class MappingStatus:
    """One mapping now."""

    name: str
    source: str
    function: str
    state: MappingState
    reason: str
    since: float
    """Unix time of the last change of `state`."""
    receivers: int
    in_flight_invocations: int
    in_flight_records: int
    buffered_records: int
    buffered_bytes: int
    restarts: int
    totals: Totals
    shards: tuple[ShardStatus, ...] = ()
    circuit: CircuitState | None = None
    """Where its circuit breaker stands; None for a mapping that has none, or that is not open."""
    spool: tuple[SpoolStatus, ...] = ()
    """The destinations for which something is spooled."""
    parked: ParkedStatus | None = None
    """None for a mapping that parks nothing."""


@dataclass(frozen=True, slots=True)
class FunctionStatus:
    """One function now."""

    name: str
    in_flight: int
    limit: int
    waiting: int
    workers: Workers | None = None
    """Its processes; None for a function that has none."""
    version: str = ""
    """Of its code; empty when that is not known."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker of the fleet, as this one sees it."""

    id: str
    mappings: tuple[str, ...]
    present: bool
    """Whether it has given a sign of life within the failover time."""
    leases: int
    load: float
    """Of its leases, in bytes a second."""
    lag: float
    """Seconds: the age of the oldest record that is not done, as it said with its last sign of life."""


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """One lease of a shard that is not finished, as this worker saw it last."""

    mapping: str
    shard: str
    owner: str
    """Empty for nobody."""
    age: float
    """Seconds for which its row has stood still, at least."""
    load: float | None
    """Bytes a second; None when not known yet."""
    sequence_number: str
    wanted_by: str
    waits_for: tuple[str, ...] = ()
    """Its parents that are not finished: nobody can read it before."""


@dataclass(frozen=True, slots=True)
class LeaseNote:
    """What has happened to a lease of this worker."""

    at: float
    """Unix time."""
    mapping: str
    shard: str
    event: LeaseEvent
    other: str
    reason: str


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """The workers that share this daemon's state, and their leases."""

    worker: str
    """The id of this one."""
    trouble: str | None
    workers: tuple[WorkerStatus, ...] = ()
    leases: tuple[LeaseStatus, ...] = ()
    history: tuple[LeaseNote, ...] = ()
    """What has happened last to leases of this worker, the latest last."""


@dataclass(frozen=True, slots=True)
class DaemonStatus:
    """The daemon now."""

    version: str
    pid: int
    started: float
    stopping: bool
    concurrency: int
    in_flight: int
    mappings: tuple[MappingStatus, ...] = ()
    functions: tuple[FunctionStatus, ...] = ()


@dataclass(slots=True)
class Board:
    """An observer that keeps each mapping's totals; they outlive a restart or a reload of the mapping."""

    totals: dict[str, Totals] = field(default_factory=dict)

    def of(self, mapping: str) -> Totals:
        """The totals of one mapping, zeros at first."""
        found = self.totals.get(mapping)
        if found is None:
            found = self.totals[mapping] = Totals()
        return found

    def forget(self, mapping: str) -> None:
        """Drop the totals of a mapping that was removed."""
        self.totals.pop(mapping, None)

    def received(self, fact: Received) -> None:
        if fact.records:
            self.of(fact.mapping).received += fact.records

    def filtered_out(self, fact: FilteredOut) -> None:
        self.of(fact.mapping).filtered += fact.records

    def invoked(self, fact: Invoked) -> None:
        totals = self.of(fact.mapping)
        match fact.outcome:
            case NotInvoked(reason):
                totals.throttled += 1
                totals.last_error = reason
                return
            case Failed(error):
                totals.last_error = f"{error.error_type}: {error.error_message}"
        totals.invoked += fact.records
        totals.failed += fact.failed

    def settled(self, fact: Settled) -> None:
        totals = self.of(fact.mapping)
        totals.deleted += fact.deleted
        totals.released += fact.released
        totals.committed += fact.committed

    def stale_receipts(self, fact: StaleReceipts) -> None:
        self.of(fact.mapping).stale += fact.records

    def trimmed(self, fact: Trimmed) -> None:
        self.of(fact.mapping).last_error = f"{fact.shard}: records were removed before they were read"

    def dropped(self, fact: Dropped) -> None:
        self.of(fact.mapping).dropped += fact.records

    def delivered(self, fact: Delivered) -> None:
        if not fact.succeeded:
            self.of(fact.mapping).delivered += fact.records

    def spooled(self, fact: Spooled) -> None:
        pass

    def delivery_failed(self, fact: DeliveryFailed) -> None:
        self.of(fact.mapping).last_error = fact.error

    def parked(self, fact: Parked) -> None:
        self.of(fact.mapping).parked += fact.records

    def unparked(self, fact: Unparked) -> None:
        self.of(fact.mapping).unparked += fact.records

    def state_changed(self, fact: StateChanged) -> None:
        pass

    def circuit_changed(self, fact: CircuitChanged) -> None:
        pass

    def lease_changed(self, fact: LeaseChanged) -> None:
        pass

    def trouble(self, fact: Trouble) -> None:
        self.of(fact.mapping).last_error = fact.error

    def api_request(self, fact: ApiRequest) -> None:
        pass
