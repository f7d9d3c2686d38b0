"""`poller replay`: run failed records again, through the daemon that has the function."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from poller.cli.check import ConfigFile
from poller.cli.control import DaemonError, NoDaemon, Url, WrongWish, address, ask

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Seconds between two looks at a replay.
INTERVAL = 0.5


class _Failure(Exception):
    """Why there is no replay, in one line, and the exit code."""

    def __init__(self, line: str, code: int) -> None:
        super().__init__(line)
        self.code = code


def replay_command(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A mapping's name.", show_default=False)
    ] = None,
    from_queue: Annotated[
        str | None, typer.Option(metavar="ARN|URL", help="An on-failure destination that is an SQS queue.")
    ] = None,
    from_s3: Annotated[
        str | None,
        typer.Option("--from-s3", metavar="s3://BUCKET/PREFIX", help="Objects of an S3 destination."),
    ] = None,
    from_dlq: Annotated[
        str | None,
        typer.Option(
            "--from-dlq",
            metavar="ARN|URL",
            help="The dead-letter queue of a queue: through the function, or with --to source back to the queue.",
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="PLACE",
            help="The stream's own records from here on: TRIM_HORIZON or a time with its offset.",
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="TIME|source|function",
            help="The end of the stream's records (default: now); or where dead letters go (default: function).",
        ),
    ] = None,
    from_sequence: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="As --from, of one shard: its first record.")
    ] = None,
    to_sequence: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="As --to, of one shard: its last record.")
    ] = None,
    shard: Annotated[str | None, typer.Option(metavar="ID", help="Only this shard.")] = None,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Only records of this partition key; of a table: of this item's Keys, as JSON.",
        ),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter", metavar="PATTERN", help="Only records that match, besides the mapping's filters."
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(metavar="N", help="Records a second. Default: as fast as half the function goes."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(metavar="N", help="Records in one invocation. Default: as the mapping has it."),
    ] = None,
    delete: Annotated[bool, typer.Option(help="Delete objects of which everything succeeded.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is, and do nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="Go on with a replay that was stopped or interrupted, or follow one that runs."
        ),
    ] = None,
    stop: Annotated[
        str | None, typer.Option(metavar="ID", help="Stop a replay whose command is gone.")
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List replays.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what the daemon says.")] = False,
    config: ConfigFile = Path("poller.toml"),
    url: Url = None,
) -> None:
    """Run failed records again: from where they were kept, or from the stream. Live records go on; Ctrl-C stops it, --resume
    goes on. Exit 1 when something failed again or is gone."""
    try:
        page = f"{address(config, url)}/replays"
        if show_list:
            _show_list(page, as_json=as_json)
            return
        if stop is not None:
            _stop(f"{page}/{quote(stop, safe='')}")
            return
        if resume is not None:
            one = f"{page}/{quote(resume, safe='')}"
            replay = ask(one)["answer"]
            # One that runs although its command is gone is followed.
            if replay["state"] != "running":
                replay = _begun(f"{one}/resume", None)
            _run(one, replay, as_json=as_json)
            return
        wish: dict[str, Any] = {
            "mapping": name or "",
            **_what(from_queue, from_s3, from_dlq, start or from_sequence, to, to_sequence),
            "shard": shard or "",
            "key": key or "",
            "filters": filters or [],
            "rate": rate,
            "batch_size": batch_size,
            "delete": delete,
        }
        _check(wish, twice=start is not None and from_sequence is not None)
        _look_first(page, wish, dry_run=dry_run, yes=yes, as_json=as_json)
        if not dry_run:
            replay = _begun(page, wish)
            _run(f"{page}/{replay['id']}", replay, as_json=as_json)
    except _Failure as failure:
        typer.echo(f"poller replay: {failure}", err=True)
        raise typer.Exit(failure.code) from failure
    except WrongWish as error:
        typer.echo(f"poller replay: {error}", err=True)
        raise typer.Exit(2) from error
    except DaemonError as error:
        typer.echo(f"poller replay: {error}", err=True)
        raise typer.Exit(1) from error


def _what(
    queue: str | None,
    objects: str | None,
    letters: str | None,
    start: str | None,
    to: str | None,
    to_sequence: str | None,
) -> dict[str, Any]:
    """Where the records are, which is to be said once."""
    given = {"queue": queue, "objects": objects, "dead_letters": letters, "range": start}
    kinds = [kind for kind, place in given.items() if place is not None]
    if len(kinds) != 1:
        raise _Failure("say one of --from-queue, --from-s3, --from-dlq, --from or --from-sequence", 2)
    (kind,) = kinds
    if kind == "range":
        return {"kind": kind, "start": start, "end": to_sequence or to or ""}
    if kind == "dead_letters" and to in (None, "source", "function"):
        return {"kind": kind, "target": letters, "to_source": to == "source"}
    if to is not None or to_sequence is not None:
        raise _Failure("--to and --to-sequence end a range; dead letters go --to source or --to function", 2)
    return {"kind": kind, "target": given[kind]}


def _check(wish: dict[str, Any], *, twice: bool) -> None:
    """What is wrong whatever the mapping is, without asking anybody."""
    from poller.core import replay_wish
    from poller.errors import ReplayRefused

    if not wish["mapping"]:
        raise _Failure("name the mapping", 2)
    if twice:
        raise _Failure("say --from or --from-sequence, not both", 2)
    try:
        replay_wish.parse(wish)
    except ReplayRefused as error:
        raise _Failure(str(error), 2) from error


def _look_first(page: str, wish: dict[str, Any], *, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Say what there is, and ask."""
    if not (yes or dry_run or sys.stdin.isatty()):
        raise _Failure("there is no terminal to ask on: look with --dry-run, then say --yes", 2)
    if yes and not dry_run:
        return
    lines = ask(page, post=True, body={**wish, "dry_run": True})["answer"]
    if dry_run and as_json:
        typer.echo(json.dumps(lines, indent=2))
        return
    # Whoever wants JSON wants nothing else on standard output.
    for line in lines:
        typer.echo(f"{wish['mapping']}: {line}", err=as_json)
    if not dry_run:
        typer.confirm("replay them?", abort=True, err=as_json)


