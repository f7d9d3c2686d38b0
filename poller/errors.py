"""The error tree, told apart by what the reader should do about it.

=====================  ==========================================================
ConfigError            correct the file; nothing was started
FunctionInitError      correct the function's code or its name in the file
FunctionFailed         look at the function that the mapping names as its destination
StoreError             look at the state file or table: damaged, newer, full, or not writable
SeekRefused            ask for another place in the stream
ReplayRefused          ask for another replay
SourceUnfit            correct the queue's settings, or the mapping's
DocumentTooLarge       name a destination that takes more, such as an S3 bucket
AwsError               look at its class: some pass by themselves (`transient`),
                       some want a permission, a queue or fresh credentials
anything else          a bug in poller: report it
=====================  ==========================================================

A class's docstring is its default message. botocore's and aiohttp's exceptions end in `poller.aws.errors`; nothing above
it sees them except as ``__cause__``.
"""

from __future__ import annotations

from typing import ClassVar


class PollerError(Exception):
    """Something went wrong that poller has a name for."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip().splitlines()[0])


class ConfigError(PollerError):
    """The configuration is not valid."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class SourceUnfit(PollerError):
    """The queue's own settings do not go together with the mapping."""


class StoreError(PollerError):
    """The state store cannot be read or written."""


class SeekRefused(PollerError):
    """The mapping cannot be moved to that place."""


class ReplayRefused(PollerError):
    """That replay makes no sense for this mapping."""


class DocumentTooLarge(PollerError):
    """The destination takes no document of this size."""


class FunctionFailed(PollerError):
    """A function that is a destination has failed, or could not be invoked."""


class FunctionInitError(PollerError):
    """The function's handler cannot be loaded."""

    def __init__(self, error_type: str, message: str, stack_trace: tuple[str, ...] = ()) -> None:
        self.error_type = error_type
        self.stack_trace = stack_trace
        super().__init__(message)


class AwsError(PollerError):
    """A call to AWS failed."""

    #: True when the same call may succeed later without anybody doing anything.
    transient: ClassVar[bool] = False

    def __init__(self, message: str | None = None, *, code: str = "", operation: str = "") -> None:
        self.code = code
        self.operation = operation
        super().__init__(message)


class ResourceNotFound(AwsError):
    """The queue or stream does not exist."""


class ShardGone(ResourceNotFound):
    """The stream has this shard no more: all of its records have passed its retention, or it was created anew."""

    CODE: ClassVar[str] = "ShardGone"


class AccessDenied(AwsError):
    """The credentials lack a permission."""


class CredentialsInvalid(AwsError):
    """The credentials are missing, wrong or expired."""


class RequestRefused(AwsError):
    """AWS refused the request as it stands."""


class Throttled(AwsError):
    """AWS asks for fewer requests."""

    transient = True


class ServiceFault(AwsError):
    """AWS answered with a fault of its own."""

    transient = True


class Unreachable(AwsError):
    """The endpoint cannot be reached, or broke the connection."""

    transient = True


class BadReply(AwsError):
    """The endpoint's reply is cut off or is not what the protocol says."""

    transient = True
