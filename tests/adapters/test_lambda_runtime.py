"""What is particular to functions in AWS Lambda: what is asked for, what each answer means, and a real emulator."""

from __future__ import annotations

import asyncio
import io
import json
import time
import zipfile
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from poller.aws.session import AwsSession
from poller.config import Aws
from poller.model import FunctionError, Invocation, Refused, Returned
from poller.runtimes.remote import MAX_REQUEST_BYTES, LambdaRuntime
from tests.scripted_aws import Close, CutOff, Hold, Raw, ScriptedAws, Step
from tests.scripted_session import LOADER, Facts, open_aws

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from poller.demo.emulator import Emulator
    from poller.model import Reply

pytestmark = pytest.mark.anyio

ARN = "arn:aws:lambda:eu-west-1:123456789012:function:orders"


@pytest.fixture
async def aws() -> AsyncIterator[ScriptedAws]:
    async with open_aws() as scripted:
        yield scripted


@pytest.fixture
def facts() -> Facts:
    return Facts()


@pytest.fixture
async def runtime(aws: ScriptedAws, facts: Facts) -> AsyncIterator[LambdaRuntime]:
    async with AwsSession(Aws(endpoint_url=aws.endpoint), facts) as session:
        yield LambdaRuntime(lambda: session)


async def invoke(runtime: LambdaRuntime, event: Any = None, arn: str = ARN) -> Reply:
    runtime.open()
    assert await runtime.ready("request-1") is None
    reply = await runtime.invoke(Invocation("request-1", event or {}, time.time() + 30, arn))
    await runtime.aclose()
    return reply


def said(body: bytes = b"null", **headers: str) -> Raw:
    return Raw(body, headers={name.replace("_", "-"): value for name, value in headers.items()})


def refused(status: int, code: str, **body: str) -> Raw:
    return Raw(json.dumps(body).encode(), status, {"x-amzn-ErrorType": code})


@pytest.mark.parametrize(
    ("arn", "qualifier"),
    [(ARN, ""), (f"{ARN}:live", "live"), (f"{ARN}:7", "7"), (f"{ARN}:$LATEST", "$LATEST")],
)
async def test_the_event_goes_to_the_version_or_alias_that_the_mapping_names(
    aws: ScriptedAws, runtime: LambdaRuntime, arn: str, qualifier: str
) -> None:
    aws.script("Invoke", said(b'{"batchItemFailures": []}'))
    assert await invoke(runtime, {"Records": ["é"]}, arn) == Returned({"batchItemFailures": []})
    (call,) = aws.calls("Invoke")
    assert json.loads(call.params.pop("Payload")) == {"Records": ["é"]}
    assert call.params == {"FunctionName": ARN, "Qualifier": qualifier}
    assert call.headers["x-amz-invocation-type"] == "RequestResponse"


async def test_a_function_is_invoked_in_its_own_region(aws: ScriptedAws, runtime: LambdaRuntime) -> None:
    aws.script("Invoke", said())
    assert await invoke(runtime, arn=ARN.replace("eu-west-1", "us-east-2")) == Returned(None)
    assert "/us-east-2/lambda/" in aws.calls("Invoke")[0].headers["authorization"]


@pytest.mark.parametrize(
    ("body", "value"), [(b"null", None), (b"", None), (b"[1]", [1]), (b"not json", "not json")]
)
async def test_the_result_is_the_payload(
    aws: ScriptedAws, runtime: LambdaRuntime, body: bytes, value: Any
) -> None:
    aws.script("Invoke", said(body))
    assert await invoke(runtime) == Returned(value)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (
            b'{"errorMessage": "no 7", "errorType": "LookupError", "requestId": "r", "stackTrace": ["  File x"]}',
            FunctionError("LookupError", "no 7", ("  File x",)),
        ),
        (
            b'{"errorType": "Error", "errorMessage": "no 7", "trace": ["Error: no 7", "at x"]}',
            FunctionError("Error", "no 7", ("Error: no 7", "at x")),
        ),
        (
            b'{"errorType": "Sandbox.Timedout", "errorMessage": "RequestId: r Error: Task timed out after 3.00 seconds"}',
            FunctionError(
                "Sandbox.Timedout", "RequestId: r Error: Task timed out after 3.00 seconds", timed_out=True
            ),
        ),
        (
            b'{"errorMessage": "2020-01-01 r Task timed out after 3.00 seconds"}',
            FunctionError("Unhandled", "2020-01-01 r Task timed out after 3.00 seconds", timed_out=True),
        ),
        (b'"a text"', FunctionError("Unhandled", "a text")),
        (b"not json", FunctionError("Unhandled", "not json")),
        (b"", FunctionError("Unhandled", "")),
    ],
)
async def test_the_functions_error_is_read_off_the_payload(
    aws: ScriptedAws, runtime: LambdaRuntime, body: bytes, error: FunctionError
) -> None:
    aws.script("Invoke", said(body, X_Amz_Function_Error="Unhandled"))
    assert await invoke(runtime) == error


