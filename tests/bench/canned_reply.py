"""What all canned services have in common: whole HTTP replies, made beforehand."""

from __future__ import annotations

import time

ACCOUNT = "123456789012"
#: Queues and streams whose name begins so never have anything.
IDLE = "idle-"
#: These bring one message, for the first who asks, and nothing more.
ONCE = "once-"
HEAD = (
    b"HTTP/1.1 %d %s\r\nx-amzn-RequestId: 8c4f6c3e-7f5b-5d6c-9a3e-2f1f6c7e5b4a\r\nContent-Type: application/x-amz-json-1.0\r\n"
    b"Date: %s\r\nConnection: keep-alive\r\nContent-Length: %d\r\n\r\n"
)
DATE = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()).encode()


def http(body: bytes, status: int = 200) -> bytes:
    """A whole HTTP reply."""
    return HEAD % (status, b"OK" if status == 200 else b"Bad Request", DATE, len(body)) + body


NOT_CANNED = http(b'{"__type":"com.amazonaws#InvalidAction","message":"not canned"}', 400)
