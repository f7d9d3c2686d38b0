"""The file as a whole, and its sections besides the mappings."""

from __future__ import annotations

import re
from pathlib import Path  # noqa: TC003  (pydantic reads annotations)
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from poller.config.arn import check_role, destination_function
from poller.config.mapping import Mapping  # noqa: TC001  (pydantic reads annotations)
from poller.config.remote import check_function_arn, check_headers, check_url
from poller.config.section import Mistake, Mistakes, Seconds, Section, Whole

if TYPE_CHECKING:
    from collections.abc import Iterator

_FUNCTION_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_VARIABLE = re.compile(r"[A-Za-z][A-Za-z0-9_]+")
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_LISTEN = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%a-z]+\]|[^\s:\[\]/]+):(?P<port>\d{1,5})")
_STATE = re.compile(r"memory:|sqlite:.+|dynamodb:[A-Za-z0-9_.-]{3,255}")

#: Bytes of names and values in a function's environment.
ENVIRONMENT_LIMIT = 4096
#: Variables that the runtime itself sets, so that a file may not.
RESERVED_VARIABLES = frozenset(
    {
        "_HANDLER",
        "_X_AMZN_TRACE_ID",
        "AWS_DEFAULT_REGION",
        "AWS_REGION",
        "AWS_EXECUTION_ENV",
        "AWS_LAMBDA_FUNCTION_NAME",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
        "AWS_LAMBDA_FUNCTION_VERSION",
        "AWS_LAMBDA_INITIALIZATION_TYPE",
        "AWS_LAMBDA_LOG_GROUP_NAME",
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "AWS_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_LAMBDA_RUNTIME_API",
        "LAMBDA_TASK_ROOT",
        "LAMBDA_RUNTIME_DIR",
        "TZ",
    }
)


#: Keys that mean something for worker processes only.
OF_WORKERS = (
    "code",
    "watch",
    "working_directory",
    "minimum_workers",
    "idle_timeout",
    "maximum_invocations",
    "memory_limit",
    "open_files",
    "nice",
    "user",
    "pass_credentials",
)
#: Keys that mean something for an endpoint only.
OF_HTTP = ("url", "headers", "ca_bundle", "connect_timeout")
#: Keys of code that poller itself runs. What runs elsewhere brings its own.
OF_CODE = ("handler", "environment", "memory_size")


def _state(text: str) -> str:
    if not _STATE.fullmatch(text):
        raise ValueError("must be memory:, sqlite:PATH or dynamodb:TABLE")
    return text


def _listen(text: str) -> str:
    found = _LISTEN.fullmatch(text)
    if text and (found is None or int(found["port"]) > 65535):
        raise ValueError('must be HOST:PORT, with an IPv6 address in brackets, or "" for no HTTP surface')
    return text


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise ValueError("must be a URL that begins with http:// or https://")
    if parts.username is not None:
        raise ValueError("must hold no user name and no password: requests are signed")
    return text


def _handler(text: str, info: ValidationInfo) -> str:
    if info.data.get("runtime") not in (None, "inline", "python"):
        return text  # whatever the program makes of its _HANDLER
    module, colon, attribute = text.partition(":")
    if not colon:
        module, _, attribute = text.rpartition(".")
    module = module.replace("/", ".")
    if not (_MODULE.fullmatch(module) and _MODULE.fullmatch(attribute)):
        raise ValueError("must be MODULE:FUNCTION or MODULE.FUNCTION")
    return f"{module}:{attribute}"


def _bad_variables(environment: dict[str, str]) -> Any:
    for name, value in environment.items():
        if name in RESERVED_VARIABLES:
            yield Mistake((name,), "is reserved: the runtime sets this variable")
        elif not _VARIABLE.fullmatch(name):
            yield Mistake((name,), "must be named by a letter followed by letters, digits or underscores")
        elif "\0" in value:
            yield Mistake((name,), "must hold no NUL character")
    size = sum(len(name.encode()) + len(value.encode()) for name, value in environment.items())
    if size > ENVIRONMENT_LIMIT:
        yield Mistake((), f"must take at most {ENVIRONMENT_LIMIT} bytes in all; it takes {size}")


def _environment(environment: dict[str, str]) -> dict[str, str]:
    if mistakes := tuple(_bad_variables(environment)):
        raise Mistakes(mistakes)
    return environment


