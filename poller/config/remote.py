"""Keys of functions that run elsewhere: behind a URL, or in Lambda."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from poller.config.section import Mistake, Mistakes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Bytes of the names and values of all headers; most servers refuse more than 8 KB in all.
HEADERS_LIMIT = 6144

_URL = re.compile(r"https?://[^\s\x00-\x1f\x7f]+", re.IGNORECASE)
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
#: What poller or HTTP itself says of a request.
_RESERVED_HEADER = re.compile(
    r"accept-encoding|connection|content-(encoding|length|type)|expect|keep-alive|lambda-runtime-.*|te|trailer"
    r"|transfer-encoding|upgrade",
    re.IGNORECASE,
)
_FUNCTION_ARN = re.compile(
    r"(?P<function>arn:aws[a-z-]*:lambda:[a-z0-9-]+:\d{12}:function:[A-Za-z0-9_-]{1,64})"
    r"(?::(?P<qualifier>\$LATEST|[A-Za-z0-9_-]{1,128}))?"
)


def check_url(text: str) -> str:
    """Return the URL of an http function; ValueError when no request can be sent there, or it holds a password."""
    wants = "must be a URL that begins with http:// or https://"
    if not _URL.fullmatch(text):
        raise ValueError(wants)
    try:
        parts = urlsplit(text)
        host = (parts.hostname or "").encode("idna")
        port = parts.port
    except ValueError as error:
        raise ValueError(wants) from error
    if not host or port == 0:
        raise ValueError(wants)
    if "@" in parts.netloc:
        raise ValueError("must hold no user name and no password: put an Authorization into headers")
    return text


def check_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return the headers of an http function; raises Mistakes for what no request can have."""
    if mistakes := tuple(_bad_headers(headers)):
        raise Mistakes(mistakes)
    return headers


def _bad_headers(headers: Mapping[str, str]) -> Iterator[Mistake]:
    seen: set[str] = set()
    for name, value in headers.items():
        if not _HEADER.fullmatch(name):
            yield Mistake((name,), "must be named as HTTP allows: letters, digits and dashes")
        elif _RESERVED_HEADER.fullmatch(name):
            yield Mistake((name,), "is reserved: poller sets this header")
        elif name.lower() in seen:
            yield Mistake((name,), "must be there once: upper and lower case make no difference")
        elif not _HEADER_VALUE.fullmatch(value):
            yield Mistake((name,), "must be one line of printable ASCII characters")
        seen.add(name.lower())
    size = sum(len(name) + len(value) for name, value in headers.items())
    if size > HEADERS_LIMIT:
        yield Mistake((), f"must take at most {HEADERS_LIMIT} bytes in all; it takes {size}")


def split_function_arn(arn: str) -> tuple[str, str | None]:
    """Return the ARN of a Lambda function without its qualifier, and that; ValueError when it is none."""
    found = _FUNCTION_ARN.fullmatch(arn)
    if found is None:
        raise ValueError(
            "must be the ARN of a Lambda function, like arn:aws:lambda:eu-west-1:123456789012:function:orders"
        )
    return found["function"], found["qualifier"]


def check_function_arn(text: str) -> str:
    """Return the ARN of a Lambda function; ValueError otherwise."""
    split_function_arn(text)
    return text
