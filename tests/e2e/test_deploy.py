"""New code of functions under the real daemon: on SIGHUP and by itself, from directories and zip files, good and bad."""

from __future__ import annotations

import json
import signal
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.harness import Daemon, Queue, Queues, running, until

if TYPE_CHECKING:
    from poller.demo.emulator import Emulator

pytestmark = pytest.mark.slow

APP = """
import os, threading
VERSION = "{version}"
def note(*words):
    descriptor = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, (" ".join(map(str, words)) + "\\n").encode())
    os.close(descriptor)
def handler(event, context):
    for record in event["Records"]:
        note("begun", VERSION, record["body"])
        while record["body"] == "hold" and not os.path.exists(os.environ["GATE"]):
            threading.Event().wait(0.01)
        note("ended", VERSION, record["body"], os.getpid(), os.environ["LAMBDA_TASK_ROOT"],
             os.environ["POLLER_CODE_VERSION"], context.log_stream_name)
"""


@pytest.fixture
def queues(emulator: Emulator) -> Queues:
    return Queues(emulator.endpoint_url)


@pytest.fixture
def daemon(queues: Queues, tmp_path: Path) -> Daemon:
    (tmp_path / "temporary").mkdir()
    return Daemon(tmp_path, queues.endpoint_url, "", TMPDIR=str(tmp_path / "temporary"))


def function(name: str, queue: Queue, code: Path, daemon: Daemon, **more: Any) -> str:
    extra = "".join(f"{key} = {json.dumps(value)}\n" for key, value in more.items())
    gate = daemon.folder / "gate"
    return (
        f'[functions.{name}]\nruntime = "python"\nhandler = "app.handler"\ntimeout = 30\n'
        f'code = "{code}"\nenvironment = {{ LEDGER = "{daemon.ledger}", GATE = "{gate}" }}\n{extra}'
        f'[[mappings]]\nname = "{name}"\nevent_source_arn = "{queue.arn}"\nfunction_name = "{name}"\n'
        "batch_size = 1\n"
    )


def app(folder: Path, version: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "app.py").write_text(APP.format(version=version))
    return folder


