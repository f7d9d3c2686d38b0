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
    from rich.table import Table

#: Seconds between two looks.
INTERVAL = 1.0
#: Columns of a terminal from which on every figure has room.
WIDE = 120
_STYLES = {
    "running": "green",
    "degraded": "yellow",
    "paused": "cyan",
    "failed": "bold red",
    "draining": "magenta",
}


def status_command(
    config: ConfigFile = Path("poller.toml"),
    url: Url = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep looking, once a second.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what /status says.")] = False,
) -> None:
    """Show each mapping: state and why, what is in flight, and its totals. Exit 1 when there is no daemon."""
    page = f"{address(config, url)}/status"
    try:
        if as_json:
            typer.echo(json.dumps(ask(page), indent=2))
        elif watch:
            _watch(page)
        else:
            _print(page)
    except DaemonError as error:
        typer.echo(f"poller status: {error}", err=True)
        raise typer.Exit(1) from error


def _print(page: str) -> None:
    from rich.console import Console

    console = Console()
    console.print(render(ask(page), time.time(), wide=console.width >= WIDE))


def _watch(page: str) -> None:
    from threading import Event

    from rich.console import Console
    from rich.live import Live

    try:
        console = Console()

        def look() -> Table:
            return render(ask(page), time.time(), wide=console.width >= WIDE)

        with Live(look(), console=console, auto_refresh=False) as live:
            while not Event().wait(INTERVAL):
                live.update(look(), refresh=True)
    except KeyboardInterrupt:
        return


def render(status: dict[str, Any], now: float, *, wide: bool = True) -> Table:
    """One row a mapping, from what `/status` says; `wide` adds the columns that a narrow terminal has no room for."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = (
        f"poller {status['version']}, pid {status['pid']}, up {_age(now - status['started'])}, "
        f"{status['in_flight']} of {status['concurrency']} invocations"
    )
    title += ", stopping" if status["stopping"] else ""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    columns = {"received": "received", "invoked": "invoked", "failed": "failed", "deleted": "deleted"}
    if wide:
        columns = {"received": "received", "filtered": "filtered", **columns, "released": "given back"}
    table.add_column("mapping", overflow="fold")
    table.add_column("state", no_wrap=True)
    for column in ("polls", "at work", *columns.values()):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold", ratio=1)
    for mapping in status["mappings"]:
        totals = mapping["totals"]
        numbers = [mapping["receivers"], mapping["in_flight_records"], *(totals[key] for key in columns)]
        state = Text(mapping["state"], style=_STYLES.get(mapping["state"], ""))
        why = mapping["reason"] or (f"last error: {totals['last_error']}" if totals["last_error"] else "")
        table.add_row(Text(mapping["name"]), state, *(f"{number:,}" for number in numbers), Text(why))
    return table


def _age(seconds: float) -> str:
    minutes, seconds = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
