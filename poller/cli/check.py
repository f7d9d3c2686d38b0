"""`poller check`: is this file valid?"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

    from poller.config import Config

ConfigFile = Annotated[
    Path, typer.Option("-c", "--config", metavar="FILE", help="The TOML file of functions and mappings.")
]


def check_command(config: ConfigFile = Path("poller.toml")) -> None:
    """Say whether a config file is valid, and all that is wrong when it is not. Nothing is started."""
    from poller.config import load, not_yet, warnings
    from poller.errors import ConfigError

    try:
        loaded = load(config, environ=os.environ, now=time.time(), importable=importable)
    except ConfigError as error:
        raise _refused(error.problems) from error
    if lines := not_yet(loaded):
        raise _refused(tuple(f"{config}: {line}" for line in lines))
    typer.echo(f"{config}: valid: {_summary(loaded)}")
    for warning in warnings(loaded):
        typer.echo(f"{config}: warning: {warning}")


def importable(module: str) -> bool:
    """Tell whether Python would find `module`, from the current directory too, without running its code."""
    locations: list[str] | None = None
    for part in module.split("."):
        # By its last name only: for a dotted one a package without __init__.py asks for its parent, which nobody imported.
        spec = _find(part, locations)
        if spec is None:
            return False
        # What is no package has nowhere to look; PathFinder would take None for sys.path.
        locations = list(spec.submodule_search_locations or ())
    return True


def _find(name: str, locations: list[str] | None) -> ModuleSpec | None:
    if locations is not None:
        return PathFinder.find_spec(name, locations)
    try:
        return PathFinder.find_spec(name, [str(Path.cwd()), *sys.path]) or importlib.util.find_spec(name)
    except ValueError:  # a module that was made by hand and has no spec, such as __main__
        return None


def _refused(lines: tuple[str, ...]) -> typer.Exit:
    for line in lines:
        typer.echo(line, err=True)
    return typer.Exit(2)


def _summary(config: Config) -> str:
    return f"{_count(len(config.mappings), 'mapping')}, {_count(len(config.functions), 'function')}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
