"""The seams. Each port says what may be called when, and what each failure means; adapters differ in data, not in verbs."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from poller.model import (
        ApiRequest,
        Checkpoint,
        CircuitChanged,
        Delivered,
        Delivery,
        DeliveryFailed,
        Dropped,
        FilteredOut,
        FunctionError,
        Invocation,
        Invoked,
        Job,
        Lease,
        LeaseChanged,
        Listing,
        Parked,
        Received,
        Record,
        Refused,
        Reply,
        Settled,
        Shard,
        Spooled,
        SpoolEntry,
        SpoolKind,
        SpoolLimits,
        SpoolTotals,
        StaleReceipts,
        StartAt,
        StateChanged,
        Trimmed,
        Trouble,
        Unparked,
        Worker,
        Workers,
    )

#: The invocation that the current task or thread works for. Runtimes set it, logs read it.
current_invocation: ContextVar[Invocation | None] = ContextVar("current_invocation", default=None)


class Reader(Protocol):
    """Reads one shard and settles what it read.

    All verbs may be called from several tasks at the same time. A record is the reader's to keep alive (visibility) from the
    moment `receive` returns it until it is acked or released. Settling does not raise: at least once is the contract, so
    what the source does not confirm comes back, and the reader tells its observer.
    """

    redelivers: bool
    """True when an unsettled record comes back by itself (a queue); False when it must be tried again here (a stream)."""

    @property
    def ended(self) -> bool:
        """True when everything of a closed shard has been received; always False for a queue."""
        ...

    @property
    def full(self) -> bool:
        """True while it brings no more before something that it has brought is settled."""
        ...

    @property
    def behind(self) -> float | None:
        """Seconds between the last record received and the end of the shard; None when that is not known."""
        ...

    @property
    def doing(self) -> str:
        """What it does now, in a word or two for `/status`: reading, idle, throttled."""
        ...

    @property
    def children(self) -> tuple[Shard, ...]:
        """Once `ended`: the shards that go on with the keys of this one, as far as the source has named them."""
        ...

    async def receive(self, limit: int, wait: float) -> Sequence[Record]:
        """Return up to `limit` records, waiting up to `wait` seconds for the first one; empty when there were none.

        Raises `poller.errors.AwsError` when the source cannot be read now.

        Cancelling it may lose sight of records for as long as the source hides them, so it is done at the deadline of a
        stop only.
        """
        ...

    async def ack(self, records: Sequence[Record]) -> int:
        """Settle `records` for good and return how many the source confirmed; the others will come back."""
        ...

    async def release(self, records: Sequence[Record], delay: float | None) -> None:
        """Stop keeping `records`: with `delay` they are offered again after that many seconds, with None when the source
        would do so by itself."""
        ...


class Source(Protocol):
    """One queue or stream."""

    async def shards(self) -> Sequence[Shard]:
        """List the shards that exist now, closed ones with records included, in any order."""
        ...

    def open(self, shard: Shard, start: StartAt) -> AbstractAsyncContextManager[Reader]:
        """Read `shard` from `start` for the length of the context; what the reader runs in the background ends with it.

        Entering raises `poller.errors.PollerError` when the source is missing, forbidden, out of reach or unfit. Leaving
        gives back every record that is not settled.
        """
        ...


class Runtime(Protocol):
    """Runs one function."""

    @property
    def keeps_time(self) -> bool:
        """Whether it ends an invocation at its time limit by itself, and answers for it as `response.timed_out` says."""
        ...

    def open(self) -> None:
        """Begin, on the event loop: what is to be warm before the first invocation is started. Called once, first."""
        ...

    async def ready(self, request_id: str) -> FunctionError | Refused | None:
        """Wait until an invocation can begin at once: cold starts are no part of its time limit.

        An `invoke` that is called before anything else runs then finds what it needs; any other `invoke` waits by itself.
        Returns the answer to the invocation when none can begin: the function does not start, or there is no room.
        """
        ...

    async def invoke(self, invocation: Invocation) -> Reply:
        """Run the function on one event. Whatever the function does is a value; nothing is raised.

        The caller of a runtime that does not keep the time enforces the limit by cancelling. Whoever cancels, and why:
        the runtime then makes sure that the code runs no further where it can, and counts what it cannot stop against its
        own limit.
        """
        ...

    def workers(self) -> Workers | None:
        """The function's processes now; None for a runtime that has none."""
        ...

    async def aclose(self) -> None:
        """Stop everything that runs for this function. Called once, after the last `invoke` has ended."""
        ...


class CheckpointStore(Protocol):
    """Keeps the position of each mapping in each shard. Raises `poller.errors.StoreError` only.

    What `save` has returned from survives a kill of the process and, as far as the medium promises it, a loss of power.
    """

    async def load(self, mapping: str) -> Mapping[str, Checkpoint]:
        """All checkpoints of a mapping, by shard id; empty when there is none."""
        ...

    async def save(self, mapping: str, shard: str, checkpoint: Checkpoint) -> bool:
        """Move a shard's checkpoint forward. One that would move it backwards changes nothing and returns False."""
        ...

    async def seek(self, mapping: str, shard: str, checkpoint: Checkpoint | None) -> None:
        """Put a shard's checkpoint anywhere, or remove it (None). For commands, while nothing reads the shard."""
        ...

    async def aclose(self) -> None:
        """Finish what is being saved and let go of the medium."""
        ...


