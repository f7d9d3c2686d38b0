"""What a destination has kept of failed records, read again; and what a replay has done so far.

Three kinds of documents tell of records (spec 5.7, 7.5):

=====================  ==================================================================================================
a stream's batch       where its records are: shard, first and last sequence number, and how many; on S3 the event as well
an invocation record   the event itself, as `requestPayload`: of a queue's batch, or of an asynchronous invocation
a dead letter          nothing: the message is the record
=====================  ==================================================================================================

A topic or an event bus between the destination and the queue wraps the document; that is taken off.

The records of a stream's batch lie between its two sequence numbers, and between them may lie others: those that the mapping's
filters drop, and with several lanes those of the other lanes. A lane is the keys that share it, so the record at the first
sequence number tells which lane the batch was of.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import orjson

from poller.core.lanes import lane_of
from poller.model import Checkpoint, Record

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Attempts that a batch has in a replay when its mapping tries for ever: nobody would hear of a replay that does so too.
DEFAULT_RETRIES = 3
#: Sequence numbers of records that failed again which are remembered.
NAMED_FAILURES = 100
#: Kinds of errors that are counted one by one; function code names them, so there may be any number.
ERROR_KINDS = 50
OTHER_ERRORS = "others"
#: Characters of an error's message that are kept.
MESSAGE = 1_000


@dataclass(frozen=True, slots=True)
class Span:
    """Where the records of a stream's batch are."""

    shard: str
    first: str
    last: str
    """Sequence numbers, both included."""
    records: int
    """How many of those between were in the batch."""

    def holds(self, sequence_number: str) -> bool:
        """Whether a record lies between the two."""
        return int(self.first) <= int(sequence_number) <= int(self.last)


@dataclass(frozen=True, slots=True)
class FailedBatch:
    """One document, as far as a replay or a list of failures needs it."""

    condition: str
    source_arn: str
    """The stream or queue that the records came from; empty when nothing says so."""
    span: Span | None
    """None for what is no batch of a stream, and for the end of a window, which has no records."""
    records: tuple[dict[str, Any], ...] | None
    """The event's records, where the document has them."""
    function_error: str = ""
    error_type: str = ""
    error_message: str = ""
    timestamp: str = ""


def read(body: str | bytes) -> FailedBatch:
    """Read a document; ValueError says in a few words why it is none."""
    document = _unwrapped(_object(body))
    context = document.get("requestContext")
    if not isinstance(context, dict) or "condition" not in context:
        raise ValueError("it is no document of an on-failure destination")
    response = document.get("responseContext")
    functional = response.get("functionError") if isinstance(response, dict) else None
    condition, timestamp = str(context["condition"]), str(document.get("timestamp", ""))
    info = document.get("KinesisBatchInfo") or document.get("DDBStreamBatchInfo")
    functional = functional if isinstance(functional, str) else ""
    if isinstance(info, dict):
        records = _records(_object(document["payload"])) if "payload" in document else None
        arn, span = str(info.get("streamArn", "")), _span(info)
        return FailedBatch(condition, arn, span, records, functional, timestamp=timestamp)
    payload = document.get("requestPayload")
    records = _records(payload) if isinstance(payload, dict) else None
    error = document.get("responsePayload")
    error = error if isinstance(error, dict) else {}
    return FailedBatch(
        condition,
        str(records[0].get("eventSourceARN", "")) if records else "",
        None,
        records,
        functional,
        str(error.get("errorType") or ""),
        str(error.get("errorMessage") or ""),
        timestamp,
    )


def _object(text: Any) -> dict[str, Any]:
    try:
        found = orjson.loads(text)
    except ValueError:
        found = _odd_json(text)
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - a message is judged, not a type in our code
    return found


