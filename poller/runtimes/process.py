"""Functions in processes of their own: `python`, which speaks our frames, and `command`, which speaks Lambda's Runtime API."""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
from asyncio import CancelledError
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import poller
from poller.runtimes._frames import FrameLink
from poller.runtimes._pool import Pool, Size
from poller.runtimes._process import Launch, Limits
from poller.runtimes._worker import State
from poller.runtimes.runtime_api import ApiLink

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from poller.model import FunctionError, Invocation, Refused, Reply, Workers
    from poller.runtimes._worker import Link, Worker
    from poller.runtimes.context import FunctionIdentity

    Plan = Callable[[Link], Launch]

__all__ = [
    "WRAPPER",
    "Limits",
    "NotNow",
    "ProcessRuntime",
    "Setting",
    "Size",
    "command",
    "daemon_credentials",
    "program",
    "python",
]

_log = logging.getLogger("poller.function")

#: How the daemon's own credentials may stand in its environment.
CREDENTIALS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_EC2_METADATA_DISABLED",
    "HOME",
)
_PATH = "/usr/local/bin:/usr/bin:/bin"
#: Names a program that is given the command line of a worker of `python`, and executes it.
WRAPPER = "AWS_LAMBDA_EXEC_WRAPPER"
# The function's folder is the first place to import from, by its name because a handler may leave it. It comes once the
# runtime is there, as in Lambda: what lies in it cannot keep a worker from starting, whatever it is called. The runtime keeps
# no name for itself either: a function may have a poller of its own.
_START = (
    "import os, sys; path = [one for one in sys.path if one]; sys.path[:] = [sys.argv[1], *path];"
    " import poller.runtimes.python_worker as worker; sys.path[:] = [os.getcwd(), *path];"
    " [sys.modules.pop(one) for one in [*sys.modules] if one.split('.')[0] == 'poller'];"
    " worker.main(int(sys.argv[2]))"
)


class NotNow(OSError):
    """No worker can be started at the moment; the invocation is throttled."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and as what the workers of a function run."""

    environment: Mapping[str, str]
    region: str
    handler: str = ""
    working_directory: Path | None = None
    limits: Limits = field(default_factory=Limits)
    credentials: Mapping[str, str] | None = field(default=None, repr=False)
    """Variables that lead to AWS credentials; None for none."""
    role: Callable[[], Mapping[str, str]] | None = None
    """Is asked at each start of a worker for the variables of its role; raises NotNow."""
    code_version: str = ""
    """Of the code in the working directory; empty when that is not known."""

    def variables(self, function: FunctionIdentity, *, runtime: str) -> dict[str, str]:
        """The whole environment of a worker (spec 9.2): nothing of the daemon's but PATH and LANG."""
        root = str((self.working_directory or Path.cwd()).absolute())
        return {
            "PATH": os.environ.get("PATH", _PATH),
            "LANG": os.environ.get("LANG", "C.UTF-8"),
            "AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
            **({"AWS_EC2_METADATA_DISABLED": "true"} if self.credentials is None else self.credentials),
            **self.environment,
            "TZ": ":UTC",
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_LAMBDA_FUNCTION_NAME": function.name,
            "AWS_LAMBDA_FUNCTION_VERSION": function.version,
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_size),
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_LAMBDA_LOG_GROUP_NAME": function.log_group_name,
            "AWS_LAMBDA_LOG_STREAM_NAME": _stamped(function.log_stream_name, self.code_version),
            "LAMBDA_TASK_ROOT": root,
            "LAMBDA_RUNTIME_DIR": root,
            "_HANDLER": self.handler,
            **({"AWS_EXECUTION_ENV": runtime} if runtime else {}),
            **({"POLLER_CODE_VERSION": self.code_version} if self.code_version else {}),
        }


def _stamped(log_stream: str, version: str) -> str:
    # Its random digits begin with the version: what reads such a name finds nothing unusual in it.
    head, mark, digits = log_stream.rpartition("]")
    return f"{head}{mark}{version}{digits[len(version) :]}"


