"""`poller fleet`: the daemons that share a state, and who reads which shard."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poller.cli.check import ConfigFile
from poller.cli.control import DaemonError, Url, address, ask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType
    from rich.table import Table

#: Leases that are all shown; of more, those that nobody has or that somebody wants.
FEW = 40
#: Changes that are shown.
LAST = 10


def fleet_command(
    config: ConfigFile = Path("poller.toml"),
    url: Url = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what /status says of the fleet.")] = False,
) -> None:
    """Show the daemons that share the state of this one, their leases, and the last changes here. Exit 1 without a daemon."""
    try:
        fleet = ask(f"{address(config, url)}/status")["fleet"]
        if fleet is None:
            raise DaemonError(
                "this daemon has its state for itself: state = dynamodb:TABLE, or fleet = true, share it"
            )
    except DaemonError as error:
        typer.echo(f"poller fleet: {error}", err=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps(fleet, indent=2))
        return
    from rich.console import Console, Group

    Console(highlight=False, soft_wrap=True).print(Group(*shown(fleet, time.time())))


def shown(fleet: dict[str, Any], now: float) -> Iterator[RenderableType]:
    """The fleet as tables."""
    from rich.text import Text

    from poller.cli.tables import age
    from poller.telemetry.log_format import escape

    if fleet["trouble"]:
        yield Text(f"the table cannot be used: {escape(fleet['trouble'])}", style="bold red")
    workers = _table("worker", "leases", "KB/s", "lag", "mappings")
    for one in fleet["workers"]:
        name = f"{one['id']}{' (this one)' if one['id'] == fleet['worker'] else ''}"
        mappings = ", ".join(one["mappings"]) if one["present"] else "no sign of life"
        lag = age(one["lag"]) if one["present"] else "-"
        workers.add_row(escape(name), str(one["leases"]), _kilobytes(one["load"]), lag, escape(mappings))
    yield workers
    leases = fleet["leases"]
    few = leases if len(leases) <= FEW else [one for one in leases if not one["owner"] or one["wanted_by"]]
    table = _table("mapping", "shard", "owner", "unchanged", "KB/s", "wanted by")
    for one in few:
        table.add_row(
            escape(one["mapping"]),
            escape(one["shard"]),
            escape(one["owner"] or _nobody(one["waits_for"])),
            age(one["age"]),
            _kilobytes(one["load"]),
            escape(one["wanted_by"]),
        )
    if few:
        yield table
    if len(few) < len(leases):
        yield Text(f"{len(leases) - len(few)} more leases, each with an owner")
    for one in fleet["history"][-LAST:]:
        about = ": ".join(filter(None, (one["other"], one["reason"])))
        line = f"{age(now - one['at'])} ago  {one['mapping']} {one['shard']}: {one['event']} {about}"
        yield Text(escape(line.rstrip()))


def _nobody(waits_for: list[str]) -> str:
    return f"nobody before {', '.join(waits_for)}" if waits_for else "nobody"


def _kilobytes(load: float | None) -> str:
    return "-" if load is None else f"{load / 1024:.0f}"


def _table(*headings: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table
