"""Frozen records that the layers hand to each other. They carry facts and decide nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# --- records and batches ------------------------------------------------------------------------------------------------


class Record(NamedTuple):
    """One message on its way to a function. A tuple, because there are thousands of them a second."""

    id: str
    """What ReportBatchItemFailures names: an SQS message id, a stream's sequence number."""
    key: str | None
    """Records of one key keep their order (FIFO group, partition key); None where order does not matter."""
    size: int
    """Bytes of this record in the encoded event, its separator included."""
    event: dict[str, Any]
    """The record as Lambda delivers it. A handler may change it: nothing reads it after an invocation."""
    receipt: Any
    """What the reader needs to settle the record; opaque to the engine."""
    arrived: float = 0.0
    """Unix time, seconds, at which a stream took the record; 0 where age does not matter."""
    receives: int = 0
    """How often a queue has handed it out, this time included; 0 for a stream."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a source that is read on its own. A queue has one."""

    id: str
    parents: tuple[str, ...] = ()
    closed: bool = False
    """True when no record will be added any more."""
    hash_range: tuple[int, int] | None = None
    """The lowest and the highest hash key of what it takes; None where that is not known, or there is no such thing."""


@dataclass(frozen=True, slots=True)
class StartAt:
    """Where the reader of a shard begins. A queue keeps its own position and has no use for it."""

    kind: Literal["TRIM_HORIZON", "LATEST", "AT_TIMESTAMP", "AT_SEQUENCE_NUMBER", "AFTER_SEQUENCE_NUMBER"] = (
        "TRIM_HORIZON"
    )
    sequence_number: str = ""
    sub_sequence_number: int | None = None
    """With a number, the inner records of the record `sequence_number` are done up to this one; if it is no aggregate and this
    is 0, all of it is."""
    timestamp: float = 0.0
    """Unix time, seconds."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far one mapping is done with one shard. The zero of it is: nothing yet."""

    sequence_number: str = ""
    """Everything up to and including this record is done; empty before the first one."""
    sub_sequence_number: int | None = None
    """Inside an aggregated record: its inner records up to and including this one are done; None for the whole record. Whoever
    cannot tell what is aggregated, as the KCL's checkpoints cannot, says 0 of a record that is not."""
    since: float = 0.0
    """Unix time from which on the shard is read as long as no record is done; 0 for from its beginning."""
    window: str = ""
    """State of the open tumbling window, as JSON; empty for none."""
    finished: bool = False
    """The shard is closed and all of its records are done."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of a batch, on its way to a destination."""

    id: str
    """A UUID, the same each time that it is sent, after a restart too."""
    mapping: str
    shard: str
    """Empty for a queue."""
    function_arn: str
    """As mapped."""
    document: dict[str, Any]
    """What every destination gets (spec 5.7 for a stream, 7.5 for a queue)."""
    event: dict[str, Any] | None
    """The invocation event, which S3 gets besides; None when the document holds it."""
    at: float
    """Unix time."""
    records: int
    condition: str
    """As the document says: RetryAttemptsExhausted, RecordAgeExceeded, Success, ..."""
    succeeded: bool = False
    """True on the way to an on-success destination."""
    error_type: str = ""
    """Of the last attempt, where the function named one."""
    error_message: str = ""


SpoolKind = Literal["delivery", "parked"]


@dataclass(frozen=True, slots=True)
class SpoolEntry:
    """Something that waits in the state store for a better time: a delivery, or a record of a parked key."""

    kind: SpoolKind
    mapping: str
    id: str
    """Unique among those of its kind and mapping; what is put under it a second time changes nothing."""
    key: str
    """What keeps its order: the ARN of a destination, or the parked key."""
    shard: str
    at: float
    """Unix time at which it was spooled."""
    body: bytes
    """JSON; whoever spools it knows what it means."""
    error_type: str = ""
    error_message: str = ""
    """Of the function: why it came to this."""
    number: int = 0
    """Its place in the order, given by the spool."""


@dataclass(frozen=True, slots=True)
class SpoolLimits:
    """The most that a mapping may have in the spool, all kinds together."""

    entries: int
    size: int
    """Bytes of the bodies."""


@dataclass(frozen=True, slots=True)
class SpoolTotals:
    """What waits under one key."""

    kind: SpoolKind
    key: str
    entries: int
    size: int
    """Bytes of the bodies."""
    oldest: float
    newest: float
    """Unix times of spooling, of the first and of the last of them."""


@dataclass(frozen=True, slots=True)
class Job:
    """Something that goes on after a restart where it was, such as a replay."""

    id: str
    state: bytes
    """JSON; whoever saves it knows what it means."""


# --- leases ------------------------------------------------------------------------------------------------------------

