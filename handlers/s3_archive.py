"""Writes each batch to S3 as gzipped JSON lines, one record a line.

Environment:
    ARCHIVE_BUCKET         required
    ARCHIVE_PREFIX         what every key begins with; empty by default
    ARCHIVE_ENDPOINT_URL   for emulators; AWS's own by default

The key is made of the batch's own times and ids: `PREFIX/YYYY/MM/DD/HH/FIRST-LAST-COUNT.jsonl.gz`. A batch
that is delivered twice in the same cut overwrites its first copy rather than adding one.
"""

from __future__ import annotations

import gzip
import json
import os
from datetime import UTC, datetime
from functools import cache
from typing import Any


def handler(event: dict[str, Any], context: Any) -> dict[str, list[Any]]:
    """Write one object for the whole batch; raises, so that the whole batch is retried, when S3 does not take
    it."""
    records, bucket = event["Records"], _required("ARCHIVE_BUCKET")
    _s3(os.environ.get("ARCHIVE_ENDPOINT_URL") or None).put_object(
        Bucket=bucket,
        Key=key_of(records, os.environ.get("ARCHIVE_PREFIX", "")),
        Body=_lines(records),
        ContentType="application/x-ndjson",
        ContentEncoding="gzip",
    )
    return {"batchItemFailures": []}


def key_of(records: list[dict[str, Any]], prefix: str) -> str:
    """Return the key of a batch: the same records always have the same one."""
    first, arrived = _identify(records[0])
    last, _ = _identify(records[-1])
    day = datetime.fromtimestamp(arrived, UTC)
    folder = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    return f"{folder}{day:%Y/%m/%d/%H}/{first}-{last}-{len(records)}.jsonl.gz"


def _identify(record: dict[str, Any]) -> tuple[str, float]:
    """Return the record's id and the Unix time at which the source took it."""
    match record["eventSource"]:
        case "aws:kinesis":
            data = record["kinesis"]
            return data["sequenceNumber"], data["approximateArrivalTimestamp"]
        case "aws:dynamodb":
            change = record["dynamodb"]
            return change["SequenceNumber"], change["ApproximateCreationDateTime"]
        case _:
            return record["messageId"], int(record["attributes"]["SentTimestamp"]) / 1000


def _lines(records: list[dict[str, Any]]) -> bytes:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    # Without a time in its header the same batch is the same bytes.
    return gzip.compress(text.encode("utf-8", "surrogatepass"), mtime=0)


def _required(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ValueError(f"{name} must be set in the function's environment")
    return value


@cache
def _s3(endpoint_url: str | None) -> Any:
    # Clients are safe to share between threads, sessions are not: one of each, kept while the process is
    # warm.
    try:
        from boto3.session import Session

        return Session().client("s3", endpoint_url=endpoint_url)
    except ModuleNotFoundError:
        from botocore.session import get_session

        return get_session().create_client("s3", endpoint_url=endpoint_url)
