"""`poller resume` with keys, against a daemon that is played."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner, Result

from poller.cli import app, control
from poller.cli.control import DaemonError

if TYPE_CHECKING:
    from pathlib import Path


class Daemon:
    """What answers instead of a daemon."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: list[dict[str, Any]] = []
        self.error: DaemonError | None = None

    def ask(self, url: str, *, post: bool = False, body: dict[str, Any] | None = None) -> Any:
        assert post
        assert body is None
        self.asked.append(url)
        if self.error:
            raise self.error
        return {"mapping": "clicks", "done": True, "answer": self.answer}


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Daemon:
    played = Daemon()
    monkeypatch.setattr(control, "ask", played.ask)
    monkeypatch.chdir(tmp_path)
    return played


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["resume", "clicks", "--url", "http://daemon", *arguments])


def resumed(key: str, state: str = "free", records: int = 1200, error: str = "") -> dict[str, Any]:
    return {"key": key, "state": state, "records": records, "error": error}


def test_without_a_key_the_mapping_is_resumed(daemon: Daemon) -> None:
    result = run()
    assert (result.exit_code, result.stdout) == (0, "clicks: resumed\n")
    assert daemon.asked == ["http://daemon/mappings/clicks/resume"]


def test_a_key_is_named_as_it_is_and_what_happened_is_said(daemon: Daemon) -> None:
    daemon.answer = [resumed('user "17"/é')]
    result = run("--key", 'user "17"/é')
    assert daemon.asked == ["http://daemon/mappings/clicks/resume?key=user%20%2217%22%2F%C3%A9"]
    assert result.stdout == 'clicks: key "user \\"17\\"/é" is free again, 1,200 records handled\n'
    assert result.exit_code == 0


def test_a_key_that_still_fails_is_exit_1(daemon: Daemon) -> None:
    daemon.answer = [resumed("k", "failing", 0, "ValueError: no such order")]
    result = run("--key", "k")
    assert result.stdout == 'clicks: key "k" still fails, 0 records handled: ValueError: no such order\n'
    assert result.exit_code == 1


def test_a_key_that_takes_long_goes_on_without_the_command(daemon: Daemon) -> None:
    daemon.answer = [resumed("k", "going on", 300)]
    result = run("--key", "k")
    assert result.stdout == (
        'clicks: key "k" is being taken up, 300 records handled so far; poller status clicks shows how it goes on\n'
    )
    assert result.exit_code == 0


def test_what_cannot_be_done_is_one_line_and_exit_1(daemon: Daemon) -> None:
    daemon.error = DaemonError("clicks has no parked key 'k'")
    result = run("--key", "k")
    assert (result.exit_code, result.stdout, result.stderr) == (
        1,
        "",
        "poller resume: clicks has no parked key 'k'\n",
    )


def test_all_keys_are_asked_for_without_a_name(daemon: Daemon) -> None:
    result = run("--all-keys")
    assert daemon.asked == ["http://daemon/mappings/clicks/resume?all-keys"]
    assert (result.exit_code, result.stdout) == (0, "clicks: no key is parked\n")


def test_of_many_keys_those_that_are_free_are_counted_and_a_few_of_the_others_named(daemon: Daemon) -> None:
    daemon.answer = [
        *(resumed(f"free-{number}", records=2) for number in range(1000)),
        *(resumed(f"bad-{number}", "failing", 0, "ValueError: x") for number in range(22)),
    ]
    result = run("--all-keys")
    first, second, *_, last = result.stdout.splitlines()
    assert first == "clicks: 1,000 keys are free again, 2,000 records handled"
    assert second == 'clicks: key "bad-0" still fails, 0 records handled: ValueError: x'
    assert last == "clicks: and 2 keys more that are not free"
    assert len(result.stdout.splitlines()) == 22
    assert result.exit_code == 1


def test_a_key_and_all_keys_exclude_each_other(daemon: Daemon) -> None:
    result = run("--key", "k", "--all-keys")
    assert (result.exit_code, daemon.asked) == (2, [])
    assert result.stderr == "poller resume: --key and --all-keys exclude each other\n"
