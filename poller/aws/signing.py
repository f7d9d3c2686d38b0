"""SigV4 for one kind of request: POST of JSON to one path of one endpoint, the operation in X-Amz-Target.

Nearly everything about such a request stays the same, so it is computed once: the canonical text around the
date per operation and key, the signing key per day and key. What is left per request is one SHA-256 of the
body, one of the canonical request, and one HMAC.
"""

from __future__ import annotations

import hmac
import re
import time
from email.utils import parsedate_to_datetime
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from poller.errors import CredentialsInvalid, RequestRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from poller.aws.credentials import Frozen

_REGION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_HOST = re.compile(r"[a-z0-9._-]+(?::\d+)?|\[[0-9a-f:.]+\](?::\d+)?")
#: Only paths that read the same in a URL and in its canonical form.
_PATH = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9_.~-]*)*")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]+")
_DEFAULT_PORTS = {"http": 80, "https": 443}
#: Seconds by which our clock must differ from the server's to blame it: AWS allows five minutes.
TOO_FAR_OFF = 240.0


class Target(NamedTuple):
    """Where requests go, in the parts that a signature names."""

    url: str
    host: str
    path: str


def target(endpoint_url: str) -> Target:
    """Take an endpoint apart; user info and query are dropped, and what cannot be a header is refused."""
    parts = urlsplit(endpoint_url)
    name = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    port = parts.port
    host = name if port is None or port == _DEFAULT_PORTS.get(parts.scheme) else f"{name}:{port}"
    if parts.scheme not in _DEFAULT_PORTS or not _HOST.fullmatch(host):
        raise RequestRefused(f"{host!r} is not an endpoint; check [aws] endpoint_url", code="InvalidEndpoint")
    path = parts.path.rstrip("/")
    if not _PATH.fullmatch(path):
        raise RequestRefused(
            f"{path!r} is not a path of an endpoint; check [aws] endpoint_url", code="InvalidEndpoint"
        )
    return Target(f"{parts.scheme}://{host}{path}/", host, f"{path}/")


class ServerClock:
    """This machine's clock, set right by what a server says when it refuses a signature."""

    def __init__(
        self, now: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._now = now
        self._monotonic = monotonic
        self._offset = 0.0
        self._corrected = float("-inf")

    def now(self) -> float:
        """Return the server's time, in Unix seconds."""
        return self._now() + self._offset

    def compare(self, date: str | None) -> None:
        """Adopt the time in a reply's Date header if ours is far off."""
        try:
            theirs = parsedate_to_datetime(date or "").timestamp()
        except ValueError:
            return
        if abs(theirs - self.now()) > TOO_FAR_OFF:
            self._offset = theirs - self._now()
            self._corrected = self._monotonic()

    def corrected_since(self, begun: float) -> bool:
        """Return whether the time was wrong when a request began at `begun` (monotonic)."""
        return self._corrected >= begun


class Signer:
    """Makes the headers of signed requests to one service, region and endpoint."""

    def __init__(
        self, service: str, region: str, where: Target, content_type: str, clock: ServerClock
    ) -> None:
        if not _REGION.fullmatch(region):
            raise RequestRefused(f"{region!r} is not a region; check [aws] region", code="InvalidRegion")
        self._scope = f"{region}/{service}/aws4_request"
        self._key_path = (region.encode(), service.encode(), b"aws4_request")
        self._where = where
        self._content_type = content_type
        self._clock = clock
        self._second = -1
        self._date = ""
        self._credentials: Frozen | None = None
        self._day = ""
        self._signing_key = b""
        self._authorization = ""
        self._token_line = ""
        self._signed = ""

    def headers(self, target: str, body: bytes, credentials: Frozen) -> dict[str, str]:
        """Return all headers for a POST of `body` to the operation `target`."""
        date = self._amz_date()
        if credentials is not self._credentials or not date.startswith(self._day):
            self._derive(credentials, date[:8])
        where = self._where
        canonical = (
            f"POST\n{where.path}\n\ncontent-type:{self._content_type}\nhost:{where.host}\nx-amz-date:{date}\n"
            f"{self._token_line}x-amz-target:{target}\n\n{self._signed}\n{sha256(body).hexdigest()}"
        )
        digest = sha256(canonical.encode()).hexdigest()
        to_sign = f"AWS4-HMAC-SHA256\n{date}\n{self._day}/{self._scope}\n{digest}"
        signature = hmac.digest(self._signing_key, to_sign.encode(), "sha256").hex()
        headers = {
            "Host": where.host,
            "Content-Type": self._content_type,
            "X-Amz-Date": date,
            "X-Amz-Target": target,
            "Authorization": self._authorization + signature,
            "Accept-Encoding": "identity",
        }
        if credentials.token:
            headers["X-Amz-Security-Token"] = credentials.token
        return headers

    def _amz_date(self) -> str:
        second = int(self._clock.now())
        if second != self._second:
            self._second = second
            self._date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
        return self._date

    def _derive(self, credentials: Frozen, day: str) -> None:
        for value in (credentials.access_key, credentials.token or "-"):
            if not _HEADER_VALUE.fullmatch(value):
                raise CredentialsInvalid(
                    "the credentials contain characters that no key has; refresh the credentials",
                    code="InvalidKey",
                )
        key = b"AWS4" + credentials.secret_key.encode()
        for part in (day.encode(), *self._key_path):
            key = hmac.digest(key, part, "sha256")
        token = "x-amz-security-token;" if credentials.token else ""
        self._signed = f"content-type;host;x-amz-date;{token}x-amz-target"
        self._token_line = f"x-amz-security-token:{credentials.token}\n" if credentials.token else ""
        self._authorization = (
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{day}/{self._scope}, "
            f"SignedHeaders={self._signed}, Signature="
        )
        self._signing_key, self._day, self._credentials = key, day, credentials
