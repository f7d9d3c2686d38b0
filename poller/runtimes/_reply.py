"""What the runtimes that call over a network share: an invocation's headers, and Lambda's error object in a reply."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from poller.model import FunctionError
from poller.runtimes._json import decode

if TYPE_CHECKING:
    from poller.model import Invocation

#: Lambda answers 200 even when the function failed; this header then says so.
FUNCTION_ERROR = "X-Amz-Function-Error"
_PLAIN_BODY = 2**20
_HEX = "0123456789abcdef"
#: What a function that ran into its own time limit ended with; the second one is Lambda's older form, without a type.
_TIMED_OUT = ("Sandbox.Timedout", "Task timed out after ")


def headers_of(invocation: Invocation) -> dict[str, str]:
    """Return the headers of Lambda's Runtime API (spec 9.1) that describe an invocation."""
    return {
        "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
        "Lambda-Runtime-Deadline-Ms": str(int(invocation.deadline * 1000)),
        "Lambda-Runtime-Invoked-Function-Arn": invocation.function_arn,
        "Lambda-Runtime-Trace-Id": trace_id(invocation.request_id),
    }


def as_body(data: bytes) -> bytes | io.BytesIO:
    """Return what aiohttp takes for a body: it wants a large one as a file, to write it piece by piece."""
    return data if len(data) <= _PLAIN_BODY else io.BytesIO(data)


def trace_id(request_id: str) -> str:
    """Return an id of X-Ray's form, made of the request id, so that a trace can be found by it; not sampled."""
    digits = request_id.replace("-", "")
    # It is a UUID wherever speed counts: to take it apart costs five times as much.
    if digits.strip(_HEX):
        digits = "".join(letter for letter in digits if letter in _HEX)
    digits = digits.ljust(32, "0")
    return f"Root=1-{digits[:8]}-{digits[8:32]};Parent={digits[:16]};Sampled=0"


def value_of(body: bytes) -> Any:
    """Return the JSON value of a body, None for an empty one; raises ValueError."""
    return decode(body) if body else None


def is_error_object(said: object) -> bool:
    """Tell whether a value is how Lambda's runtimes write an error (spec 8.3)."""
    return (
        isinstance(said, dict)
        and isinstance(said.get("errorType"), str)
        and isinstance(said.get("errorMessage"), str)
    )


def error_of(body: bytes, otherwise: str) -> FunctionError:
    """Return the error that a body holds, of the type `otherwise` where it names none. Any JSON may come, or none."""
    try:
        said = value_of(body)
    except ValueError:
        said = body.decode(errors="replace")
    fields = said if isinstance(said, dict) else {}
    kind = str(fields.get("errorType") or otherwise)
    message = str(fields.get("errorMessage", "" if said is None or fields else said))
    trace = fields.get("stackTrace") or fields.get("trace") or ()
    lines = tuple(map(str, trace)) if isinstance(trace, list) else ()
    timed_out = kind == _TIMED_OUT[0] or ("errorType" not in fields and _TIMED_OUT[1] in message)
    return FunctionError(kind, message, lines, timed_out=timed_out, said=said)
