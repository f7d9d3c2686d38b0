"""Every way to fail has one class, one line, and a cure; no line holds a secret."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError
from hypothesis import given
from hypothesis import strategies as st

from poller.aws.errors import disconnected, foreign, from_reply, plain, short_code, translate
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

URL = "https://user:pw@sqs.example:4566/?X-Amz-Signature=abc"
KEY = ConnectionKey("sqs.example", 443, True, True, None, None, None)


def wrapped(error: Exception) -> boto.BotoCoreError:
    return boto.ConnectionClosedError(endpoint_url=URL, error=error)


EXCEPTIONS: list[tuple[Exception, type[AwsError], str]] = [
    (boto.NoCredentialsError(), CredentialsInvalid, "NoCredentials"),
    (boto.PartialCredentialsError(provider="env", cred_var="secret"), CredentialsInvalid, "NoCredentials"),
    (boto.ProfileNotFound(profile="x"), CredentialsInvalid, "NoCredentials"),
    (
        boto.TokenRetrievalError(provider="sso", error_msg="expired"),
        CredentialsInvalid,
        "CredentialRetrieval",
    ),
    (boto.UnauthorizedSSOTokenError(), CredentialsInvalid, "CredentialRetrieval"),
    (boto.CredentialRetrievalError(provider="x", error_msg="y"), CredentialsInvalid, "CredentialRetrieval"),
    (aiohttp.ClientPayloadError("cut"), BadReply, "BadReply"),
    (wrapped(aiohttp.ClientPayloadError("cut")), BadReply, "BadReply"),
    (ResponseParserError("xml"), BadReply, "BadReply"),
    (boto.SSLError(endpoint_url=URL, error=OSError("bad")), Unreachable, "Tls"),
    (TimeoutError(), Unreachable, "Timeout"),
    (aiohttp.ServerTimeoutError("Timeout"), Unreachable, "Timeout"),
    (boto.ReadTimeoutError(endpoint_url=URL), Unreachable, "Timeout"),
    (boto.ConnectTimeoutError(endpoint_url=URL), Unreachable, "Timeout"),
    (boto.EndpointConnectionError(endpoint_url=URL), Unreachable, "Unreachable"),
    (wrapped(aiohttp.ServerDisconnectedError()), Unreachable, "Unreachable"),
    (aiohttp.ClientConnectorError(KEY, OSError(111, "refused")), Unreachable, "Unreachable"),
    (ConnectionResetError("reset"), Unreachable, "Unreachable"),
    (boto.NoRegionError(), RequestRefused, "Invalid"),
    (boto.ParamValidationError(report="Missing QueueUrl"), RequestRefused, "Invalid"),
]


@pytest.mark.parametrize(("exception", "kind", "code"), EXCEPTIONS)
def test_an_exception_becomes_one_of_ours(exception: Exception, kind: type[AwsError], code: str) -> None:
    error = translate(exception, service="sqs", operation="ReceiveMessage")
    assert (type(error), error.code, error.operation) == (kind, code, "ReceiveMessage")
    assert str(error).startswith("sqs ReceiveMessage")
    assert "pw" not in str(error)
    assert "abc" not in str(error)
    assert isinstance(exception, foreign())


def test_the_endpoint_is_named_where_the_connection_failed() -> None:
    error = translate(boto.ConnectTimeoutError(endpoint_url=URL), service="sqs", operation="ReceiveMessage")
    assert str(error).startswith("sqs ReceiveMessage at sqs.example:4566: ")
    error = translate(TimeoutError(), service="sqs", operation="ReceiveMessage", host="127.0.0.1:1")
    assert str(error).startswith("sqs ReceiveMessage at 127.0.0.1:1: TimeoutError; ")


def test_an_error_of_ours_stays_what_it_is() -> None:
    error = Throttled("x")
    assert translate(error, service="sqs", operation="ReceiveMessage") is error


def test_a_bug_is_not_foreign() -> None:
    assert not isinstance(KeyError("x"), foreign())


def test_a_refusal_by_sts_while_signing_is_told_as_such() -> None:
    reply: Any = {"Error": {"Code": "AccessDenied", "Message": "no"}}
    error = translate(boto.ClientError(reply, "AssumeRole"), service="sqs", operation="ReceiveMessage")
    assert str(error) == "sts AssumeRole: no (AccessDenied); the role needs sts:AssumeRole on the role"


def test_a_lost_connection_is_told_from_one_that_was_never_made() -> None:
    def caused(cause: Exception | None) -> AwsError:
        error = Unreachable()
        error.__cause__ = cause
        return error

    assert disconnected(caused(aiohttp.ServerDisconnectedError()))
    assert disconnected(caused(aiohttp.ClientOSError(104, "reset")))
    assert disconnected(caused(wrapped(aiohttp.ServerDisconnectedError())))
    assert not disconnected(caused(aiohttp.ClientConnectorError(KEY, OSError(111, "refused"))))
    assert not disconnected(caused(None))


REPLIES = [
    (
        400,
        "com.amazonaws.sqs#QueueDoesNotExist",
        "sqs",
        "ReceiveMessage",
        ResourceNotFound,
        "queue's name, account",
    ),
    (400, "ResourceNotFoundException", "kinesis", "GetRecords", ResourceNotFound, "check the stream's name"),
    (
        400,
        "AccessDeniedException",
        "sqs",
        "DeleteMessageBatch",
        AccessDenied,
        "needs sqs:DeleteMessage on the queue",
    ),
    (
        400,
        "AccessDeniedException",
        "dynamodbstreams",
        "GetRecords",
        AccessDenied,
        "dynamodb:GetRecords on the stream",
    ),
    (400, "AccessDeniedException", "lambda", "Invoke", AccessDenied, "lambda:InvokeFunction on the function"),
    (
        400,
        "KMSAccessDeniedException",
        "kinesis",
        "GetRecords",
        AccessDenied,
        "kms:Decrypt on the key of the stream",
    ),
    (403, "InvalidClientTokenId", "sqs", "ReceiveMessage", CredentialsInvalid, "refresh the credentials"),
    (403, "SignatureDoesNotMatch", "sqs", "ReceiveMessage", CredentialsInvalid, "this machine's clock"),
    (400, "ProvisionedThroughputExceededException", "kinesis", "GetRecords", Throttled, "more slowly"),
    (400, "InternalFailure", "sqs", "ReceiveMessage", ServiceFault, "tried again"),
    (408, "", "sqs", "ReceiveMessage", ServiceFault, "HTTP408"),
    (
        400,
        "ExpiredIteratorException",
        "kinesis",
        "GetRecords",
        RequestRefused,
        "check the stream and the endpoint",
    ),
    (413, "413", "glue", "X", RequestRefused, "check the resource and the endpoint"),
]


@pytest.mark.parametrize(("status", "code", "service", "operation", "kind", "cure"), REPLIES)
def test_a_reply_names_its_cure(
    status: int, code: str, service: str, operation: str, kind: type[AwsError], cure: str
) -> None:
    error = from_reply(status, code, "Some reason.", service=service, operation=operation)
    assert type(error) is kind
    assert cure in str(error)
    assert "\n" not in str(error)


def test_a_code_loses_its_namespace_and_its_url() -> None:
    assert short_code("com.amazonaws.sqs#QueueDoesNotExist") == "QueueDoesNotExist"
    assert short_code("aws.api#X:http://internal.example/") == "X"
    assert short_code("AWS.SimpleQueueService.NonExistentQueue") == "AWS.SimpleQueueService.NonExistentQueue"


LEAKY = [
    "Credential=AKIDX/20240101, SignedHeaders=host, Signature=SECRET1",
    "see https://sqs.example/?X-Amz-Security-Token=SECRET1&a=b",
    "proxy http://SECRET1:SECRET1@127.0.0.1:3128/ failed",
    "x-amz-security-token:SECRET1",
    "does not match.\n\nCanonical: SECRET1",
    "aws_secret_access_key = SECRET1",
]


@pytest.mark.parametrize("text", LEAKY)
def test_secrets_that_a_message_quotes_are_cut_out(text: str) -> None:
    assert "SECRET1" not in plain(text)
    assert "SECRET1" not in str(from_reply(400, "X", text, service="sqs", operation="ReceiveMessage"))


@given(st.text())
def test_what_is_said_is_one_short_line(text: str) -> None:
    said = plain(text)
    assert len(said) <= 300
    assert len(said.splitlines()) <= 1


@pytest.mark.parametrize(
    ("operation", "actions"),
    [
        ("SendMessage", "kms:GenerateDataKey and kms:Decrypt"),
        ("ReceiveMessage", "kms:Decrypt"),
    ],
)
def test_who_writes_to_an_encrypted_queue_needs_more_than_who_reads(operation: str, actions: str) -> None:
    error = from_reply(400, "KMS.AccessDeniedException", "no", service="sqs", operation=operation)
    assert str(error).endswith(f"the role needs {actions} on the key of the queue")
