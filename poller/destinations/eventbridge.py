"""A destination that is an EventBridge event bus: the document is the detail of an event (spec 7.6)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from poller.aws.errors import from_reply
from poller.core.failure import fitted, qualified
from poller.destinations._calls import CALL_TIMEOUT, Api, member
from poller.errors import BadReply

if TYPE_CHECKING:
    from poller.model import Delivery

#: Bytes of an entry, as EventBridge counts them: a time counts as 14, other members by their text.
ENTRY_LIMIT = 256 * 1024
TIME_SIZE = 14

SOURCE = "lambda"


class EventBridgeDestination:
    """One event bus, named by its ARN."""

    def __init__(self, arn: str, api: Api) -> None:
        self._arn = arn
        self.limit: int | None = ENTRY_LIMIT
        self._api = api

    def __repr__(self) -> str:
        return f"<EventBridgeDestination {self._arn}>"

    async def send(self, delivery: Delivery) -> None:
        """PutEvents; raises AwsError when EventBridge has not taken it, or has not said so."""
        wanted = {"Entries": [self._entry(delivery)]}
        reply = await self._api("PutEvents", wanted, CALL_TIMEOUT)
        # The request may be fine and its only entry refused.
        entry = _entry_of(reply)
        if code := entry.get("ErrorCode"):
            message = str(entry.get("ErrorMessage") or "")
            raise from_reply(500, str(code), message, service="events", operation="PutEvents")
        if reply.get("FailedEntryCount"):
            raise BadReply(
                "PutEvents: an entry has failed, without a reason", code="BadReply", operation="PutEvents"
            )
        member("PutEvents", entry, "EventId")

    def _entry(self, delivery: Delivery) -> dict[str, Any]:
        result = "Success" if delivery.succeeded else "Failure"
        kind = f"Lambda Function Invocation Result - {result}"
        resources = [self._arn, qualified(delivery.function_arn)]
        taken = TIME_SIZE + sum(len(text.encode()) for text in (SOURCE, kind, *resources))
        return {
            "Time": datetime.fromtimestamp(delivery.at, UTC),
            "Source": SOURCE,
            "Resources": resources,
            "DetailType": kind,
            "Detail": fitted(delivery.document, ENTRY_LIMIT - taken).decode(),
            "EventBusName": self._arn,
        }


def _entry_of(reply: dict[str, Any]) -> dict[str, Any]:
    entries = reply.get("Entries") or [{}]
    return entries[0] if isinstance(entries[0], dict) else {}
