"""The way to one endpoint: its addresses, a proxy in between, TLS. `Route.connect` makes one connection."""

from __future__ import annotations

import asyncio
import socket
import ssl
from base64 import b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from aiohappyeyeballs import start_connection

from poller.errors import RequestRefused

if TYPE_CHECKING:
    from poller.aws.connection import Connection

#: Seconds for all of it: name, connection, proxy, TLS.
CONNECT_TIMEOUT = 10.0
#: Seconds for which the addresses of a host are used: those of AWS change every minute.
ADDRESSES_AGE = 60.0
#: Seconds after which the next address is tried as well, so that a network without IPv6 costs no more than this.
NEXT_ADDRESS_AFTER = 0.25
#: Bytes of a proxy's answer to CONNECT.
MOST_ANSWER = 2**14
_PORTS = {"http": 80, "https": 443}


class Unconnected(OSError):
    """There is no connection: no such host, nobody listens there, or not in time."""


class ProxyRefused(OSError):
    """The proxy does not lead to the endpoint."""


class ResumingContext(ssl.SSLContext):
    """TLS settings that remember the last session with each host, so that the next connection needs no certificates.

    asyncio has no parameter for a session; both loops make their TLS with `wrap_bio`.
    """

    def __init__(self, protocol: int) -> None:
        self._sessions: dict[str | None, ssl.SSLSession] = {}

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """Begin where the last connection to this host left off."""
        kwargs.setdefault("session", self._sessions.get(kwargs.get("server_hostname")))
        return super().wrap_bio(*args, **kwargs)

    def remember(self, tls: Any) -> None:
        """Keep the session of a connection. A server hands it out after the handshake, so ask once it has replied."""
        if tls is not None and tls.session is not None:
            self._sessions[tls.server_hostname] = tls.session


def tls_context(ca_bundle: Any) -> ResumingContext:
    """Return the TLS settings of endpoints, trusting `ca_bundle` or else what botocore does. Reads files."""
    from botocore.httpsession import get_cert_path

    # What ssl.create_default_context sets up, which knows no other class.
    context = ResumingContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=get_cert_path(ca_bundle or True))
    return context


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy of the environment."""

    host: str
    port: int
    secure: bool
    authorization: str = field(repr=False)
    """The value of Proxy-Authorization; empty for none."""

    @classmethod
    def of(cls, url: str) -> Proxy:
        """Read `http://user:password@host:port`, of which only the host is needed."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        usual = _PORTS.get(parts.scheme)
        try:
            port = parts.port or usual
        except ValueError:
            port = None
        host = parts.hostname
        if usual is None or not host or not port:
            wrong = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]} is no proxy that poller can use"
            cure = "check HTTPS_PROXY and HTTP_PROXY of the environment"
            raise RequestRefused(f"{wrong}; {cure}", code="InvalidProxy")
        user = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        authorization = f"Basic {b64encode(user.encode()).decode()}" if parts.username else ""
        return cls(host, port, parts.scheme == "https", authorization)


def proxy_for(url: str) -> Proxy | None:
    """Return the environment's proxy for `url` (HTTPS_PROXY, HTTP_PROXY, NO_PROXY), as botocore does."""
    from botocore.utils import get_environ_proxies

    found = get_environ_proxies(url).get(urlsplit(url).scheme)
    return Proxy.of(found) if found else None


