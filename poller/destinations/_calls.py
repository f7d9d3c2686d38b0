"""What destinations in AWS share: calls, replies without what they must have, and the order of FIFO."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from poller.errors import BadReply

if TYPE_CHECKING:
    from poller.model import Delivery

#: One call of a service's API in one region: operation, parameters, seconds until it is given up. Raises AwsError.
Api = Callable[[str, dict[str, Any], float], Awaitable[dict[str, Any]]]

#: Seconds for a call, retries included.
CALL_TIMEOUT = 30.0
#: Characters of a MessageGroupId.
GROUP_LIMIT = 128


def member(operation: str, reply: dict[str, Any], name: str) -> str:
    """Return what a reply must have; raises BadReply when it does not."""
    if not (value := reply.get(name)):
        raise BadReply(f"{operation}: a reply without {name}", code="BadReply", operation=operation)
    return str(value)


def fifo(name: str, delivery: Delivery) -> dict[str, str]:
    """Return what SQS and SNS want besides for the queue or topic `name`; nothing where that is no FIFO one.

    The documents of a shard stay in order, and one that is sent again within five minutes arrives once.
    """
    if not name.endswith(".fifo"):
        return {}
    group = f"{delivery.mapping}/{delivery.shard}" if delivery.shard else delivery.mapping
    # A name that is too long loses its beginning: shards differ at their ends.
    return {"MessageGroupId": group[-GROUP_LIMIT:], "MessageDeduplicationId": delivery.id}
