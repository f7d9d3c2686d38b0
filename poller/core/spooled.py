"""Deliveries as the spool keeps them, and back: all of a delivery, whatever a producer or a handler has said in it."""

from __future__ import annotations

import json
from dataclasses import asdict

from poller.core.failure import encoded
from poller.errors import StoreError
from poller.model import Delivery, SpoolEntry


def entry(delivery: Delivery, key: str, at: float) -> SpoolEntry:
    """What is spooled of `delivery` at `at`, Unix time, for the destination `key`."""
    return SpoolEntry(
        kind="delivery",
        mapping=delivery.mapping,
        id=delivery.id,
        key=key,
        shard=delivery.shard,
        at=at,
        body=encoded(asdict(delivery)),
        error_type=delivery.error_type,
        error_message=delivery.error_message,
    )


def delivery(spooled: SpoolEntry) -> Delivery:
    """The delivery that was spooled; raises StoreError when that is none."""
    try:
        # Not orjson: it makes floats of large integers, and refuses half a surrogate pair.
        return Delivery(**json.loads(spooled.body))
    except (TypeError, ValueError) as error:
        raise StoreError(f"the spooled delivery {spooled.id} makes no sense: {error}") from error
