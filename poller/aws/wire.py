"""The hot calls without an SDK: a signed POST on a connection of our own, the reply through orjson into plain dicts.

A reply is taken only when it is whole: a body shorter than its Content-Length, JSON that ends early or JSON
that is no object is `BadReply`, never an empty receive, because the messages in it are in flight and their
mapping must hear of trouble.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson

from poller.aws.calls import APART, HOT_OPERATIONS, Calls
from poller.aws.errors import (
    SIGNATURE_REFUSED,
    bad_reply,
    disconnected,
    foreign,
    from_reply,
    short_code,
    translate,
)
from poller.aws.signing import ServerClock, Signer
from poller.aws.slices import WORTH_CUTTING, apart, loads
from poller.errors import AwsError, RequestRefused

if TYPE_CHECKING:
    from poller.aws.connection import Reply
    from poller.aws.credentials import Credentials, Frozen
    from poller.aws.pool import Pool
    from poller.aws.signing import Target
    from poller.ports import Observer

_PROTOCOLS = {
    "sqs": ("sqs", "AmazonSQS", "1.0"),
    "kinesis": ("kinesis", "Kinesis_20131202", "1.1"),
    "dynamodbstreams": ("dynamodb", "DynamoDBStreams_20120810", "1.0"),
}


class Wire(Calls):
    """The hot calls of one service at one endpoint. See `HotApi`."""

    def __init__(
        self,
        service: str,
        region: str,
        where: Target,
        credentials: Credentials,
        pool: Pool,
        observer: Observer,
    ) -> None:
        super().__init__(service, observer, credentials)
        signing_name, prefix, version = _PROTOCOLS[service]
        self._host = where.host
        self._pool = pool
        self._server_clock = ServerClock()
        # Large replies of several shards are read one after the other, so that a turn of the loop is held up by a slice of
        # one of them only.
        self._large = asyncio.Lock()
        self._targets = {name: f"{prefix}.{name}" for name in HOT_OPERATIONS[service]}
        content_type = f"application/x-amz-json-{version}"
        self._signer = Signer(signing_name, region, where, content_type, self._server_clock)

    async def _send(self, operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        if operation not in self._targets:
            raise RequestRefused(
                f"{operation} is not a hot operation of {self._service}", operation=operation
            )
        body = orjson.dumps(params)
        try:
            frozen = self._credentials.cached() or await self._fetched(timeout)
            headers = self._signer.headers(self._targets[operation], body, frozen)
            reply = await self._pool.post(headers, body, timeout)
        except foreign() as error:
            raise translate(error, service=self._service, operation=operation, host=self._host) from error
        if reply.status == 200:
            return await self._read(operation, reply.body)
        raise self._refusal(operation, reply)

    async def _fetched(self, timeout: float) -> Frozen:
        async with asyncio.timeout(timeout):
            return await self._credentials.get_frozen_credentials()

    async def _read(self, operation: str, reply: bytes) -> dict[str, Any]:
        try:
            if array := APART.get((self._service, operation)):
                parsed: Any = apart(reply, *array)
            elif len(reply) < WORTH_CUTTING:
                parsed = await loads(reply)
            else:
                async with self._large:
                    parsed = await loads(reply)
        except orjson.JSONDecodeError as error:
            raise bad_reply(self._service, operation) from error
        if not isinstance(parsed, dict):
            raise bad_reply(self._service, operation)
        return parsed

    def _refusal(self, operation: str, reply: Reply) -> AwsError:
        said = _error_body(reply.body)
        code = str(said.get("__type") or said.get("code") or reply.header("x-amzn-errortype"))
        # SQS spoke another protocol once; this header keeps the codes it had then, and the SDKs report those.
        legacy = reply.header("x-amzn-query-error").split(";")
        if len(legacy) == 2 and legacy[0]:
            code = legacy[0]
        if short_code(code) in SIGNATURE_REFUSED:
            self._server_clock.compare(reply.header("Date"))
        message = said.get("message") or said.get("Message") or ""
        return from_reply(reply.status, code, str(message), service=self._service, operation=operation)

    async def _cure(self, failed: AwsError, begun: float, deadline: float) -> bool:
        # A connection that the server closed while it was idle fails only once it is used. Nothing of the
        # reply had come, so whether the request was carried out is unknown. Sending it again is right even
        # for a receive: if the first one did take messages they are out of sight either way, and come back
        # when their visibility ends.
        if disconnected(failed):
            self._pool.forget()
            return True
        if failed.code in SIGNATURE_REFUSED:
            return self._server_clock.corrected_since(begun)
        return await super()._cure(failed, begun, deadline)


def _error_body(reply: bytes) -> dict[str, Any]:
    try:
        said = orjson.loads(reply)
    except orjson.JSONDecodeError:
        return {}
    return said if isinstance(said, dict) else {}
