"""`poller run`: the daemon."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from poller.cli.check import ConfigFile

LogLevel = Annotated[
    str, typer.Option("--log-level", envvar="POLLER_LOG_LEVEL", help="debug, info, warning or error.")
]
LogFormat = Annotated[
    str,
    typer.Option(
        "--log-format",
        envvar="POLLER_LOG_FORMAT",
        help="human, json, or auto: human on a terminal, json otherwise.",
    ),
]


def run_command(
    config: ConfigFile = Path("poller.toml"), log_level: LogLevel = "info", log_format: LogFormat = "auto"
) -> None:
    """Run the mappings of a config file until SIGTERM or Ctrl-C; SIGHUP reloads the file."""
    from poller.errors import ConfigError
    from poller.telemetry import logs

    if log_format not in ("auto", "human", "json"):
        raise typer.BadParameter("must be human, json or auto", param_hint="--log-format")
    try:
        logs.setup(level=log_level, json=None if log_format == "auto" else log_format == "json")
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--log-level") from error
    # Handlers live beside the config as often as on the path.
    sys.path.insert(0, str(Path.cwd()))
    try:
        code = _run(config)
    except ConfigError as error:
        logs.shutdown()
        for problem in error.problems:
            typer.echo(problem, err=True)
        code = 2
    finally:
        logs.shutdown()
    raise typer.Exit(code)


def _run(path: Path) -> int:
    import logging

    import anyio

    from poller.app.daemon import Daemon
    from poller.config import load
    from poller.engine.child import leaf
    from poller.errors import PollerError

    daemon = Daemon(lambda: load(path, environ=os.environ, now=time.time()))
    try:
        anyio.run(daemon.run, backend_options={"use_uvloop": sys.platform != "win32"})
    except Exception as group:
        error = leaf(group)
        if not isinstance(error, PollerError):
            raise
        logging.getLogger("poller").error("%s", error)  # noqa: TRY400 - one line is all there is to say
        return 1
    return 0
