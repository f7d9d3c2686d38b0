"""`poller failures`: what waits because it failed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from poller.cli.check import ConfigFile
from poller.cli.control import DaemonError, Url, WrongWish, address, ask

if TYPE_CHECKING:
    from rich.console import RenderableType

_TITLES = {
    "queue": "on-failure queue",
    "objects": "on-failure bucket",
    "elsewhere": "on-failure destination",
    "dead_letters": "dead-letter queue",
    "spool": "spooled for",
    "parked": "parked key",
}


def failures_command(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME | show ID]",
            help="Only this mapping; or `show` and the id of one failure.",
            show_default=False,
        ),
    ] = None,
    id_: Annotated[str | None, typer.Argument(metavar="", hidden=True, show_default=False)] = None,
    config: ConfigFile = Path("poller.toml"),
    url: Url = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what the daemon says.")] = False,
) -> None:
    """Show what waits in on-failure destinations, dead-letter queues, the spool and parked keys, grouped by error. `show ID`
    prints one in full, with its records."""
    page = f"{address(config, url)}/failures"
    try:
        if id_ is not None and name != "show":
            raise WrongWish("say poller failures NAME, or poller failures show ID")
        if id_ is not None:
            typer.echo(
                json.dumps(ask(f"{page}?id={quote(id_, safe='')}")["answer"], indent=2, ensure_ascii=False)
            )
            return
        places = ask(page if name is None else f"{page}?mapping={quote(name, safe='')}")["answer"]
        if as_json:
            typer.echo(json.dumps(places, indent=2, ensure_ascii=False))
        else:
            _print(places)
    except WrongWish as error:
        typer.echo(f"poller failures: {error}", err=True)
        raise typer.Exit(2) from error
    except DaemonError as error:
        typer.echo(f"poller failures: {error}", err=True)
        raise typer.Exit(1) from error


def _print(places: list[dict[str, Any]]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    shown = [place for place in places if place["groups"] or place["total"] or place["note"]]
    if not shown:
        console.print("nothing waits")
    for place in shown:
        console.print(heading(place), soft_wrap=True, markup=False)
        if place["groups"]:
            console.print(_table(place))


def heading(place: dict[str, Any]) -> str:
    """One line about a place."""
    total = "" if place["total"] is None else f": {place['total']:,}"
    sample = (
        f", of which {place['looked_at']:,} were looked at" if place["sample"] and place["looked_at"] else ""
    )
    note = f" ({place['note']})" if place["note"] else ""
    return f"{place['mapping']}: {_TITLES[place['where']]} {place['name']}{total}{sample}{note}"


def _table(place: dict[str, Any]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("count", "records", "error", "message", "oldest", "newest", "id of the newest"):
        right = column in ("count", "records")
        table.add_column(
            column, justify="right" if right else "left", overflow="fold" if "id" in column else "ellipsis"
        )
    for one in place["groups"]:
        table.add_row(
            f"{one['count']:,}",
            f"{one['records']:,}" if one["records"] else "",
            Text(one["what"]),
            Text(one["message"]),
            _time(one["oldest"]),
            _time(one["newest"]),
            Text(one["newest_id"]),
        )
    return table


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if at else ""
