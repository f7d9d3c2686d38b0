"""The document that an on-failure destination gets about a batch that is given up (spec 5.7), and the size of documents.

Its members come in the order seen on AWS. It says where the records are, not what they were: only an S3 object holds the event.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal
from uuid import NAMESPACE_OID, uuid5

import orjson

from poller.errors import DocumentTooLarge
from poller.model import Failed, PartlyFailed, Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from poller.core.retry import GiveUp
    from poller.core.windows import Window
    from poller.model import Record, Reply


#: The condition of a batch that a function has finished.
SUCCESS = "Success"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the records come from."""

    source: Literal["kinesis", "dynamodb"]
    shard_id: str
    stream_arn: str
    """As mapped: the ARN of the consumer with enhanced fan-out."""


@dataclass(frozen=True, slots=True)
class LastInvoke:
    """The last invocation of the batch, or the one it would have had."""

    request_id: str
    function_arn: str
    """As mapped, with the qualifier that the mapping names."""
    executed_version: str = "$LATEST"


@dataclass(frozen=True, slots=True)
class WindowInvoke:
    """The window that the batch was part of, and whether it was its final invoke."""

    window: Window
    final: bool


def document(
    given_up: GiveUp, origin: Origin, invoke: LastInvoke, at: float, window: WindowInvoke | None = None
) -> dict[str, Any]:
    """The document of a batch that is given up at `at`, Unix time."""
    built: dict[str, Any] = {
        "requestContext": {
            "requestId": invoke.request_id,
            "functionArn": invoke.function_arn,
            "condition": str(given_up.condition),
            "approximateInvokeCount": given_up.invoke_count,
        }
    }
    # Age and size keep a batch from its handler, so there is no response to tell of.
    if isinstance(given_up.outcome, Failed | PartlyFailed):
        built["responseContext"] = {
            "statusCode": 200,
            "executedVersion": invoke.executed_version,
            "functionError": "Unhandled" if _is_error(given_up.outcome) else None,
        }
    built["version"] = "1.0"
    built["timestamp"] = iso(at, "milliseconds")
    name = "KinesisBatchInfo" if origin.source == "kinesis" else "DDBStreamBatchInfo"
    built[name] = _batch_info(given_up.records, origin)
    if window is not None:
        built["timeWindowInfo"] = {
            "window": window.window.bounds,
            "isFinalInvokeForWindow": window.final,
            "isWindowTerminatedEarly": window.final and window.window.outgrown,
        }
    return built


def with_payload(document: dict[str, Any], event: dict[str, Any]) -> dict[str, Any]:
    """The document as an S3 object has it: with the event of the invocation, as JSON text in its place."""
    built: dict[str, Any] = {}
    for name, value in document.items():
        built[name] = value
        if name == "version":
            built["payload"] = encoded(event).decode()
    return built


def encoded(value: Any) -> bytes:
    """Write JSON that every destination takes, whatever a producer or a handler has said."""
    try:
        body = orjson.dumps(value)
    except TypeError:  # a lone surrogate, or an integer of more than 64 bits
        plain = json.loads(json.dumps(value), parse_constant=lambda _: None)
        body = json.dumps(plain, separators=(",", ":")).encode()
    # The only characters of a JSON text that SQS refuses; in one they stand in strings, and may be written so.
    return body.replace("\ufffe".encode(), b"\\ufffe").replace("\uffff".encode(), b"\\uffff")


def fitted(document: dict[str, Any], limit: int) -> bytes:
    """Write `document` in at most `limit` bytes.

    The record of an invocation parts with its response for that and, when it was a success, with its request: that of a
    failure is all that is left of its records. Raises DocumentTooLarge when it still does not fit.
    """
    body = encoded(document)
    succeeded = document["requestContext"]["condition"] == SUCCESS
    for member in ("responsePayload", "requestPayload") if succeeded else ("responsePayload",):
        if len(body) > limit and member in document:
            document = {name: value for name, value in document.items() if name != member}
            body = encoded(document)
    if len(body) > limit:
        raise DocumentTooLarge(f"a document of {len(body)} bytes; the destination takes {limit}")
    return body


def delivery_id(
    mapping: str, document: dict[str, Any], within: tuple[int | None, int | None] = (None, None)
) -> str:
    """A UUID for what `document` tells of: the same when the same batch is given up again after a restart.

    `within` are the sub-sequence numbers of its first and its last record: those of one aggregated record share their number.
    """
    info = document.get("KinesisBatchInfo") or document.get("DDBStreamBatchInfo") or {}
    # The end of a window has no records: its request tells it from others.
    first = info.get("startSequenceNumber") or document["requestContext"]["requestId"]
    condition = document["requestContext"]["condition"]
    named = (
        mapping,
        info.get("streamArn"),
        info.get("shardId"),
        first,
        info.get("endSequenceNumber"),
        condition,
        *(within if within != (None, None) else ()),
    )
    return str(uuid5(NAMESPACE_OID, orjson.dumps(named).decode()))


def mapping_id(mapping: str, source_arn: str) -> str:
    """The UUID of a mapping, which Lambda would have given it when it was created."""
    return str(uuid5(NAMESPACE_OID, f"{mapping} {source_arn}"))


def qualified(function_arn: str) -> str:
    """The ARN of a function with the version or alias that it means."""
    return function_arn if function_arn.count(":") > 6 else f"{function_arn}:$LATEST"


def version_of(reply: Reply) -> str:
    """The version that ran, where Lambda has said so; empty where it has not."""
    return "" if isinstance(reply, Refused) else reply.version


def executed_version(function_arn: str) -> str:
    """The version that ran, as far as the ARN tells: which one an alias means is not known here."""
    qualifier = function_arn.rpartition(":")[2] if function_arn.count(":") > 6 else ""
    return qualifier if qualifier.isdigit() else "$LATEST"


def function_name(function_arn: str) -> str:
    """The name in the ARN of a function."""
    return function_arn.split(":")[6]


def _is_error(outcome: Failed | PartlyFailed) -> bool:
    """Whether the function failed itself: to Lambda a reply that fails its batch is none of its errors."""
    return isinstance(outcome, Failed) and not outcome.returned


def _batch_info(records: Sequence[Record], origin: Origin) -> dict[str, Any]:
    built: dict[str, Any] = {"shardId": origin.shard_id}
    if records:
        first, last = records[0], records[-1]
        unit = "milliseconds" if origin.source == "kinesis" else "seconds"
        built["startSequenceNumber"] = first.id
        built["endSequenceNumber"] = last.id
        built["approximateArrivalOfFirstRecord"] = iso(first.arrived, unit)
        built["approximateArrivalOfLastRecord"] = iso(last.arrived, unit)
        built["batchSize"] = len(records)
    built["streamArn"] = origin.stream_arn
    return built


def iso(time: float, unit: str) -> str:
    """A Unix time as documents write it; `unit` is as `datetime.isoformat` has it."""
    # Rounded first: a float a hair below its millisecond would lose it to `isoformat`, which cuts off.
    moment = datetime.fromtimestamp(round(time, 3), UTC)
    return moment.isoformat(timespec=unit).replace("+00:00", "Z")
