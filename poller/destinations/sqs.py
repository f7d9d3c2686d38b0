"""An on-failure destination that is a standard SQS queue: the document is the message's body, without attributes (spec 5.7).

Documents say where records are, not what they were, so they take about a kilobyte. One that is larger than the queue's
MaximumMessageSize (1 MiB, or 256 KiB on older queues) is refused by SQS, an error like others: nothing is left out of it here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from poller.errors import BadReply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from poller.model import Delivery

    #: One call of the SQS API: operation, parameters, seconds until it is given up. Raises AwsError.
    Api = Callable[[str, dict[str, Any], float], Awaitable[dict[str, Any]]]

#: Seconds for a call, retries included.
CALL_TIMEOUT = 30.0


class SqsDestination:
    """One queue, found by its name when the first delivery is sent."""

    def __init__(self, name: str, account: str, connect: Callable[[], Awaitable[Api]]) -> None:
        self._name = name
        self._account = account
        self._connect = connect
        self._url = ""

    def __repr__(self) -> str:
        return f"<SqsDestination {self._name}>"

    async def send(self, delivery: Delivery) -> None:
        """SendMessage; raises AwsError when SQS has not taken it, or has not said so."""
        api = await self._connect()
        if not self._url:
            self._url = await self._find(api)
        body = orjson.dumps(delivery.document).decode()
        reply = await api("SendMessage", {"QueueUrl": self._url, "MessageBody": body}, CALL_TIMEOUT)
        _member("SendMessage", reply, "MessageId")

    async def _find(self, api: Api) -> str:
        owner = {"QueueOwnerAWSAccountId": self._account} if self._account else {}
        reply = await api("GetQueueUrl", {"QueueName": self._name, **owner}, CALL_TIMEOUT)
        return _member("GetQueueUrl", reply, "QueueUrl")


def _member(operation: str, reply: dict[str, Any], name: str) -> str:
    if not (value := reply.get(name)):
        raise BadReply(f"{operation}: a reply without {name}", code="BadReply", operation=operation)
    return str(value)