def _odd_json(text: Any) -> Any:
    """JSON with half a surrogate pair in it, which a function may have said; a question mark stands for that."""
    try:
        found = json.loads(text, parse_constant=lambda _: None)
        return orjson.loads(json.dumps(found, ensure_ascii=False).encode("utf-8", "replace"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError("it is no JSON") from error


def _unwrapped(document: dict[str, Any]) -> dict[str, Any]:
    match document:
        case {"Type": "Notification", "Message": str(message)}:
            return _object(message)
        case {"detail-type": str(), "detail": dict(detail)}:
            return detail
        case _:
            return document


def _records(event: dict[str, Any]) -> tuple[dict[str, Any], ...] | None:
    found = event.get("Records")
    if not isinstance(found, list) or not all(map(_is_record, found)):
        return None
    return tuple(found)


def _is_record(event: Any) -> bool:
    """Whether it has what is asked of records here, as far as it has it at all."""
    if not isinstance(event, dict):
        return False
    members = [event.get(name, {}) for name in ("kinesis", "dynamodb", "attributes")]
    if not all(isinstance(member, dict) for member in members):
        return False
    kinesis, _, attributes = members
    keys = kinesis.get("partitionKey", ""), attributes.get("MessageGroupId", "")
    return all(isinstance(key, str) for key in keys)


def _span(info: dict[str, Any]) -> Span | None:
    try:
        first, last = str(info["startSequenceNumber"]), str(info["endSequenceNumber"])
        span = Span(str(info["shardId"]), first, last, int(info["batchSize"]))
        backwards = int(first) > int(last)
    except KeyError:
        return None
    except (TypeError, ValueError) as error:
        raise ValueError("what it says of its batch makes no sense") from error
    if backwards:
        raise ValueError("its last record comes before its first")
    return span


def check_failed(batch: FailedBatch, mapped: str) -> None:
    """Raise ValueError, in a few words, when a document tells of no failure of the source that is `mapped`."""
    if batch.condition == "Success":
        raise ValueError("it tells of a success")
    if not same_source(batch.source_arn, mapped):
        raise ValueError(f"it is about {batch.source_arn or 'another source'}")


def same_source(arn: str, mapped: str) -> bool:
    """Whether a document that names `arn` tells of the source of a mapping, read by whichever consumer."""
    return arn.partition("/consumer/")[0] == mapped.partition("/consumer/")[0]


# --- records of a stream's event ----------------------------------------------------------------------------------------


def sequence_number(event: Mapping[str, Any]) -> str:
    """That of a record in the event of a stream; empty when it has none."""
    for member, name in (("kinesis", "sequenceNumber"), ("dynamodb", "SequenceNumber")):
        inner = event.get(member)
        if isinstance(inner, dict):
            return str(inner.get(name, ""))
    return ""


class StreamEnvelope(Protocol):
    """Builds records of what a stream's API brings."""

    def rebuild(self, shard_id: str, record: Record) -> Record:
        """The record with a fresh event."""
        ...

    def checkpoint(self, record: Record) -> Checkpoint:
        """The position after the record."""
        ...


class _Stored(NamedTuple):
    """The receipt of a stored event's record, which no stream knows."""

    event: bytes


class ReplayEnvelope:
    """Makes records of the events that a destination has stored, and fresh events of these and of what was read again."""

    def __init__(self, stream: StreamEnvelope) -> None:
        self._stream = stream

    def record(self, event: dict[str, Any]) -> Record:
        """One record of a stored event. Its key is what kept its order."""
        encoded = orjson.dumps(event)
        key: str | None
        if "kinesis" in event:
            key = event["kinesis"].get("partitionKey")
        else:
            keys = event.get("dynamodb", {}).get("Keys")
            key = orjson.dumps(keys, option=orjson.OPT_SORT_KEYS).decode()
        return Record(sequence_number(event), key, len(encoded) + 1, event, _Stored(encoded))

    def rebuild(self, shard_id: str, record: Record) -> Record:
        """The record with a fresh event."""
        if isinstance(record.receipt, _Stored):
            return record._replace(event=orjson.loads(record.receipt.event))
        return self._stream.rebuild(shard_id, record)

    def checkpoint(self, record: Record) -> Checkpoint:
        """The position after the record."""
        stored = isinstance(record.receipt, _Stored)
        return Checkpoint(record.id) if stored else self._stream.checkpoint(record)

    def window_event(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Never asked for: a mapping with windows is not replayed."""
        raise NotImplementedError


class Pick:
    """Which records of a shard were in one batch: asked of each record between its two ends, in their order."""

    __slots__ = ("_lane", "_lanes", "_seen", "span")

    def __init__(self, span: Span, lanes: int) -> None:
        """`lanes` is how many lanes the mapping has."""
        self.span = span
        self._lanes = lanes
        self._lane: int | None = None
        self._seen = False

    def wants(self, record: Record) -> bool:
        """Whether the batch held it. Where the first record is gone nothing tells the lane, so all of them are taken: twice
        beats never."""
        if not self.span.holds(record.id):
            return False
        if self._lanes == 1:
            return True
        if not self._seen:
            self._seen = True
            if record.id == self.span.first:
                self._lane = lane_of(record.key, self._lanes)
        return self._lane is None or lane_of(record.key, self._lanes) == self._lane


# --- what a replay has done ---------------------------------------------------------------------------------------------

State = Literal["running", "done", "stopped", "failed", "interrupted"]


@dataclass(slots=True)
class Tally:
    """What has become of records and of what holds them; counts go on over a stop."""

    succeeded: int = 0
    failed: int = 0
    """Records that failed again for good."""
    filtered: int = 0
    gone: int = 0
    """Records that the stream has no more."""
    messages: int = 0
    """Messages or objects that are done with."""
    kept: int = 0
    """Messages or objects that stay where they are, because something of them failed, is gone, cannot be read or was not asked
    for."""
    passed_over: int = 0
    """Of these: those that stay only because not all of their records were asked for."""
    unreadable: int = 0
    """Of these: what is no document about this mapping."""
    why_unreadable: str = ""
    """Why, for the first of them."""
    errors: Counter[str] = field(default_factory=Counter)
    """Records that failed again, by the error's type."""
    example: str = ""
    """The message of the last error."""
    failed_ids: list[str] = field(default_factory=list)
    """Of the first records that failed again."""

    def fail(self, ids: list[str], error_type: str, message: str) -> None:
        """Records have failed for good."""
        self.failed += len(ids)
        known = error_type in self.errors or len(self.errors) < ERROR_KINDS
        self.errors[error_type if known else OTHER_ERRORS] += len(ids)
        self.example = message[:MESSAGE] or self.example
        self.failed_ids += ids[: NAMED_FAILURES - len(self.failed_ids)]

    def refuse(self, why: str) -> None:
        """A message or an object cannot be used."""
        self.unreadable += 1
        self.kept += 1
        self.why_unreadable = self.why_unreadable or why

    @property
    def done(self) -> int:
        """Records that are settled, one way or another."""
        return self.succeeded + self.failed + self.filtered + self.gone

    def dump(self) -> dict[str, Any]:
        """As JSON has it."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def load(cls, stored: Mapping[str, Any]) -> Tally:
        """What `dump` gave."""
        known = {name: value for name, value in stored.items() if name in cls.__slots__}
        return cls(**known | {"errors": Counter(stored.get("errors", {}))})