class Daemon(Section):
    """What the process keeps, serves and allows itself."""

    state: Annotated[str, AfterValidator(_state)] = Field(
        default="sqlite:poller.db",
        description="Where checkpoints and leases of streams live, and what is spooled: memory:, sqlite:PATH or"
        " dynamodb:TABLE, which has no spool.",
    )
    listen: Annotated[str, AfterValidator(_listen)] = Field(
        default="127.0.0.1:9464",
        description='HOST:PORT of /metrics /healthz /readyz /status; port 0 takes a free one, "" is none.',
    )
    concurrency: Whole = Field(
        default=1000, ge=1, le=100_000, description="Invocations in flight, all functions together."
    )
    shutdown_timeout: Seconds = Field(
        default=30, gt=0, le=900, description="Seconds from SIGTERM to the hard stop, at most 900."
    )

    fleet: bool = Field(
        default=False,
        description="Whether several daemons of one machine share a state of sqlite:PATH, and with it the shards of streams. A"
        " state of dynamodb:TABLE is shared by all that name it, whatever this says.",
    )
    failover_time: Seconds = Field(
        default=10,
        ge=3,
        le=300,
        description="Seconds after which the shards of a daemon that gives no sign of life are read by others, 3 to 300; the"
        " same for all daemons on one state. Default 10.",
    )
    checkpoint_interval: Seconds = Field(
        default=1,
        ge=0.5,
        le=300,
        description="Seconds between two writes of a busy shard's checkpoint in a shared state, 0.5 to 300: what a crash"
        " repeats. An idle shard is written twice in a failover_time. Default 1.",
    )

    @property
    def shares(self) -> bool:
        """Whether other daemons may use the same state, so that shards are read under leases."""
        return self.fleet or self.state.startswith("dynamodb:")

    @property
    def keeps_spool(self) -> bool:
        """Whether the state has a place for what waits."""
        return not self.shares

    @property
    def host(self) -> str:
        """The address to listen on, an IPv6 one without its brackets; empty for no HTTP surface."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port to listen on; 0 takes a free one."""
        return int(self.listen.rpartition(":")[2] or 0)


class Aws(Section):
    """How AWS is reached. What is left out comes from the usual places of AWS's SDKs."""

    region: str | None = Field(
        default=None, description="Region of what no ARN names. Default: the environment's or the profile's."
    )
    profile: str | None = Field(default=None, description="Profile of the AWS configuration files.")
    endpoint_url: Annotated[str, AfterValidator(_url)] | None = Field(
        default=None, description="Endpoint of every service, for emulators."
    )
    role_arn: Annotated[str, AfterValidator(check_role)] | None = Field(
        default=None, description="IAM role to assume for every call."
    )
    wire: Literal["fast", "sdk"] = Field(
        default="fast",
        description='"fast" makes the hot calls itself; "sdk" sends everything through aiobotocore.',
    )
    ca_bundle: Path | None = Field(
        default=None, description="File of the certificate authorities to trust. Default: the system's."
    )


