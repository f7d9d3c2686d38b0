"""What a function's reply means for its batch.

With partial responses (ReportBatchItemFailures) the function may name the records that failed. Nothing named,
in any of the accepted spellings of nothing, is success; a reply that cannot be understood fails the whole
batch, because deleting a record on a guess would lose it. So does an entry without `itemIdentifier`, which
Lambda was once seen to take as success for SQS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_never

from poller.core.quoting import quote
from poller.model import Failed, FunctionError, NotInvoked, PartlyFailed, Refused, Returned, Succeeded

if TYPE_CHECKING:
    from collections.abc import Collection

    from poller.core.filters import Source
    from poller.model import Outcome, Reply


class _Malformed(ValueError):
    """A list of failures that cannot be understood."""


def parse(reply: Reply, ids: Collection[str], *, partial: bool, source: Source) -> Outcome:
    """Return the outcome of a batch of the records `ids`; nothing is raised, whatever the function returned.

    `partial` says that the mapping asks for ReportBatchItemFailures. `PartlyFailed` then holds just the ids
    that the function named, each once.
    """
    match reply:
        case Refused(reason):
            return NotInvoked(reason)
        case FunctionError():
            return Failed(reply)
        case Returned(payload):
            return _parse_payload(payload, ids, source) if partial else Succeeded()
        case _:
            assert_never(reply)


def timed_out(request_id: str, timeout: float) -> FunctionError:
    """Return Lambda's error for an invocation that ran for `timeout` seconds, all that it may."""
    message = f"RequestId: {request_id} Error: Task timed out after {timeout:.2f} seconds"
    return FunctionError("Sandbox.Timedout", message, timed_out=True)


def _parse_payload(payload: Any, ids: Collection[str], source: Source) -> Outcome:
    if payload is None or (source != "sqs" and payload in ("", [])):
        return Succeeded()
    if not isinstance(payload, dict):
        problem = (
            f"The function returned {quote(payload)} where a JSON object with batchItemFailures was expected"
        )
        return _failed("Poller.ResponseNotAnObject", problem)
    failures = payload.get("batchItemFailures")
    if failures is None:
        return Succeeded()
    try:
        named = _named(failures, ids)
    except _Malformed as error:
        return _failed("Poller.InvalidBatchItemFailures", str(error))
    return PartlyFailed(named) if named else Succeeded()


def _named(failures: Any, ids: Collection[str]) -> frozenset[str]:
    if not isinstance(failures, list):
        raise _Malformed(f"batchItemFailures is {quote(failures)} instead of an array")
    if not failures:  # the usual answer
        return frozenset()
    known = frozenset(ids)
    return frozenset(_identifier(entry, known, f"batchItemFailures[{i}]") for i, entry in enumerate(failures))


def _identifier(entry: Any, known: frozenset[str], place: str) -> str:
    if not isinstance(entry, dict) or "itemIdentifier" not in entry:
        raise _Malformed(f"{place} is {quote(entry)} instead of an object with itemIdentifier")
    identifier = entry["itemIdentifier"]
    if not isinstance(identifier, str) or not identifier:
        raise _Malformed(
            f"{place}.itemIdentifier is {quote(identifier)} instead of the id of a record as a string"
        )
    if identifier not in known:
        raise _Malformed(f"{place}.itemIdentifier is {quote(identifier)}, which is no record of this batch")
    return identifier


def _failed(error_type: str, message: str) -> Failed:
    return Failed(FunctionError(error_type, message), returned=True)
