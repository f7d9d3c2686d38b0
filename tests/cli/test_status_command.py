"""`poller status`: what is shown in how many columns, and which shards of many."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from poller.cli import app, status, tables
from poller.cli.control import DaemonError

NUMBER = "49590338271490256608559692538361571095921575989136588898"
TOTALS = {
    "received": 123_456,
    "filtered": 12,
    "invoked": 123_460,
    "failed": 7,
    "deleted": 0,
    "committed": 0,
    "dropped": 0,
    "delivered": 0,
    "released": 0,
    "last_error": "",
}


def shard(number: int, doing: str = "reading", lag: float | None = 0.25, **more: Any) -> dict[str, Any]:
    known = {"sequence_number": NUMBER, "checkpoint_age": 0.2, "open_records": 1200}
    return {"shard": f"shardId-{number:012}", "doing": doing, "iterator_age": lag, **known, **more}


def mapping(
    name: str, *shards: dict[str, Any], state: str = "running", reason: str = "", **totals: Any
) -> Any:
    return {
        "name": name,
        "source": "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks",
        "function": "f",
        "state": state,
        "reason": reason,
        "receivers": 3,
        "in_flight_records": 22,
        "totals": TOTALS | totals,
        "shards": list(shards),
        "spool": [],
        "parked": None,
    }


def page(*mappings: Any, stopping: bool = False) -> dict[str, Any]:
    return {
        "version": "1.2.3",
        "pid": 7,
        "started": 1000.0,
        "in_flight": 4,
        "concurrency": 1000,
        "stopping": stopping,
        "mappings": list(mappings),
    }


def drawn(what: Any, width: int) -> list[str]:
    output = io.StringIO()
    Console(file=output, width=width).print(what)
    return [line.rstrip() for line in output.getvalue().splitlines()]


def overview(*mappings: Any, width: int = 80) -> list[str]:
    return drawn(tables.overview(page(*mappings), 1090.0, width), width)


def row(lines: list[str], name: str) -> list[str]:
    (found,) = [line for line in lines if line.startswith(name + " ")]
    return found.split()


def spooled(entries: int, size: int, oldest: float, why: str = "") -> dict[str, Any]:
    return {"destination": "arn:failed", "entries": entries, "bytes": size, "oldest": oldest, "why": why}


# --- the spool ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            spooled(1200, 2_500_000, 785.0, "queue missing"),
            "clicks: 1,200 batches (2.5 MB) spooled for arn:failed, the oldest for 5 min 5 s: queue missing",
        ),
        (spooled(1, 1200, 1090.0), "clicks: 1 batch (1.2 kB) spooled for arn:failed, the oldest for 0 s"),
        (spooled(2, 999, 1090.0), "clicks: 2 batches (999 bytes) spooled for arn:failed, the oldest for 0 s"),
    ],
)
def test_what_is_spooled_is_said_beneath(line: dict[str, Any], said: str) -> None:
    waiting = mapping("clicks", shard(1)) | {"spool": [line]}
    assert overview(waiting, width=120)[-1] == said
    assert drawn(tables.one(waiting, 1090.0, 120), 120)[-1] == said


# --- parked keys ----------------------------------------------------------------------------------------------


def parked_key(key: str, records: int = 3, error: str = "no such order", **more: Any) -> dict[str, Any]:
    known = {"bytes": 100, "since": 785.0, "error_type": "ValueError", "doing": "next try in 42 s"}
    return {"key": key, "records": records, "error_message": error, **known, **more}


def parking(*first: dict[str, Any], keys: int = 1, waiting: str = "") -> Any:
    about = {"keys": keys, "records": 1200, "bytes": 2_500_000, "oldest": 785.0, "waiting": waiting}
    return mapping("clicks", shard(1)) | {"parked": {**about, "first": list(first)}}


def test_parked_keys_are_counted_and_the_first_one_is_named_with_its_error() -> None:
    waiting = parking(parked_key("user-17"), parked_key("user-18"), keys=1200)
    assert overview(waiting, width=120)[-3:] == [
        "clicks: 1,200 keys parked, 1,200 records (2.5 MB), the oldest for 5 min 5 s",
        "  user-17: 3 records, next try in 42 s: ValueError: no such order",
        "  and 1,199 more: poller status clicks",
    ]


def test_with_the_mappings_name_ten_parked_keys_are_named() -> None:
    waiting = parking(*(parked_key(f"user-{number}") for number in range(10)), keys=12)
    lines = drawn(tables.one(waiting, 1090.0, 120), 120)[-11:]
    assert lines[0] == "  user-0: 3 records, next try in 42 s: ValueError: no such order"
    assert lines[-1] == "  and 2 more"


def test_a_full_spool_is_said_beside_what_is_parked() -> None:
    waiting = parking(parked_key("k", error_type="", error=""), waiting="waiting for room")
    assert overview(waiting, width=120)[-2:] == [
        "clicks: 1 key parked, 1,200 records (2.5 MB), the oldest for 5 min 5 s; waiting for room",
        "  k: 3 records, next try in 42 s",
    ]


def test_a_key_and_an_error_can_neither_fill_nor_steer_a_terminal() -> None:
    waiting = parking(parked_key("k" * 100 + "\x1b[2J", error="a\nb\x1b" + "x" * 300, error_type=""))
    *_, line = drawn(tables.one(waiting, 1090.0, 400), 400)
    assert line == f"  {'k' * 64}…: 3 records, next try in 42 s: a\\nb\\x1b{'x' * 192}…"


def test_a_mapping_of_which_nothing_is_parked_says_nothing_of_it() -> None:
    assert overview(parking(keys=0)) == overview(mapping("clicks", shard(1)))


# --- mappings -------------------------------------------------------------------------------------------------


def test_the_first_line_is_about_the_daemon():
    assert overview()[0] == "poller 1.2.3, pid 7, up 1 min 30 s, 4 of 1000 invocations"
    (first, *_) = drawn(tables.overview(page(stopping=True), 1000.0, 80), 80)
    assert first.endswith(", stopping")


def test_at_eighty_columns_nothing_is_cut():
    lines = overview(
        mapping("clicks/kinesis", shard(0, lag=412), committed=123_000, dropped=3, delivered=9),
        mapping("orders", deleted=99),
    )
    head = ["mapping", "state", "at", "work", "lag", "failed", "done", "dropped", "delivered"]
    assert row(lines, "mapping") == head
    cells = ["clicks/kinesis", "running", "22", "412", "s", "7", "123,000", "3", "9"]
    assert row(lines, "clicks/kinesis") == cells
    assert row(lines, "orders") == ["orders", "running", "22", "7", "99", "0", "0"]
    assert max(map(len, lines)) <= 80


def test_what_is_nowhere_has_no_column():
    lines = overview(mapping("orders", deleted=99))
    found = row(lines, "mapping")
    assert not {"lag", "dropped", "delivered", "why"} & {*found}


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 160, 200])
def test_any_width_is_kept_and_the_names_are_whole(width: int):
    name = "a-name-of-some-length.v2"
    lines = overview(mapping(name, shard(0), state="degraded", reason="why " * 20), width=width)
    assert max(map(len, lines)) <= width
    assert "…" not in row(lines, name)[0]
    assert row(lines, name)[:2] == [name, "degraded"]


def test_a_name_that_is_longer_than_the_line_ends_in_dots():
    lines = overview(mapping("x" * 64), width=40)
    (found,) = [line for line in lines if line.startswith("xxx")]
    assert "x…" in found


def test_a_wide_terminal_shows_every_figure_and_the_reason_beside_them():
    lines = overview(mapping("orders", state="failed", reason="no such queue", filtered=5), width=160)
    assert {"polls", "received", "filtered", "invoked", "given", "why"} <= {*row(lines, "mapping")}
    assert row(lines, "orders")[-3:] == ["no", "such", "queue"]


def test_a_narrow_terminal_shows_reasons_beneath():
    lines = overview(
        mapping("orders", state="failed", reason="no such queue"), mapping("b", last_error="E: x")
    )
    assert lines[-2:] == ["orders: no such queue", "b: last error: E: x"]


def test_a_circuit_breaker_that_is_ramping_is_a_reason_as_long_as_there_is_no_other():
    ramping = mapping("orders", last_error="E: x") | {"circuit": "ramping"}
    assert overview(ramping)[-1] == "orders: circuit ramping up after an outage of the function"
    stuck = mapping("orders", reason="at the concurrency limit") | {"circuit": "ramping"}
    assert overview(stuck)[-1] == "orders: at the concurrency limit"


# --- shards ---------------------------------------------------------------------------------------------------


def test_a_few_shards_are_all_shown_with_where_they_are_and_why():
    held_up = shard(1, "retrying in 3 s: attempt 4: ValueError: no", 412.4)
    waiting = shard(2, "waiting for its parent shardId-000000000001", None, sequence_number="")
    late = shard(3, "idle", 0.0, checkpoint_age=61.0)
    lines = overview(mapping("clicks", shard(0), held_up, waiting, late), width=160)

    assert "clicks: 4 shards, 1 waiting for a parent, 1 held up, lag at most 412 s" in lines
    assert row(lines, "shard") == ["shard", "lag", "done", "up", "to", "open", "doing"]
    assert row(lines, "shardId-000000000000") == [
        "shardId-000000000000",
        "0.2",
        "s",
        NUMBER,
        "1,200",
        "reading",
    ]
    text = "\n".join(lines)
    assert "retrying in 3 s: attempt 4: ValueError: no" in text
    assert "1,200  waiting for its parent shardId-000000000001" in text
    assert "idle, progress not saved for 1 min 1 s" in text


def test_a_narrow_terminal_shows_the_last_digits_of_a_position():
    lines = overview(mapping("clicks", shard(0)))
    found = row(lines, "shardId-000000000000")
    assert found == ["shardId-000000000000", "0.2", "s", f"…{NUMBER[-12:]}", "reading"]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_long_names_of_shards_are_whole_and_keep_the_width(width: int):
    name = "shardId-00000001573150000000-abcdef12"
    lines = overview(mapping("changes", shard(0, shard=name, lag=3e5)), width=width)
    assert max(map(len, lines)) <= width
    assert row(lines, name)[-1] == "reading"


def test_of_hundreds_of_shards_those_in_trouble_and_the_furthest_behind_are_shown():
    shards = [shard(number, lag=float(number)) for number in range(300)]
    shards[7] = shard(7, "cannot be opened: denied", None)
    lines = overview(mapping("clicks", *shards), mapping("other", shard(999)), mapping("orders"))

    shown = [line.split()[0] for line in lines if line.startswith("shardId-")]
    assert shown[:5] == [f"shardId-{number:012}" for number in (7, 299, 298, 297, 296)]
    assert shown[5:] == ["shardId-000000000999"]
    text = " ".join(lines)
    assert "clicks: 300 shards, 1 held up, lag at most 299 s; all of them: poller status clicks" in text
    assert "other: 1 shard, lag at most 0.2 s" in text


def test_of_many_mappings_the_worst_shards_of_all_are_shown():
    mappings = [
        mapping(f"m{index:02}", *(shard(n, lag=float(index)) for n in range(4))) for index in range(50)
    ]
    lines = overview(*mappings)

    assert sum(line.startswith("shardId-") for line in lines) == 20
    headings = [line for line in lines if line.startswith("m") and ": 4 shards" in line]
    assert len(headings) == 50
    assert ["all of them" in line for line in headings] == [True] * 45 + [False] * 5


def test_one_mapping_is_shown_with_every_shard():
    shards = [shard(number) for number in range(300)]
    lines = drawn(tables.one(mapping("clicks", *shards), 1090.0, 100), 100)
    assert lines[0] == "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks -> f"
    assert sum(line.startswith("shardId-") for line in lines) == 300


def test_a_queue_has_no_shards():
    lines = drawn(tables.one(mapping("orders"), 1090.0, 100), 100)
    assert lines[-1].startswith("orders ")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (59.9, "59 s"), (61, "1 min 1 s"), (3700, "1 h 1 min"), (90_000, "1 d 1 h")],
)
def test_a_length_of_time_has_its_two_largest_units(seconds: float, text: str):
    assert tables.age(seconds) == text


# --- the command ----------------------------------------------------------------------------------------------


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Answers with two mappings; the list holds what was asked."""
    asked: list[str] = []

    def ask(url: str) -> Any:
        asked.append(url)
        return page(mapping("orders"), mapping("clicks", shard(0)))

    monkeypatch.setattr(status, "ask", ask)
    return asked


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["status", "--url", "http://daemon:1/", *arguments])


