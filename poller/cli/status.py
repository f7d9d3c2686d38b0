"""`poller status`: what the daemon does, as a table."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from poller.cli.check import ConfigFile
from poller.cli.control import DaemonError, Url, address, ask

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

#: Seconds between two looks.
INTERVAL = 1.0


def status_command(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Only this mapping, with every shard.", show_default=False),
    ] = None,
    config: ConfigFile = Path("poller.toml"),
    url: Url = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep looking, once a second.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what /status says.")] = False,
) -> None:
    """Show each mapping: state and why, what is in flight, its totals, its shards. Exit 1 when there is no daemon."""
    try:
        page = f"{address(config, url)}/status"
        if as_json:
            status = ask(page)
            typer.echo(json.dumps(status if name is None else _named(status, name), indent=2))
        elif watch:
            _watch(page, name)
        else:
            _print(page, name)
    except DaemonError as error:
        typer.echo(f"poller status: {error}", err=True)
        raise typer.Exit(1) from error


def _print(page: str, name: str | None) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_look(page, name, console))


def _watch(page: str, name: str | None) -> None:
    from threading import Event

    from rich.console import Console
    from rich.live import Live

    try:
        console = Console(highlight=False)
        while not console.is_terminal:
            # A pipe or a file has nothing that could be drawn over: each look goes below the one before.
            console.print(_look(page, name, console))
            Event().wait(INTERVAL)
        with Live(_look(page, name, console), console=console, auto_refresh=False) as live:
            while not Event().wait(INTERVAL):
                live.update(_look(page, name, console), refresh=True)
    except KeyboardInterrupt:
        return


def _look(page: str, name: str | None, console: Console) -> RenderableType:
    from poller.cli import tables

    status = ask(page)
    if name is None:
        return tables.overview(status, time.time(), console.width)
    return tables.one(_named(status, name), time.time(), console.width)


def _named(status: dict[str, Any], name: str) -> dict[str, Any]:
    # One that a reload replaces is listed once more while it drains, behind the new one.
    for mapping in status["mappings"]:
        if mapping["name"] == name:
            found: dict[str, Any] = mapping
            return found
    known = ", ".join(mapping["name"] for mapping in status["mappings"])
    raise DaemonError(f"no mapping is named {name!r} (there are: {known})")
