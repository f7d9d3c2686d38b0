"""What both wires promise and do alike: report each request, cure what can be cured, retry what may be.

A call is one request, except that

* a cause which `_cure` removes (credentials that had expired, a wrong clock, a connection that had gone
  stale) is worth one more request at once;
* settling and seeking are idempotent, so their transient failures are retried a few times with jitter.
  Reading is not retried here: the reader backs off, and is seen to.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

from poller.aws.errors import STALE_CREDENTIALS, foreign, translate
from poller.errors import AwsError
from poller.model import ApiRequest

if TYPE_CHECKING:
    from tenacity import RetryCallState

    from poller.aws.credentials import Credentials
    from poller.ports import Observer

#: The operations worth a wire of their own: those that run for every batch, empty or not, or for every shard.
HOT_OPERATIONS = {
    "sqs": frozenset({"ReceiveMessage", "DeleteMessageBatch", "ChangeMessageVisibilityBatch"}),
    "kinesis": frozenset({"GetRecords", "GetShardIterator"}),
    "dynamodbstreams": frozenset({"GetRecords", "GetShardIterator"}),
}
#: Replies of which one array is left as JSON, each of its objects as bytes, for who reads them knows better when to parse
#: them: the array, and the beginning of a member that each object has and that can be in no other place. The attributes of
#: an item are objects, so only a record of the stream has a string there.
APART = {("dynamodbstreams", "GetRecords"): ("Records", b'"SequenceNumber":"')}
RETRIED = frozenset({"DeleteMessageBatch", "ChangeMessageVisibilityBatch", "GetShardIterator"})
ATTEMPTS = 4


class HotApi(Protocol):
    """The hot calls of one service in one region."""

    async def call(self, operation: str, params: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        """Call `operation`; return the reply as plain JSON: binary values as base64, times as Unix seconds; see also `APART`.

        All of it, retries included, takes `timeout` seconds at most, so a long poll needs more than its wait.
        Raises `poller.errors.AwsError` only. May be called from many tasks at once.
        """
        ...


class Calls(ABC):
    """The calls of one service in one region. A subclass sends one request; the policy around it is here."""

    def __init__(self, service: str, observer: Observer, credentials: Credentials) -> None:
        self._service = service
        self._observer = observer
        self._credentials = credentials
        self._clock = time.monotonic
        self._sleep = asyncio.sleep

    @abstractmethod
    async def _send(self, operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Send one request and return the reply, or raise an `AwsError`."""

    async def call(self, operation: str, params: dict[str, Any], *, timeout: float) -> dict[str, Any]:
        """See `HotApi.call`."""
        begun = self._clock()
        deadline = begun + timeout
        try:
            return await self._request(operation, params, deadline)
        except AwsError as error:
            failed = error
        if await self._cure(failed, begun, deadline):
            try:
                return await self._request(operation, params, deadline)
            except AwsError as error:
                failed = error
        if operation not in RETRIED or not failed.transient:
            raise failed
        return await self._again(failed, operation, params, deadline)

    async def _request(self, operation: str, params: dict[str, Any], deadline: float) -> dict[str, Any]:
        begun = self._clock()
        try:
            reply = await self._send(operation, params, max(deadline - begun, 0.001))
        except AwsError as error:
            self._tell(operation, error.code or type(error).__name__, begun)
            raise
        self._tell(operation, "ok", begun)
        return reply

    async def _cure(self, failed: AwsError, begun: float, deadline: float) -> bool:
        """Remove the cause why a request begun at `begun` `failed`; True when it may now succeed."""
        if failed.code not in STALE_CREDENTIALS:
            return False
        try:
            async with asyncio.timeout(deadline - self._clock()):
                return await self._credentials.renew(begun)
        except foreign() as error:
            raise translate(error, service=self._service, operation=failed.operation) from error

    async def _again(
        self, failed: AwsError, operation: str, params: dict[str, Any], deadline: float
    ) -> dict[str, Any]:
        from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential

        def enough(state: RetryCallState) -> bool:
            return state.attempt_number >= ATTEMPTS or self._clock() + state.upcoming_sleep >= deadline

        first = [failed]

        async def attempt() -> dict[str, Any]:
            # The policy has to see the failure that brought us here, to count it and to wait after it.
            if first:
                raise first.pop()
            return await self._request(operation, params, deadline)

        policy = AsyncRetrying(
            stop=enough,
            wait=wait_random_exponential(multiplier=0.1, max=2),
            retry=retry_if_exception(lambda error: isinstance(error, AwsError) and error.transient),
            reraise=True,
            sleep=self._sleep,
        )
        return await policy(attempt)

    def _tell(self, operation: str, outcome: str, begun: float) -> None:
        self._observer.api_request(ApiRequest(self._service, operation, outcome, self._clock() - begun))
