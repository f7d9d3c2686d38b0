"""Calls through aiobotocore: the cold ones and, with ``wire = "sdk"``, the hot ones with equal results."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson
from botocore import xform_name

from poller.aws.calls import APART, HOT_OPERATIONS, Calls
from poller.aws.errors import bad_reply, disconnected, foreign, translate
from poller.errors import RequestRefused

if TYPE_CHECKING:
    from poller.aws.credentials import Credentials
    from poller.errors import AwsError
    from poller.ports import Observer


class SdkCalls(Calls):
    """Any calls of one service, with aiobotocore's own values (bytes, datetime), without its metadata."""

    def __init__(self, service: str, client: Any, credentials: Credentials, observer: Observer) -> None:
        super().__init__(service, observer, credentials)
        self._client = client

    async def _send(self, operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        method = getattr(self._client, xform_name(operation))
        try:
            async with asyncio.timeout(timeout):
                reply: dict[str, Any] = await method(**params)
        except foreign() as error:
            raise translate(error, service=self._service, operation=operation) from error
        reply.pop("ResponseMetadata", None)
        return reply


class SdkWire(SdkCalls):
    """The hot calls of one service. See `HotApi`; the client should not retry by itself."""

    async def _send(self, operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        if operation not in HOT_OPERATIONS[self._service]:
            raise RequestRefused(
                f"{operation} is not a hot operation of {self._service}", operation=operation
            )
        reply: dict[str, Any] = _plain(await super()._send(operation, params, timeout))
        name, _ = APART.get((self._service, operation), ("", b""))
        if name in reply:
            reply[name] = [orjson.dumps(one) for one in reply[name]]
        return reply

    async def _cure(self, failed: AwsError, begun: float, deadline: float) -> bool:
        # As on the fast wire, and for its reason.
        return disconnected(failed) or await super()._cure(failed, begun, deadline)


def refuse_cut_off_json(client: Any) -> None:
    """Make `client` raise `BadReply` for a 200 with cut-off JSON, which botocore reads as an empty reply."""
    client.meta.events.register("before-parse", _check_json, unique_id="poller-cut-off")


def _check_json(operation_model: Any, response_dict: dict[str, Any], **_: Any) -> None:
    if operation_model.has_event_stream_output:
        return  # no JSON, and not there yet
    service = operation_model.service_model
    if response_dict["status_code"] != 200 or service.resolved_protocol != "json":
        return
    if operation_model.output_shape is None and not response_dict["body"]:
        return
    try:
        whole = isinstance(orjson.loads(response_dict["body"]), dict)
    except orjson.JSONDecodeError:
        whole = False
    if not whole:
        raise bad_reply(service.service_name, operation_model.name)


def _plain(value: Any) -> Any:
    """Undo what botocore makes of JSON: bytes become base64 again, times Unix seconds."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return b64encode(value).decode()
    return value.timestamp() if isinstance(value, datetime) else value
