"""Workers that are replaced while others are at work: for new code, or for new credentials."""

from __future__ import annotations

import time
import zipfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from poller.model import Invocation, Refused, Reply, Returned
from poller.runtimes import process
from poller.runtimes.code import Store
from poller.runtimes.context import FunctionIdentity
from poller.runtimes.process import NotNow, ProcessRuntime, Setting, Size
from tests.tools import need

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ARN = "arn:aws:lambda:eu-west-1:123456789012:function:orders"
APP = """
import os, threading
def handler(event, context):
    while event.get("gate") and not os.path.exists(event["gate"]):
        threading.Event().wait(0.01)
    keys = "POLLER_CODE_VERSION", "AWS_LAMBDA_FUNCTION_VERSION", "AWS_ACCESS_KEY_ID"
    return {"code": "%s", "pid": os.getpid(), "log": context.log_stream_name, "folder": os.getcwd(),
            **{key: os.environ.get(key) for key in keys}}
"""


def app(folder: Path, name: str, text: str = "") -> Path:
    (folder / name).mkdir()
    (folder / name / "app.py").write_text(text or APP % name)
    return folder / name


Make = "Callable[..., ProcessRuntime]"


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[ProcessRuntime] = []

    def make(folder: Path, *, size: Size = Size(2), **setting: Any) -> ProcessRuntime:  # noqa: B008
        values = {"environment": {}, "region": "eu-west-1", "handler": "app:handler", **setting}
        runtime = process.python(
            FunctionIdentity("orders", ARN, 256),
            Setting(working_directory=folder, code_version="0" * 12, **values),
            size,
        )
        made.append(runtime)
        return runtime

    yield make
    for runtime in made:
        await runtime.aclose()


async def invoke(runtime: ProcessRuntime, event: Any = None) -> Reply:
    with anyio.fail_after(20):
        return await runtime.invoke(Invocation("request-1", event or {}, time.time() + 30, ARN))


async def payload(runtime: ProcessRuntime, event: Any = None) -> Any:
    reply = await invoke(runtime, event)
    assert isinstance(reply, Returned), reply
    return reply.payload


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def test_a_warm_worker_is_given_no_more_work_after_a_renewal(make: Make, tmp_path: Path) -> None:
    runtime = make(app(tmp_path, "one"))
    first = await payload(runtime)
    assert (await payload(runtime))["pid"] == first["pid"]
    runtime.renew()
    second = await payload(runtime)
    assert second["pid"] != first["pid"]
    await until(lambda: runtime.workers().ending == 0)
    assert (await payload(runtime))["pid"] == second["pid"]
    assert (runtime.workers().idle, runtime.workers().crashed) == (1, 0)


async def test_new_code_runs_at_once_and_a_running_invocation_ends_in_the_old(
    make: Make, tmp_path: Path
) -> None:
    one, two, gate = app(tmp_path, "one"), app(tmp_path, "two"), tmp_path / "gate"
    runtime = make(one)
    replies: list[Any] = []

    async def hold() -> None:
        replies.append(await payload(runtime, {"gate": str(gate)}))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold)
        await until(lambda: runtime.workers().busy == 1)
        runtime.deploy(two, "abcdef012345")
        assert runtime.folders == {one, two}
        found = await payload(runtime)
        assert (found["code"], found["folder"], found["POLLER_CODE_VERSION"]) == (
            "two",
            str(two),
            "abcdef012345",
        )
        assert found["AWS_LAMBDA_FUNCTION_VERSION"] == "$LATEST"
        assert "/[$LATEST]abcdef012345" in found["log"]
        assert len(found["log"].rpartition("]")[2]) == 32
        gate.touch()
    assert replies[0]["code"] == "one"
    await until(lambda: runtime.folders == {two})


async def test_no_invocation_fails_however_often_workers_are_replaced(make: Make, tmp_path: Path) -> None:
    runtime = make(app(tmp_path, "one"), size=Size(4))
    pids: set[int] = set()
    done: list[bool] = []

    async def work() -> None:
        while not done:
            pids.add((await payload(runtime))["pid"])

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(work)
        for _ in range(6):
            seen = len(pids)
            await until(lambda seen=seen: len(pids) > seen)  # type: ignore[misc]
            runtime.renew()
        done.append(True)
    assert (runtime.workers().crashed, runtime.workers().busy) == (0, 0)


async def test_who_waits_for_code_that_hangs_gets_the_next(make: Make, tmp_path: Path) -> None:
    hanging = app(tmp_path, "hanging", "import threading; threading.Event().wait()")
    runtime = make(hanging)
    replies: list[Any] = []

    async def wait() -> None:
        replies.append(await payload(runtime))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await until(lambda: runtime.workers().starting == 1)
        runtime.deploy(app(tmp_path, "good"), "abcdef012345")
    assert replies[0]["code"] == "good"


async def test_spares_are_replaced_by_spares(make: Make, tmp_path: Path) -> None:
    runtime = make(app(tmp_path, "one"), size=Size(2, minimum_workers=2))
    runtime.open()
    await until(lambda: runtime.workers().idle == 2)
    runtime.deploy(app(tmp_path, "two"), "abcdef012345")
    await until(lambda: runtime.workers().idle == 2)
    assert runtime.workers().started == 4
    assert (await payload(runtime))["code"] == "two"


async def test_no_worker_starts_without_the_credentials_of_its_role_and_nothing_fails(
    make: Make, tmp_path: Path
) -> None:
    keys: list[str] = []

    def role() -> Mapping[str, str]:
        if not keys:
            raise NotNow("there are no credentials of the role: STS says no")
        return {"AWS_ACCESS_KEY_ID": keys[-1]}

    runtime = make(app(tmp_path, "one"), role=role)
    refused = await invoke(runtime)
    assert isinstance(refused, Refused)
    assert "STS says no" in refused.reason
    for key in ("first", "second"):
        keys.append(key)
        runtime.renew()
        assert (await payload(runtime))["AWS_ACCESS_KEY_ID"] == key


def test_what_is_printed_of_a_setting_and_a_launch_shows_no_secret(tmp_path: Path) -> None:
    setting = Setting({}, "eu-west-1", credentials={"AWS_SECRET_ACCESS_KEY": "hush"})
    assert "hush" not in repr(setting)
    assert "hush" not in repr(process.Launch(("true",), {"AWS_SECRET_ACCESS_KEY": "hush"}))


async def test_a_program_runs_from_a_zip_file_and_is_replaced_by_that_of_another(tmp_path: Path) -> None:
    need("perl")
    with closing(Store()) as store:
        first = store.look(zipped(tmp_path / "one.zip", "records"))
        second = store.look(zipped(tmp_path / "two.zip", "messages"))
        setting = Setting({}, "eu-west-1", working_directory=first.root, code_version=first.version)
        runtime = process.command(FunctionIdentity("orders", ARN, 256), ["./bootstrap"], setting, Size(1))
        event = {"Records": [{"messageId": "a"}]}
        assert await payload(runtime, event) == {"records": 1}
        runtime.deploy(second.root, second.version)
        assert await payload(runtime, event) == {"messages": 1}
        await runtime.aclose()


def zipped(path: Path, counted: str) -> Path:
    bootstrap = Path("handlers/perl/bootstrap").read_text().replace("records", counted)
    with zipfile.ZipFile(path, "w") as file:
        entry = zipfile.ZipInfo("bootstrap")
        entry.external_attr = 0o100755 << 16
        file.writestr(entry, bootstrap)
    return path
