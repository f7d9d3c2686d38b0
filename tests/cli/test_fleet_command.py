"""`poller fleet`: the workers, their leases and the last changes."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from typer.testing import CliRunner

from poller.cli import app, fleet
from poller.cli.control import DaemonError

if TYPE_CHECKING:
    import pytest

ME, OTHER = "host-1-aaaa", "host-2-bbbb"


def lease(shard: str, owner: str, **more: Any) -> dict[str, Any]:
    known = {"mapping": "clicks", "age": 2.0, "load": 20_480.0, "sequence_number": "1", "wanted_by": ""}
    return known | {"shard": shard, "owner": owner, "waits_for": []} | more


def page(leases: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    workers = [
        {"id": ME, "mappings": ["clicks"], "present": True, "leases": 1, "load": 20_480.0, "lag": 70.0},
        {"id": OTHER, "mappings": ["clicks"], "present": False, "leases": 0, "load": 0.0, "lag": 0.0},
    ]
    return {"worker": ME, "trouble": None, "workers": workers, "leases": leases, "history": []} | more


def text_of(told: dict[str, Any]) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(Group(*fleet.shown(told, 1000.0)))
    return out.getvalue()


def test_workers_and_leases_are_shown_with_what_they_carry() -> None:
    leases = [lease("s0", ME), lease("s1", "", load=None), lease("s2", OTHER, wanted_by=ME)]
    text = text_of(page([*leases, lease("s3", "", waits_for=["s1"])]))
    lines = [line.split() for line in text.splitlines()]
    assert [ME, "(this", "one)", "1", "20", "1", "min", "10", "s", "clicks"] in lines
    assert [OTHER, "0", "0", "-", "no", "sign", "of", "life"] in lines
    assert ["clicks", "s1", "nobody", "2", "s", "-"] in lines
    assert ["clicks", "s3", "nobody", "before", "s1", "2", "s", "20"] in lines
    assert ["clicks", "s2", OTHER, "2", "s", "20", ME] in lines


def test_of_many_leases_those_without_an_owner_are_shown() -> None:
    many = [lease(f"s{at}", ME) for at in range(fleet.FEW)]
    text = text_of(page([*many, lease("lonely", "")]))
    assert "lonely" in text
    assert f"{fleet.FEW} more leases, each with an owner" in text
    assert "nobody" not in text_of(page([*many, lease("s99", ME)]))


def test_the_last_changes_and_a_trouble_are_told() -> None:
    history = [
        {
            "at": 990.0,
            "mapping": "clicks",
            "shard": "s0",
            "event": "handed over",
            "other": OTHER,
            "reason": "",
        }
    ]
    text = text_of(page([], history=history, trouble="too busy"))
    assert f"clicks s0: handed over {OTHER}" in text
    assert "the table cannot be used: too busy" in text


def test_the_command_prints_tables_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    told = page([lease("s0", ME)])
    monkeypatch.setattr(fleet, "ask", lambda _: {"fleet": told})
    assert ME in CliRunner().invoke(app, ["fleet", "--url", "http://127.0.0.1:1"]).output
    assert (
        json.loads(CliRunner().invoke(app, ["fleet", "--json", "--url", "http://127.0.0.1:1"]).output) == told
    )


def test_a_daemon_of_its_own_has_no_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "ask", lambda _: {"fleet": None})
    result = CliRunner().invoke(app, ["fleet", "--url", "http://127.0.0.1:1"])
    assert result.exit_code == 1
    assert "has its state for itself" in result.output


def test_no_daemon_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(_: str) -> None:
        raise DaemonError("no daemon answers")

    monkeypatch.setattr(fleet, "ask", ask)
    result = CliRunner().invoke(app, ["fleet", "--url", "http://127.0.0.1:1"])
    assert (result.exit_code, result.output) == (1, "poller fleet: no daemon answers\n")
