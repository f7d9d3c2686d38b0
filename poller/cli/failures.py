"""`poller failures`: what waits because it failed."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from poller.cli.check import ConfigFile
from poller.cli.control import DaemonError, Url, WrongWish, address, ask

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Columns from which on a table has room for ids; else they are below it, whole, to be copied.
WIDE = 140
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
            metavar="[NAME | show ID | discard ID]",
            help="Only this mapping; or `show` or `discard` and the id of one failure.",
            show_default=False,
        ),
    ] = None,
    id_: Annotated[str | None, typer.Argument(metavar="", hidden=True, show_default=False)] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before it is discarded.")] = False,
    config: ConfigFile = Path("poller.toml"),
    url: Url = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what the daemon says.")] = False,
) -> None:
    """Show what waits in on-failure destinations, dead-letter queues, the spool and parked keys, grouped by error. `show ID`
    prints one in full, with its records; `discard ID` prints and removes one that is spooled or parked, of a paused mapping."""
    try:
        page = f"{address(config, url)}/failures"
        if id_ is not None:
            _echo(_one(page, name or "", id_, yes=yes))
            return
        places = ask(page if name is None else f"{page}?mapping={quote(name, safe='')}")["answer"]
        if as_json:
            _echo(places)
        else:
            _print(places)
    except WrongWish as error:
        typer.echo(f"poller failures: {error}", err=True)
        raise typer.Exit(2) from error
    except DaemonError as error:
        typer.echo(f"poller failures: {error}", err=True)
        raise typer.Exit(1) from error


def _one(page: str, verb: str, id_: str, *, yes: bool) -> Any:
    """One failure, shown or discarded."""
    query = f"?id={quote(id_, safe='')}"
    match verb:
        case "show":
            return ask(f"{page}{query}")["answer"]
        case "discard":
            if not yes:
                if not sys.stdin.isatty():
                    raise WrongWish("there is no terminal to ask on: look at it with show, then say --yes")
                _echo(ask(f"{page}{query}")["answer"])
                typer.confirm("discard it for good?", abort=True)
            return ask(f"{page}/discard{query}", post=True)["answer"]
        case _:
            raise WrongWish("say poller failures NAME, or poller failures show ID, or discard ID")


def _echo(value: Any) -> None:
    # Half a surrogate pair, which a function may have said, keeps its escape.
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False).encode("utf-8", "backslashreplace").decode())


def _print(places: list[dict[str, Any]]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    shown = [place for place in places if place["groups"] or place["total"] or place["note"]]
    if not shown:
        console.print("nothing waits")
    for place in shown:
        console.print(heading(place), soft_wrap=True, markup=False)
        if place["groups"]:
            beside = console.width >= WIDE
            console.print(_table(place, ids=beside))
            for one in () if beside else place["groups"]:
                console.print(f"  id of the newest: {one['newest_id']}", soft_wrap=True, markup=False)


def heading(place: dict[str, Any]) -> str:
    """One line about a place."""
    total = "" if place["total"] is None else f": {place['total']:,}"
    sample = (
        f", of which {place['looked_at']:,} were looked at" if place["sample"] and place["looked_at"] else ""
    )
    note = f" ({place['note']})" if place["note"] else ""
    return f"{place['mapping']}: {_TITLES[place['where']]} {place['name']}{total}{sample}{note}"


def _table(place: dict[str, Any], *, ids: bool) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    columns = ("count", "records", "error", "message", "oldest", "newest", "id of the newest")
    for column in columns if ids else columns[:-1]:
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
            *([Text(one["newest_id"])] if ids else []),
        )
    return table


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if at else ""
