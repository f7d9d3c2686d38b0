"""A destination that is an SNS topic: the document is the Message of a notification (spec 5.7, 7.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poller.core.failure import fitted
from poller.destinations._calls import CALL_TIMEOUT, Api, fifo, member

if TYPE_CHECKING:
    from poller.model import Delivery

#: Bytes of a message.
MESSAGE_LIMIT = 256 * 1024


class SnsDestination:
    """One topic, standard or FIFO."""

    def __init__(self, arn: str, api: Api) -> None:
        self._arn = arn
        self.limit: int | None = MESSAGE_LIMIT
        self._api = api

    def __repr__(self) -> str:
        return f"<SnsDestination {self._arn}>"

    async def send(self, delivery: Delivery) -> None:
        """Publish; raises AwsError when SNS has not taken it, or has not said so."""
        message = fitted(delivery.document, MESSAGE_LIMIT).decode()
        wanted = {"TopicArn": self._arn, "Message": message, **fifo(self._arn, delivery)}
        reply = await self._api("Publish", wanted, CALL_TIMEOUT)
        member("Publish", reply, "MessageId")
