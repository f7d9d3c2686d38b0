"""An on-failure destination that is a standard SQS queue: the document is the message's body, without attributes (spec 5.7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from poller.errors import BadReply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from poller.model import Failure

    #: One call of the SQS API: operation and parameters. Raises AwsError.
    Call = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


class SqsDestination:
    """One queue, found by its name when the first failure is sent."""

    def __init__(self, name: str, account: str, call: Call) -> None:
        self._name = name
        self._account = account
        self._call = call
        self._url = ""

    async def send(self, failure: Failure) -> None:
        """SendMessage; raises AwsError when SQS has not taken it."""
        if not self._url:
            self._url = await self._find()
        body = orjson.dumps(failure.document).decode()
        reply = await self._call("SendMessage", {"QueueUrl": self._url, "MessageBody": body})
        if not reply.get("MessageId"):
            raise BadReply("SendMessage: a reply without MessageId", operation="SendMessage")

    async def _find(self) -> str:
        owner = {"QueueOwnerAWSAccountId": self._account} if self._account else {}
        reply = await self._call("GetQueueUrl", {"QueueName": self._name, **owner})
        try:
            return str(reply["QueueUrl"])
        except KeyError as error:
            raise BadReply("GetQueueUrl: a reply without QueueUrl", operation="GetQueueUrl") from error
