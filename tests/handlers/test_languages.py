"""The example of each language, run as its own words in `handlers/` say, over the `command` runtime."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from poller.model import FunctionError, Invocation, Returned
from poller.runtimes import process
from poller.runtimes.context import FunctionIdentity
from tests.tools import need

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.anyio

HANDLERS = Path("handlers").absolute()
ARN = "arn:aws:lambda:eu-west-1:123456789012:function:orders"
SQS = {"eventSource": "aws:sqs"}
EVENT = {"Records": [{"messageId": "a", "body": "b", **SQS}, {"messageId": "c", "body": "d", **SQS}]}

APP = """
def handler(event, context):
    count = len(event["Records"])
    print(f"{context.aws_request_id} has {count} records")
    return {"records": count}
"""


def start(folder: str | Path, command: Sequence[str], handler: str = "") -> process.ProcessRuntime:
    setting = process.Setting({}, "eu-west-1", handler, HANDLERS / folder)
    size = process.Size(1, init_timeout=30)
    return process.command(FunctionIdentity("orders", ARN, 256), command, setting, size)


async def counts(runtime: process.ProcessRuntime, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "poller.function")
    with anyio.fail_after(60):
        for request_id in ("request-1", "request-2"):
            invocation = Invocation(request_id, EVENT, time.time() + 30, ARN)
            assert await runtime.ready(request_id) is None
            assert await runtime.invoke(invocation) == Returned({"records": 2})
        await runtime.aclose()
    said = {(record.getMessage(), vars(record).get("request_id")) for record in caplog.records}
    assert {("request-1 has 2 records", "request-1"), ("request-2 has 2 records", "request-2")} <= said


async def test_bash_with_curl(caplog: pytest.LogCaptureFixture) -> None:
    need("bash", "curl", "grep", "sed")
    await counts(start("bash", ["./bootstrap"]), caplog)


async def test_bash_counts_the_records_of_a_stream_and_none() -> None:
    need("bash", "curl", "grep", "sed")
    runtime = start("bash", ["./bootstrap"])
    with anyio.fail_after(60):
        for records in ([{"eventSource": "aws:kinesis", "kinesis": {"sequenceNumber": "1"}}], []):
            assert await runtime.ready("request-1") is None
            reply = await runtime.invoke(Invocation("request-1", {"Records": records}, time.time() + 30, ARN))
            assert reply == Returned({"records": len(records)})
        await runtime.aclose()


async def test_perl(caplog: pytest.LogCaptureFixture) -> None:
    need("perl")
    await counts(start("perl", ["./bootstrap"]), caplog)


async def test_node_with_a_small_bootstrap(caplog: pytest.LogCaptureFixture) -> None:
    need("node")
    await counts(start("node", ["node", "bootstrap.mjs"], "index.handler"), caplog)


async def test_a_missing_module_of_node_is_an_init_error() -> None:
    need("node")
    runtime = start("node", ["node", "bootstrap.mjs"], "nothing.handler")
    reply = await runtime.ready("request-1")
    assert isinstance(reply, FunctionError)
    assert (reply.error_type, reply.error_message) == (
        "Runtime.ImportModuleError",
        "Cannot find module 'nothing'",
    )
    await runtime.aclose()


@pytest.mark.slow
async def test_java(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    need("java", "javac")
    source = HANDLERS / "java" / "Bootstrap.java"
    await anyio.run_process(["javac", "-d", str(tmp_path), str(source)])
    await counts(start(tmp_path, ["java", "-cp", str(tmp_path), "Bootstrap"]), caplog)


@pytest.mark.slow
async def test_rust(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    need("rustc", "cc")
    source = HANDLERS / "rust" / "bootstrap.rs"
    built = await anyio.run_process(
        ["rustc", "-O", "-o", str(tmp_path / "bootstrap"), str(source)], check=False, stderr=subprocess.STDOUT
    )
    assert built.returncode == 0, built.stdout.decode()
    await counts(start(tmp_path, ["./bootstrap"]), caplog)


async def test_lambdas_own_runtime_client_for_python(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "app.py").write_text(APP)
    await counts(start(tmp_path, [sys.executable, "-m", "awslambdaric", "app.handler"]), caplog)


async def test_errors_of_lambdas_own_runtime_client(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "def handler(event, context):\n    raise LookupError(context.aws_request_id)\n"
    )
    runtime = start(tmp_path, [sys.executable, "-m", "awslambdaric", "app.handler"])
    reply = await runtime.invoke(Invocation("request-1", EVENT, time.time() + 30, ARN))
    assert isinstance(reply, FunctionError)
    assert (reply.error_type, reply.error_message) == ("LookupError", "request-1")
    assert "app.py" in reply.stack_trace[0]
    await runtime.aclose()


async def test_a_missing_module_of_lambdas_own_runtime_client_is_an_init_error(tmp_path: Path) -> None:
    runtime = start(tmp_path, [sys.executable, "-m", "awslambdaric", "app.handler"])
    reply = await runtime.invoke(Invocation("request-1", EVENT, time.time() + 30, ARN))
    assert isinstance(reply, FunctionError)
    assert reply.error_type == "Runtime.ImportModuleError"
    await runtime.aclose()
