"""One AWS session for the whole daemon: credentials, one client per service and region, and the hot calls.

aiobotocore costs a good part of a second and tens of megabytes, so it is imported when the first client is
wanted, and all is shared: two hundred queues of one region use one client and one wire.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from poller import __version__
from poller.aws.calls import HOT_OPERATIONS
from poller.aws.credentials import Credentials
from poller.aws.errors import foreign, translate
from poller.errors import RequestRefused

if TYPE_CHECKING:
    from types import TracebackType

    from poller.aws.calls import HotApi
    from poller.aws.dial import ResumingContext
    from poller.aws.sdk import SdkCalls
    from poller.config import Aws
    from poller.ports import Observer

_Key = tuple[str, str | None]
#: Calls of one service in one region: operation, parameters, seconds until it is given up. Raises `poller.errors.AwsError`.
Api = Callable[[str, dict[str, Any], float], Awaitable[dict[str, Any]]]
COLD_ATTEMPTS = 3
COLD_CONNECTIONS = 50
#: With ``wire = "sdk"`` each long poll occupies a connection of the client's pool.
HOT_CONNECTIONS = 2000
#: An event stream occupies a connection for as long as it lasts: with enhanced fan-out, one for each shard and consumer of a
#: region. The next one waits until its call has timed out.
STREAMING_CONNECTIONS = 2000
#: As many as the daemon can be told to have invocations: their own limits are what bounds them.
INVOKING_CONNECTIONS = 100_000
#: Seconds that a connection may be silent, and for Lambda: the longest time limit of a function, and some for the way.
READ_TIMEOUT = 75.0
INVOKING_READ_TIMEOUT = 960.0
#: What endpoint rules are told of the credentials' account.
_OF_ACCOUNT = ("AWS::Auth::AccountId", "AWS::Auth::AccountIdEndpointMode")


class AwsSession:
    """Clients and calls with one configuration. An async context manager; leaving it closes every connection.

    `call` and what `api`, `cold`, `streaming` and `hot` return raise `poller.errors.AwsError` only. A region of None is the
    configured one.
    """

    def __init__(self, config: Aws, observer: Observer) -> None:
        self._config = config
        self._observer = observer
        self._credentials = Credentials(self._load_credentials)
        self._opened = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._botocore: Any = None
        self._tls: ResumingContext | None = None
        self._clients: dict[_Key, Any] = {}
        self._cold: dict[_Key, SdkCalls] = {}
        self._hot: dict[_Key, HotApi] = {}
        self._own: dict[_Key, SdkCalls] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.aclose()

    async def client(self, service: str, region: str | None = None) -> Any:
        """Return the shared aiobotocore client. Its own methods raise botocore's errors: prefer `call`."""
        async with self._opening:
            return await self._shared_client((service, region))

    async def call(
        self,
        service: str,
        operation: str,
        params: dict[str, Any] | None = None,
        *,
        region: str | None = None,
        timeout: float = 30.0,
    ) -> dict[str, Any]:
        """Call any operation, named as AWS does (GetQueueUrl); return aiobotocore's reply, less its metadata.

        botocore retries what is transient, within `timeout` seconds in all.
        """
        key = (service, region)
        if key not in self._cold:
            from poller.aws.sdk import SdkCalls

            client = await self.client(service, region)
            self._cold[key] = SdkCalls(service, client, self._credentials, self._observer)
        return await self._cold[key].call(operation, params or {}, timeout=timeout)

    async def api(self, service: str, region: str | None = None) -> Api:
        """Return all calls of "sqs", "kinesis" or "dynamodbstreams": the hot ones over the wire, the others as `call`."""
        hot = await self.hot(service, region)
        hot_operations = HOT_OPERATIONS[service]

        async def call(operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
            if operation in hot_operations:
                return await hot.call(operation, params, timeout=timeout)
            return await self.call(service, operation, params, region=region, timeout=timeout)

        return call

    def cold(self, service: str, region: str | None = None) -> Api:
        """Return the calls of any service, each as `call`."""

        async def call(operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
            return await self.call(service, operation, params, region=region, timeout=timeout)

        return call

    async def streaming(self, service: str, region: str | None = None) -> Api:
        """Return the calls that answer with an event stream (SubscribeToShard), on `STREAMING_CONNECTIONS` of their own.

        The timeout is that of the call; the stream in its reply lasts as long as AWS keeps it up, raises what botocore and
        aiohttp raise, and occupies its connection until it is closed. Nothing is retried.
        """
        return await self._own_client((service, region), STREAMING_CONNECTIONS, READ_TIMEOUT)

    async def invoking(self, region: str | None = None) -> Api:
        """Return the calls of Lambda, for Invoke: its answer may take as long as a function may run.

        The payload in its reply is a stream that raises what botocore and aiohttp raise, and occupies its connection until it
        is closed. Nothing is retried, because the function may have run.
        """
        return await self._own_client(("lambda", region), INVOKING_CONNECTIONS, INVOKING_READ_TIMEOUT)

    async def _own_client(self, key: _Key, connections: int, read_timeout: float) -> Api:
        if key not in self._own:
            async with self._opening:
                if key not in self._own:
                    from poller.aws.sdk import SdkCalls

                    client = await self._new_client(key, 1, connections, read_timeout)
                    self._own[key] = SdkCalls(key[0], client, self._credentials, self._observer)
        calls = self._own[key]

        async def call(operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
            return await calls.call(operation, params, timeout=timeout)

        return call

    async def hot(self, service: str, region: str | None = None) -> HotApi:
        """Return the hot calls of "sqs", "kinesis" or "dynamodbstreams", over the configured wire."""
        key = (service, region)
        async with self._opening:
            if key not in self._hot:
                fast = self._config.wire == "fast"
                self._hot[key] = await (self._fast_wire(key) if fast else self._sdk_wire(key))
            return self._hot[key]

    async def _fast_wire(self, key: _Key) -> HotApi:
        from poller.aws.dial import Route, proxy_for
        from poller.aws.pool import Pool
        from poller.aws.signing import target
        from poller.aws.wire import Wire

        client = await self._shared_client(key)
        where = target(await _endpoint_of(client, key[0]))
        proxy = proxy_for(where.url)
        secure = where.url.startswith("https:") or (proxy is not None and proxy.secure)
        route = Route(where.url, await self._shared_tls() if secure else None, proxy)
        pool = await self._opened.enter_async_context(Pool(route))
        return Wire(key[0], client.meta.region_name, where, self._credentials, pool, self._observer)

    async def _sdk_wire(self, key: _Key) -> HotApi:
        from poller.aws.sdk import SdkWire

        client = await self._new_client(key, attempts=1, connections=HOT_CONNECTIONS)
        return SdkWire(key[0], client, self._credentials, self._observer)

    async def _shared_tls(self) -> ResumingContext:
        from poller.aws.dial import tls_context

        if self._tls is None:
            configured = self._config.ca_bundle or self._session().get_config_variable("ca_bundle")
            # Which botocore's clients look at as well, without saying so in their configuration.
            ca_bundle = configured or os.environ.get("REQUESTS_CA_BUNDLE")
            try:
                self._tls = await asyncio.to_thread(tls_context, ca_bundle and str(ca_bundle))
            except OSError as error:  # which does not name the file
                wrong = f"{ca_bundle} holds no certificate authorities: {error.strerror or error}"
                cure = "check [aws] ca_bundle, AWS_CA_BUNDLE and REQUESTS_CA_BUNDLE"
                raise RequestRefused(f"{wrong}; {cure}", code="InvalidCaBundle") from error
        return self._tls

    async def _shared_client(self, key: _Key) -> Any:
        if key not in self._clients:
            self._clients[key] = await self._new_client(key, COLD_ATTEMPTS, COLD_CONNECTIONS)
        return self._clients[key]

    async def _new_client(
        self, key: _Key, attempts: int, connections: int, read_timeout: float = READ_TIMEOUT
    ) -> Any:
        from aiobotocore.config import AioConfig

        from poller.aws.sdk import refuse_cut_off_json

        service, region = key
        config = AioConfig(
            connect_timeout=10,
            read_timeout=read_timeout,
            max_pool_connections=connections,
            retries={"mode": "standard", "total_max_attempts": attempts},
            user_agent_extra=f"poller/{__version__}",
            # An emulator has no name for each bucket.
            s3={"addressing_style": "path"} if self._config.endpoint_url else None,
        )
        # botocore says ValueError of an endpoint that is no URL.
        refusals: tuple[type[Exception], ...] = (*foreign(), ValueError)
        try:
            create = self._creator(self._session(), region)
            client = await self._opened.enter_async_context(create(service, config=config))
        except refusals as error:
            raise translate(error, service=service, operation="client") from error
        refuse_cut_off_json(client)
        return client

    def _creator(self, session: Any, region: str | None) -> Callable[..., Any]:
        config = self._config
        return partial(
            session.create_client,
            region_name=region or config.region,
            endpoint_url=config.endpoint_url,
            verify=config.ca_bundle and str(config.ca_bundle),
        )

    def _session(self) -> Any:
        if self._botocore is None:
            self._botocore = self._new_session()
            self._botocore.register_component("credential_provider", self._credentials)
        return self._botocore

    def _new_session(self) -> Any:
        from aiobotocore.session import AioSession

        return AioSession(profile=self._config.profile)

    async def _load_credentials(self) -> Any:
        from botocore.exceptions import NoCredentialsError

        # A new session every time: the files are read again, and nothing that a provider keeps in memory is
        # trusted.
        session = self._new_session()
        source = await session.get_credentials()
        if source is None:
            raise NoCredentialsError
        return source if self._config.role_arn is None else self._assumed(session, source)

    def _assumed(self, session: Any, source: Any) -> Any:
        from aiobotocore.credentials import AioAssumeRoleCredentialFetcher, AioDeferredRefreshableCredentials

        fetcher = AioAssumeRoleCredentialFetcher(
            self._creator(session, None), source, self._config.role_arn, {"RoleSessionName": "poller"}
        )
        return AioDeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")


async def _endpoint_of(client: Any, service: str) -> str:
    """Return where `client` sends the hot calls of `service`; raises AwsError."""
    # Its `meta.endpoint_url` follows older rules, which are wrong for some variants (FIPS, dual-stack) of some regions.
    operation, meta = min(HOT_OPERATIONS[service]), client.meta
    event = f"before-endpoint-resolution.{meta.service_model.service_id.hyphenize()}"
    ours: dict[str, Any] = {}

    def for_all_accounts(builtins: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        # The account of the credentials has an endpoint of its own in newer rules, and streams may be those of others.
        if context is ours:
            for name in _OF_ACCOUNT:
                builtins.pop(name, None)

    meta.events.register(event, for_all_accounts)
    try:
        url, _, _ = await client._resolve_endpoint_ruleset(
            meta.service_model.operation_model(operation), {}, ours
        )
    except foreign() as error:
        raise translate(error, service=service, operation=operation) from error
    finally:
        meta.events.unregister(event, for_all_accounts)
    return str(url)
