"""`poller replay`, against a daemon that is played."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner, Result

from poller.cli import app, replay
from poller.cli.control import DaemonError, NoDaemon, WrongWish
from poller.cli.replay_report import doing, report

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAGE = "http://127.0.0.1:9464/replays"
QUEUE = "arn:aws:sqs:eu-west-1:123456789012:failed"
LOW, HIGH = "1" * 21, "9" * 21


def run(*arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(app, ["replay", *arguments], input=answer, env={"COLUMNS": "200"})


def counted(**more: Any) -> dict[str, Any]:
    return {
        "succeeded": 100,
        "failed": 0,
        "filtered": 0,
        "gone": 0,
        "messages": 10,
        "kept": 0,
        "passed_over": 0,
        "unreadable": 0,
        "why_unreadable": "",
        "errors": {},
        "example": "",
        "failed_ids": [],
    } | more


def shown(state: str = "done", counts: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "id": "r1",
        "mapping": "clicks",
        "wish": {"target": QUEUE, "start": "", "end": ""},
        "state": state,
        "reason": "",
        "note": "",
        "total": 10,
        "unit": "messages",
        "done": 10,
        "began": 1_769_860_800.0,
        "began_again": 0.0,
        "ended": 0.0,
        "counts": counts or counted(),
    } | more


class Daemon:
    """What `ask` reaches; `states` are what the replay is at each look."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bool, Any]] = []
        self.states: list[dict[str, Any] | BaseException] = [shown("running"), shown()]
        self.error: Exception | None = None
        self.listed: list[dict[str, Any]] = []

    def __call__(self, url: str, *, post: bool = False, body: dict[str, Any] | None = None) -> Any:
        self.asked.append((url.removeprefix(PAGE), post, body))
        if self.error:
            raise self.error
        if body and body.get("dry_run"):
            return {"answer": ["about 10 messages in failed", "the first 10 of them tell of 100 records"]}
        if url == PAGE and not post:
            return {"answer": self.listed}
        if url.endswith("/stop"):
            return {"answer": shown("stopped")}
        if post:
            return {"answer": shown("running")}
        state = self.states.pop(0)
        if isinstance(state, BaseException):
            raise state
        return {"answer": state}

    @property
    def begun(self) -> list[Any]:
        return [body for path, post, body in self.asked if post and path == "" and not body.get("dry_run")]


@pytest.fixture(autouse=True)
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    (tmp_path / "poller.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(replay, "INTERVAL", 0.0)
    played = Daemon()
    monkeypatch.setattr(replay, "ask", played)
    return played


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    class Sys:
        stdin = Terminal()

    monkeypatch.setattr(replay, "sys", Sys)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("clicks",), "say one of --from-queue, --from-s3, --from-dlq, --from or --from-sequence"),
        (("clicks", "--from-queue", QUEUE, "--from-s3", "s3://b"), "say one of --from-queue"),
        (("--from-queue", QUEUE, "--yes"), "name the mapping"),
        (("clicks", "--from-queue", QUEUE, "--to", "source"), "--to and --to-sequence end a range"),
        (("clicks", "--from-dlq", QUEUE, "--to", "hell"), "--to and --to-sequence end a range"),
        (("clicks", "--from", "1", "--from-sequence", LOW), "say --from or --from-sequence, not both"),
        (("clicks", "--from-s3", "bucket", "--yes"), "bucket: must be s3://BUCKET"),
        (("clicks", "--from-queue", QUEUE, "--rate", "0", "--yes"), "rate: must be a number"),
        (("clicks", "--from-queue", QUEUE, "--delete", "--yes"), "--delete is for objects"),
        (("clicks", "--from-queue", QUEUE), "there is no terminal to ask on: look with --dry-run"),
    ],
)
def test_what_cannot_be_is_refused_before_anybody_is_asked(
    arguments: tuple[str, ...], line: str, daemon: Daemon
):
    result = run(*arguments)
    assert (result.exit_code, result.stdout, daemon.asked) == (2, "", [])
    assert result.stderr.startswith(f"poller replay: {line}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "wish"),
    [
        (("--from-queue", QUEUE), {"kind": "queue", "target": QUEUE}),
        (
            ("--from-s3", "s3://failed/p", "--delete"),
            {"kind": "objects", "target": "s3://failed/p", "delete": True},
        ),
        (("--from-dlq", QUEUE), {"kind": "dead_letters", "target": QUEUE, "to_source": False}),
        (("--from-dlq", QUEUE, "--to", "function"), {"kind": "dead_letters", "to_source": False}),
        (("--from-dlq", QUEUE, "--to", "source"), {"kind": "dead_letters", "to_source": True}),
        (("--from", "TRIM_HORIZON"), {"kind": "range", "start": "TRIM_HORIZON", "end": ""}),
        (("--from", "1", "--to", "2", "--key", "k"), {"start": "1", "end": "2", "key": "k"}),
        (
            ("--from-sequence", LOW, "--to-sequence", HIGH, "--shard", "s"),
            {"kind": "range", "start": LOW, "end": HIGH, "shard": "s"},
        ),
        (
            ("--from-queue", QUEUE, "--rate", "500", "--batch-size", "5", "--filter", "{}"),
            {"rate": 500.0, "batch_size": 5, "filters": ["{}"]},
        ),
    ],
)
def test_the_options_say_what_is_replayed(arguments: tuple[str, ...], wish: dict[str, Any], daemon: Daemon):
    result = run("clicks", *arguments, "--yes")
    assert result.exit_code == 0, result.stderr
    (begun,) = daemon.begun
    assert begun["mapping"] == "clicks"
    assert {name: begun[name] for name in wish} == wish


