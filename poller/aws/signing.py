"""SigV4 for one kind of request: POST of JSON to one path of one endpoint, the operation in X-Amz-Target.

Nearly everything about such a request stays the same, so it is computed once: the headers and the hash of the canonical
request up to the body per operation and second, the signing key per day and key. What is left per request is one SHA-256 of
the body, the end of that of the canonical request, and one HMAC.
"""

from __future__ import annotations

import hmac
import re
import time
from email.utils import parsedate_to_datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple
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
        except (ValueError, OverflowError):
            return
        if abs(theirs - self.now()) > TOO_FAR_OFF:
            self._offset = theirs - self._now()
            self._corrected = self._monotonic()

    def corrected_since(self, begun: float) -> bool:
        """Return whether the time was wrong when a request began at `begun` (monotonic)."""
        return self._corrected >= begun


class _Second(NamedTuple):
    """All of a request to one operation that stays the same for a second."""

    canonical: Any
    """SHA-256 of the canonical request up to the hash of the body."""
    to_sign: bytes
    """The string to sign up to the hash of the canonical request."""
    headers: bytes
    """All of them up to the signature."""


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
        self._credentials: Frozen | None = None
        self._day = ""
        self._inner = self._outer = sha256()
        self._prepared: dict[str, _Second] = {}

    def headers(self, target: str, body: bytes, credentials: Frozen) -> bytes:
        """Return the header lines for a POST of `body` to the operation `target`."""
        second = int(self._clock.now())
        if second != self._second or credentials is not self._credentials:
            self._prepared.clear()
            self._second = second
        prepared = self._prepared.get(target) or self._prepare(target, second, credentials)
        canonical = prepared.canonical.copy()
        canonical.update(sha256(body).hexdigest().encode())
        to_sign = prepared.to_sign + canonical.hexdigest().encode()
        # HMAC, whose two hashes have begun with the key: half of what the library's costs.
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(to_sign)
        outer.update(inner.digest())
        return b"%b%b\r\n" % (prepared.headers, outer.hexdigest().encode())

    def _prepare(self, target: str, second: int, credentials: Frozen) -> _Second:
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
        if credentials is not self._credentials or date[:8] != self._day:
            self._derive(credentials, date[:8])
        host, kind, token = self._where.host, self._content_type, credentials.token
        signed = f"content-type;host;x-amz-date;{'x-amz-security-token;' if token else ''}x-amz-target"
        named_token = f"x-amz-security-token:{token}\n" if token else ""
        sent_token = f"X-Amz-Security-Token: {token}\r\n" if token else ""
        canonical = (
            f"POST\n{self._where.path}\n\ncontent-type:{kind}\nhost:{host}\nx-amz-date:{date}\n"
            f"{named_token}x-amz-target:{target}\n\n{signed}\n"
        )
        headers = (
            f"Host: {host}\r\nContent-Type: {kind}\r\nX-Amz-Date: {date}\r\nX-Amz-Target: {target}\r\n"
            f"Accept-Encoding: identity\r\n{sent_token}"
            f"Authorization: AWS4-HMAC-SHA256 Credential={credentials.access_key}/{self._day}/{self._scope}, "
            f"SignedHeaders={signed}, Signature="
        )
        to_sign = f"AWS4-HMAC-SHA256\n{date}\n{self._day}/{self._scope}\n"
        prepared = _Second(sha256(canonical.encode()), to_sign.encode(), headers.encode())
        self._prepared[target] = prepared
        return prepared

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
        block = key.ljust(64, b"\0")
        self._inner = sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = sha256(bytes(byte ^ 0x5C for byte in block))
        self._day, self._credentials = day, credentials
