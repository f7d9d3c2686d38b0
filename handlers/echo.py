"""Logs every record of an SQS, Kinesis or DynamoDB event, and succeeds."""

from __future__ import annotations

import base64
import json
import logging
from typing import Any

logger = logging.getLogger(__name__)


def handler(event: dict[str, Any], context: Any) -> dict[str, list[Any]]:
    """Log each record's id and content; no record ever fails."""
    for record in event["Records"]:
        record_id, content = _describe(record)
        logger.info("%s %s %s", record["eventSource"], record_id, content)
    return {"batchItemFailures": []}


def _describe(record: dict[str, Any]) -> tuple[str, str]:
    match record["eventSource"]:
        case "aws:kinesis":
            content = base64.b64decode(record["kinesis"]["data"])
            return record["kinesis"]["sequenceNumber"], content.decode(errors="backslashreplace")
        case "aws:dynamodb":
            data = record["dynamodb"]
            change = {key: data[key] for key in ("Keys", "NewImage") if key in data}
            return data["SequenceNumber"], f"{record['eventName']} {json.dumps(change, ensure_ascii=False)}"
        case _:
            return record["messageId"], record["body"]
