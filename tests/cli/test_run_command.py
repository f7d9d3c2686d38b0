"""What `poller run` refuses before it starts anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner, Result

from poller.cli import app

if TYPE_CHECKING:
    from pathlib import Path

SHARED = """
[daemon]
listen = "127.0.0.1:{port}"
fleet = true

[functions.echo]
handler = "handlers.echo:handler"

[[mappings]]
name = "orders"
event_source_arn = "arn:aws:sqs:eu-west-1:123456789012:orders"
function_name = "echo"
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What would have been run."""
    runs: list[object] = []

    def note(what: object, *_: object, **__: object) -> int:
        runs.append(what)
        return 0

    monkeypatch.setattr("anyio.run", note)
    return runs


def run(path: Path, port: int) -> Result:
    path.write_text(SHARED.format(port=port), encoding="utf-8")
    return CliRunner().invoke(app, ["run", "-c", str(path), "--processes", "4"])


def test_more_processes_than_there_are_ports_are_refused(tmp_path: Path, started: list[object]) -> None:
    result = run(tmp_path / "poller.toml", 65_533)
    assert (result.exit_code, started) == (2, [])
    assert result.stderr == (
        "--processes 4 needs 4 ports, from [daemon] listen = 127.0.0.1:65533 on, and the last one is 65535: begin lower\n"
    )


def test_the_last_process_may_have_the_last_port(tmp_path: Path, started: list[object]) -> None:
    assert run(tmp_path / "poller.toml", 65_532).exit_code == 0
    assert len(started) == 1
