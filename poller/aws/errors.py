"""The one place where what botocore, aiohttp, our connections and AWS say of a failure becomes a `poller.errors.AwsError`.

The code decides the class; where AWS sent none, the HTTP status does. A message is one line: the call, the
endpoint where that helps, what AWS said, and the cure. AWS quotes parts of the request in some messages, so
signatures, tokens, query strings and user names in URLs are cut out of all of them.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from poller.errors import (
    AccessDenied,
    AwsError,
    BadReply,
    CredentialsInvalid,
    RequestRefused,
    ResourceNotFound,
    ServiceFault,
    Throttled,
    Unreachable,
)

#: The credentials were good once, or name a key that is gone: loading them again may help.
STALE_CREDENTIALS = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidToken",
        "TokenRefreshRequired",
        "UnrecognizedClientException",
    }
)

#: The signature was refused; a wrong clock is one cause, and says so in the reply's Date header.
SIGNATURE_REFUSED = frozenset(
    {
        "InvalidSignature",
        "InvalidSignatureException",
        "RequestExpired",
        "RequestInTheFuture",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
    }
)

_CODES: dict[type[AwsError], frozenset[str]] = {
    ResourceNotFound: frozenset(
        {
            "AWS.SimpleQueueService.NonExistentQueue",
            "NoSuchBucket",
            "NonExistentQueue",
            "NotFound",
            "NotFoundException",
            "QueueDoesNotExist",
            "ResourceNotFound",
            "ResourceNotFoundException",
        }
    ),
    AccessDenied: frozenset(
        {
            "AccessDenied",
            "AccessDeniedException",
            "AuthorizationError",
            "AuthorizationErrorException",
            "KMS.AccessDeniedException",
            "KMSAccessDenied",
            "KMSAccessDeniedException",
            "KmsAccessDenied",
            "NotAuthorized",
            "OptInRequired",
            "UnauthorizedOperation",
        }
    ),
    CredentialsInvalid: STALE_CREDENTIALS
    | SIGNATURE_REFUSED
    | {
        "AuthFailure",
        "IncompleteSignature",
        "IncompleteSignatureException",
        "InvalidSecurity",
        "MissingAuthenticationToken",
        "MissingAuthenticationTokenException",
    },
    Throttled: frozenset(
        {
            "BandwidthLimitExceeded",
            "EC2ThrottledException",
            "KMS.ThrottlingException",
            "KMSThrottlingException",
            "KmsThrottled",
            "LimitExceededException",
            "OverLimit",
            "PriorRequestNotComplete",
            "ProvisionedThroughputExceededException",
            "RequestLimitExceeded",
            "RequestThrottled",
            "RequestThrottledException",
            "SlowDown",
            "ThrottledException",
            "Throttling",
            "ThrottlingException",
            "TooManyRequestsException",
            "TransactionInProgressException",
        }
    ),
    ServiceFault: frozenset(
        {
            "InternalError",
            "InternalFailure",
            "InternalFailureException",
            "InternalServerError",
            "InternalServerException",
            "RequestTimeout",
            "RequestTimeoutException",
            "ServiceUnavailable",
            "ServiceUnavailableException",
        }
    ),
}
_CLASS_OF = {code: kind for kind, codes in _CODES.items() for code in codes}

_THINGS = {
    "dynamodb": "table",
    "dynamodbstreams": "stream",
    "events": "event bus",
    "kinesis": "stream",
    "lambda": "function",
    "s3": "bucket",
    "sns": "topic",
    "sqs": "queue",
    "sts": "role",
}
_IAM_PREFIX = {"dynamodbstreams": "dynamodb"}
_IAM_ACTIONS = {
    "ChangeMessageVisibilityBatch": "ChangeMessageVisibility",
    "DeleteMessageBatch": "DeleteMessage",
    "SendMessageBatch": "SendMessage",
    "Invoke": "InvokeFunction",
}

_ENCRYPTS = frozenset({"Publish", "PutEvents", "PutObject", "SendMessage", "SendMessageBatch"})

_NAMED_SECRETS = re.compile(
    r"(?i)\b(signature|credential|x-amz-[a-z0-9-]+|awsaccesskeyid|aws_secret_access_key|aws_session_token)"
    r"\s*[=:]\s*[^\s,;&'\"]+"
)
_QUERY_STRING = re.compile(r"(\w+://[^\s?'\"]*)\?[^\s'\"]*")
_USER_INFO = re.compile(r"(\w+://)[^\s/@]+@")


def translate(exception: BaseException, *, service: str, operation: str, host: str = "") -> AwsError:
    """Return what `exception` means; raise the result ``from`` it. An `AwsError` is returned as it is."""
    if isinstance(exception, AwsError):
        return exception
    response = getattr(exception, "response", None)
    if isinstance(response, dict):
        return _from_client_error(exception, response, service, operation)
    kind, code, cure = _kind_of(exception)
    where = f" at {host or _host_of(exception)}" if issubclass(kind, Unreachable | BadReply) else ""
    said = plain(_said(exception))
    return kind(
        f"{service} {operation}{where.removesuffix(' at ')}: {said}; {cure}", code=code, operation=operation
    )


def from_reply(status: int, code: str, message: str, *, service: str, operation: str) -> AwsError:
    """Return the error that AWS replied, from the HTTP status, its code (any spelling) and its message."""
    code = short_code(code)
    if not code or code.isdigit():
        code, message = f"HTTP{status}", ""
    kind = _CLASS_OF.get(code) or _class_of_status(status)
    said = plain(message)
    what = f"{said} ({code})" if said else code
    return kind(
        f"{service} {operation}: {what}; {_cure(kind, code, service, operation)}",
        code=code,
        operation=operation,
    )


def bad_reply(service: str, operation: str) -> BadReply:
    """Return the error for a reply of status 200 that is not one JSON object, whole."""
    said = "the reply is cut off or no JSON object"
    return BadReply(f"{service} {operation}: {said}; it is tried again", code="BadReply", operation=operation)


def short_code(code: str) -> str:
    """Return the code without the model's name in front of it or a URL behind it."""
    return code.split(":", 1)[0].rsplit("#", 1)[-1]


