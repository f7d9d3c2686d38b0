"""A destination that is an S3 bucket: one object a delivery, which holds the event besides (spec 5.7, 7.7).

The key ends with the id of the delivery, so that what is sent a second time replaces the first; after a restart it may stand
beside it under another time, with the same end.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from poller.core.failure import encoded, function_name, with_payload
from poller.destinations._calls import CALL_TIMEOUT, Api, member

if TYPE_CHECKING:
    from poller.model import Delivery

CONTENT_TYPE = "application/octet-stream"


class S3Destination:
    """One bucket. `mapping_id` is the mapping's UUID, which keys of streams' documents begin with."""

    def __init__(self, bucket: str, mapping_id: str, api: Api) -> None:
        self._bucket = bucket
        self._mapping_id = mapping_id
        self.limit: int | None = None
        self._api = api

    def __repr__(self) -> str:
        return f"<S3Destination {self._bucket}>"

    async def send(self, delivery: Delivery) -> None:
        """PutObject; raises AwsError when S3 has not taken it, or has not said so."""
        document = delivery.document
        if delivery.event is not None:
            document = with_payload(document, delivery.event)
        wanted = {
            "Bucket": self._bucket,
            "Key": key(delivery, self._mapping_id),
            "Body": encoded(document),
            "ContentType": CONTENT_TYPE,
        }
        reply = await self._api("PutObject", wanted, CALL_TIMEOUT)
        member("PutObject", reply, "ETag")


def key(delivery: Delivery, mapping_id: str) -> str:
    """Return the key of the object that holds `delivery`."""
    at = datetime.fromtimestamp(delivery.at, UTC)
    queue = f"async/{function_name(delivery.function_arn)}"
    place = f"{mapping_id}/{delivery.shard}" if delivery.shard else queue
    return f"aws/lambda/{place}/{at:%Y/%m/%d}/{at:%Y-%m-%dT%H.%M.%S}-{delivery.id}"
