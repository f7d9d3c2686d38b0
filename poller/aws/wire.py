"""The hot calls without an SDK: a signed POST through aiohttp, the reply through orjson into plain dicts.

A reply is taken only when it is whole: a body shorter than its Content-Length, JSON that ends early or JSON
that is no object is `BadReply`, never an empty receive, because the messages in it are in flight and their
mapping must hear of trouble.
"""

from __future__ import annotations

import asyncio
import gc
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from poller import __version__
from poller.aws.calls import HOT_OPERATIONS, Calls
from poller.aws.errors import (
    SIGNATURE_REFUSED,
    bad_reply,
    disconnected,
    foreign,
    from_reply,
    short_code,
    translate,
)
from poller.aws.signing import ServerClock, Signer, target
from poller.errors import AwsError, RequestRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from poller.aws.credentials import Credentials, Frozen
    from poller.ports import Observer

_PROTOCOLS = {
    "sqs": ("sqs", "AmazonSQS", "1.0"),
    "kinesis": ("kinesis", "Kinesis_20131202", "1.1"),
    "dynamodbstreams": ("dynamodb", "DynamoDBStreams_20120810", "1.0"),
}
_AUTO_HEADERS = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")
CONNECT_TIMEOUT = 10.0


def open_http(tls: ssl.SSLContext | None = None) -> aiohttp.ClientSession:
    """Return the HTTP client for any number of wires, with `tls` for https endpoints; the caller closes it.

    Connections are not limited here, because each long poll occupies one: the mappings' own limits are what
    bounds them. aiohttp's `trust_env` stays off: it asks the environment again for every request, and sends
    the user's .netrc along.
    """
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60, ttl_dns_cache=60, ssl=tls or True)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=_AUTO_HEADERS,
        requote_redirect_url=False,
    )


def tls_context(ca_bundle: Any) -> ssl.SSLContext:
    """Return the TLS settings of endpoints, trusting `ca_bundle` or else what botocore does. Reads files."""
    from botocore.httpsession import get_cert_path

    return ssl.create_default_context(cafile=get_cert_path(ca_bundle or True))


class Wire(Calls):
    """The hot calls of one service at one endpoint. See `HotApi`."""

    def __init__(
        self,
        service: str,
        region: str,
        endpoint_url: str,
        credentials: Credentials,
        http: aiohttp.ClientSession,
        observer: Observer,
    ) -> None:
        super().__init__(service, observer, credentials)
        signing_name, prefix, version = _PROTOCOLS[service]
        self._where = target(endpoint_url)
        self._http = http
        self._proxy = _proxy_for(self._where.url)
        self._server_clock = ServerClock()
        self._targets = {name: f"{prefix}.{name}" for name in HOT_OPERATIONS[service]}
        self._content_type = f"application/x-amz-json-{version}"
        self._signer = Signer(signing_name, region, self._where, self._content_type, self._server_clock)

    async def _send(self, operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        if operation not in self._targets:
            raise RequestRefused(
                f"{operation} is not a hot operation of {self._service}", operation=operation
            )
        body = orjson.dumps(params)
        try:
            frozen = self._credentials.cached() or await self._fetched(timeout)
            headers = self._signer.headers(self._targets[operation], body, frozen)
            headers["User-Agent"] = _USER_AGENT
            status, reply_headers, reply = await self._post(body, headers, timeout)
        except foreign() as error:
            raise translate(
                error, service=self._service, operation=operation, host=self._where.host
            ) from error
        if status == 200:
            return self._read(operation, reply)
        raise self._refusal(operation, status, reply_headers, reply)

    async def _fetched(self, timeout: float) -> Frozen:
        async with asyncio.timeout(timeout):
            return await self._credentials.get_frozen_credentials()

    async def _post(
        self, body: bytes, headers: dict[str, str], timeout: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        async with self._http.post(
            self._where.url,
            data=body,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=CONNECT_TIMEOUT),
            proxy=self._proxy,
            allow_redirects=False,
        ) as reply:
            return reply.status, reply.headers, await reply.read()

    def _read(self, operation: str, reply: bytes) -> dict[str, Any]:
        try:
            parsed = _parsed(reply)
        except orjson.JSONDecodeError as error:
            raise bad_reply(self._service, operation) from error
        if not isinstance(parsed, dict):
            raise bad_reply(self._service, operation)
        return parsed

    def _refusal(self, operation: str, status: int, headers: Mapping[str, str], reply: bytes) -> AwsError:
        said = _error_body(reply)
        code = str(said.get("__type") or said.get("code") or headers.get("x-amzn-errortype") or "")
        # SQS spoke another protocol once; this header keeps the codes it had then, and the SDKs report those.
        legacy = headers.get("x-amzn-query-error", "").split(";")
        if len(legacy) == 2 and legacy[0]:
            code = legacy[0]
        if short_code(code) in SIGNATURE_REFUSED:
            self._server_clock.compare(headers.get("Date"))
        message = said.get("message") or said.get("Message") or ""
        return from_reply(status, code, str(message), service=self._service, operation=operation)

    async def _cure(self, failed: AwsError, begun: float, deadline: float) -> bool:
        # A connection that the server closed while it was idle fails only once it is used. Nothing of the
        # reply had come, so whether the request was carried out is unknown. Sending it again is right even
        # for a receive: if the first one did take messages they are out of sight either way, and come back
        # when their visibility ends.
        if disconnected(failed):
            return True
        if failed.code in SIGNATURE_REFUSED:
            return self._server_clock.corrected_since(begun)
        return await super()._cure(failed, begun, deadline)


_USER_AGENT = f"poller/{__version__}"
#: Bytes of a reply that makes thousands of objects.
LARGE = 2**16


def _parsed(reply: bytes) -> Any:
    if len(reply) < LARGE or not gc.isenabled():
        return orjson.loads(reply)
    # The collector would go over the new objects again and again while they are made, and none of them is garbage. No other
    # thread runs meanwhile.
    gc.disable()
    try:
        return orjson.loads(reply)
    finally:
        gc.enable()


def _error_body(reply: bytes) -> dict[str, Any]:
    try:
        said = orjson.loads(reply)
    except orjson.JSONDecodeError:
        return {}
    return said if isinstance(said, dict) else {}


def _proxy_for(url: str) -> str | None:
    # Once, not for each request: what the environment says of proxies does not change under a running
    # process.
    from botocore.utils import get_environ_proxies

    proxy = get_environ_proxies(url).get(urlsplit(url).scheme)
    return proxy if proxy is None or "://" in proxy else f"http://{proxy}"