async def test_a_reply_tells_which_version_ran_and_an_error_all_that_the_function_said(
    aws: ScriptedAws, runtime: LambdaRuntime
) -> None:
    error = b'{"errorType": "a.B", "errorMessage": "no 7", "cause": {"errorMessage": "no 8"}}'
    headers = {"X_Amz_Executed_Version": "12"}
    aws.script(
        "Invoke",
        said(b"1", **headers),
        said(b"no JSON", **headers),
        said(error, X_Amz_Function_Error="Unhandled", **headers),
    )
    assert await invoke(runtime) == Returned(1, "12")
    assert await invoke(runtime) == Returned("no JSON", "12")
    failed = await invoke(runtime)
    assert isinstance(failed, FunctionError)
    assert (failed.version, failed.said) == ("12", json.loads(error))


async def test_an_error_object_without_the_header_is_a_result_like_any_other(
    aws: ScriptedAws, runtime: LambdaRuntime
) -> None:
    aws.script("Invoke", said(b'{"errorType": "E", "errorMessage": "m"}'))
    assert await invoke(runtime) == Returned({"errorType": "E", "errorMessage": "m"})


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (
            refused(
                429, "TooManyRequestsException", message="Rate Exceeded.", Reason="CallerRateLimitExceeded"
            ),
            "lambda Invoke: Rate Exceeded (TooManyRequestsException); it is tried again more slowly",
        ),
        (
            refused(500, "ServiceException", Message="Internal"),
            "lambda Invoke: Internal (ServiceException); it is tried again",
        ),
        (
            refused(502, "EC2ThrottledException", Message="slow"),
            "lambda Invoke: slow (EC2ThrottledException); it is tried again more slowly",
        ),
        (
            refused(404, "ResourceNotFoundException", Message=f"Function not found: {ARN}"),
            (
                f"lambda Invoke: Function not found: {ARN} (ResourceNotFoundException);"
                " check the function's name, account and region"
            ),
        ),
        (
            refused(403, "AccessDeniedException", Message="not authorized to perform: lambda:InvokeFunction"),
            (
                "lambda Invoke: not authorized to perform: lambda:InvokeFunction (AccessDeniedException);"
                " the role needs lambda:InvokeFunction on the function"
            ),
        ),
        (
            refused(409, "ResourceConflictException", Message="The function is Pending"),
            (
                "lambda Invoke: The function is Pending (ResourceConflictException);"
                " check the function and the endpoint"
            ),
        ),
    ],
)
async def test_what_kept_lambda_from_running_the_function_is_no_attempt_and_says_why(
    aws: ScriptedAws, runtime: LambdaRuntime, step: Step, reason: str
) -> None:
    aws.script("Invoke", step)
    assert await invoke(runtime) == Refused(reason)
    assert len(aws.calls("Invoke")) == 1


@pytest.mark.parametrize("code", ["RequestTooLargeException", "InvalidRequestContentException"])
async def test_an_event_that_lambda_does_not_take_is_an_attempt(
    aws: ScriptedAws, runtime: LambdaRuntime, code: str
) -> None:
    aws.script("Invoke", refused(413, code, message="no"))
    reply = await invoke(runtime)
    assert isinstance(reply, FunctionError)
    assert reply.error_type == code


async def test_an_event_over_six_megabytes_is_not_even_sent(aws: ScriptedAws, runtime: LambdaRuntime) -> None:
    aws.script("Invoke", said())
    assert await invoke(runtime, "x" * (MAX_REQUEST_BYTES - 2)) == Returned(None)
    text = "6291457 byte payload is too large for the RequestResponse invocation type (limit 6291456 bytes)"
    assert await invoke(runtime, "x" * (MAX_REQUEST_BYTES - 1)) == FunctionError(
        "RequestTooLargeException", text
    )
    assert len(aws.calls("Invoke")) == 1


