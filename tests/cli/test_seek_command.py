"""`poller seek`, against a daemon that is played and against a state file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest
from typer.testing import CliRunner, Result

from poller.cli import app, seek
from poller.cli.control import DaemonError, NoDaemon, WrongWish
from poller.model import Checkpoint
from poller.stores.sqlite import SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = """
[daemon]
state = "sqlite:poller.db"
[functions.echo]
handler = "handlers.echo:handler"
[[mappings]]
name = "orders"
event_source_arn = "arn:aws:sqs:eu-west-1:123456789012:orders"
function_name = "echo"
[[mappings]]
name = "clicks"
event_source_arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks"
function_name = "echo"
starting_position = "LATEST"
[[mappings]]
name = "customers"
event_source_arn = "arn:aws:dynamodb:eu-west-1:123456789012:table/customers/stream/2026-01-31T12:00:00.000"
function_name = "echo"
starting_position = "LATEST"
"""
FAR, NEAR = "9" * 21, "1" * 21
CHILDREN = "(children of the shard are not moved; they wait until it is finished again)"
UNSEEN = "(shards that it has not seen yet are read from their beginning)"


def run(*arguments: str, answer: str = "") -> Result:
    return CliRunner().invoke(app, ["seek", *arguments], input=answer)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "poller.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    class Sys:
        stdin = Terminal()

    monkeypatch.setattr(seek, "sys", Sys)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--to", "soon", "--yes"), "soon: must be TRIM_HORIZON, LATEST, a time (2026-01-31T12:00:00Z, or"),
        (("--to", "2026-01-31T12:00:00", "--yes"), "2026-01-31T12:00:00: must name its offset from UTC"),
        (("--to", FAR, "--yes"), "a sequence number belongs to one shard: name it with --shard"),
        (("--to", "LATEST"), "there is no terminal to ask on: say --yes"),
    ],
)
def test_what_cannot_be_is_refused_before_anybody_is_asked(
    arguments: tuple[str, ...], line: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(seek, "ask", None)
    result = run("clicks", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"poller seek: {line}")
    assert result.stderr.count("\n") == 1


# --- through the daemon -----------------------------------------------------------------------------------------


class Daemon:
    """What `ask` reaches."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.error: Exception | None = None
        self.moves = [{"shard": "s-1", "effect": "skips", "says": "from here to there"}]
        self.done: list[dict[str, str]] = []

    def __call__(self, url: str, *, post: bool = False, body: dict[str, Any] | None = None) -> Any:
        if url.endswith("/status"):
            return {}
        self.asked.append((url, body))
        if self.error:
            raise self.error
        return {"answer": self.moves if body and body["dry_run"] else self.done or self.moves}


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    played = Daemon()
    monkeypatch.setattr(seek, "ask", played)
    return played


def test_a_running_daemon_is_asked_what_would_be_and_then_to_do_it(daemon: Daemon):
    result = run("clicks", "--to", "LATEST", "--yes")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "s-1: from here to there",
        UNSEEN,
        "clicks: moved; poller resume clicks goes on from there",
    ]
    page = "http://127.0.0.1:9464/mappings/clicks/seek"
    assert daemon.asked == [
        (page, {"to": "LATEST", "shard": None, "dry_run": dry_run}) for dry_run in (True, False)
    ]


def test_a_shard_that_has_gone_on_meanwhile_is_told_of_again(daemon: Daemon):
    daemon.moves.append({"shard": "s-2", "effect": "skips", "says": "stands still"})
    daemon.done = [daemon.moves[0] | {"says": "from further on to there"}, daemon.moves[1]]
    result = run("clicks", "--to", "LATEST", "--yes")
    assert result.stdout.splitlines() == [
        "s-1: from here to there",
        "s-2: stands still",
        UNSEEN,
        "s-1: from further on to there",
        "clicks: moved; poller resume clicks goes on from there",
    ]


@pytest.mark.parametrize(("answer", "code", "asked"), [("y\n", 0, 2), ("n\n", 1, 1), ("", 1, 1)])
@pytest.mark.usefixtures("terminal")
def test_on_a_terminal_it_asks_first(daemon: Daemon, answer: str, code: int, asked: int):
    result = run("clicks", "--to", NEAR, "--shard", "s-1", answer=answer)
    assert (result.exit_code, len(daemon.asked)) == (code, asked)
    assert f"{CHILDREN}\nmove clicks? [y/N]" in result.stdout


def test_where_nothing_would_move_nothing_is_done(daemon: Daemon):
    daemon.moves = [{"shard": "s-1", "effect": "nothing", "says": "stays at its beginning"}]
    result = run("clicks", "--to", "TRIM_HORIZON", "--yes")
    assert result.stdout == "s-1: stays at its beginning\nclicks: nothing to move\n"
    assert (result.exit_code, len(daemon.asked)) == (0, 1)


@pytest.mark.parametrize(
    ("error", "code"),
    [(DaemonError("it is running, not paused"), 1), (WrongWish("there is no such shard"), 2)],
)
def test_a_daemon_that_refuses_is_one_line(daemon: Daemon, error: Exception, code: int):
    daemon.error = error
    result = run("clicks", "--to", "LATEST", "--yes")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"poller seek: {error}\n")


