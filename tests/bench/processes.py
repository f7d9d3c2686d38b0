"""The processes of a run: the canned endpoint, the daemon, and the loops. None of them outlives its `with` block."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import copy
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.bench.allocations import gross
from tests.bench.canned_reply import ACCOUNT
from tests.bench.windows import COUNTED, REGION
from tests.servers import NpmPackage, install, node

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SQS_CONSUMER = NpmPackage("sqs-consumer", "15.0.3")
#: Seconds for something that should take well under one; the machine may be busy.
PATIENCE = 60.0
_SERIES = re.compile(r"^(\w+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
#: Requests to loopback go there and nowhere else, whatever the environment says of proxies.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def environment() -> dict[str, str]:
    """The same for every process: keys of no account, no files of the user, no proxy."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {
        **{name: value for name, value in kept.items() if not name.startswith(("AWS_", "POLLER_"))},
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "PYTHONPATH": str(ROOT),
    }


def pause(seconds: float) -> None:
    """Let the measured processes work."""
    threading.Event().wait(seconds)


def fetch(url: str) -> bytes:
    """One GET; raises OSError for anything but a 200."""
    with _opener.open(url, timeout=10) as reply:
        return bytes(reply.read())


def _stop(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# --- the endpoint -------------------------------------------------------------------------------------------------------


class Endpoint(NamedTuple):
    """The canned endpoint while it runs."""

    url: str
    secure_url: str
    ca_bundle: Path
    """Whom to trust at the secure one."""

    def stats(self) -> dict[str, float]:
        found: dict[str, float] = json.loads(fetch(f"{self.url}/stats"))
        return found


@contextmanager
def endpoint() -> Iterator[Endpoint]:
    """Run the canned endpoint."""
    pipe = subprocess.PIPE
    with TemporaryDirectory() as folder:
        ca_bundle = Path(folder) / "ca.pem"
        command = [sys.executable, "-m", "tests.bench.canned", str(ca_bundle)]
        with subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=environment(), cwd=ROOT
        ) as process:
            assert process.stdout is not None
            try:
                plain, secure = process.stdout.readline().split()
                yield Endpoint(f"http://127.0.0.1:{plain}", f"https://127.0.0.1:{secure}", ca_bundle)
            finally:
                _stop(process)


# --- the loops ----------------------------------------------------------------------------------------------------------


def run_loop(name: str, url: str, warm_up: float, seconds: float) -> dict[str, float]:
    """Run one of `tests.bench.loops` and return what it measured of itself."""
    command = [sys.executable, "-m", "tests.bench.loops", name, url]
    return _measured([*command, "--warm-up", str(warm_up), "--seconds", str(seconds)], warm_up + seconds)


def run_sqs_consumer(url: str, warm_up: float, seconds: float) -> dict[str, float]:
    """Run `sqs_consumer.mjs` and return what it measured of itself."""
    folder = install(SQS_CONSUMER)
    # Node looks for modules beside the file, not where it was started.
    script = copy(Path(__file__).with_name("sqs_consumer.mjs"), folder / "sqs_consumer.mjs")
    return _measured([node(), str(script), url, str(warm_up), str(seconds)], warm_up + seconds)


def _measured(command: list[str], seconds: float) -> dict[str, float]:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, env=environment(), cwd=ROOT, timeout=seconds + PATIENCE
    )
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


# --- the daemon ---------------------------------------------------------------------------------------------------------