class Route:
    """How connections to the endpoint at `url` are made. `tls` is needed for an https endpoint or proxy."""

    def __init__(self, url: str, tls: ResumingContext | None, proxy: Proxy | None) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or _PORTS[parts.scheme]
        self._tls = tls if parts.scheme == "https" else None
        self._proxy = proxy
        self._proxy_tls = tls if proxy and proxy.secure else None
        self._addresses: list[Any] = []
        self._looked_up_at = float("-inf")
        self._looking_up = asyncio.Lock()
        through_proxy = proxy is not None and self._tls is None
        self.request_target = url if through_proxy else parts.path
        """What stands in the request line."""
        authorization = proxy.authorization if proxy and through_proxy else ""
        self.headers = {"Proxy-Authorization": authorization} if authorization else {}
        """What a proxy that reads each request wants of it."""

    async def connect(self, connection: Connection, timeout: float) -> None:
        """Connect within `timeout` seconds. Raises OSError: `Unconnected`, `ProxyRefused`, ssl.SSLError, TimeoutError."""
        try:
            async with asyncio.timeout(min(timeout, CONNECT_TIMEOUT)):
                await self._connect(connection)
        except TimeoutError as error:
            raise TimeoutError("no connection in time") from error
        except (ssl.SSLError, ProxyRefused):
            raise
        except (OSError, UnicodeError) as error:  # the latter of a host that cannot be a name
            raise Unconnected(str(error)) from error

    def remember(self, connection: Connection) -> None:
        """Learn from a connection that has replied how to make the next one quicker."""
        if self._tls is not None:
            self._tls.remember(connection.transport.get_extra_info("ssl_object"))

    async def _connect(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        proxy = self._proxy
        host, port = (proxy.host, proxy.port) if proxy else (self._host, self._port)
        sock = await self._socket(host, port)
        if proxy is None or self._tls is None:
            tls = self._proxy_tls if proxy else self._tls
            await loop.create_connection(
                lambda: connection, sock=sock, ssl=tls, server_hostname=host if tls else None
            )
            return
        tunnel = _Tunnel(self._authority(), proxy.authorization)
        secure = host if self._proxy_tls else None
        transport, _ = await loop.create_connection(
            lambda: tunnel, sock=sock, ssl=self._proxy_tls, server_hostname=secure
        )
        try:
            await tunnel.opened
            if transport.is_closing():  # which nobody would tell to what begins on it now
                raise ConnectionResetError("the proxy closed the connection")
            inner = await loop.start_tls(transport, connection, self._tls, server_hostname=self._host)
        except BaseException:
            transport.abort()
            raise
        if inner is None or inner.is_closing():  # lost while TLS began
            raise ConnectionResetError("the connection was lost")
        connection.connection_made(inner)

    def _authority(self) -> str:
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    async def _socket(self, host: str, port: int) -> socket.socket:
        loop = asyncio.get_running_loop()
        # One look-up for all who wait: a thousand queues begin at the same time.
        async with self._looking_up:
            if loop.time() - self._looked_up_at > ADDRESSES_AGE:
                self._addresses = list(await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))
                self._looked_up_at = loop.time()
        # In turn, so that every address gets its share.
        self._addresses.append(self._addresses.pop(0))
        try:
            found = await start_connection(
                self._addresses, happy_eyeballs_delay=NEXT_ADDRESS_AFTER, interleave=1
            )
        except OSError:
            self._looked_up_at = float("-inf")
            raise
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return found


class _Tunnel(asyncio.Protocol):
    """Asks a proxy for a way to `authority`, host and port; `opened` is done when it gave one."""

    def __init__(self, authority: str, authorization: str) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        identity = f"Proxy-Authorization: {authorization}\r\n" if authorization else ""
        self._request = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{identity}\r\n"
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(self._request.encode())  # type: ignore[attr-defined]  # uvloop's are no subclass of asyncio's

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, end, more = self._answer.partition(b"\r\n\r\n")
        if not end and len(head) <= MOST_ANSWER:
            return
        version, _, status = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
        if not end or more or not version.startswith("HTTP/1."):
            self._done(ProxyRefused("the proxy does not speak HTTP"))
        elif not status.startswith("2"):
            self._done(ProxyRefused(f"the proxy answered {status[:100]}"))
        else:
            self._done(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._done(ProxyRefused("the proxy closed the connection"))

    def _done(self, error: Exception | None) -> None:
        if self.opened.done():
            return
        if error is None:
            self.opened.set_result(None)
        else:
            self.opened.set_exception(error)
