"""`poller check`: is this file valid?"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from poller.config import Config

ConfigFile = Annotated[
    Path,
    # Whether it can be read says who reads it: not all commands need to.
    typer.Option(
        "-c", "--config", metavar="FILE", readable=False, help="The TOML file of functions and mappings."
    ),
]


def check_command(config: ConfigFile = Path("poller.toml")) -> None:
    """Say whether a config file is valid, and all that is wrong when it is not. Nothing is started."""
    from poller.config import load, warnings
    from poller.errors import ConfigError

    try:
        loaded = load(config, environ=os.environ, now=time.time(), importable=importable)
    except ConfigError as error:
        raise _refused(error.problems) from error
    from poller.app import fitness

    if lines := fitness.all_problems(loaded):
        raise _refused(tuple(f"{config}: {line}" for line in lines))
    typer.echo(f"{config}: valid: {_summary(loaded)}")
    for warning in warnings(loaded):
        typer.echo(f"{config}: warning: {warning}")


def importable(module: str) -> bool:
    """Tell whether Python would find `module`, from the current directory too, without running its code."""
    from poller.app import fitness

    return fitness.importable(module)


def _refused(lines: tuple[str, ...]) -> typer.Exit:
    for line in lines:
        typer.echo(line, err=True)
    return typer.Exit(2)


def _summary(config: Config) -> str:
    return f"{_count(len(config.mappings), 'mapping')}, {_count(len(config.functions), 'function')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
