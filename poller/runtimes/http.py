"""Functions behind a URL: the event is posted, the answer is the reply.

==============================================  ========================================================================
the endpoint's answer                           what it means
==============================================  ========================================================================
`X-Amz-Function-Error`, or Lambda's error       the function's own error, whatever the status. Lambda's emulator says 200
object (`errorType` and `errorMessage`)         and no header, so the object counts by itself
2xx                                             success with this JSON, an empty body is null. What is no JSON, or is over
                                                6 MB, is the function's error
429; 503 with `Retry-After`                     refused: come back later
3xx, 401, 403, 404, 405, 407                    refused: the request got no further than to a gate, so `url` or `headers`
                                                are wrong. Records wait rather than being given up for that
anything else, 500, 502, 503, 504 and 400       the function's error: a proxy says these after the function has run, or
among them                                      died, and a record that kills it must use up its attempts
no connection, no name, no TLS                  refused: nothing was sent
the connection breaks after that                the function's error: it may have run
==============================================  ========================================================================

A refusal is no attempt and is tried again with growing pauses; nothing is tried again in here. Redirects are not followed:
a POST becomes a GET on the way, and headers with secrets end up elsewhere.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from poller import __version__
from poller.core.quoting import quote
from poller.model import FunctionError, Refused, Returned
from poller.runtimes._json import encode
from poller.runtimes._python import MAX_RESPONSE_BYTES, too_large
from poller.runtimes._reply import FUNCTION_ERROR, as_body, error_of, headers_of, is_error_object, value_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import aiohttp

    from poller.model import Invocation, Reply

#: Seconds that a connection is kept for the next invocation: less than servers do (Node and uvicorn close after 5), so that
#: no event is posted into a connection that is being closed.
KEEP_ALIVE = 4.0
#: A gate's answers: what stands behind it has not seen the request.
_GATES = frozenset({401, 403, 404, 405, 407})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a function is, and how it is reached. Headers may hold secrets, so neither they nor the path is ever shown."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    ca_bundle: Path | None = None
    connect_timeout: float = 5.0
    """Seconds."""

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def tls_context(ca_bundle: Path | None) -> ssl.SSLContext:
    """Return the TLS settings, trusting `ca_bundle` or else what the system does; raises OSError for a file that is none."""
    return ssl.create_default_context(cafile=ca_bundle)


class HttpRuntime:
    """Posts events to one endpoint. As many connections as invocations: the function's places are the limit."""

    keeps_time = False

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._tls = tls_context(endpoint.ca_bundle) if endpoint.url.lower().startswith("https:") else None
        self._client: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Nothing is kept warm: a connection is made when it is needed."""

    async def ready(self, request_id: str) -> None:
        """Always: making a connection is part of the invocation, within its own time limit."""

    async def invoke(self, invocation: Invocation) -> Reply:
        """Post one event; see `poller.ports.Runtime`. Cancelling closes the connection, which is all that can be done."""
        import aiohttp

        data = as_body(encode(invocation.event))
        try:
            async with self._http().post(
                self._endpoint.url, data=data, headers=headers_of(invocation), allow_redirects=False
            ) as answer:
                said = await _body(answer)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return Refused(self._unreachable(error))
        except (aiohttp.ClientError, OSError) as error:
            return self._lost(error)
        if said is None:
            return too_large()
        return self._reply(answer.status, answer.headers, said)

    def workers(self) -> None:
        """None: what runs the function is not ours."""

    async def aclose(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _http(self) -> aiohttp.ClientSession:
        if self._client is None:
            self._client = self._new_client()
        return self._client

    def _new_client(self) -> aiohttp.ClientSession:
        import aiohttp

        # A connection is asked for by an invocation that has its place, so it never waits for another one to end.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE, ssl=self._tls or True)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            # The invocation has its own time limit.
            timeout=aiohttp.ClientTimeout(total=None, connect=self._endpoint.connect_timeout),
            auto_decompress=False,
            requote_redirect_url=False,
            headers={
                "User-Agent": f"poller/{__version__}",
                "Accept": "application/json",
                **self._endpoint.headers,
                "Accept-Encoding": "identity",
                "Content-Type": "application/json",
            },
        )

    # --- what the answer means ------------------------------------------------------------------------------------------

    def _reply(self, status: int, headers: Mapping[str, str], body: bytes) -> Reply:
        fine = 200 <= status < 300
        try:
            said = value_of(body)
        except ValueError as error:
            if fine and FUNCTION_ERROR not in headers:
                return _not_json(body, error)
            said = None
        if FUNCTION_ERROR in headers or is_error_object(said):
            return error_of(body, headers.get(FUNCTION_ERROR) or "Unhandled")
        if fine:
            return Returned(said)
        if reason := _refusal(status, headers):
            return Refused(f"{self._endpoint} {reason}")
        return FunctionError(f"Http.{status}", _answered(status, body))

    def _unreachable(self, error: Exception) -> str:
        import aiohttp

        if isinstance(error, aiohttp.ConnectionTimeoutError):
            timeout = self._endpoint.connect_timeout
            return f"{self._endpoint} gives no connection within {timeout:g} s; check the url and the network"
        if isinstance(error, aiohttp.ClientConnectorDNSError):
            return f"{self._endpoint} has no address: {_said(error)}; check the url's host"
        if isinstance(error, aiohttp.ClientSSLError):
            return f"{self._endpoint} has no TLS that is trusted: {_said(error)}; check its certificate and ca_bundle"
        return f"{self._endpoint} cannot be connected to: {_said(error)}; check the url, and whether it runs"

    def _lost(self, error: Exception) -> FunctionError:
        message = (
            f"{self._endpoint} broke off without a whole answer: {_said(error)}; the function may have run"
        )
        return FunctionError("Http.ConnectionLost", message)


async def _body(answer: aiohttp.ClientResponse) -> bytes | None:
    """Read the answer; None when it is too large, and then no further. What is not read to its end is closed."""
    if (answer.content_length or 0) > MAX_RESPONSE_BYTES:
        return None
    body = bytearray()
    async for piece in answer.content.iter_any():
        body += piece
        if len(body) > MAX_RESPONSE_BYTES:
            return None
    return bytes(body)


def _refusal(status: int, headers: Mapping[str, str]) -> str:
    if status == HTTPStatus.TOO_MANY_REQUESTS or (
        status == HTTPStatus.SERVICE_UNAVAILABLE and "Retry-After" in headers
    ):
        return f"{_answered(status)}: it is tried again"
    if 300 <= status < 400:
        return f"{_answered(status)}, and redirects are not followed: put the final address into url"
    return f"{_answered(status)}: check url and headers" if status in _GATES else ""


def _answered(status: int, body: bytes = b"") -> str:
    try:
        phrase = f"answered {status} {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = f"answered {status}"
    text = body[:1000].decode(errors="replace").strip()
    return f"{phrase}: {quote(text)}" if text else phrase


def _not_json(body: bytes, error: ValueError) -> FunctionError:
    text = quote(body[:1000].decode(errors="replace"))
    return FunctionError("Runtime.MarshalError", f"The answer is not JSON but {text}: {error}")


def _said(error: BaseException) -> str:
    # aiohttp's own words repeat the address, or quote the whole URL; those of the system or of TLS lie beneath.
    below = getattr(error, "os_error", None) or getattr(error, "certificate_error", None)
    if isinstance(below, ssl.SSLCertVerificationError):
        return below.verify_message or "the certificate is not valid"
    if isinstance(below, ssl.SSLError):
        return (below.reason or str(below)).replace("_", " ").lower()
    failed = below if isinstance(below, OSError) else error
    if not isinstance(failed, OSError):
        return type(failed).__name__
    if failed.errno is not None and failed.errno > 0:  # getaddrinfo's are below
        return os.strerror(failed.errno)
    return failed.strerror or type(failed).__name__