class Function(Section):
    """One function that mappings name."""

    runtime: Literal["inline", "python", "command", "http", "lambda"] = Field(
        default="inline",
        description='What runs it. "inline" is Python in the daemon, "python" is Python in worker processes, "command" is'
        ' any program that speaks Lambda\'s Runtime API, "http" is an endpoint that the event is posted to, "lambda" is a'
        " function in AWS Lambda.",
    )
    handler: Annotated[str, AfterValidator(_handler)] | None = Field(
        default=None,
        description="MODULE:FUNCTION, or Lambda's MODULE.FUNCTION. Required for inline and python; a command finds it,"
        " as it stands, in its variable _HANDLER.",
    )
    command: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        description="The program that command runs, and its arguments. A name without a slash is looked for in PATH.",
    )
    code: Path | None = Field(
        default=None,
        description="Directory or zip file of the function's code: a worker's current directory, LAMBDA_TASK_ROOT, and where"
        " Python imports from first. A reload starts new workers where it has changed.",
    )
    watch: bool = Field(
        default=False,
        description="Whether code is looked at once a second, and changes are deployed when it is still again. Default"
        " false: a reload looks.",
    )
    working_directory: Path | None = Field(
        default=None,
        description="Folder of a worker: its current one, LAMBDA_TASK_ROOT, and where Python imports from first. Default:"
        " the daemon's.",
    )
    minimum_workers: Whole = Field(
        default=0, ge=0, le=10_000, description="Workers that are kept warm. Default 0: scales to zero."
    )
    idle_timeout: Seconds = Field(
        default=300, gt=0, le=86_400, description="Seconds after which an idle worker is ended. Default 300."
    )
    maximum_invocations: Whole | None = Field(
        default=None, ge=1, description="Invocations after which a worker is replaced. Default: no limit."
    )
    memory_limit: Whole | None = Field(
        default=None,
        ge=64,
        le=1_048_576,
        description="Megabytes of address space of each process of a worker (RLIMIT_AS). Default: no limit. Java and"
        " Node reserve far more than they use: leave it out for them.",
    )
    open_files: Whole | None = Field(
        default=None,
        ge=16,
        le=1_048_576,
        description="Files that a worker may have open. Default: the daemon's limit.",
    )
    nice: Whole = Field(
        default=0, ge=0, le=19, description="How far a worker stands back for CPU, 0 to 19. Default 0."
    )
    user: str | None = Field(
        default=None, min_length=1, description="User that workers run as; the daemon must be root."
    )
    pass_credentials: bool = Field(
        default=False,
        description="Whether workers get the variables that lead to the daemon's own AWS credentials. Default false.",
    )
    url: Annotated[str, AfterValidator(check_url)] | None = Field(
        default=None, description="Where http posts the event to; http:// or https://. Required for it."
    )
    headers: Annotated[dict[str, str], AfterValidator(check_headers)] = Field(
        default={},
        description="Headers of every request of http, such as an Authorization from ${NAME}. Never logged.",
    )
    ca_bundle: Path | None = Field(
        default=None,
        description="File of the certificate authorities that http trusts. Default: the system's.",
    )
    connect_timeout: Seconds = Field(
        default=5,
        gt=0,
        le=60,
        description="Seconds that http has for a connection, name and TLS included; above 0, at most 60. Default 5.",
    )
    function_arn: Annotated[str, AfterValidator(check_function_arn)] | None = Field(
        default=None,
        description="What lambda invokes. Default: the function of this name, in the account and region of the source.",
    )
    timeout: Whole = Field(
        default=3, ge=1, le=900, description="Seconds that one invocation may take, 1 to 900. Default 3."
    )
    reserved_concurrent_executions: Whole | None = Field(
        default=None,
        ge=0,
        le=100_000,
        description="Invocations of this function in flight; 0 throttles all. Default: the daemon's limit.",
    )
    environment: Annotated[dict[str, str], AfterValidator(_environment)] = Field(
        default={},
        description="Variables of the function. Inline functions share the daemon's, so two of them may not"
        " give one variable two values.",
    )
    memory_size: Whole = Field(
        default=128,
        ge=128,
        le=10_240,
        description="Megabytes that the function's context names; memory_limit is what enforces one.",
    )
    role_arn: Annotated[str, AfterValidator(check_role)] | None = Field(
        default=None,
        description="IAM role that the function works with: workers get credentials of it, and new workers before these"
        " expire.",
    )
    description: str = Field(default="", description="For the reader.")

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        if mistakes := tuple(self._bad_keys()):
            raise Mistakes(mistakes)
        return self

    def _bad_keys(self) -> Iterator[Mistake]:
        if self.runtime in ("inline", "python") and self.handler is None:
            yield Mistake(("handler",), "is required: MODULE:FUNCTION")
        if self.runtime == "command" and not self.command:
            yield Mistake(("command",), 'is required: a list such as ["./bootstrap"]')
        if self.runtime != "command" and self.command:
            yield Mistake(("command",), 'goes only with runtime = "command"')
        if self.runtime == "http" and self.url is None:
            yield Mistake(("url",), "is required: where the event is posted to")
        if self.runtime in ("python", "command"):
            yield from self._bad_keys_of_workers()
        yield from self._strange_keys()

    def _strange_keys(self) -> Iterator[Mistake]:
        for keys, runtimes in (
            (OF_WORKERS, ("python", "command")),
            (OF_HTTP, ("http",)),
            (("function_arn",), ("lambda",)),
            (OF_CODE, ("inline", "python", "command")),
        ):
            if self.runtime not in runtimes:
                named = " or ".join(f'"{one}"' for one in runtimes).replace(
                    '" or "', '", "', len(runtimes) - 2
                )
                strange = (key for key in keys if key in self.model_fields_set)
                yield from (Mistake((key,), f"goes only with runtime = {named}") for key in strange)

    def _bad_keys_of_workers(self) -> Iterator[Mistake]:
        if self.role_arn is not None and self.pass_credentials:
            yield Mistake(("pass_credentials",), "excludes role_arn: keep one of them")
        if self.code is not None and self.working_directory is not None:
            yield Mistake(("working_directory",), "excludes code: workers run where their code is")
        if self.watch and self.code is None:
            yield Mistake(("watch",), "goes only with code: the directory or zip file to look at")


def check_function_name(name: str) -> str:
    """Return the name of a function; ValueError when Lambda would not take it."""
    if not _FUNCTION_NAME.fullmatch(name):
        raise ValueError("must be named by 1 to 64 letters, digits, dashes or underscores")
    return name


class Config(Section):
    """The whole file of poller."""

    daemon: Daemon = Field(default_factory=Daemon, description="The process itself.")
    aws: Aws = Field(default_factory=Aws, description="How AWS is reached.")
    functions: dict[Annotated[str, AfterValidator(check_function_name)], Function] = Field(
        description="The functions, by name."
    )
    mappings: tuple[Mapping, ...] = Field(description="Which source feeds which function.")

    def used_functions(self) -> dict[str, Mapping]:
        """The functions that mappings feed or send to, by name, each with the first mapping that does."""
        used: dict[str, Mapping] = {}
        for mapping in self.mappings:
            used.setdefault(mapping.function, mapping)
        for mapping in self.mappings:
            for text in mapping.destinations.values():
                name = destination_function(text)
                if name is not None and name in self.functions:
                    used.setdefault(name, mapping)
        return used
