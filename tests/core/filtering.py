"""What the filter tests share: records by hand, and a match that is checked against its explanation."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

from poller.core.filters import compile_filters

if TYPE_CHECKING:
    from poller.core.filters import Source


def sqs(body: Any) -> dict[str, Any]:
    return {
        "messageId": "m-1",
        "body": body if isinstance(body, str) else json.dumps(body),
        "eventSource": "aws:sqs",
    }


def kinesis(data: bytes) -> dict[str, Any]:
    return {
        "kinesis": {"partitionKey": "p1", "sequenceNumber": "49", "data": base64.b64encode(data).decode()},
        "eventID": "shardId-000000000000:49",
    }


def matches(pattern: Any, record: dict[str, Any], source: Source = "sqs") -> bool:
    filters = compile_filters([pattern], source)
    matched = filters.match(record)
    assert filters.explain(record)[0] is matched
    return matched


def body_matches(conditions: Any, value: Any) -> bool:
    return matches({"body": {"k": conditions}}, sqs({"k": value}))