def daemon_credentials(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what of the daemon's environment leads to its credentials."""
    return {name: environ[name] for name in CREDENTIALS if name in environ}


def python(function: FunctionIdentity, setting: Setting, size: Size) -> ProcessRuntime:
    """Return the runtime that runs a Python handler in workers of our own."""
    own = str(Path(poller.__file__).parent.parent)
    version = f"AWS_Lambda_python{sys.version_info.major}.{sys.version_info.minor}"
    setting = replace(setting, handler=_spelt(setting.handler))

    def planned(setting: Setting) -> Plan:
        variables = setting.variables(function, runtime=version)

        def plan(link: Link) -> Launch:
            # Unbuffered, as in Lambda: the last words before a crash or a time-out tell most.
            argv = (sys.executable, "-u", "-c", _START, own, str(link.keep[0]))
            wrapper = setting.environment.get(WRAPPER)
            return _launch((wrapper, *argv) if wrapper else argv, variables, setting)

        return plan

    return ProcessRuntime(function, Pool(function.name, size, planned(setting), FrameLink), setting, planned)


def _spelt(handler: str) -> str:
    """The handler in Lambda's own form, which wrappers take apart at the last dot, where that form can name it."""
    _, _, attribute = handler.partition(":")
    return handler if "." in attribute else handler.replace(":", ".")


def command(
    function: FunctionIdentity, command: Sequence[str], setting: Setting, size: Size
) -> ProcessRuntime:
    """Return the runtime that runs a program which speaks Lambda's Runtime API."""

    def planned(setting: Setting) -> Plan:
        variables = setting.variables(function, runtime="")

        def plan(link: Link) -> Launch:
            argv = (program(command[0], setting), *command[1:])
            return _launch(argv, {**variables, **link.environment}, setting)

        return plan

    return ProcessRuntime(function, Pool(function.name, size, planned(setting), ApiLink), setting, planned)


def program(name: str, setting: Setting) -> str:
    """Return the path of what a command names; raises OSError when there is no such program, or it cannot be run.

    A name with a slash is taken from the working directory, any other is looked for in the PATH of the function.
    """
    folder = setting.working_directory or Path.cwd()
    path = setting.environment.get("PATH", os.environ.get("PATH", _PATH))
    if os.sep in name:
        found = folder / name
        if not found.is_file():
            raise FileNotFoundError(f"fork/exec {found}: no such file")
        if not os.access(found, os.X_OK):
            raise PermissionError(f"fork/exec {found}: it is not executable")
        return str(found.absolute())
    if (located := shutil.which(name, path=path)) is None:
        raise FileNotFoundError(f"fork/exec {name}: no such program in {path}")
    return located


def _launch(argv: Sequence[str], variables: Mapping[str, str], setting: Setting) -> Launch:
    folder = setting.working_directory
    if setting.role is not None:
        variables = {**variables, **setting.role()}
    return Launch(argv, variables, None if folder is None else str(folder), setting.limits)


class ProcessRuntime:
    """Runs one function in a pool of workers; see `poller.ports.Runtime`."""

    # A cancel scope of the engine's for each invocation would be a third of what that costs the daemon.
    keeps_time = True

    def __init__(
        self, function: FunctionIdentity, pool: Pool, setting: Setting, planned: Callable[[Setting], Plan]
    ) -> None:
        self._function = function
        self._pool = pool
        self._setting = setting
        self._planned = planned

    def __repr__(self) -> str:
        return repr(self._pool)

    def open(self) -> None:
        self._pool.open()

    def renew(self) -> None:
        """Give no more work to the present workers; running invocations end in them."""
        self._pool.renew()

    def widen(self, places: int) -> None:
        """Have up to `places` workers from now on; what is too many ends when it is idle for long."""
        self._pool.widen(places)

    def deploy(self, root: Path, version: str) -> None:
        """Run this code from now on; running invocations end in the workers that they are in."""
        self._setting = replace(self._setting, working_directory=root, code_version=version)
        self._pool.renew(self._planned(self._setting))

    @property
    def folders(self) -> set[Path]:
        """Where workers run, or will."""
        own = self._setting.working_directory
        return {Path(folder) for folder in self._pool.folders} | ({own} if own is not None else set())

    async def ready(self, request_id: str) -> FunctionError | Refused | None:
        if self._pool.idle:
            return None
        self._pool.open()
        return await self._pool.ready(request_id)

    async def invoke(self, invocation: Invocation) -> Reply:
        pool = self._pool
        if not pool.idle:
            pool.open()
            answer = await pool.ready(invocation.request_id)
            if answer is not None:
                return answer
        worker = pool.take()
        try:
            reply = await worker.run(invocation)
        except CancelledError:
            # Else it had replied at the same moment, and may be at work for another by now.
            if worker.invocation is invocation:
                worker.end()
                pool.account(worker)
                self._report(worker, invocation, "timeout")
            elif worker.state is State.FINISHING:
                pool.finishing(worker)
            raise
        if worker.state is State.FINISHING:
            pool.finishing(worker)
        pool.account(worker)
        if worker.timed_out:
            self._report(worker, invocation, "timeout")
        elif worker.init_duration is not None or _log.isEnabledFor(logging.DEBUG):
            self._report(worker, invocation)
        return reply

    def workers(self) -> Workers:
        return self._pool.count()

    async def aclose(self) -> None:
        await self._pool.aclose()

    def _report(self, worker: Worker, invocation: Invocation, status: str = "") -> None:
        """Lambda's REPORT line (spec 8.5), its numbers as fields."""
        cold = worker.init_duration is not None
        extra: dict[str, object] = {
            "function": self._function.name,
            "request_id": invocation.request_id,
            "duration_ms": round(1000 * worker.duration, 2),
            "billed_duration_ms": math.ceil(1000 * (worker.duration + (worker.init_duration or 0))),
            "memory_size_mb": self._function.memory_size,
            "max_memory_used_mb": worker.process.peak_memory() >> 20,
        }
        if worker.init_duration is not None:
            extra["init_duration_ms"] = round(1000 * worker.init_duration, 2)
            worker.init_duration = None
        if status:
            extra["status"] = status
        _log.log(logging.INFO if cold or status else logging.DEBUG, "REPORT", extra=extra)
