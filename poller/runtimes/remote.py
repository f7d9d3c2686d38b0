"""Functions in AWS Lambda: Invoke, and wait for the result (spec 8).

An API error means that Lambda did not run the function, so it is a refusal: throttles and Lambda's own faults pass, and a
missing function or permission keeps the records waiting, with the reason in `poller status`, until somebody puts it right.
The exceptions are what would come again with the same event (too large, not accepted as JSON): those are the function's
errors, so that their attempts count and a batch can be split. Once a request is on its way, a connection that breaks is the
function's error too: it may have run. Nothing is tried again in here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from poller.aws.errors import foreign, translate, unsent
from poller.config.arn import parse_arn
from poller.config.remote import split_function_arn
from poller.errors import AwsError, BadReply, Unreachable
from poller.model import FunctionError, Refused, Returned
from poller.runtimes._json import encode
from poller.runtimes._python import MAX_RESPONSE_BYTES, too_large
from poller.runtimes._reply import as_body, error_of, value_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from poller.aws.session import AwsSession
    from poller.model import Invocation, Reply

#: Bytes of an event in a synchronous invocation.
MAX_REQUEST_BYTES = 6 * 1024 * 1024
#: Seconds; the longest time limit of a function, and some for the way.
PATIENCE = 960.0
#: The event itself is refused, and would be again.
_OF_THE_EVENT = frozenset(
    {"InvalidRequestContentException", "RequestTooLargeException", "SerializedRequestEntityTooLargeException"}
)


class LambdaRuntime:
    """Invokes the functions that the invocations name, in the regions that their ARNs name."""

    keeps_time = False

    def __init__(self, session: Callable[[], AwsSession]) -> None:
        self._session = session

    def open(self) -> None:
        """Nothing is kept warm."""

    async def ready(self, request_id: str) -> None:
        """Always: a cold start is Lambda's, within the time limit."""

    async def invoke(self, invocation: Invocation) -> Reply:
        """Invoke the function; see `poller.ports.Runtime`. Cancelling closes the connection; Lambda runs it to its end."""
        payload = encode(invocation.event)
        if len(payload) > MAX_REQUEST_BYTES:
            text = f"{len(payload)} byte payload is too large for the RequestResponse invocation type"
            return FunctionError("RequestTooLargeException", f"{text} (limit {MAX_REQUEST_BYTES} bytes)")
        try:
            reply = await self._call(invocation.function_arn, payload)
            async with reply["Payload"] as stream:
                body = await _read(stream)
        except AwsError as error:
            return _not_invoked(error)
        except foreign() as error:
            return _not_invoked(translate(error, service="lambda", operation="Invoke"))
        if body is None:
            return too_large()
        version = str(reply.get("ExecutedVersion") or "")
        if kind := reply.get("FunctionError"):
            return replace(error_of(body, kind), version=version)
        try:
            return Returned(value_of(body), version)
        except (
            ValueError
        ):  # a custom runtime may say anything: a text, which no source takes for a batch response
            return Returned(body.decode(errors="replace"), version)

    def workers(self) -> None:
        """None: what runs the function is Lambda's."""

    async def aclose(self) -> None:
        """The connections belong to the session."""

    async def _call(self, function_arn: str, payload: bytes) -> dict[str, Any]:
        function, qualifier = split_function_arn(function_arn)
        params: dict[str, Any] = {
            "FunctionName": function,
            "InvocationType": "RequestResponse",
            "Payload": as_body(payload),
        }
        if qualifier is not None:
            params["Qualifier"] = qualifier
        api = await self._session().invoking(parse_arn(function).region)
        return await api("Invoke", params, PATIENCE)


async def _read(stream: Any) -> bytes | None:
    """Read a reply; None when it is too large."""
    body = bytearray()
    async for piece in stream.iter_chunks(2**16):
        body += piece
        if len(body) > MAX_RESPONSE_BYTES:
            return None
    return bytes(body)


def _not_invoked(error: AwsError) -> Reply:
    if error.code in _OF_THE_EVENT:
        return FunctionError(error.code, str(error))
    if isinstance(error, BadReply) or (isinstance(error, Unreachable) and not unsent(error)):
        return FunctionError("Lambda.ConnectionLost", f"{error}; the function may have run")
    return Refused(str(error))
