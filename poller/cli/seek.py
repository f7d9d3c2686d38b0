"""`poller seek`: go on from another place in a stream."""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from poller.cli.check import ConfigFile
from poller.cli.control import DaemonError, Name, NoDaemon, Url, WrongWish, address, ask

if TYPE_CHECKING:
    from collections.abc import Callable

    from poller.config import Config, Mapping

    Seek = Callable[[bool], list[dict[str, Any]]]

_NOTES = {
    True: "children of the shard are not moved; they wait until it is finished again",
    False: "shards that it has not seen yet are read from their beginning",
}


class _Failure(Exception):
    """Why nothing was moved, one line or more, and the exit code."""

    def __init__(self, lines: tuple[str, ...], code: int) -> None:
        super().__init__(*lines)
        self.lines = lines
        self.code = code


def seek_command(
    name: Name,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="PLACE",
            help="TRIM_HORIZON (the oldest record), LATEST (skip all that is there), a time with its offset or in seconds"
            " since 1970 (Kinesis only), or a sequence number of one shard: it goes on after that record.",
        ),
    ],
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="ID", help="Only this shard. Default: all.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: ConfigFile = Path("poller.toml"),
    url: Url = None,
) -> None:
    """Move a mapping on a stream, which must be paused or its daemon stopped. Says first what that repeats or skips."""
    try:
        _check(to, shard)
        if not (yes or sys.stdin.isatty()):
            raise _Failure(("there is no terminal to ask on: say --yes",), 2)
        seek, last = _way(name, to, shard, config, url)
        moves = seek(True)
        for move in moves:
            typer.echo(f"{move['shard']}: {move['says']}")
        if all(move["effect"] == "nothing" for move in moves):
            typer.echo(f"{name}: nothing to move")
            return
        typer.echo(f"({_NOTES[shard is not None]})")
        if not yes:
            typer.confirm(f"move {name}?", abort=True)
        # What was at work meanwhile has ended first, so a shard may have been moved from further on.
        for move in seek(False):
            if move not in moves:
                typer.echo(f"{move['shard']}: {move['says']}")
        typer.echo(f"{name}: moved; {last}")
    except _Failure as failure:
        for line in failure.lines:
            typer.echo(f"poller seek: {line}", err=True)
        raise typer.Exit(failure.code) from failure


def _check(to: str, shard: str | None) -> None:
    """What is wrong whatever the mapping is, without asking anybody."""
    from poller.core import seek
    from poller.errors import SeekRefused

    try:
        seek.check(seek.parse(to, time.time()), "", shard)
    except SeekRefused as error:
        raise _Failure((str(error),), 2) from error


def _way(name: str, to: str, shard: str | None, config: Path, url: str | None) -> tuple[Seek, str]:
    """How it is done, and what is to be done then: through the daemon that has the state, else in the state file."""
    there = f"mappings/{quote(name, safe='')}/seek"

    def through_the_daemon(dry_run: bool) -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = ask(
                f"{daemon}/{there}", post=True, body={"to": to, "shard": shard, "dry_run": dry_run}
            )["answer"]
        except WrongWish as error:
            raise _Failure((str(error),), 2) from error
        except DaemonError as error:
            raise _Failure((str(error),), 1) from error
        return found

    try:
        daemon = address(config, url)
        ask(f"{daemon}/status")
    except NoDaemon as error:
        if url:
            raise _Failure((str(error),), 1) from error
        return _in_the_file(name, to, shard, config), "it goes on from there when its daemon is started"
    except DaemonError as error:
        raise _Failure((str(error),), 1) from error
    return through_the_daemon, f"poller resume {name} goes on from there"


def _in_the_file(name: str, to: str, shard: str | None, config: Path) -> Seek:
    mapping, loaded = _stored(name, config)

    def in_the_file(dry_run: bool) -> list[dict[str, Any]]:
        import anyio

        from poller.app import seeking
        from poller.app.state import State, worker_id
        from poller.engine.invoker import World
        from poller.engine.status import Board
        from poller.errors import PollerError, SeekRefused

        async def go() -> list[dict[str, Any]]:
            seeking.check(mapping, wish, time.time())
            state, now = State(loaded, Board(), World(time.time, random.random, str)), time.time()
            try:
                store = await state.store()
                if dry_run:
                    return seeking.told(await seeking.planned(store, mapping, wish, now))
                daemon = loaded.daemon
                taking = seeking.Taking(worker_id(), daemon.failover_time) if daemon.shares else None
                return seeking.told(await seeking.carry_out(store, mapping, wish, now, taking))
            finally:
                await state.aclose()

        wish = seeking.Wish(to, shard)
        try:
            return anyio.run(go)
        except SeekRefused as error:
            raise _Failure((str(error),), 2) from error
        except PollerError as error:
            raise _Failure((str(error),), 1) from error

    return in_the_file


def _stored(name: str, config: Path) -> tuple[Mapping, Config]:
    """The mapping, and the configuration that says where its checkpoints are."""
    from poller.config import load
    from poller.errors import ConfigError

    try:
        loaded = load(config, environ=os.environ, now=time.time())
    except ConfigError as error:
        raise _Failure(error.problems, 2) from error
    mapping = next((one for one in loaded.mappings if one.name == name), None)
    if mapping is None:
        known = ", ".join(one.name for one in loaded.mappings)
        raise _Failure((f"no mapping is named {name!r} (there are: {known})",), 2)
    kind, _, path = loaded.daemon.state.partition(":")
    if kind == "memory":
        raise _Failure((f'[daemon] state = "{loaded.daemon.state}": no checkpoints are kept',), 2)
    if kind == "sqlite" and mapping.source != "sqs" and not Path(path).exists():
        raise _Failure(
            (f"there is no state file {path}: nothing was kept yet, or this is not the daemon's directory",),
            1,
        )
    return mapping, loaded