def test_without_a_name_every_mapping_is_shown(daemon: list[str]):
    result = run()
    assert (result.exit_code, daemon) == (0, ["http://daemon:1/status"])
    assert "orders" in result.stdout
    assert "shardId-000000000000" in result.stdout


def test_a_name_shows_that_mapping_alone(daemon: list[str]):
    result = run("clicks")
    assert result.exit_code == 0
    assert "orders" not in result.stdout
    assert "shardId-000000000000" in result.stdout


def test_json_is_what_the_daemon_says(daemon: list[str]):
    assert json.loads(run("--json").stdout) == page(mapping("orders"), mapping("clicks", shard(0)))
    assert json.loads(run("clicks", "--json").stdout) == mapping("clicks", shard(0))


def test_an_unknown_name_is_answered_with_the_known_ones(daemon: list[str]):
    result = run("click")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "poller status: no mapping is named 'click' (there are: orders, clicks)\n"


def test_no_daemon_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def ask(url: str) -> Any:
        raise DaemonError("no daemon answers")

    monkeypatch.setattr(status, "ask", ask)
    result = run()
    assert (result.exit_code, result.stderr) == (1, "poller status: no daemon answers\n")


def test_watching_looks_again_until_it_is_interrupted(daemon: list[str], monkeypatch: pytest.MonkeyPatch):
    class Interrupted:
        def wait(self, _: float) -> bool:
            if len(daemon) == 3:
                raise KeyboardInterrupt
            return False

    monkeypatch.setattr("threading.Event", Interrupted)
    status._watch("http://daemon:1/status", None)
    assert len(daemon) == 3