def plain(text: str) -> str:
    """Return the first line of `text`, without anything secret, at most 300 characters."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    first = _USER_INFO.sub(r"\1", _QUERY_STRING.sub(r"\1", first))
    return _NAMED_SECRETS.sub(r"\1=...", first)[:300].rstrip(" .:;")


def disconnected(error: AwsError) -> bool:
    """Return whether the server broke an established connection before any of its reply had come."""
    from aiohttp import ClientConnectorError, ClientOSError, ServerDisconnectedError

    from poller.aws.connection import Disconnected

    cause = error.__cause__ and _root(error.__cause__)
    return isinstance(cause, Disconnected | ServerDisconnectedError | ClientOSError) and not isinstance(
        cause, ClientConnectorError
    )


def unsent(error: AwsError) -> bool:
    """Return whether there was no connection to send the request on."""
    from aiohttp import ClientConnectorError, ClientHttpProxyError, ConnectionTimeoutError

    cause = error.__cause__ and _root(error.__cause__)
    return isinstance(cause, ClientConnectorError | ClientHttpProxyError | ConnectionTimeoutError)


@cache
def foreign() -> tuple[type[Exception], ...]:
    """Return the exceptions that `translate` is for; any other one is a bug and should stay what it is."""
    from aiohttp import ClientError
    from botocore.exceptions import BotoCoreError
    from botocore.exceptions import ClientError as Refusal
    from botocore.parsers import ResponseParserError

    from poller.aws.connection import BrokenReply

    return (BrokenReply, ClientError, Refusal, BotoCoreError, ResponseParserError, OSError)


def _from_client_error(
    exception: BaseException, response: dict[str, Any], service: str, operation: str
) -> AwsError:
    # Signing a request may itself call AWS for credentials; then that call is the one to name.
    called = getattr(exception, "operation_name", operation)
    if called != operation:
        service, operation = "sts", called
    said = response.get("Error", {})
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
    return from_reply(
        status, said.get("Code") or "", said.get("Message") or "", service=service, operation=operation
    )


def _class_of_status(status: int) -> type[AwsError]:
    if status == 403:
        return AccessDenied
    if status == 429:
        return Throttled
    return ServiceFault if status >= 500 or status == 408 else RequestRefused


def _cure(kind: type[AwsError], code: str, service: str, operation: str) -> str:
    thing = _THINGS.get(service, "resource")
    if kind is ResourceNotFound:
        return f"check the {thing}'s name, account and region"
    if kind is AccessDenied:
        return _permission(code, service, operation, thing)
    if kind is CredentialsInvalid:
        return (
            "check the secret access key and this machine's clock" if code in SIGNATURE_REFUSED else _REFRESH
        )
    if kind is Throttled:
        return "it is tried again more slowly"
    if kind is ServiceFault:
        return "it is tried again"
    return f"check the {thing} and the endpoint"


def _permission(code: str, service: str, operation: str, thing: str) -> str:
    if code.upper().startswith("KMS"):
        actions = "kms:GenerateDataKey and kms:Decrypt" if operation in _ENCRYPTS else "kms:Decrypt"
        return f"the role needs {actions} on the key of the {thing}"
    action = _IAM_ACTIONS.get(operation, operation)
    return f"the role needs {_IAM_PREFIX.get(service, service)}:{action} on the {thing}"


_REFRESH = "refresh the credentials"
_Kind = tuple[type[AwsError], str, str]


def _kind_of(exception: BaseException) -> _Kind:
    return next((kind for types, kind in _kinds() if isinstance(_root(exception), types)), _OTHERWISE)


_OTHERWISE: _Kind = (RequestRefused, "Invalid", "check the [aws] table of the configuration")


@cache
def _kinds() -> tuple[tuple[tuple[type[BaseException], ...], _Kind], ...]:
    """The classes of exceptions that carry no reply, the narrower before the wider."""
    import ssl

    import aiohttp
    from botocore import exceptions as boto
    from botocore.parsers import ResponseParserError

    from poller.aws.connection import BrokenReply
    from poller.aws.dial import ProxyRefused

    no_credentials = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound)
    stale = (
        boto.CredentialRetrievalError,
        boto.MetadataRetrievalError,
        boto.RefreshWithMFAUnsupportedError,
        boto.SSOError,
        boto.TokenRetrievalError,
    )
    cut_off = (aiohttp.ClientPayloadError, aiohttp.ClientResponseError, ResponseParserError)
    proxy = (ProxyRefused, aiohttp.ClientHttpProxyError)
    tls = (aiohttp.ClientSSLError, boto.SSLError, ssl.SSLError)
    late = (TimeoutError, boto.ReadTimeoutError, boto.ConnectTimeoutError)
    broken = (aiohttp.ClientError, boto.HTTPClientError, boto.ConnectionError, OSError)
    return (
        (
            no_credentials,
            (CredentialsInvalid, "NoCredentials", "give poller credentials, or a role, or a profile"),
        ),
        (stale, (CredentialsInvalid, "CredentialRetrieval", _REFRESH)),
        ((BrokenReply,), (BadReply, "BadReply", "it is tried again")),
        (
            proxy,
            (Unreachable, "Proxy", "check HTTPS_PROXY, HTTP_PROXY and NO_PROXY of the environment"),
        ),
        (cut_off, (BadReply, "BadReply", "the reply was cut off or is not HTTP; it is tried again")),
        (tls, (Unreachable, "Tls", "check the certificate and [aws] ca_bundle")),
        (late, (Unreachable, "Timeout", "the endpoint did not answer in time; it is tried again")),
        (broken, (Unreachable, "Unreachable", "check the network and [aws] endpoint_url")),
    )


def _root(exception: BaseException) -> BaseException:
    # aiobotocore wraps a cut-off reply and a lost connection in one class; what it wraps tells them apart.
    wrapped = getattr(exception, "kwargs", {}).get("error")
    return (
        wrapped if isinstance(wrapped, BaseException) and "aiohttp" in type(wrapped).__module__ else exception
    )


def _said(exception: BaseException) -> str:
    report = getattr(exception, "kwargs", {}).get(
        "report"
    )  # botocore's finding, below a headline that says nothing
    return str(report or _root(exception)) or type(_root(exception)).__name__


def _host_of(exception: BaseException) -> str:
    return urlsplit(str(getattr(exception, "kwargs", {}).get("endpoint_url", ""))).netloc.rpartition("@")[2]