@pytest.mark.parametrize("error", [NoDaemon("no daemon answers"), DaemonError("the daemon answered 500")])
def test_a_daemon_that_is_named_and_does_not_answer_is_an_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception
):
    def ask(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(seek, "ask", ask)
    result = run("clicks", "--to", "LATEST", "--yes", "--url", "http://127.0.0.1:1")
    assert (result.exit_code, result.stderr) == (1, f"poller seek: {error}\n")


# --- in the state file ------------------------------------------------------------------------------------------


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No daemon runs."""

    def ask(*_: Any, **__: Any) -> Any:
        raise NoDaemon("no daemon answers")

    monkeypatch.setattr(seek, "ask", ask)


def write(**checkpoints: Checkpoint) -> None:
    async def go() -> None:
        store = await SqliteStore.open("poller.db")
        for shard, checkpoint in checkpoints.items():
            for mapping in ("clicks", "customers"):
                await store.save(mapping, shard, checkpoint)
        await store.aclose()

    anyio.run(go)


def read(mapping: str = "clicks") -> dict[str, Checkpoint]:
    async def go() -> dict[str, Checkpoint]:
        store = await SqliteStore.open("poller.db")
        found = dict(await store.load(mapping))
        await store.aclose()
        return found

    return anyio.run(go)


@pytest.mark.usefixtures("nobody")
def test_without_a_daemon_the_file_is_moved():
    write(a=Checkpoint(FAR), b=Checkpoint(NEAR, finished=True))
    result = run("clicks", "--to", "TRIM_HORIZON", "--yes")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"a: from record {FAR} to its beginning: repeats what it still holds between them",
        "b: from its end to its beginning: opens it again and repeats what it still holds after that",
        UNSEEN,
        "clicks: moved; it goes on from there when its daemon is started",
    ]
    assert read() == {"a": Checkpoint(), "b": Checkpoint()}
    assert read("customers") == {"a": Checkpoint(FAR), "b": Checkpoint(NEAR, finished=True)}


@pytest.mark.usefixtures("nobody")
def test_one_shard_is_moved_alone_and_backwards_too():
    write(a=Checkpoint(FAR), b=Checkpoint(FAR))
    assert run("clicks", "--to", NEAR, "--shard", "a", "--yes").exit_code == 0
    assert read() == {"a": Checkpoint(NEAR), "b": Checkpoint(FAR)}


@pytest.mark.usefixtures("nobody")
def test_a_time_is_kept_as_it_was_said():
    write(a=Checkpoint(FAR))
    assert run("clicks", "--to", "2026-01-31T12:00:00Z", "--yes").exit_code == 0
    assert read() == {"a": Checkpoint(since=1_769_860_800.0)}


@pytest.mark.usefixtures("nobody", "terminal")
def test_who_says_no_changes_nothing():
    write(a=Checkpoint(FAR))
    assert run("clicks", "--to", "LATEST", answer="n\n").exit_code == 1
    assert read() == {"a": Checkpoint(FAR)}


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (
            ("orders", "--to", "LATEST"),
            2,
            "SQS keeps the position of a queue itself: there is nothing to move",
        ),
        (
            ("customers", "--to", "1769860800"),
            2,
            "a DynamoDB stream cannot be read from a time: use TRIM_HORIZON, LATEST or a sequence number",
        ),
        (
            ("click", "--to", "LATEST"),
            2,
            "no mapping is named 'click' (there are: orders, clicks, customers)",
        ),
        (("clicks", "--to", NEAR, "--shard", "x"), 2, "it has no checkpoint in a shard x; it has in a"),
    ],
)
@pytest.mark.usefixtures("nobody")
def test_a_wish_that_makes_no_sense_is_one_line(arguments: tuple[str, ...], code: int, line: str):
    write(a=Checkpoint(FAR))
    result = run(*arguments, "--yes")
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"poller seek: {line}\n")


@pytest.mark.usefixtures("nobody")
def test_no_state_file_is_made(here: Path):
    result = run("clicks", "--to", "LATEST", "--yes")
    assert (result.exit_code, result.stderr) == (
        1,
        "poller seek: there is no state file poller.db: nothing was kept yet, or this is not the daemon's directory\n",
    )
    assert not (here / "poller.db").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("nobody")
def test_a_state_file_in_use_is_left_alone():
    async def go() -> Result:
        store = await SqliteStore.open("poller.db")
        try:
            return await anyio.to_thread.run_sync(run, "clicks", "--to", "LATEST", "--yes")
        finally:
            await store.aclose()

    write(a=Checkpoint(FAR))
    result = anyio.run(go)
    assert result.exit_code == 1
    assert ": in use by " in result.stderr


@pytest.mark.usefixtures("nobody")
def test_a_state_in_memory_has_nothing_to_move(here: Path):
    (here / "poller.toml").write_text(CONFIG.replace("sqlite:poller.db", "memory:"))
    result = run("clicks", "--to", "LATEST", "--yes")
    assert (result.exit_code, result.stderr) == (
        2,
        'poller seek: [daemon] state = "memory:": no checkpoints are kept\n',
    )


@pytest.mark.usefixtures("nobody")
def test_a_wrong_file_is_named_with_its_mistakes(here: Path):
    (here / "poller.toml").write_text(CONFIG.replace("LATEST", "FIRST"))
    result = run("clicks", "--to", "LATEST", "--yes")
    assert result.exit_code == 2
    assert result.stderr.count('starting_position = "FIRST"') == 2
