"""`poller failures`, against a daemon that is played."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner, Result

from poller.cli import app, failures
from poller.cli.control import DaemonError, WrongWish
from poller.cli.failures import heading

if TYPE_CHECKING:
    from pathlib import Path

PAGE = "http://127.0.0.1:9464/failures"


def run(*arguments: str, columns: int = 200) -> Result:
    return CliRunner().invoke(app, ["failures", *arguments], env={"COLUMNS": str(columns)})


def place(**more: Any) -> dict[str, Any]:
    return {
        "mapping": "clicks",
        "where": "queue",
        "name": "arn:of:a:queue",
        "total": 3,
        "looked_at": 3,
        "note": "",
        "sample": False,
        "groups": [
            {
                "what": "KeyError",
                "fingerprint": "no order <number>",
                "message": "no order 2 [red]",
                "newest_id": "queue:clicks:m-2",
                "newest": 1_769_860_800.0,
                "oldest": 0.0,
                "count": 3,
                "records": 1200,
            }
        ],
    } | more


class Daemon:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.error: Exception | None = None
        self.answer: Any = [place(), place(name="empty", total=0, groups=[])]

    def __call__(self, url: str, *, post: bool = False) -> Any:
        self.asked.append("POST " * post + url.removeprefix(PAGE))
        if self.error:
            raise self.error
        return {"answer": self.answer}


@pytest.fixture(autouse=True)
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    (tmp_path / "poller.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    played = Daemon()
    monkeypatch.setattr(failures, "ask", played)
    return played


def test_what_waits_is_shown_place_by_place_without_the_empty_ones(daemon: Daemon):
    result = run()
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "clicks: on-failure queue arn:of:a:queue: 3"
    assert lines[2].split() == [
        "3", "1,200", "KeyError", "no", "order", "2", "[red]", "2026-01-31T12:00:00Z", "queue:clicks:m-2",
    ]  # fmt: skip
    assert "empty" not in result.stdout
    assert daemon.asked == [""]


def test_an_id_is_whole_on_a_narrow_terminal_too(daemon: Daemon):
    group = place()["groups"][0] | {"newest_id": f"queue:clicks:{'0' * 8}-{'1' * 30}"}
    daemon.answer = [place(groups=[group])]
    assert f"  id of the newest: {group['newest_id']}" in run(columns=40).stdout.splitlines()


def test_where_nothing_waits_that_is_said(daemon: Daemon):
    daemon.answer = [place(total=0, groups=[])]
    assert run().stdout == "nothing waits\n"


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"total": None, "note": "denied"}, "clicks: on-failure queue arn:of:a:queue (denied)"),
        (
            {"total": 5000, "looked_at": 100, "sample": True},
            "clicks: on-failure queue arn:of:a:queue: 5,000, of which 100 were looked at",
        ),
        ({"where": "parked", "name": "k"}, "clicks: parked key k: 3"),
        ({"where": "objects", "name": "s3://b/"}, "clicks: on-failure bucket s3://b/: 3"),
        ({"where": "elsewhere", "name": "undo"}, "clicks: on-failure destination undo: 3"),
        ({"where": "dead_letters"}, "clicks: dead-letter queue arn:of:a:queue: 3"),
        ({"where": "spool"}, "clicks: spooled for arn:of:a:queue: 3"),
    ],
)
def test_each_place_has_a_heading(more: dict[str, Any], line: str):
    assert heading(place(**more)) == line


def test_a_place_that_cannot_be_looked_into_is_shown_with_its_reason(daemon: Daemon):
    daemon.answer = [place(total=None, groups=[], note="access denied")]
    assert run().stdout == "clicks: on-failure queue arn:of:a:queue (access denied)\n"


def test_one_mapping_can_be_asked_for(daemon: Daemon):
    assert run("my orders").exit_code == 0
    assert daemon.asked == ["?mapping=my%20orders"]


def test_all_of_it_can_be_had_as_json(daemon: Daemon):
    assert json.loads(run("--json").stdout) == daemon.answer


def test_one_failure_is_shown_in_full(daemon: Daemon):
    daemon.answer = {"id": "objects:clicks:a/b", "body": "grün"}
    result = run("show", "objects:clicks:a/b")
    assert json.loads(result.stdout) == daemon.answer
    assert "grün" in result.stdout
    assert daemon.asked == ["?id=objects%3Aclicks%3Aa%2Fb"]


@pytest.mark.parametrize(
    ("arguments", "error", "code", "line"),
    [
        (("clicks", "x"), None, 2, "say poller failures NAME, or poller failures show ID, or discard ID"),
        (
            ("discard", "parked:clicks:1"),
            None,
            2,
            "there is no terminal to ask on: look at it with show, then say --yes",
        ),
        (("clicks",), WrongWish("no mapping is named 'clicks'"), 2, "no mapping is named 'clicks'"),
        (("clicks",), DaemonError("no daemon answers"), 1, "no daemon answers"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    daemon: Daemon, arguments: tuple[str, ...], error: Exception | None, code: int, line: str
):
    daemon.error = error
    result = run(*arguments)
    assert (result.exit_code, result.stderr) == (code, f"poller failures: {line}\n")


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("n\n", 1)])
def test_what_is_to_be_discarded_is_shown_and_asked_about(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, answer: str, code: int
):
    class Sys:
        class stdin:
            @staticmethod
            def isatty() -> bool:
                return True

    monkeypatch.setattr(failures, "sys", Sys)
    daemon.answer = {"id": "parked:clicks:1"}
    result = CliRunner().invoke(app, ["failures", "discard", "parked:clicks:1"], input=answer)
    assert result.exit_code == code
    asked = ["?id=parked%3Aclicks%3A1", "POST /discard?id=parked%3Aclicks%3A1"]
    assert daemon.asked == (asked if code == 0 else asked[:1])
    assert "discard it for good? [y/N]" in result.stdout


def test_what_was_discarded_is_printed(daemon: Daemon):
    daemon.answer = {"id": "parked:clicks:1", "body": "half \ud83d"}
    result = run("discard", "parked:clicks:1", "--yes")
    assert (result.exit_code, json.loads(result.stdout)) == (0, daemon.answer)
    assert daemon.asked == ["POST /discard?id=parked%3Aclicks%3A1"]