def _show_list(page: str, *, as_json: bool) -> None:
    from rich.console import Console

    from poller.cli.replay_report import listing

    replays = ask(page)["answer"]
    if as_json:
        typer.echo(json.dumps(replays, indent=2))
    elif replays:
        Console(highlight=False).print(listing(replays))
    else:
        typer.echo("no replays")


def _begun(command: str, wish: dict[str, Any] | None) -> dict[str, Any]:
    try:
        replay: dict[str, Any] = ask(command, post=True, body=wish)["answer"]
    except KeyboardInterrupt:
        raise _Failure("the daemon may have begun it all the same: poller replay --list tells", 1) from None
    return replay


def _run(one: str, replay: dict[str, Any], *, as_json: bool) -> None:
    """Follow a replay to the end, and report."""
    from poller.cli.replay_report import how_far, report, went_well

    try:
        replay = _follow(one, replay)
    except KeyboardInterrupt:
        replay = _stopped(one, ask(f"{one}/stop", post=True)["answer"])
        if replay["state"] != "done":
            typer.echo(f"poller replay: {how_far(replay)}", err=True)
            raise typer.Exit(1) from None
    except NoDaemon as error:
        raise DaemonError(f"{error} poller replay --resume {replay['id']} goes on when it is back") from error
    if as_json:
        typer.echo(json.dumps(replay, indent=2))
    else:
        for line in report(replay):
            typer.echo(line)
        if replay["state"] != "done":
            typer.echo(f"poller replay --resume {replay['id']} goes on where it was")
    if not went_well(replay):
        raise typer.Exit(1)


def _stop(one: str) -> None:
    from poller.cli.replay_report import report

    for line in report(_stopped(one, ask(f"{one}/stop", post=True)["answer"])):
        typer.echo(line)


def _stopped(one: str, replay: dict[str, Any]) -> dict[str, Any]:
    """Wait for what is at work; a second Ctrl-C does not, and the replay stops all the same."""
    try:
        for found in _looks(one, replay):
            replay = found
    except KeyboardInterrupt:
        pass
    return replay


def _follow(one: str, replay: dict[str, Any]) -> dict[str, Any]:
    """Show the progress until the replay has ended."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from poller.cli.replay_report import doing

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[doing]}"),
    )
    with Progress(*columns, console=Console(stderr=True, highlight=False)) as bar:
        task = bar.add_task(f"{replay['mapping']} {replay['id']}", total=replay["total"], doing="")
        for found in _looks(one, replay):
            replay = found
            # What came while it ran was not there to be counted.
            total = None if replay["total"] is None else max(replay["total"], replay["done"])
            bar.update(task, completed=replay["done"], total=total, doing=doing(replay))
    return replay


def _looks(one: str, replay: dict[str, Any]) -> Iterator[dict[str, Any]]:
    pause = Event()
    while replay["state"] == "running":
        pause.wait(INTERVAL)
        replay = ask(one)["answer"]
        yield replay