async def test_a_reply_over_six_megabytes_is_lambdas_error(aws: ScriptedAws, runtime: LambdaRuntime) -> None:
    aws.script("Invoke", said(b'"' + b"x" * 6_291_556 + b'"'))
    reply = await invoke(runtime)
    assert isinstance(reply, FunctionError)
    assert reply.error_type == "Function.ResponseSizeTooLarge"


@pytest.mark.parametrize("step", [Close(), Close(after=20), CutOff(honest=False)])
async def test_a_connection_that_breaks_once_the_event_was_sent_is_an_attempt(
    aws: ScriptedAws, runtime: LambdaRuntime, step: Step
) -> None:
    aws.always("Invoke", step)
    aws.script("Invoke", step)
    reply = await invoke(runtime)
    assert isinstance(reply, FunctionError), reply
    assert reply.error_type == "Lambda.ConnectionLost"
    assert reply.error_message.endswith("; the function may have run")
    assert len(aws.calls("Invoke")) == 1


async def test_an_endpoint_that_cannot_be_connected_to_is_no_attempt(aws: ScriptedAws) -> None:
    async with AwsSession(Aws(endpoint_url="http://127.0.0.1:1"), Facts()) as session:
        reply = await invoke(LambdaRuntime(lambda: session))
    assert isinstance(reply, Refused)
    assert reply.reason.startswith("lambda Invoke at 127.0.0.1:1: ")


async def test_credentials_that_expired_are_loaded_anew(
    aws: ScriptedAws, runtime: LambdaRuntime, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.always("Invoke", said())
    assert await invoke(runtime) == Returned(None)
    aws.expired.add(aws.key_id)
    aws.keys["AKIDNEW"] = ("new", None)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDNEW")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "new")
    assert await invoke(runtime) == Returned(None)
    assert facts.outcomes() == ["ok", "ExpiredTokenException", "ok"]


async def test_a_time_limit_gives_the_connection_up(aws: ScriptedAws, runtime: LambdaRuntime) -> None:
    hold = Hold()
    aws.script("Invoke", hold)
    aws.always("Invoke", said())
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(invoke(runtime))
        await asyncio.wait_for(hold.arrived.wait(), 10)
        running.cancel()
    hold.release()
    assert await invoke(runtime) == Returned(None)
    assert [call.connection for call in aws.calls("Invoke")] == [1, 2]


# --- the emulator -------------------------------------------------------------------------------------------------------

CODE = """
def handler(event, context):
    if "fail" in event:
        raise LookupError(f"no order {event['fail']}")
    return {"arn": context.invoked_function_arn, "event": event}
"""


@pytest.mark.slow
async def test_the_emulator_runs_a_function_by_name_and_by_alias(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("botocore.session.create_loader", LOADER)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("app.py", CODE)
    name = f"f-{uuid4().hex[:8]}"
    async with AwsSession(Aws(endpoint_url=emulator.endpoint_url, region="eu-west-1"), Facts()) as session:
        created = await session.call(
            "lambda",
            "CreateFunction",
            {
                "FunctionName": name,
                "Runtime": "python3.11",
                "Role": "arn:aws:iam::000000000000:role/r",
                "Handler": "app.handler",
                "Code": {"ZipFile": packed.getvalue()},
                "Publish": True,
            },
        )
        arn = created["FunctionArn"].removesuffix(":1")
        alias = {"FunctionName": name, "Name": "live", "FunctionVersion": "1"}
        await session.call("lambda", "CreateAlias", alias)
        runtime = LambdaRuntime(lambda: session)

        for called in (arn, f"{arn}:live"):
            reply = await invoke(runtime, {"order": 7}, called)
            assert isinstance(reply, Returned)
            assert reply.payload["event"] == {"order": 7}
        failed = await invoke(runtime, {"fail": 7}, arn)
        missing = await invoke(runtime, {}, f"{arn}-not")

    assert isinstance(failed, FunctionError)
    assert failed.error_message == "no order 7"  # its type is the emulator's own word
    assert isinstance(missing, Refused)
    assert "check the function's name" in missing.reason