#: The mapping and the shard.
LeaseKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Lease:
    """One row: a shard of a mapping, who reads it, and how far."""

    mapping: str
    shard: str
    parents: tuple[str, ...] = ()
    owner: str = ""
    """The worker that reads it; empty for nobody."""
    counter: int = 0
    """Grows with every claim, renewal and release; never with anything else."""
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    load: float | None = None
    """What reading it costs its owner, in one unit for all leases (bytes a second, say); None before that is known."""
    wanted_by: str = ""
    """The worker that asks for it; empty for nobody."""

    @property
    def key(self) -> LeaseKey:
        """What is unique to it."""
        return (self.mapping, self.shard)


@dataclass(frozen=True, slots=True)
class Worker:
    """A process that is there to read shards. It says so by counting."""

    id: str
    """Of this life of the process: nobody had it before."""
    mappings: frozenset[str]
    """Those that it runs; others it leaves alone."""
    counter: int = 0
    lag: float = 0.0
    """Seconds: the age of the oldest record that is not done, of the shards that it reads."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What one look at the table has shown."""

    leases: Sequence[Lease]
    workers: Sequence[Worker]
    foreign_heirs: frozenset[tuple[str, str]] = frozenset()
    """Mappings, and workers of another program that reads them from the same table: they have no rows, take nothing by the plan
    of ours, and are handed what they ask for."""
    stale: Mapping[str, str] = field(default_factory=dict)
    """Mappings whose leases are shown as they were last, and why they could not be read."""


class LeaseEvent(StrEnum):
    """What can happen to a lease of this worker."""

    CLAIMED = "claimed"
    HANDED_OVER = "handed over"
    RELEASED = "released"
    FINISHED = "finished"
    LOST = "lost"
    RENEWAL_FAILED = "renewal failed"


@dataclass(frozen=True, slots=True)
class LeaseChanged:
    """Something has happened to a lease of this worker."""

    mapping: str
    shard: str
    event: LeaseEvent
    other: str = ""
    """The worker that had it before, or has it now; empty for nobody, or when it is not known."""
    reason: str = ""
    """Why, when it is lost or was not renewed."""


# --- one invocation -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Invocation:
    """What a runtime is asked to run."""

    request_id: str
    event: Any
    deadline: float
    """Unix time, seconds, at which the function times out."""
    function_arn: str
    """As mapped, with its qualifier when the mapping names one."""


@dataclass(frozen=True, slots=True)
class Returned:
    """The function ended normally with this JSON value (None for no result)."""

    payload: Any = None
    version: str = ""
    """The version that ran, where Lambda has said so."""


@dataclass(frozen=True, slots=True)
class FunctionError:
    """The function failed; the shape is Lambda's error object (spec 8.3)."""

    error_type: str
    error_message: str
    stack_trace: tuple[str, ...] = ()
    timed_out: bool = False
    said: Any = field(default=None, compare=False, repr=False)
    """The error object as the function's runtime wrote it, which may have more members; None where there was none."""
    version: str = ""
    """The version that ran, where Lambda has said so."""

    def __post_init__(self) -> None:
        # Half a surrogate pair is legal in a Python string and in JSON. No store, no status and no log takes it.
        object.__setattr__(self, "error_type", _whole(self.error_type))
        object.__setattr__(self, "error_message", _whole(self.error_message))
        object.__setattr__(self, "stack_trace", tuple(map(_whole, self.stack_trace)))


def _whole(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, slots=True)
class Refused:
    """No handler ran: throttled, no worker, endpoint unreachable. It does not count as an attempt."""

    reason: str


Reply = Returned | FunctionError | Refused


@dataclass(frozen=True, slots=True)
class Workers:
    """The worker processes of one function now, and what came of them since the function was loaded."""

    starting: int = 0
    idle: int = 0
    busy: int = 0
    ending: int = 0
    started: int = 0
    """Processes started so far: each is a cold start."""
    crashed: int = 0
    """Processes that ended by themselves."""
    billed_seconds: float = 0.0
    """Of all invocations, as Lambda counts them: each in whole milliseconds, cold starts included."""
    init_seconds: float = 0.0
    """Of all cold starts that succeeded."""
    peak_memory: int = 0
    """Bytes that one process has used at most, as far as it was looked at."""
    dropped_lines: int = 0
    """Lines printed beyond what may be logged."""


# --- outcomes and decisions ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Succeeded:
    """Every record of the batch is done."""


@dataclass(frozen=True, slots=True)
class PartlyFailed:
    """The function named these record ids as failed; never empty, all of them in the batch."""

    ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Failed:
    """The whole batch failed."""

    error: FunctionError
    returned: bool = False
    """The function itself did not fail: it returned something that fails the batch."""


@dataclass(frozen=True, slots=True)
class NotInvoked:
    """No handler ran; the same batch may be tried again."""

    reason: str


Outcome = Succeeded | PartlyFailed | Failed | NotInvoked


# --- facts for observers ------------------------------------------------------------------------------------------------


