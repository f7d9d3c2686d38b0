"""Lambda's context object: what a Python handler gets as its second argument."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from poller.model import Invocation


def _new_log_stream() -> str:
    return f"{datetime.now(UTC):%Y/%m/%d}/[$LATEST]{uuid4().hex}"


@dataclass(frozen=True, slots=True)
class FunctionIdentity:
    """What a function is called and what it may use; the same for all of its invocations."""

    name: str
    arn: str
    memory_size: int
    version: str = "$LATEST"
    log_stream_name: str = field(default_factory=_new_log_stream)

    @property
    def log_group_name(self) -> str:
        """The log group that Lambda would write to."""
        return f"/aws/lambda/{self.name}"


class CognitoIdentity:
    """Always there, always empty: no mapping has a Cognito caller."""

    __slots__ = ("__dict__", "cognito_identity_id", "cognito_identity_pool_id")

    def __init__(self) -> None:
        self.cognito_identity_id: str | None = None
        self.cognito_identity_pool_id: str | None = None


class LambdaContext:
    """The members and types of Lambda's own, for one invocation. `memory_limit_in_mb` is a string there
    too. A handler may keep things of its own in it."""

    __slots__ = (
        "__dict__",
        "_deadline",
        "aws_request_id",
        "client_context",
        "function_name",
        "function_version",
        "identity",
        "invoked_function_arn",
        "log_group_name",
        "log_stream_name",
        "memory_limit_in_mb",
        "tenant_id",
    )

    def __init__(self, function: FunctionIdentity, invocation: Invocation) -> None:
        self.function_name = function.name
        self.function_version = function.version
        self.memory_limit_in_mb = str(function.memory_size)
        self.log_group_name = function.log_group_name
        self.log_stream_name = function.log_stream_name
        self.invoked_function_arn = invocation.function_arn
        self.aws_request_id = invocation.request_id
        self.identity = CognitoIdentity()
        self.client_context = None
        self.tenant_id: str | None = None
        self._deadline = invocation.deadline

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds until the function times out, never below 0."""
        return max(0, int(self._deadline * 1000) - int(time.time() * 1000))

    def log(self, msg: object) -> None:
        """Write `msg` to standard output as it is; a line break is the caller's to add."""
        sys.stdout.write(str(msg))

    def __repr__(self) -> str:
        return f"LambdaContext(aws_request_id={self.aws_request_id}, function_name={self.function_name})"
