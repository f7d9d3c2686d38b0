"""Destinations that are functions: the document is the event of an invocation that nobody waits for the result of (spec 7.4).

A real Lambda function gets it through Lambda's queue of asynchronous invocations, whose retries follow. A function of this
daemon has no such queue in front of it, so its failure is a delivery that failed, which whoever delivers tries again.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from poller.core.batch import PAYLOAD_LIMIT
from poller.core.failure import fitted
from poller.destinations._calls import CALL_TIMEOUT, Api
from poller.errors import BadReply, FunctionFailed
from poller.model import Failed, NotInvoked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from poller.model import Delivery, Outcome

    #: Invokes a function with an event once it has room.
    Invoke = Callable[[dict[str, Any]], Awaitable[Outcome]]

#: Bytes of the event of an asynchronous invocation, and Lambda's answer to it.
EVENT_LIMIT = 1024 * 1024
ACCEPTED = 202


class LambdaDestination:
    """A function in AWS Lambda, named by its ARN, without or with a qualifier."""

    def __init__(self, arn: str, qualifier: str | None, api: Api) -> None:
        self._wanted = {"FunctionName": arn, "InvocationType": "Event"}
        if qualifier is not None:
            self._wanted["Qualifier"] = qualifier
        self.limit: int | None = EVENT_LIMIT
        self._api = api

    def __repr__(self) -> str:
        return f"<LambdaDestination {self._wanted['FunctionName']}>"

    async def send(self, delivery: Delivery) -> None:
        """Invoke, asynchronously; raises AwsError when Lambda has not taken it, or has not said so."""
        payload = fitted(delivery.document, EVENT_LIMIT)
        reply = await self._api("Invoke", {**self._wanted, "Payload": payload}, CALL_TIMEOUT)
        if (body := reply.get("Payload")) is not None:
            async with body:
                pass  # it is empty
        if reply.get("StatusCode") != ACCEPTED:
            status = reply.get("StatusCode")
            raise BadReply(f"Invoke: status {status} instead of 202", code="BadReply", operation="Invoke")


class OwnFunctionDestination:
    """A function of this daemon, run to its end."""

    def __init__(self, name: str, invoke: Invoke) -> None:
        self.limit: int | None = PAYLOAD_LIMIT
        self._name = name
        self._invoke = invoke

    def __repr__(self) -> str:
        return f"<OwnFunctionDestination {self._name}>"

    async def send(self, delivery: Delivery) -> None:
        """Invoke; raises FunctionFailed when the function has failed or was not invoked."""
        # A copy, because the function may change what it gets.
        event = json.loads(fitted(delivery.document, PAYLOAD_LIMIT))
        outcome = await self._invoke(event)
        if isinstance(outcome, Failed):
            error = outcome.error
            raise FunctionFailed(f"function {self._name}: {error.error_type}: {error.error_message}")
        if isinstance(outcome, NotInvoked):
            raise FunctionFailed(f"function {self._name}: {outcome.reason}")