_FILE = """\
[daemon]
state = "{state}"
fleet = {fleet}
listen = "127.0.0.1:{port}"
concurrency = {concurrency}
shutdown_timeout = 2

[aws]
region = "{region}"
endpoint_url = "{endpoint}"
{aws}
"""
_FUNCTION = """
[functions.{name}]
runtime = "inline"
handler = "bench_functions:{name}"
timeout = 10
"""
_MAPPING = """
[[mappings]]
name = "{name}"
event_source_arn = "arn:aws:{resource}"
function_name = "{function}"
{more}
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Daemon:
    """`poller run`, and what /metrics says of it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, begun: float, findings: Path) -> None:
        self.process = process
        self.begun = begun
        self._findings = findings
        self._url = f"http://127.0.0.1:{port}"

    def ready(self) -> float:
        """Wait for /readyz to say 200; return the seconds since the start of the process."""
        while time.monotonic() - self.begun < PATIENCE:
            if self.process.poll() is not None:
                raise RuntimeError(f"the daemon has ended with code {self.process.returncode}")
            try:
                fetch(f"{self._url}/readyz")
            except OSError:
                pause(0.01)
            else:
                return time.monotonic() - self.begun
        raise RuntimeError("the daemon does not become ready")

    def workers(self) -> list[int]:
        """The processes that do the work: itself, or those that it has started."""
        return _children(self.process.pid) or [self.process.pid]

    def cpu(self) -> float:
        """CPU seconds of all its processes so far, to the nanosecond, without asking them: an idle one would have to work for
        that.
        """
        # Linux's clock_getcpuclockid(3), which Python has for threads only.
        return sum(time.clock_gettime(~pid << 3 | 2) for pid in {self.process.pid, *self.workers()})

    def resident(self) -> int:
        """Bytes of memory that its processes have; what they share counts for each."""
        return sum(_resident(pid) for pid in {self.process.pid, *self.workers()})

    def metrics(self) -> dict[str, float]:
        """Each family's sum over its series, and the time of the scrape."""
        found: dict[str, float] = {}
        for name, value in _SERIES.findall(fetch(f"{self._url}/metrics").decode()):
            found[name] = found.get(name, 0.0) + float(value)
        return {**found, "at": time.monotonic()}

    def watch(self) -> float:
        """Have its loop watched from now on, which costs a little; return the time."""
        self._signal(signal.SIGUSR1)
        return time.monotonic()

    def blocks(self, since: float) -> list[float]:
        """Seconds of each time that the loop was blocked since then."""
        return [seconds for at, seconds in self._found("blocked") if at >= since]

    def allocations(self, settled: str, seconds: float = COUNTED) -> dict[str, float]:
        """Count for `seconds`: gross and net for each of what the metric `settled` counts."""
        self._signal(signal.SIGUSR2)
        self._wait_for("counting")
        before = self.metrics()[settled]
        pause(seconds)
        done = self.metrics()[settled] - before
        self._signal(signal.SIGUSR2)
        net = self._wait_for("counted")
        return {"allocations": gross(self._findings.with_name("allocations.bin")) / done, "kept": net / done}

    def _signal(self, number: signal.Signals) -> None:
        # Before its first invocation a process would die of it.
        workers = self.workers()
        self._wait_for("began", len(workers))
        for pid in workers:
            os.kill(pid, number)

    def _wait_for(self, finding: str, times: int = 1) -> float:
        for _ in range(int(PATIENCE / 0.005)):
            if len(found := self._found(finding)) >= times:
                return found[-1][1]
            pause(0.005)
        raise RuntimeError(f"the daemon does not tell that it has {finding}")

    def _found(self, finding: str) -> list[tuple[float, float]]:
        if not self._findings.exists():
            return []
        # The last line may be half-written.
        lines = self._findings.read_text().rpartition("\n")[0].splitlines()
        return [(at, value) for name, at, value in map(json.loads, lines) if name == finding]


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        # One that has ended meanwhile is nobody's child. A program's name may have anything in it, but stands in brackets.
        with suppress(OSError):
            if int(file.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(file.parent.name))
    return found


def _resident(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


class Mapped(NamedTuple):
    """One mapping of the daemon's file."""

    name: str
    resource: str
    """Its ARN from the service on."""
    function: str
    """One of `tests.bench.functions`."""
    more: str = ""
    """Lines of TOML."""


def queue(name: str, more: str = "", function: str = "handler") -> Mapped:
    return Mapped(name, f"sqs:{REGION}:{ACCOUNT}:{name}", function, more)


def kinesis(name: str, more: str = "", function: str = "kinesis") -> Mapped:
    return Mapped(name, f"kinesis:{REGION}:{ACCOUNT}:stream/{name}", function, more)


def dynamodb(name: str, more: str = "") -> Mapped:
    stream = f"dynamodb:{REGION}:{ACCOUNT}:table/{name}/stream/2026-01-01T00:00:00.000"
    return Mapped(name, stream, "dynamodb", more)


def write_config(
    folder: Path,
    url: str,
    mappings: list[Mapped],
    ca_bundle: Path | None = None,
    concurrency: int = 1000,
    *,
    fleet: bool = False,
) -> tuple[Path, int]:
    """Write a file with `mappings`, and the handlers beside it; return the file and its port."""
    port = _free_port()
    aws = f'ca_bundle = "{ca_bundle}"\n' if ca_bundle else ""
    text = _FILE.format(
        state=f"sqlite:{folder / 'state.db'}" if fleet else "memory:",
        fleet=str(fleet).lower(),
        port=port,
        concurrency=concurrency,
        region=REGION,
        endpoint=url,
        aws=aws,
    )
    text += "".join(_FUNCTION.format(name=name) for name in {one.function for one in mappings})
    text += "".join(_MAPPING.format(**one._asdict()) for one in mappings)
    file = folder / "poller.toml"
    file.write_text(text)
    copy(ROOT / "tests/bench/functions.py", folder / "bench_functions.py")
    return file, port


@contextmanager
def daemon(
    url: str,
    mappings: list[Mapped],
    module: str = "poller",
    *,
    ca_bundle: Path | None = None,
    concurrency: int = 1000,
    processes: int = 0,
) -> Iterator[Daemon]:
    """Run the real daemon on the endpoint at `url`; `module` is what makes one of it.

    With `processes` so many, which share a state on disk; without, one with a state in memory.
    """
    with TemporaryDirectory() as folder:
        file, port = write_config(Path(folder), url, mappings, ca_bundle, concurrency, fleet=processes > 0)
        findings = Path(folder) / "findings"
        command = [sys.executable, "-m", module, "run", "-c", str(file), "--log-level", "error"]
        command += ["--processes", str(processes)] if processes else []
        begun = time.monotonic()
        process = subprocess.Popen(command, env=environment() | {"BENCH_FINDINGS": str(findings)}, cwd=folder)
        try:
            yield Daemon(process, port, begun, findings)
        finally:
            # Two signals: long polls in flight are not waited for.
            process.terminate()
            pause(0.1)
            _stop(process)


def check(url: str) -> float:
    """Run `poller check` on ten mappings; return its seconds."""
    with TemporaryDirectory() as folder:
        file, _ = write_config(Path(folder), url, [queue(f"idle-{number}") for number in range(10)])
        begun = time.monotonic()
        command = [sys.executable, "-m", "poller", "check", "-c", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment(), cwd=folder)
        return time.monotonic() - begun
