from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from poller.cli.demo import demo_command
from poller.config import load
from poller.demo import run
from poller.demo.emulator import EmulatorError, find_ministack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A running `poller demo`, with its output in a pipe; it is killed if the test leaves it running."""
    environment = os.environ | {"POLLER_MINISTACK": str(find_ministack()), "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-m", "poller", "demo"]
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if re.search(pattern, line):
            return line
    pytest.fail(f"the demo ended before it said {pattern}")


@pytest.mark.slow
def test_the_demo_loses_nothing_when_it_is_stopped(demo: subprocess.Popen[str]) -> None:
    read_until(demo, r"handled [1-9].*orders running; payments running; clicks running; customers running")
    demo.send_signal(signal.SIGTERM)
    read_until(demo, r"^draining")
    demo.send_signal(signal.SIGINT)
    last = read_until(demo, r"^demo: sent")

    assert demo.wait() == 0
    assert ", lost 0" in last
    found = re.findall(r"\d+", last)
    assert int(found[0]) >= int(found[1]) > 0


def test_the_demos_config_is_valid_and_fits_its_queues_and_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLLER_DEMO_LISTEN", "127.0.0.1:0")
    monkeypatch.setenv("POLLER_DEMO_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("POLLER_DEMO_STATE", "poller.db")
    table = "arn:aws:dynamodb:eu-west-1:000000000000:table/customers/stream/2026-01-31T12:00:00.000"
    monkeypatch.setenv("POLLER_DEMO_TABLE_STREAM", table)

    config = load(run.find_config(), environ=os.environ, now=0)

    queues = [mapping.queue_name for mapping in config.mappings if mapping.source == "sqs"]
    assert queues == list(run.QUEUES)
    assert [mapping.name for mapping in config.mappings[2:]] == [run.CLICKS, run.CUSTOMERS]
    assert {mapping.source for mapping in config.mappings} == {"sqs", "kinesis", "dynamodb"}
    assert {function.timeout for function in config.functions.values()} == {run.VISIBILITY_TIMEOUT}


def test_the_config_is_found_inside_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site-packages" / "poller"
    monkeypatch.setattr(run.poller, "__file__", str(package / "__init__.py"))
    with pytest.raises(run.DemoError, match=r"demo\.toml is missing"):
        run.find_config()

    (package / "demo").mkdir(parents=True)
    (package / "demo" / "demo.toml").touch()
    assert run.find_config() == package / "demo" / "demo.toml"


def test_a_demo_that_cannot_start_says_why_in_one_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(say: object) -> None:
        raise EmulatorError("no emulator here")

    monkeypatch.setattr(run, "find_ministack", nothing)

    with pytest.raises(Exception) as caught:  # noqa: PT011  (typer's own)
        demo_command(seconds=0)

    assert caught.value.exit_code == 1
    assert capsys.readouterr().err == "demo: no emulator here\n"
