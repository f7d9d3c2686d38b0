"""`poller run`: the daemon."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poller.cli.check import ConfigFile

if TYPE_CHECKING:
    from poller.config import Config

LAST_PORT = 65_535

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
    config: ConfigFile = Path("poller.toml"),
    log_level: LogLevel = "info",
    log_format: LogFormat = "auto",
    processes: Annotated[
        int,
        typer.Option(
            "--processes",
            min=1,
            max=64,
            help="Daemons on this machine, which share the state and with it the shards of streams; the second one listens one"
            " port higher, and so on.",
        ),
    ] = 1,
    process: Annotated[int | None, typer.Option("--process", min=0, hidden=True)] = None,
) -> None:
    """Run the mappings of a config file until SIGTERM or Ctrl-C; SIGHUP reloads the file."""
    # There is nothing to load anew before the file has been read, and nobody would start again what SIGHUP has ended.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
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
        code = _run_all(config, processes, log_level, log_format) if processes > 1 else _run(config, process)
    except ConfigError as error:
        logs.shutdown()
        for problem in error.problems:
            typer.echo(problem, err=True)
        code = 2
    finally:
        logs.shutdown()
    raise typer.Exit(code)


def _run_all(path: Path, count: int, log_level: str, log_format: str) -> int:
    import anyio

    from poller.app.processes import Processes, command_of
    from poller.app.spooling import uses_state
    from poller.config import load
    from poller.errors import ConfigError

    config = load(path, environ=os.environ, now=time.time())
    if uses_state(config) and not config.daemon.shares:
        problem = (
            f"--processes {count} needs a state that they share: add fleet = true to [daemon] of {path},"
            " or name a dynamodb:TABLE as its state"
        )
        raise ConfigError((problem,))
    if config.daemon.port and config.daemon.port + count - 1 > LAST_PORT:
        problem = (
            f"--processes {count} needs {count} ports, from [daemon] listen = {config.daemon.listen} on, and the last one is"
            f" {LAST_PORT}: begin lower"
        )
        raise ConfigError((problem,))
    return anyio.run(Processes(command_of(str(path), log_level, log_format), count).run)


def _stop_with_parent() -> None:
    """End when the process that has started this one is gone: its end of our standard input closes."""
    with suppress(OSError):
        while os.read(sys.stdin.fileno(), 1024):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def _load(path: Path, process: int | None) -> Config:
    """The file, as the process of this number has it: one that listens on a port has that much higher a one."""
    from poller.config import load

    config = load(path, environ=os.environ, now=time.time())
    host, _, port = config.daemon.listen.rpartition(":")
    if not (process and config.daemon.port):
        return config
    daemon = config.daemon.model_copy(update={"listen": f"{host}:{int(port) + process}"})
    return config.model_copy(update={"daemon": daemon})


def _run(path: Path, process: int | None) -> int:
    import logging

    import anyio

    from poller.app.daemon import Daemon
    from poller.engine.child import leaf
    from poller.errors import PollerError

    daemon = Daemon(lambda: _load(path, process))
    if process is not None:
        threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        anyio.run(daemon.run, backend_options={"use_uvloop": sys.platform != "win32"})
    except Exception as group:
        error = leaf(group)
        if not isinstance(error, PollerError):
            raise
        logging.getLogger("poller").error("%s", error)  # noqa: TRY400 - one line is all there is to say
        return 1
    return 0
