"""A destination that is an SQS queue: the document is the message's body, without attributes (spec 5.7, 7.4).

The most that a message may hold is the queue's own setting, 1 MiB unless somebody has lowered it. Reading that would take one
more permission, so SQS is asked, and its refusal says how much it would take.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from poller.core.failure import fitted
from poller.destinations._calls import CALL_TIMEOUT, Api, fifo, member
from poller.errors import DocumentTooLarge, RequestRefused

if TYPE_CHECKING:
    from poller.model import Delivery

#: Bytes of a message, at the highest setting of a queue.
MESSAGE_LIMIT = 1024 * 1024

_SHORTER = re.compile(r"Message must be shorter than (\d+) bytes")


class SqsDestination:
    """One queue, standard or FIFO, found by its name when the first delivery is sent."""

    def __init__(self, name: str, account: str, api: Api) -> None:
        self._name = name
        self._account = account
        self.limit: int | None = MESSAGE_LIMIT
        self._api = api
        self._url = ""

    def __repr__(self) -> str:
        return f"<SqsDestination {self._name}>"

    async def send(self, delivery: Delivery) -> None:
        """SendMessage; raises AwsError when SQS has not taken it, or has not said so."""
        if not self._url:
            self._url = await self._find()
        try:
            await self._send(delivery, MESSAGE_LIMIT)
        except RequestRefused as error:
            if (found := _SHORTER.search(str(error))) is None:
                raise
            self.limit = int(found[1])
            await self._send_shorter(delivery, self.limit)

    async def _send_shorter(self, delivery: Delivery, limit: int) -> None:
        try:
            await self._send(delivery, limit)
        except RequestRefused as error:
            if _SHORTER.search(str(error)):
                raise DocumentTooLarge(str(error)) from error
            raise

    async def _send(self, delivery: Delivery, limit: int) -> None:
        body = fitted(delivery.document, limit).decode()
        message = {"QueueUrl": self._url, "MessageBody": body, **fifo(self._name, delivery)}
        reply = await self._api("SendMessage", message, CALL_TIMEOUT)
        member("SendMessage", reply, "MessageId")

    async def _find(self) -> str:
        owner = {"QueueOwnerAWSAccountId": self._account} if self._account else {}
        reply = await self._api("GetQueueUrl", {"QueueName": self._name, **owner}, CALL_TIMEOUT)
        return member("GetQueueUrl", reply, "QueueUrl")