def test_a_dry_run_says_what_there_is_and_begins_nothing(daemon: Daemon):
    result = run("clicks", "--from-queue", QUEUE, "--dry-run")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "clicks: about 10 messages in failed",
        "clicks: the first 10 of them tell of 100 records",
    ]
    assert daemon.begun == []


def test_a_dry_run_can_be_had_as_json(daemon: Daemon):
    result = run("clicks", "--from-queue", QUEUE, "--dry-run", "--json")
    assert json.loads(result.stdout)[0] == "about 10 messages in failed"


@pytest.mark.usefixtures("terminal")
def test_a_report_as_json_is_all_of_standard_output_where_it_asks_too(daemon: Daemon):
    result = run("clicks", "--from-queue", QUEUE, "--json", answer="y\n")
    assert result.exit_code == 0
    report = result.stdout.removeprefix(" y\n")  # what the runner's terminal shows of what is typed
    assert json.loads(report)["mapping"] == "clicks"
    assert "replay them?" in result.stderr


@pytest.mark.parametrize(("answer", "code", "begun"), [("y\n", 0, 1), ("n\n", 1, 0), ("", 1, 0)])
@pytest.mark.usefixtures("terminal")
def test_on_a_terminal_it_says_what_there_is_and_asks(daemon: Daemon, answer: str, code: int, begun: int):
    result = run("clicks", "--from-queue", QUEUE, answer=answer)
    assert (result.exit_code, len(daemon.begun)) == (code, begun)
    assert "tell of 100 records\nreplay them? [y/N]" in result.stdout


def test_it_is_followed_to_its_end_and_reported(daemon: Daemon):
    result = run("clicks", "--from-queue", QUEUE, "--yes")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "clicks: replay r1 is done",
        "        100 succeeded",
        "          0 failed again",
        "          0 gone from the stream",
        "          0 filtered out",
        "  messages: 10 done, 0 stay where they are",
    ]
    assert [path for path, _, _ in daemon.asked] == ["", "/r1", "/r1"]


@pytest.mark.parametrize(
    "end",
    [
        shown(counts=counted(failed=1)),
        shown(counts=counted(gone=1)),
        shown(counts=counted(kept=1)),
        shown("failed", reason="no such stream"),
        shown("interrupted", reason="the daemon was stopped"),
        shown(counts=counted(kept=3, passed_over=2)),
    ],
)
def test_what_did_not_go_well_is_said_with_the_exit_code(daemon: Daemon, end: dict[str, Any]):
    daemon.states = [end]
    result = run("clicks", "--from-queue", QUEUE, "--yes")
    assert result.exit_code == 1
    hint = "poller replay --resume r1 goes on where it was" in result.stdout
    assert hint is (end["state"] != "done")
    assert end["reason"] in result.stdout


def test_ctrl_c_stops_it_and_says_in_one_line_how_to_go_on(daemon: Daemon):
    daemon.states = [shown("running"), KeyboardInterrupt()]
    result = run("clicks", "--from-queue", QUEUE, "--yes")
    assert result.exit_code == 1
    assert daemon.asked[-1][:2] == ("/r1/stop", True)
    last = result.stderr.splitlines()[-1]
    assert last == "poller replay: stopped: 100 succeeded; poller replay --resume r1 goes on where it was"


def test_ctrl_c_is_waited_for_until_what_is_at_work_is_done(daemon: Daemon, monkeypatch: pytest.MonkeyPatch):
    daemon.states = [KeyboardInterrupt(), shown("running"), shown("stopped")]
    stop: Callable[..., Any] = daemon.__call__

    def ask(url: str, **more: Any) -> Any:
        found = stop(url, **more)
        return {"answer": shown("running")} if url.endswith("/stop") else found

    monkeypatch.setattr(replay, "ask", ask)
    assert run("clicks", "--from-queue", QUEUE, "--yes").exit_code == 1
    assert daemon.states == []


def test_a_second_ctrl_c_does_not_wait(daemon: Daemon, monkeypatch: pytest.MonkeyPatch):
    daemon.states = [KeyboardInterrupt(), KeyboardInterrupt()]
    ask = daemon.__call__
    monkeypatch.setattr(
        replay,
        "ask",
        lambda url, **more: {"answer": shown("running")} if url.endswith("/stop") else ask(url, **more),
    )
    result = run("clicks", "--from-queue", QUEUE, "--yes")
    assert result.exit_code == 1
    assert "goes on where it was" in result.stderr


