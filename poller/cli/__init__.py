"""The commands. Each imports what it needs when it is called, so that `poller check` does not wait for an AWS client."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

from poller import __version__
from poller.cli.check import check_command
from poller.cli.control import pause_command, resume_command
from poller.cli.demo import demo_command
from poller.cli.failures import failures_command
from poller.cli.filter import filter_command
from poller.cli.fleet import fleet_command
from poller.cli.replay import replay_command
from poller.cli.run import run_command
from poller.cli.schema import schema_command
from poller.cli.seek import seek_command
from poller.cli.status import status_command

app = typer.Typer(
    name="poller",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="AWS Lambda's event source mappings, outside AWS.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"poller {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Read by typer."""


for _name, _command in (
    ("run", run_command),
    ("check", check_command),
    ("demo", demo_command),
    ("filter", filter_command),
    ("status", status_command),
    ("pause", pause_command),
    ("resume", resume_command),
    ("seek", seek_command),
    ("replay", replay_command),
    ("failures", failures_command),
    ("fleet", fleet_command),
    ("schema", schema_command),
):
    app.command(_name)(_command)


def main() -> None:
    """Entry point of the `poller` program."""
    try:
        app()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # What could not be written must not be tried again at the exit, which would say so once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(f"poller: {error.filename or 'standard output'} cannot be written: {error.strerror}")
