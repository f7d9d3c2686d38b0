"""POSTs what arrives to a URL, as JSON.

Environment:
    FORWARD_URL     where to; required, http or https
    FORWARD_MODE    `record` (default): one request for each record, and the records whose request failed are
                    reported in batchItemFailures, so set ReportBatchItemFailures on the mapping;
                    `batch`: one request for the whole event, which fails as a whole
    FORWARD_TOKEN   sent as `Authorization: Bearer ...`, never logged

Streams (Kinesis, DynamoDB) stop at the first failed record, because everything after it is retried with it.
So does a FIFO queue, to keep its order.
"""

from __future__ import annotations

import json
import logging
import os
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

logger = logging.getLogger(__name__)

#: Seconds kept back from the function's own time limit to report what failed.
MARGIN = 0.5
#: No single request takes longer, however long the function may run.
LONGEST = 30.0


class ForwardError(Exception):
    """The receiver did not take a request."""


class _NoRedirect(HTTPRedirectHandler):
    # A redirected POST becomes a GET without a body: the record would be lost, and the token would go astray.
    def redirect_request(self, *arguments: Any) -> None:
        return None


_opener = build_opener(_NoRedirect)


def handler(event: dict[str, Any], context: Any) -> dict[str, list[dict[str, str]]]:
    """Forward `event`; raises ForwardError when a whole batch, or its configuration, fails."""
    url, token = _url(), _token()
    if os.environ.get("FORWARD_MODE", "record") == "batch":
        _post(url, token, event, context)
        return {"batchItemFailures": []}
    return {
        "batchItemFailures": [{"itemIdentifier": name} for name in _forward_each(url, token, event, context)]
    }


def _forward_each(url: str, token: str, event: dict[str, Any], context: Any) -> list[str]:
    failed: list[str] = []
    for record in event["Records"]:
        record_id, ordered = _identify(record)
        if failed and ordered:
            failed.append(record_id)
            continue
        try:
            _post(url, token, record, context)
        except ForwardError as error:
            logger.warning("record %s was not forwarded: %s", record_id, error)
            failed.append(record_id)
    return failed


def _identify(record: dict[str, Any]) -> tuple[str, bool]:
    """Return what batchItemFailures calls the record, and whether those after it have to wait for it."""
    match record["eventSource"]:
        case "aws:kinesis":
            return record["kinesis"]["sequenceNumber"], True
        case "aws:dynamodb":
            return record["dynamodb"]["SequenceNumber"], True
        case _:
            return record["messageId"], "MessageGroupId" in record["attributes"]


def _url() -> str:
    url = os.environ.get("FORWARD_URL", "").strip()
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or "@" in parts.netloc or " " in url or not url.isprintable():
        # What http.client says of such a URL quotes it.
        raise ForwardError("FORWARD_URL must be a URL of http:// or https://, without spaces and passwords")
    return url


def _token() -> str:
    token = os.environ.get("FORWARD_TOKEN", "").strip()
    if not (token.isascii() and token.isprintable()):
        raise ForwardError("FORWARD_TOKEN must be one line of printable ASCII characters")
    return token


def _post(url: str, token: str, content: Any, context: Any) -> None:
    timeout = min(LONGEST, context.get_remaining_time_in_millis() / 1000 - MARGIN)
    if timeout <= 0:
        raise ForwardError("no time is left before the function times out")
    headers = {"Content-Type": "application/json", "X-Request-Id": context.aws_request_id}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = Request(url, json.dumps(content).encode(), headers)
    try:
        with _opener.open(request, timeout=timeout) as response:
            response.read()
    except HTTPError as error:
        with error:
            raise ForwardError(f"the receiver answered {error.code} {error.reason}") from None
    except (URLError, HTTPException, OSError) as error:
        # The URL may hold a password or a key, so no message shows it.
        raise ForwardError(f"the receiver cannot be reached: {getattr(error, 'reason', error)}") from None