def test_ctrl_c_in_its_last_moment_finds_it_done(daemon: Daemon, monkeypatch: pytest.MonkeyPatch):
    daemon.states = [KeyboardInterrupt()]
    ask = daemon.__call__
    monkeypatch.setattr(
        replay, "ask", lambda url, **more: {"answer": shown()} if url.endswith("/stop") else ask(url, **more)
    )
    result = run("clicks", "--from-queue", QUEUE, "--yes")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "clicks: replay r1 is done")


def test_a_replay_is_gone_on_with_by_its_id(daemon: Daemon):
    daemon.states = [shown("stopped"), shown()]
    result = run("--resume", "r1")
    assert result.exit_code == 0
    assert daemon.asked[:2] == [("/r1", False, None), ("/r1/resume", True, None)]


def test_a_replay_that_still_runs_is_followed(daemon: Daemon):
    daemon.states = [shown("running"), shown("running"), shown()]
    result = run("--resume", "r1")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "clicks: replay r1 is done")
    assert daemon.asked == [("/r1", False, None)] * 3


def test_ctrl_c_before_the_daemon_has_answered_says_that_it_may_have_begun(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(url: str, **more: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(replay, "ask", interrupted)
    result = run("clicks", "--from-queue", QUEUE, "--yes")
    line = "poller replay: the daemon may have begun it all the same: poller replay --list tells\n"
    assert (result.exit_code, result.stderr) == (1, line)


def test_the_daemons_own_words_can_be_had(daemon: Daemon):
    result = run("clicks", "--from-queue", QUEUE, "--yes", "--json")
    assert json.loads(result.stdout) == shown()


def test_replays_are_listed_the_newest_first(daemon: Daemon):
    assert run("--list").stdout == "no replays\n"
    a_range = {"target": "", "start": "TRIM_HORIZON", "end": ""}
    daemon.listed = [shown("stopped", reason="by command"), shown("running", id="r2", wish=a_range)]
    lines = run("--list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["id", "r2", "r1"]
    assert "from TRIM_HORIZON to 2026-01-31T12:00:00Z" in lines[1]
    assert QUEUE in lines[2]
    assert "by command" in lines[2]
    assert json.loads(run("--list", "--json").stdout) == daemon.listed


@pytest.mark.parametrize(
    ("error", "code"), [(WrongWish("no mapping is named 'clicks'"), 2), (DaemonError("it is stopping"), 1)]
)
def test_what_the_daemon_refuses_is_said_in_one_line(daemon: Daemon, error: Exception, code: int):
    daemon.error = error
    result = run("clicks", "--from-queue", QUEUE, "--yes")
    assert (result.exit_code, result.stderr) == (code, f"poller replay: {error}\n")


def test_a_report_names_errors_and_records():
    counts = counted(
        failed=12,
        kept=3,
        unreadable=1,
        why_unreadable="it is no JSON",
        errors={"KeyError": 2, "ValueError": 10},
        example="no such order " + "x" * 300,
        failed_ids=[str(number) for number in range(12)],
    )
    lines = report(shown(counts=counts))
    assert "            10 ValueError" in lines
    assert lines.index("            10 ValueError") < lines.index("            2 KeyError")
    assert "            0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more" in lines
    assert lines[-1] == "  1 of these cannot be used: it is no JSON"
    assert max(map(len, lines)) < 200
    assert not any(line.startswith("  records:") for line in report(shown(unit="records")))


def test_what_was_not_asked_for_stays_and_is_no_failure(daemon: Daemon):
    daemon.states = [shown(counts=counted(kept=1_000, passed_over=1_000))]
    result = run("clicks", "--from-queue", QUEUE, "--filter", "{}", "--yes")
    assert result.exit_code == 0
    line = "messages: 10 done, 1,000 stay where they are, 1,000 of these because not all of their records were asked for"
    assert result.stdout.splitlines()[-1] == f"  {line}"


def test_beside_the_bar_stands_what_happens():
    counts = counted(failed=1, gone=2)
    told = doing(shown("running", counts, note="waiting for 2 messages"))
    assert told == "100 succeeded, 1 failed again, 2 gone, waiting for 2 messages"


def test_a_range_has_no_total(daemon: Daemon):
    daemon.states = [shown("running", total=None, unit="records"), shown(total=None, unit="records")]
    assert run("clicks", "--from", "TRIM_HORIZON", "--yes").exit_code == 0


def test_a_daemon_that_goes_away_leaves_a_way_to_go_on(daemon: Daemon):
    daemon.states = [shown("running"), NoDaemon("no daemon answers. Is it running?")]
    result = run("clicks", "--from-queue", QUEUE, "--yes")
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last == (
        "poller replay: no daemon answers. Is it running? poller replay --resume r1 goes on when it is back"
    )


def test_a_replay_whose_command_is_gone_can_be_stopped(daemon: Daemon):
    result = run("--stop", "r1")
    assert result.exit_code == 0
    assert daemon.asked == [("/r1/stop", True, None)]
    assert result.stdout.splitlines()[0] == "clicks: replay r1 is stopped"