class MappingState(StrEnum):
    """Where a mapping stands, as `mapping_state` and `poller status` show it."""

    STARTING = "starting"
    RUNNING = "running"
    DEGRADED = "degraded"
    """Running, but the source cannot be read or settled at the moment, or the circuit breaker is open."""
    PAUSED = "paused"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class CircuitState(StrEnum):
    """Where the circuit breaker of a mapping stands, as `circuit_breaker_state` and `poller status` show it."""

    CLOSED = "closed"
    """Everything runs."""
    OPEN = "open"
    """The function fails whatever it is given: nothing is received or invoked."""
    HALF_OPEN = "half_open"
    """One batch is let through, the probe."""
    RAMPING = "ramping"
    """The probe has succeeded: more and more invocations are let through."""


@dataclass(frozen=True, slots=True)
class CircuitChanged:
    """The circuit breaker of a mapping went from one state to another."""

    mapping: str
    before: CircuitState
    state: CircuitState
    failures: int
    """Invocations that failed in a row, up to now."""
    error: str
    """The last one of them."""
    probe_in: float = 0.0
    """Seconds until the probe, when it is open now."""

    @property
    def tripped(self) -> bool:
        """True when it opened by more than a failed probe."""
        return self.state is CircuitState.OPEN and self.before is not CircuitState.HALF_OPEN


# The facts that every batch brings are tuples, which take less time to make than frozen dataclasses.
class Received(NamedTuple):
    """One receive came back; `records` is 0 for an empty one."""

    mapping: str
    records: int


@dataclass(frozen=True, slots=True)
class FilteredOut:
    """Records that no filter pattern matched; they are settled without an invocation."""

    mapping: str
    records: int


class Invoked(NamedTuple):
    """One invocation ended. `failed` counts the records that it did not finish."""

    mapping: str
    function: str
    request_id: str
    records: int
    failed: int
    outcome: Outcome
    duration: float
    """Seconds, waiting for a free slot excluded."""
    shard: str = ""
    """The shard of a stream; empty for a queue."""


class Settled(NamedTuple):
    """Records that left poller: deleted at the source, left to come back by themselves, or given back at once; those of a
    stream are committed, which is that the checkpoint may pass them."""

    mapping: str
    deleted: int = 0
    left: int = 0
    released: int = 0
    committed: int = 0


@dataclass(frozen=True, slots=True)
class StaleReceipts:
    """Messages that were processed but could not be deleted: their receipt had expired, so they come back."""

    mapping: str
    records: int
    example: str
    """The message id of one of them."""


@dataclass(frozen=True, slots=True)
class Trimmed:
    """Records that were removed from a stream before the mapping had read them, one by one or with their shard."""

    mapping: str
    shard: str
    after: str
    """The last sequence number that was read."""
    lost_seconds: float | None
    """How much time of records was missed, as far as that can be told."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Records of a stream that were given up, with nowhere to send them."""

    mapping: str
    shard: str
    records: int
    condition: str
    """Why, as an on-failure document would say: RetryAttemptsExhausted, RecordAgeExceeded, ..."""
    first: str
    last: str
    """Sequence numbers; both empty for the final invocation of a window, which has no records."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of a batch was taken by its destination."""

    mapping: str
    shard: str
    """Empty for a queue."""
    records: int
    condition: str
    succeeded: bool = False
    """True for an on-success destination."""


@dataclass(frozen=True, slots=True)
class Spooled:
    """What became of a batch went to the spool, as its destination takes nothing; `Delivered` follows when it does."""

    mapping: str
    shard: str
    """Empty for a queue."""
    records: int
    condition: str
    error: str
    """What the destination said last."""


@dataclass(frozen=True, slots=True)
class DeliveryFailed:
    """A destination did not take what became of a batch, which waits for it."""

    mapping: str
    shard: str
    """Empty for a queue."""
    error: str
    retry_in: float | None
    """Seconds until the next try; None when it is too large for the destination, so that there will be none."""
    succeeded: bool = False
    """True for an on-success destination."""
    spooled: bool = False
    """True when it waits in the spool, where nothing else waits for it."""


@dataclass(frozen=True, slots=True)
class Parked:
    """Records of one key that wait in the spool until the key is resumed; the checkpoint may pass them."""

    mapping: str
    shard: str
    key: str
    records: int
    error_type: str = ""
    error_message: str = ""
    """Of the record that parked its key; both empty for records that only follow it."""


@dataclass(frozen=True, slots=True)
class Unparked:
    """Records of a parked key that were handled after all, in their order."""

    mapping: str
    key: str
    records: int
    free: bool
    """True when nothing of the key is parked any more: its records are live again."""


@dataclass(frozen=True, slots=True)
class StateChanged:
    """A mapping went from one state to another."""

    mapping: str
    state: MappingState
    reason: str = ""
    error: BaseException | None = None
    """What crashed it, when that was a bug: its traceback belongs in the log."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """The source of a mapping cannot be read, or cannot settle records, at the moment."""

    mapping: str
    error: str
    retry_in: float
    """Seconds until the next try."""


class ApiRequest(NamedTuple):
    """One request to AWS. `outcome` is `ok` or the error code."""

    service: str
    operation: str
    outcome: str
    duration: float