class Leases(Protocol):
    """Leases in a table that workers share. Raises `poller.errors.StoreError` only.

    Leases are rows that change conditionally: who lost one gets None or False, which is no failure. A write whose answer was
    lost on the way is recognised as having happened when it is tried again; after a StoreError it has happened or not.
    A checkpoint moves forward only, whoever brings it; one that would move it backwards leaves it where it is and does not
    hinder the write that it comes with.
    """

    async def list(self) -> Listing:
        """All leases and workers, without the windows of the checkpoints. Rows may be a moment old, each for itself."""
        ...

    async def add(self, lease: Lease) -> None:
        """Make a row for a shard that is new, with its first checkpoint. To a row that is there, add its parents."""
        ...

    async def claim(self, lease: Lease, worker: str) -> Lease | None:
        """Make `worker` the owner, if owner and counter are still those of `lease`; return the row as it then is, whole."""
        ...

    async def want(self, lease: Lease, worker: str) -> bool:
        """Note that `worker` asks for the lease, if its owner and who asked before are still those of `lease`.

        The counter is not compared, or nobody could ask an owner that is busy; nothing depends on it.
        """
        ...

    async def renew(self, lease: Lease, checkpoint: Checkpoint, load: float | None) -> Lease | None:
        """Count on and move the checkpoint, if owner and counter are still those of `lease`; return the row as it then is.

        What is new in it is who wants it.
        """
        ...

    async def release(self, lease: Lease, checkpoint: Checkpoint, to: str = "") -> bool:
        """Move the checkpoint and make `to` the owner, or nobody, if owner and counter are still those of `lease`.

        With a checkpoint that is finished, the lease is complete: nobody will claim it any more.
        """
        ...


class LeaseStore(Leases, Protocol):
    """The leases, and the workers that share them. Raises `poller.errors.StoreError` only."""

    async def beat(self, worker: Worker) -> None:
        """Say that `worker` is there; its counter is one more than last time."""
        ...

    async def leave(self, worker: Worker) -> None:
        """Remove the row of a worker that goes, or has gone; not if it has counted on."""
        ...


class Spool(Protocol):
    """Keeps what waits for a better time, in order. Raises `poller.errors.StoreError` only.

    What `put` and `remove` have returned from survives a kill of the process and, as far as the medium promises it, a loss of
    power.
    """

    async def put(self, entries: Sequence[SpoolEntry], limits: SpoolLimits) -> bool:
        """Add `entries` of one mapping behind all others, all or none of them; False when that would pass `limits`.

        Those that are there already stay where they are. An empty spool takes what alone passes the limits: it would have
        room for it never else.
        """
        ...

    async def take(
        self,
        mapping: str,
        kind: SpoolKind,
        *,
        key: str | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> Sequence[SpoolEntry]:
        """The first `limit` entries with numbers above `after`, in order; of one key, or of all. They stay in the spool."""
        ...

    async def remove(self, mapping: str, numbers: Sequence[int]) -> None:
        """Drop entries for good; a number that is not there is passed over."""
        ...

    async def totals(
        self, mapping: str | None = None, kind: SpoolKind | None = None
    ) -> Mapping[str, Sequence[SpoolTotals]]:
        """What waits, by mapping: a line for each kind and key, oldest first. Of one mapping or kind, or of all."""
        ...


class Jobs(Protocol):
    """Keeps what long jobs need to go on after a restart. Raises `poller.errors.StoreError` only."""

    async def save_job(self, job: Job) -> None:
        """Keep `job` in the place of the one of its id."""
        ...

    async def jobs(self) -> Sequence[Job]:
        """All that are kept, in the order in which they were first saved."""
        ...

    async def remove_job(self, job_id: str) -> None:
        """Forget a job; one that is not there is passed over."""
        ...


@runtime_checkable
class Spooling(Protocol):
    """A checkpoint store that keeps more than checkpoints, on the same medium."""

    @property
    def spool(self) -> Spool: ...

    @property
    def jobs(self) -> Jobs: ...


class Destination(Protocol):
    """Takes what became of batches."""

    limit: int | None
    """Bytes of a document that it takes, as far as that is known; None for no limit."""

    async def send(self, delivery: Delivery) -> None:
        """Return when the destination has taken it for good; raises `poller.errors.PollerError` when it has not.

        Sending the same delivery again is allowed. Raises `poller.errors.DocumentTooLarge` when it never will take it.
        """
        ...


class Observer(Protocol):
    """Hears every fact, on the event loop, in order. It must not block and must not raise."""

    def received(self, fact: Received) -> None: ...

    def filtered_out(self, fact: FilteredOut) -> None: ...

    def invoked(self, fact: Invoked) -> None: ...

    def settled(self, fact: Settled) -> None: ...

    def stale_receipts(self, fact: StaleReceipts) -> None: ...

    def trimmed(self, fact: Trimmed) -> None: ...

    def dropped(self, fact: Dropped) -> None: ...

    def delivered(self, fact: Delivered) -> None: ...

    def spooled(self, fact: Spooled) -> None: ...

    def delivery_failed(self, fact: DeliveryFailed) -> None: ...

    def parked(self, fact: Parked) -> None: ...

    def unparked(self, fact: Unparked) -> None: ...

    def state_changed(self, fact: StateChanged) -> None: ...

    def circuit_changed(self, fact: CircuitChanged) -> None: ...

    def lease_changed(self, fact: LeaseChanged) -> None: ...

    def trouble(self, fact: Trouble) -> None: ...

    def api_request(self, fact: ApiRequest) -> None: ...
