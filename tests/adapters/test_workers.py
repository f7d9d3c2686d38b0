"""What worker processes may see and use, how many there are, and how they go. What all runtimes share is in conformance."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from poller.app import functions
from poller.aws.session import AwsSession
from poller.config import parse
from poller.engine.slots import Places
from poller.model import FunctionError, Invocation, Refused, Returned
from poller.runtimes import process
from poller.runtimes._output import LINES_PER_SECOND, MAX_LINE, Budget, Output
from poller.runtimes.context import FunctionIdentity
from poller.runtimes.process import Limits, Setting, Size

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.anyio

FUNCTIONS = Path(__file__).parent.parent / "conformance"
ARN = "arn:aws:lambda:eu-west-1:123456789012:function:orders"


@pytest.fixture
async def runtimes() -> AsyncIterator[list[process.ProcessRuntime]]:
    started: list[process.ProcessRuntime] = []
    yield started
    for runtime in started:
        await runtime.aclose()


Make = "Callable[..., process.ProcessRuntime]"


@pytest.fixture
def make(runtimes: list[process.ProcessRuntime]) -> Make:
    def make(handler: str, size: Size = Size(2), **setting: Any) -> process.ProcessRuntime:  # noqa: B008
        values = {"environment": {}, "working_directory": FUNCTIONS, **setting}
        runtime = process.python(
            FunctionIdentity("orders", ARN, 256),
            Setting(region="eu-west-1", handler=f"python_functions:{handler}", **values),
            size,
        )
        runtimes.append(runtime)
        return runtime

    return make


async def payload(runtime: process.ProcessRuntime, event: Any = None) -> Any:
    with anyio.fail_after(20):
        reply = await runtime.invoke(Invocation("request-1", event or {}, time.time() + 30, ARN))
    assert isinstance(reply, Returned), reply
    return reply.payload


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.lowlevel.checkpoint()


# --- output -------------------------------------------------------------------------------------------------------------


async def test_a_line_is_counted_once_however_it_arrives(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "poller.function")
    reading, writing = os.pipe()
    output = Output(asyncio.get_running_loop(), reading, Budget("orders", lambda: 0.0))
    for number in range(LINES_PER_SECOND + 1):
        os.write(writing, b"line %d\n" % number)
        output.read()
    os.close(writing)
    output.close()

    assert [one.getMessage() for one in caplog.records[:-1]] == [f"line {n}" for n in range(LINES_PER_SECOND)]
    assert vars(caplog.records[-1])["dropped"] == 1


async def test_of_a_long_line_only_its_beginning_is_logged_however_it_arrives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "poller.function")
    reading, writing = os.pipe()
    output = Output(asyncio.get_running_loop(), reading, Budget("orders", lambda: 0.0))
    for piece in (b"a" * 20_000, b"b" * 20_000, b"c\nshort\n", b"d" * 20_000, b"\n", b"e" * 20_000):
        os.write(writing, piece)
        output.read()
    output.end_line()
    os.write(writing, b"another invocation\n")
    output.read()
    os.close(writing)
    output.close()

    whole = [b"a" * MAX_LINE, b"short", b"d" * MAX_LINE, b"e" * MAX_LINE, b"another invocation"]
    assert [one.getMessage().encode() for one in caplog.records] == whole


async def test_a_line_of_which_a_part_was_dropped_does_not_go_on_when_lines_are_logged_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "poller.function")
    reading, writing = os.pipe()
    now = 0.0
    budget = Budget("orders", lambda: now)
    output = Output(asyncio.get_running_loop(), reading, budget)
    for pieces in (
        (b"a" * 20_000, b"b" * 20_000, b"c\nshort\n"),
        (b"", b"lost\nlost as w", b"ell\nanother\n"),
    ):
        for number, piece in enumerate(pieces):
            if number == 1:
                # Another worker of the function prints much at that moment.
                while budget.take(0):
                    pass
            os.write(writing, piece)
            output.read()
            now += number
    os.close(writing)
    output.close()

    logged = [one.getMessage() for one in caplog.records if "dropped" not in vars(one)]
    assert logged == ["a" * MAX_LINE, "short", "another"]
    assert budget.dropped_lines == 2


async def test_empty_lines_are_not_logged_but_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "poller.function")
    reading, writing = os.pipe()
    output = Output(asyncio.get_running_loop(), reading, Budget("orders", lambda: 0.0))
    for text in (b"first\n", b"\n" * LINES_PER_SECOND, b"\n\nlast\n"):
        os.write(writing, text)
        output.read()
    os.close(writing)
    output.close()

    assert [one.getMessage() for one in caplog.records[:-1]] == ["first"]
    assert vars(caplog.records[-1])["dropped"] == 4


async def test_what_init_code_prints_without_an_end_is_that_of_no_invocation(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "poller.function")
    (tmp_path / "python_functions.py").write_text(
        "print('loading', end='')\ndef handler(event, context):\n    print('handling')\n"
    )
    await payload(make("handler", working_directory=tmp_path))
    printed = [(one.getMessage(), vars(one).get("request_id")) for one in caplog.records]
    assert printed[:2] == [("loading", None), ("handling", "request-1")]


async def test_a_handler_may_format_its_logs_itself(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "poller.function")
    await payload(make("logs_in_its_own_format"))
    assert '{"id": "request-1", "text": "order 7 is odd"}' in caplog.messages


async def test_what_was_printed_before_a_worker_dies_is_logged_to_the_last_word(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "poller.function")
    runtime = make("dies_in_the_middle_of_a_line")
    assert await runtime.ready("request-1") is None
    reply = await runtime.invoke(Invocation("request-1", {}, time.time() + 30, ARN))

    assert isinstance(reply, FunctionError)
    await until(lambda: "order 7 is odd" in caplog.messages)


# --- isolation ----------------------------------------------------------------------------------------------------------


async def test_a_worker_sees_nothing_of_the_daemons_environment(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setenv("DATABASE_PASSWORD", "hush")
    seen = (await payload(make("describes_process", environment={"TABLE": "orders"})))["environment"]

    assert "hush" not in seen.values()
    assert set(seen) - {"PWD", "OLDPWD", "SHLVL", "_", "LC_CTYPE"} == {
        "PATH",
        "LANG",
        "TZ",
        "TABLE",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_EC2_METADATA_DISABLED",
        "AWS_EXECUTION_ENV",
        "AWS_LAMBDA_FUNCTION_NAME",
        "AWS_LAMBDA_FUNCTION_VERSION",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
        "AWS_LAMBDA_INITIALIZATION_TYPE",
        "AWS_LAMBDA_LOG_GROUP_NAME",
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "AWS_XRAY_CONTEXT_MISSING",
        "LAMBDA_TASK_ROOT",
        "LAMBDA_RUNTIME_DIR",
        "_HANDLER",
        "_X_AMZN_TRACE_ID",
    }
    assert seen["AWS_REGION"] == "eu-west-1"
    assert seen["LAMBDA_TASK_ROOT"] == str(FUNCTIONS)


async def test_each_invocation_has_its_own_trace_id_where_tracers_look_for_it(make: Make) -> None:
    runtime, found = make("trace"), []
    for request_id in ("f1b0e3a4-2c51-4a35-8b0e-7a7d3a5c9b11", "00b0e3a4-2c51-4a35-8b0e-7a7d3a5c9b11"):
        reply = await runtime.invoke(Invocation(request_id, {}, 0.0, ARN))
        assert isinstance(reply, Returned)
        found.append(reply.payload)
    assert found == [
        "Root=1-f1b0e3a4-2c514a358b0e7a7d3a5c9b11;Parent=f1b0e3a42c514a35;Sampled=0",
        "Root=1-00b0e3a4-2c514a358b0e7a7d3a5c9b11;Parent=00b0e3a42c514a35;Sampled=0",
    ]


MOVED = """
[functions.orders]
runtime = "python"
handler = "python_functions:describes_process"
working_directory = "{folder}"
[[mappings]]
name = "orders"
event_source_arn = "arn:aws:sqs:{region}:123456789012:orders"
function_name = "orders"
"""


@pytest.mark.parametrize(
    ("handler", "found"),
    [
        ("python_functions.describes_process", "python_functions.describes_process"),
        ("python_functions:describes_process", "python_functions.describes_process"),
        ("python_functions:Described.process", "python_functions:Described.process"),
    ],
)
async def test_a_worker_finds_its_handler_as_lambda_spells_it(
    runtimes: list[process.ProcessRuntime], handler: str, found: str
) -> None:
    # Wrappers such as OpenTelemetry's take it apart at the last dot.
    file = MOVED.format(folder=FUNCTIONS, region="eu-west-1").replace(
        "python_functions:describes_process", handler
    )
    config = parse(file, where="f", environ={}, now=0)
    runtime = functions.load(config, Places(10), {}, {}, AwsSession)["orders"].runtime
    assert isinstance(runtime, process.ProcessRuntime)
    runtimes.append(runtime)
    assert (await payload(runtime))["environment"]["_HANDLER"] == found


async def test_a_wrapper_script_starts_the_workers(make: Make, tmp_path: Path) -> None:
    wrapper = tmp_path / "wrapper"
    wrapper.write_text('#!/bin/sh\nexport _HANDLER=python_functions.trace\nexec "$@"\n')
    wrapper.chmod(0o755)
    runtime = make("describes_process", environment={"AWS_LAMBDA_EXEC_WRAPPER": str(wrapper)})
    found = await payload(runtime)
    assert found.startswith("Root=1-")


async def test_a_wrapper_script_that_is_missing_is_an_exit_with_127(make: Make) -> None:
    environment = {"AWS_LAMBDA_EXEC_WRAPPER": "/no/such/wrapper"}
    reply = await make("describes_process", environment=environment).ready("request-1")
    reason = "RequestId: request-1 Error: Runtime exited with error: exit status 127"
    assert reply == FunctionError("Runtime.ExitError", reason)


async def test_what_the_config_says_of_a_variable_that_is_not_reserved_counts(make: Make) -> None:
    environment = {
        "AWS_EC2_METADATA_DISABLED": "false",
        "AWS_PROFILE": "reports",
        "AWS_XRAY_CONTEXT_MISSING": "IGNORE_ERROR",
        "HOME": "/tmp",
        "LANG": "C",
        "PATH": "/bin",
    }
    for credentials in (None, {"AWS_PROFILE": "shop", "HOME": "/root"}):
        runtime = make("describes_process", environment=environment, credentials=credentials)
        seen = (await payload(runtime))["environment"]
        assert {name: seen[name] for name in environment} == environment


async def test_a_function_whose_source_is_in_another_region_after_a_reload_runs_there(
    runtimes: list[process.ProcessRuntime],
) -> None:
    loaded: dict[str, functions.Loaded] = {}
    for region, kept in (("eu-west-1", False), ("eu-west-1", True), ("us-east-1", False)):
        config = parse(MOVED.format(folder=FUNCTIONS, region=region), where="f", environ={}, now=0)
        before, loaded = loaded, functions.load(config, Places(10), loaded, {}, AwsSession)
        assert (bool(before) and loaded["orders"].runtime is before["orders"].runtime) is kept
    runtime = loaded["orders"].runtime
    assert isinstance(runtime, process.ProcessRuntime)
    runtimes.append(runtime)
    assert (await payload(runtime))["environment"]["AWS_REGION"] == "us-east-1"


async def test_credentials_are_passed_when_asked_for(make: Make) -> None:
    daemon = {"AWS_SECRET_ACCESS_KEY": "hush", "AWS_PROFILE": "shop", "DATABASE_PASSWORD": "hush"}
    credentials = process.daemon_credentials(daemon)
    seen = (await payload(make("describes_process", credentials=credentials)))["environment"]

    assert credentials == {"AWS_SECRET_ACCESS_KEY": "hush", "AWS_PROFILE": "shop"}
    assert (seen["AWS_SECRET_ACCESS_KEY"], seen["AWS_PROFILE"]) == ("hush", "shop")
    assert "AWS_EC2_METADATA_DISABLED" not in seen


async def test_a_worker_has_no_descriptor_of_the_daemons(make: Make) -> None:
    descriptors = (await payload(make("describes_process")))["descriptors"]
    # Standard streams, its end of the socket pair, the fuse, and the folder that is being listed.
    assert len(descriptors) == 6


async def test_a_handler_that_changes_its_folder_still_imports_what_lies_beside_it(
    make: Make, tmp_path: Path
) -> None:
    (tmp_path / "python_functions.py").write_text(
        "import os\ndef handler(event, context):\n    os.chdir('/')\n    import prices\n    return prices.VAT\n"
    )
    (tmp_path / "prices.py").write_text("VAT = 19\n")
    assert await payload(make("handler", working_directory=tmp_path)) == 19


@pytest.mark.parametrize("module", ["poller", "logging", "types", "orjson"])
async def test_what_a_functions_modules_are_called_is_nothing_to_the_runtime(
    make: Make, tmp_path: Path, module: str
) -> None:
    (tmp_path / "python_functions.py").write_text("def handler(event, context):\n    return 19\n")
    (tmp_path / f"{module}.py").write_text("raise ImportError('not this one')\n")
    assert await payload(make("handler", working_directory=tmp_path)) == 19


async def test_a_function_may_be_called_what_the_runtime_is(
    runtimes: list[process.ProcessRuntime], tmp_path: Path
) -> None:
    (tmp_path / "poller.py").write_text("def handler(event, context):\n    return 19\n")
    setting = Setting({}, "eu-west-1", handler="poller:handler", working_directory=tmp_path)
    runtimes.append(process.python(FunctionIdentity("orders", ARN, 256), setting, Size(1)))
    assert await payload(runtimes[0]) == 19


@pytest.mark.parametrize("level", ["info", "INFO", "TRACE", "no level"])
async def test_the_log_level_is_that_of_its_variable_as_far_as_there_is_such_a_one(
    make: Make, level: str
) -> None:
    found = await payload(make("log_level", environment={"AWS_LAMBDA_LOG_LEVEL": level}))
    assert found == {"TRACE": "DEBUG", "no level": "WARNING"}.get(level, "INFO")


async def test_limits_are_in_force_before_the_code_runs(make: Make) -> None:
    seen = await payload(make("describes_process", limits=Limits(open_files=64, nice=3)))
    assert (seen["open_files"], seen["nice"], seen["folder"]) == (64, os.nice(0) + 3, str(FUNCTIONS))


async def test_memory_beyond_the_limit_is_an_error_of_the_function(make: Make) -> None:
    runtime = make("takes_memory", limits=Limits(memory_limit=512))
    assert await payload(runtime, {"bytes": 1_000_000}) == 1_000_000
    reply = await runtime.invoke(Invocation("request-2", {"bytes": 1 << 30}, time.time() + 30, ARN))
    assert isinstance(reply, FunctionError)
    assert reply.error_type == "MemoryError"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run workers as another user")
async def test_workers_run_as_the_user_that_is_asked_for(
    runtimes: list[process.ProcessRuntime], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "poller.function")
    # No interpreter of this machine need be readable to others.
    setting = Setting({}, "eu-west-1", limits=Limits(user="nobody"), working_directory=Path("/"))
    function = FunctionIdentity("orders", ARN, 256)
    runtime = process.command(function, ["sh", "-c", "id -un; id -gn; exit 3"], setting, Size(1))
    runtimes.append(runtime)

    reply = await runtime.ready("request-1")
    reason = "RequestId: request-1 Error: Runtime exited with error: exit status 3"
    assert reply == FunctionError("Runtime.ExitError", reason)
    assert "nobody" in caplog.messages
    assert "root" not in caplog.messages


@pytest.mark.parametrize(
    ("handler", "kind", "message", "request_id"),
    [
        ("fails", "LookupError", "no order 7", "request-1"),
        (
            "returns_rubbish",
            "Runtime.MarshalError",
            "Unable to marshal response: Object of type object is not JSON serializable",
            "request-1",
        ),
        # What fails before an invocation belongs to none.
        (
            "missing",
            "Runtime.HandlerNotFound",
            "Handler 'missing' missing on module 'python_functions'",
            "",
        ),
    ],
)
async def test_an_error_has_the_members_that_lambdas_client_for_python_writes(
    make: Make, handler: str, kind: str, message: str, request_id: str
) -> None:
    with anyio.fail_after(20):
        reply = await make(handler).invoke(Invocation("request-1", {"order": 7}, time.time() + 30, ARN))
    assert isinstance(reply, FunctionError)
    assert reply.said == {
        "errorMessage": message,
        "errorType": kind,
        "requestId": request_id,
        "stackTrace": list(reply.stack_trace),
    }


async def test_a_worker_that_cannot_be_started_is_an_invalid_entrypoint(make: Make) -> None:
    reply = await make("double", working_directory=Path("/no/such/folder")).ready("request-1")
    assert isinstance(reply, FunctionError)
    assert reply.error_type == "Runtime.InvalidEntrypoint"
    assert "no worker can be started" in reply.error_message

    reply = await make("double", limits=Limits(user="no-such-user")).ready("request-1")
    assert isinstance(reply, FunctionError)
    assert "there is no user no-such-user" in reply.error_message


async def test_without_room_for_a_process_nothing_was_invoked(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: Any, **__: Any) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr("poller.runtimes._process.subprocess.Popen", no_room)
    reply = await make("double").ready("request-1")
    assert reply == Refused("no worker can be started: Resource temporarily unavailable")


async def test_a_daemon_that_is_process_1_reaps_what_its_workers_had_started(make: Make) -> None:
    libc = ctypes.CDLL(None)
    pr_set_child_subreaper = 36
    libc.prctl(pr_set_child_subreaper, 1, 0, 0, 0)
    try:
        runtime = make("forks_and_waits")
        child = await payload(runtime)
        await runtime.aclose()
        await until(lambda: not Path(f"/proc/{child}").exists())
    finally:
        libc.prctl(pr_set_child_subreaper, 0, 0, 0, 0)


# --- how many, and for how long -----------------------------------------------------------------------------------------


async def test_minimum_workers_are_warm_before_the_first_invocation(make: Make) -> None:
    runtime = make("pid", Size(4, minimum_workers=2))
    runtime.open()
    await until(lambda: repr(runtime) == "<Pool orders: 2 idle, 0 waiting>")


async def test_an_idle_worker_is_retired_down_to_the_minimum(make: Make) -> None:
    none = make("pid", Size(1, idle_timeout=0.05))
    assert await payload(none)
    await until(lambda: repr(none) == "<Pool orders: empty, 0 waiting>")

    one = make("pid", Size(2, minimum_workers=1, idle_timeout=0.05))
    one.open()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(payload, one)
        tasks.start_soon(payload, one)
    await until(lambda: repr(one) == "<Pool orders: 1 idle, 0 waiting>")


async def test_a_worker_is_replaced_after_its_last_invocation(make: Make) -> None:
    runtime = make("pid", Size(1, maximum_invocations=2))
    pids = [await payload(runtime) for _ in range(5)]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]


async def test_who_waits_for_a_worker_gets_one_when_there_may_be_more(make: Make) -> None:
    runtime = make("pid", Size(0))
    pids: list[int] = []

    async def invoke() -> None:
        pids.append(await payload(runtime))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(invoke)
        await until(lambda: repr(runtime) == "<Pool orders: empty, 1 waiting>")
        runtime.widen(1)
    assert len(pids) == 1


async def test_there_are_never_more_workers_than_places(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    runtime = make("pid", Size(2))
    pids: set[int] = set()

    async def invoke() -> None:
        pids.add(await payload(runtime))

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(invoke)
    assert 1 <= len(pids) <= 2


@pytest.mark.slow
async def test_more_than_may_start_at_a_time_run_side_by_side_as_soon_as_they_have_started(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poller.runtimes._pool.MAX_STARTING", 1)
    runtime = make("forks_and_hangs", Size(3, timeout=60))
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(runtime.invoke, Invocation(f"request-{number}", {}, 0.0, ARN))
            await until(lambda: repr(runtime) == "<Pool orders: 3 busy, 0 waiting>")
            tasks.cancel_scope.cancel()


@pytest.mark.slow
async def test_more_spares_than_may_start_at_a_time_are_warm_too(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poller.runtimes._pool.MAX_STARTING", 1)
    runtime = make("pid", Size(3, minimum_workers=3))
    runtime.open()
    await until(lambda: repr(runtime) == "<Pool orders: 3 idle, 0 waiting>")


async def test_a_worker_that_dies_while_idle_is_not_used_again(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = make("pid", Size(1))
    first = await payload(runtime)
    os.kill(first, 9)
    await until(lambda: repr(runtime) == "<Pool orders: empty, 0 waiting>")
    assert await payload(runtime) != first
    assert (runtime.workers().started, runtime.workers().crashed) == (2, 1)
    assert "an idle worker of orders ended: Runtime exited with error: signal: killed" in caplog.messages


async def test_spares_that_do_not_start_are_tried_again_with_pauses(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("poller.runtimes._pool.SPARE_PAUSES", (0.01, 0.02))
    runtime = make("no_such_handler", Size(1, minimum_workers=1))
    runtime.open()
    await until(lambda: sum("no worker starts" in one for one in caplog.messages) >= 2)
    assert "Handler 'no_such_handler' missing on module 'python_functions'" in caplog.text


async def test_a_closed_runtime_refuses(make: Make) -> None:
    runtime = make("pid")
    await runtime.aclose()
    assert await runtime.ready("request-1") == Refused("the function is being closed")


async def test_who_waits_for_a_start_is_refused_when_the_runtime_closes(make: Make) -> None:
    runtime = make("pid")
    replies: list[Any] = []

    async def wait() -> None:
        replies.append(await runtime.ready("request-1"))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await until(lambda: "starting" in repr(runtime))
        await runtime.aclose()
    assert replies == [Refused("the function is being closed")]


async def test_giving_up_and_closing_at_the_same_moment_go_together(make: Make) -> None:
    runtime = make("pid")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.ready, "request-1")
        await until(lambda: "1 waiting" in repr(runtime))
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await runtime.aclose()
    assert repr(runtime) == "<Pool orders: empty, 0 waiting>"


async def test_a_spare_that_ends_by_itself_is_replaced_after_a_pause(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poller.runtimes._pool.SPARE_PAUSES", (0.05, 0.05))
    runtime = make("pid", Size(1, minimum_workers=1))
    runtime.open()
    await until(lambda: runtime.workers().idle == 1)
    (worker,) = runtime._pool.workers
    os.kill(worker.process.pid, 9)
    await until(lambda: repr(runtime) == "<Pool orders: empty, 0 waiting>")
    await until(lambda: runtime.workers().idle == 1)
    assert runtime.workers().started == 2


# --- reports ------------------------------------------------------------------------------------------------------------


async def test_each_invocation_is_reported_and_the_first_one_with_its_cold_start(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "poller.function")
    runtime = make("pid", Size(1))
    await payload(runtime)
    await payload(runtime)

    cold, warm = (record for record in caplog.records if record.getMessage() == "REPORT")
    assert (cold.levelno, warm.levelno) == (logging.INFO, logging.DEBUG)
    assert vars(cold)["init_duration_ms"] > 0
    assert not hasattr(warm, "init_duration_ms")
    workers = runtime.workers()
    assert (workers.idle, workers.started, workers.crashed) == (1, 1, 0)
    assert workers.billed_seconds > workers.init_seconds > 0
    assert workers.peak_memory > 5 << 20
    report = vars(warm)
    assert (report["function"], report["request_id"], report["memory_size_mb"]) == (
        "orders",
        "request-1",
        256,
    )
    assert 0 <= report["duration_ms"] <= report["billed_duration_ms"]
    assert 5 < report["max_memory_used_mb"] < 500


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})])
async def test_an_invocation_shorter_than_a_tick_of_the_loops_clock_is_billed_a_millisecond(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "poller.function")
    runtime = make("pid", Size(1))
    for _ in range(20):
        await payload(runtime)
    reports = [vars(record) for record in caplog.records if record.getMessage() == "REPORT"]
    assert all(report["billed_duration_ms"] >= 1 for report in reports)
    assert sum(report["duration_ms"] for report in reports) > 0


async def test_what_timed_out_is_reported_as_such(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "poller.function")
    runtime = make("forks_and_hangs", Size(1))
    assert await runtime.ready("request-1") is None
    with anyio.move_on_after(0.05):
        await runtime.invoke(Invocation("request-1", {}, time.time() + 30, ARN))
    (report,) = (vars(record) for record in caplog.records if record.getMessage() == "REPORT")
    assert report["status"] == "timeout"
    assert report["duration_ms"] >= 50


async def test_invocations_that_run_for_too_long_are_ended_each_at_its_own_time(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "poller.function")
    runtime = make("forks_and_hangs", Size(2, timeout=0.1))
    took: dict[str, float] = {}

    async def invoke(request_id: str) -> None:
        assert await runtime.ready(request_id) is None
        begun = time.perf_counter()
        text = f"RequestId: {request_id} Error: Task timed out after 0.10 seconds"
        reply = await runtime.invoke(Invocation(request_id, {}, time.time() + 30, ARN))
        assert reply == FunctionError("Sandbox.Timedout", text, timed_out=True)
        took[request_id] = time.perf_counter() - begun

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(invoke, "request-1")
            tasks.start_soon(invoke, "request-2")
    assert all(0.09 < seconds < 1 for seconds in took.values())
    reports = [vars(record) for record in caplog.records if record.getMessage() == "REPORT"]
    assert {(report["request_id"], report["status"]) for report in reports} == {
        ("request-1", "timeout"),
        ("request-2", "timeout"),
    }
    assert runtime.workers().billed_seconds >= 0.2


async def test_a_worker_that_replies_at_the_moment_of_the_time_out_lives_on(make: Make) -> None:
    runtime = make("forks_and_hangs", Size(1))
    assert await runtime.ready("request-1") is None
    (worker,) = runtime._pool.workers
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(runtime.invoke, Invocation("request-1", {}, time.time() + 30, ARN))
            await until(lambda: runtime.workers().busy == 1)
            worker.replied(Returned(1))
            worker.asked()
            tasks.cancel_scope.cancel()
    assert runtime.workers().idle == 1


# --- handlers that break things -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage",
    ["x" * 100, "\x02\0\0\0r{]", "\0\0\0\0?", "\xff" * 3, "\x04\0\0\0enull"],
    ids=["a length", "no JSON", "a kind", "half a head", "no error"],
)
async def test_a_handler_that_writes_to_the_runtimes_line_harms_its_worker_only(
    make: Make, garbage: str
) -> None:
    runtime = make("breaks_the_line", Size(1))
    with anyio.fail_after(10):
        reply = await runtime.invoke(Invocation("request-1", {"garbage": garbage}, time.time() + 30, ARN))
        assert isinstance(reply, FunctionError), reply
        assert reply.error_type == "Runtime.ExitError"
        await until(lambda: not runtime._pool.workers)
        assert isinstance(await runtime.invoke(Invocation("2", {"garbage": ""}, 0.0, ARN)), Returned)


async def test_a_worker_that_closes_the_runtimes_line_and_stays_is_ended(make: Make) -> None:
    with anyio.fail_after(10):
        reply = await make("closes_everything", Size(1)).invoke(Invocation("request-1", {}, 0.0, ARN))
    reason = "RequestId: request-1 Error: Runtime exited with error: signal: terminated"
    assert reply == FunctionError("Runtime.ExitError", reason)


@pytest.mark.slow
async def test_an_init_that_closes_the_runtimes_line_and_stays_has_failed(make: Make, tmp_path: Path) -> None:
    (tmp_path / "python_functions.py").write_text(
        "import os, signal\nos.closerange(3, 256)\nsignal.pause()\n"
    )
    runtime = make("handler", working_directory=tmp_path)
    with anyio.fail_after(10):
        reply = await runtime.invoke(Invocation("request-1", {}, 0.0, ARN))
    text = "RequestId: request-1 Error: the runtime's connection was closed or misused during init"
    assert reply == FunctionError("Runtime.ExitError", text)
    assert runtime.workers().started == 2


async def test_a_program_that_replies_and_asks_for_no_more_is_replaced(
    runtimes: list[process.ProcessRuntime], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "once.py").write_text(ONCE)
    setting = Setting({}, "eu-west-1", working_directory=tmp_path)
    function = FunctionIdentity("orders", ARN, 256)
    runtime = process.command(function, [sys.executable, "once.py"], setting, Size(1, timeout=0.1))
    runtimes.append(runtime)
    first, second = await payload(runtime), await payload(runtime)
    assert first != second
    assert "a worker of orders replied and asked for no more work: it is replaced" in caplog.messages


ONCE = """
import http.client, os, signal
api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
api.request("GET", "/2018-06-01/runtime/invocation/next")
answer = api.getresponse()
answer.read()
path = f"/2018-06-01/runtime/invocation/{answer.headers['Lambda-Runtime-Aws-Request-Id']}/response"
api.request("POST", path, str(os.getpid()).encode())
api.getresponse().read()
signal.pause()
"""
