"""The record of an invocation, as destinations get it: what was asked, what came of it (spec 7.5).

Lambda writes it for asynchronous invocations. Here it tells of the batches of a queue, and of those that succeeded. Its members
come in the order seen on AWS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_OID, uuid5

import orjson

from poller.core.failure import SUCCESS, executed_version, iso, qualified, version_of
from poller.model import Failed, FunctionError, Returned

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from poller.model import Outcome, Record, Reply

#: The condition of records that failed for the last time.
RETRIES_EXHAUSTED = "RetriesExhausted"


@dataclass(frozen=True, slots=True)
class Ran:
    """One invocation that a handler saw."""

    request_id: str
    function_arn: str
    """As mapped, with the qualifier that the mapping names."""
    reply: Reply
    outcome: Outcome
    """What the reply means for the batch."""


def invocation_record(
    ran: Ran, condition: str, invoke_count: int, request: dict[str, Any], at: float
) -> dict[str, Any]:
    """The record of `ran` for those of its records that are in `request`, an event; `at` is Unix time."""
    function_arn = qualified(ran.function_arn)
    error = _error_of(ran)
    response: dict[str, Any] = {
        "statusCode": 200,
        "executedVersion": version_of(ran.reply) or executed_version(function_arn),
    }
    if error is not None:
        response["functionError"] = "Unhandled"
    return {
        "version": "1.0",
        "timestamp": iso(at, "milliseconds"),
        "requestContext": {
            "requestId": ran.request_id,
            "functionArn": function_arn,
            "condition": condition,
            "approximateInvokeCount": invoke_count,
        },
        "requestPayload": request,
        "responseContext": response,
        "responsePayload": _payload(ran.reply, error),
    }


def invoke_count(records: Sequence[Record], condition: str) -> int:
    """How often records of a queue were tried, as far as the queue knows; Lambda says 1 of every success."""
    return 1 if condition == SUCCESS else max(record.receives for record in records)


def record_id(mapping: str, source_arn: str, shard: str, ids: Iterable[str], condition: str) -> str:
    """A UUID for what is told of the records `ids`: the same when the same records come to the same again."""
    named = (mapping, source_arn, shard, sorted(ids), condition)
    return str(uuid5(NAMESPACE_OID, orjson.dumps(named).decode()))


def _error_of(ran: Ran) -> FunctionError | None:
    if isinstance(ran.reply, FunctionError):
        return ran.reply
    # A reply that makes no sense is no error of the function to Lambda; here it says why the batch has failed.
    return ran.outcome.error if isinstance(ran.outcome, Failed) else None


def _payload(reply: Reply, error: FunctionError | None) -> Any:
    if error is None:
        return reply.payload if isinstance(reply, Returned) else None
    if error.said is not None:
        return error.said
    return {"errorType": error.error_type, "errorMessage": error.error_message}