def zipped(path: Path, version: str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("app.py", APP.format(version=version))
    return path


def ended(daemon: Daemon) -> dict[str, list[str]]:
    """Of each message: the version that handled it, its process, folder, code version and log stream."""
    lines = [line.split() for line in daemon.handled()]
    return {body: [version, *rest] for verb, version, body, *rest in lines if verb == "ended"}


def version(daemon: Daemon, name: str) -> str:
    functions = json.loads(daemon.page("/status"))["functions"]
    return str(next(one["version"] for one in functions if one["name"] == name))


def said(daemon: Daemon, text: str) -> bool:
    return any(text in line for line in daemon.logs)


def handled(daemon: Daemon, queue: Queue, body: str) -> list[str]:
    queue.send([body])
    until(lambda: body in ended(daemon), f"{body} is handled")
    return ended(daemon)[body]


def test_new_code_takes_over_on_sighup_while_a_running_invocation_ends_in_the_old(
    queues: Queues, daemon: Daemon, tmp_path: Path
) -> None:
    queue, other = queues.create(), queues.create()
    code, same = app(tmp_path / "code", "v1"), app(tmp_path / "same", "v0")
    daemon.write(function("work", queue, code, daemon) + function("other", other, same, daemon))
    with running(daemon):
        first, since = version(daemon, "work"), daemon.status()["work"]["since"]
        of_other = handled(daemon, other, "warm")
        queue.send(["hold"])
        until(lambda: "begun v1 hold" in daemon.handled(), "an invocation runs")
        app(code, "v2")
        daemon.signal(signal.SIGHUP)
        until(lambda: said(daemon, '"reloaded'), "it has reloaded")
        second = version(daemon, "work")
        assert second != first
        assert said(daemon, f"code {second} from {code} replaces {first}")
        found = handled(daemon, queue, "next")
        assert found[0] == "v2"
        assert (found[2], found[3]) == (str(code), second)
        assert f"[$LATEST]{second}" in found[4]
        assert "hold" not in ended(daemon)
        (tmp_path / "gate").touch()
        until(lambda: "hold" in ended(daemon), "the running invocation ends")
        assert (ended(daemon)["hold"][0], ended(daemon)["hold"][3]) == ("v1", first)
        until(queue.empty, "nothing is tried again")
        # Neither the mapping nor another function's warm worker noticed.
        assert daemon.status()["work"]["since"] == since
        assert handled(daemon, other, "still-warm")[1] == of_other[1]
        assert daemon.stop() == 0


def test_code_that_cannot_be_used_is_refused_in_one_line_and_the_old_goes_on(
    queues: Queues, daemon: Daemon, tmp_path: Path
) -> None:
    queue = queues.create()
    daemon.write(function("work", queue, app(tmp_path / "code", "v1"), daemon))
    (tmp_path / "bad.zip").write_text("no zip file")
    (tmp_path / "empty").mkdir()
    reasons = {
        "nothing": "functions.work.code: there is no directory or zip file",
        "bad.zip": "bad.zip: it is neither a directory nor a zip file",
        "empty": "names a module that is neither in its code nor on Python's path",
    }
    with running(daemon):
        before = handled(daemon, queue, "before")
        for name, reason in reasons.items():
            daemon.write(function("work", queue, tmp_path / name, daemon))
            daemon.signal(signal.SIGHUP)
            until(lambda reason=reason: said(daemon, reason), f"{name} is refused")  # type: ignore[misc]
            (line,) = [line for line in daemon.logs if reason in line]
            assert "reload refused, the old configuration keeps running" in line
        assert handled(daemon, queue, "after")[:2] == before[:2]
        assert daemon.stop() == 0


def test_another_path_is_deployed_without_touching_the_mapping(
    queues: Queues, daemon: Daemon, tmp_path: Path
) -> None:
    queue = queues.create()
    daemon.write(function("work", queue, app(tmp_path / "one", "v1"), daemon))
    with running(daemon):
        since = daemon.status()["work"]["since"]
        assert handled(daemon, queue, "before")[0] == "v1"
        daemon.write(function("work", queue, app(tmp_path / "two", "v2"), daemon))
        daemon.signal(signal.SIGHUP)
        until(lambda: said(daemon, '"reloaded'), "it has reloaded")
        assert handled(daemon, queue, "after")[0] == "v2"
        assert daemon.status()["work"]["since"] == since
        assert daemon.stop() == 0


def test_a_function_that_had_no_code_of_its_own_can_be_given_some(
    queues: Queues, daemon: Daemon, tmp_path: Path
) -> None:
    queue = queues.create()
    config = function("work", queue, app(tmp_path / "two", "v2"), daemon)
    without = config.replace(f'code = "{tmp_path / "two"}"\n', "").replace(
        "environment = {", 'environment = { POLLER_CODE_VERSION = "none",'
    )
    app(tmp_path, "v1")
    daemon.write(without)
    with running(daemon):
        assert handled(daemon, queue, "before")[0] == "v1"
        daemon.write(config)
        daemon.signal(signal.SIGHUP)
        queue.send(["wake"])  # else a long poll of the mapping is waited for
        until(lambda: said(daemon, '"reloaded'), "it has reloaded")
        assert handled(daemon, queue, "after")[0] == "v2"
        assert daemon.stop() == 0


def test_a_zip_file_is_run_from_a_private_folder_that_goes_with_its_last_worker(
    queues: Queues, daemon: Daemon, tmp_path: Path
) -> None:
    queue, path = queues.create(), tmp_path / "work.zip"
    zipped(path, "v1")
    daemon.write(function("work", queue, path, daemon))
    with running(daemon):
        (private,) = (tmp_path / "temporary").iterdir()
        first = version(daemon, "work")
        assert handled(daemon, queue, "before")[2] == str(private / first)
        queue.send(["hold"])
        until(lambda: "begun v1 hold" in daemon.handled(), "an invocation runs")
        zipped(path, "v2")
        daemon.signal(signal.SIGHUP)
        until(lambda: said(daemon, '"reloaded'), "it has reloaded")
        second = version(daemon, "work")
        assert handled(daemon, queue, "after")[::2][:2] == ["v2", str(private / second)]
        assert (private / first).exists()
        (tmp_path / "gate").touch()
        until(lambda: not (private / first).exists(), "the old code is removed")
        assert ended(daemon)["hold"][0] == "v1"
        assert daemon.stop() == 0
    assert list((tmp_path / "temporary").iterdir()) == []


def test_watched_code_is_deployed_by_itself_and_a_broken_state_is_named_once(
    queues: Queues, daemon: Daemon, tmp_path: Path
) -> None:
    queue, code = queues.create(), app(tmp_path / "code", "v1")
    daemon.write(function("work", queue, code, daemon, watch=True))
    with running(daemon):
        assert handled(daemon, queue, "before")[0] == "v1"
        app(code, "v2")
        until(lambda: said(daemon, "replaces"), "it is deployed")
        assert handled(daemon, queue, "after")[0] == "v2"
        code.rename(tmp_path / "moved")
        until(lambda: said(daemon, "not deployed, the old code keeps running"), "its absence is said")
        (tmp_path / "moved").rename(code)
        app(code, "v3")
        until(lambda: sum("replaces" in line for line in daemon.logs) == 2, "it is deployed again")
        assert handled(daemon, queue, "at-last")[0] == "v3"
        assert sum("not deployed" in line for line in daemon.logs) == 1
        assert daemon.stop() == 0


ROLE = """
import os
def handler(event, context):
    names = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"
    with open(os.environ["LEDGER"], "a") as file:
        file.write(" ".join(os.environ[name] for name in names) + "\\n")
"""


def test_workers_get_credentials_of_their_role_and_nobody_else_sees_them(
    queues: Queues, daemon: Daemon, tmp_path: Path
) -> None:
    queue, code = queues.create(), tmp_path / "code"
    code.mkdir()
    (code / "app.py").write_text(ROLE)
    role = "arn:aws:iam::000000000000:role/orders"
    daemon.write(function("work", queue, code, daemon, role_arn=role))
    with running(daemon):
        queue.send(["a"])
        until(lambda: daemon.handled(), "it is handled")
        key, secret, token = daemon.handled()[0].split()
        assert key.startswith("ASIA")
        assert secret != "test"
        commands = command_lines()
        for one in (secret, token):
            assert one.encode() not in commands
            assert one not in daemon.page("/status")
        assert daemon.stop() == 0
    assert not any(secret in line or token in line for line in daemon.logs)


def command_lines() -> bytes:
    found = b""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found += path.read_bytes()
    return found
