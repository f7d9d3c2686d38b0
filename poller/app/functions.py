"""The functions of a config, loaded: one runtime and one set of slots each, shared by the mappings that name it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import anyio

from poller.app import deploy, fitness
from poller.app.roles import PATIENCE, Role
from poller.config.mapping import function_part
from poller.config.remote import split_function_arn
from poller.engine.slots import Slots
from poller.errors import ConfigError, FunctionInitError
from poller.runtimes import inline, process
from poller.runtimes.context import FunctionIdentity
from poller.runtimes.http import Endpoint, HttpRuntime
from poller.runtimes.remote import LambdaRuntime

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from anyio.abc import TaskGroup

    from poller.aws.session import AwsSession
    from poller.config import Config, Function, Mapping
    from poller.engine.slots import Places
    from poller.ports import Runtime
    from poller.runtimes.code import Code


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """One function, ready to run."""

    name: str
    config: Function
    runtime: Runtime
    slots: Slots
    code: Code | None = None
    role: Role | None = None
    region: str = ""
    """Of the source that its workers know as theirs."""


def load(
    config: Config,
    places: Places,
    running: dict[str, Loaded],
    codes: dict[str, Code],
    session: Callable[[], AwsSession],
) -> dict[str, Loaded]:
    """Load the functions that `config` uses; those of `running` that did not change stay as they are.

    What has changed in nothing but its code (`codes`, by name) keeps its runtime and slots; `deploy.switch` takes it over.
    `session` is asked for each invocation in AWS Lambda: a reload may replace it. Raises ConfigError with a line for each
    function that cannot be loaded; nothing is changed then but the environment.
    """
    loaded: dict[str, Loaded] = {}
    problems: list[str] = []
    for name, mapping in config.used_functions().items():
        function = config.functions[name]
        code = codes.get(name)
        before = running.get(name)
        if before is not None and before.region != mapping.arn.region:
            before = None
        if before is not None and before.config == function and before.code == code:
            loaded[name] = before if code is None else replace(before, code=code)
            continue
        if lines := fitness.problems(name, function, None if code is None else code.root):
            problems.extend(lines)
            continue
        if before is not None and deploy.same_but_code(before.config, function):
            loaded[name] = replace(before, config=function, code=code)
            continue
        if function.runtime == "inline":
            # Inline code reads its variables where all of the process has them, and may do so while it is imported.
            os.environ.update(function.environment)
        try:
            loaded[name] = _load(name, function, mapping, places, code, session)
        except FunctionInitError as error:
            said = str(error).replace("\n", " ")
            problems.append(f'functions.{name} (mapping "{mapping.name}"): {error.error_type}: {said}')
    if problems:
        raise ConfigError(tuple(problems))
    return loaded


async def start(loaded: Iterable[Loaded], tasks: TaskGroup, session: Callable[[], AwsSession]) -> None:
    """Let new runtimes begin; a little later when their credentials take a moment."""
    loaded = tuple(loaded)
    for one in loaded:
        if one.role is not None:
            assert isinstance(one.runtime, process.ProcessRuntime)
            tasks.start_soon(one.role.keep, session, one.runtime.renew)
    with anyio.move_on_after(PATIENCE):
        for one in loaded:
            if one.role is not None:
                await one.role.settled.wait()
    for one in loaded:
        deploy.announce(one.name, one.code)
        one.runtime.open()


def _load(
    name: str,
    function: Function,
    mapping: Mapping,
    places: Places,
    code: Code | None,
    session: Callable[[], AwsSession],
) -> Loaded:
    slots = Slots(places, function.reserved_concurrent_executions)
    named = None if name == mapping.function else name
    identity = FunctionIdentity(
        name=name, arn=arn(mapping, function, named), memory_size=function.memory_size
    )
    role = _role(name, function, mapping)
    runtime = _elsewhere(function, session) or _runtime(
        identity, function, mapping, max(1, slots.total), code, role
    )
    return Loaded(name, function, runtime, slots, code, role, mapping.arn.region)


def fit(loaded: Iterable[Loaded]) -> None:
    """Let runtimes that were there before a reload take as much as the daemon's concurrency now allows."""
    for one in loaded:
        if isinstance(one.runtime, inline.InlineRuntime | process.ProcessRuntime):
            one.runtime.widen(max(1, one.slots.total))


async def close(one: Loaded) -> None:
    """End a function's workers, and all that it has."""
    if one.role is not None:
        one.role.close()
    await one.runtime.aclose()


def _role(name: str, function: Function, mapping: Mapping) -> Role | None:
    if function.role_arn is None or function.runtime not in ("python", "command"):
        return None
    return Role(name, function.role_arn, mapping.arn.region, function.timeout)


def _elsewhere(function: Function, session: Callable[[], AwsSession]) -> Runtime | None:
    if function.runtime == "lambda":
        return LambdaRuntime(session)
    if function.runtime == "http" and function.url is not None:
        return HttpRuntime(
            Endpoint(function.url, function.headers, function.ca_bundle, function.connect_timeout)
        )
    return None


def _runtime(
    identity: FunctionIdentity,
    function: Function,
    mapping: Mapping,
    places: int,
    code: Code | None,
    role: Role | None,
) -> Runtime:
    if function.runtime == "inline":
        return inline.load(identity, function.handler or "", concurrency=places, timeout=function.timeout)
    size = process.Size(
        places=places,
        minimum_workers=function.minimum_workers,
        idle_timeout=function.idle_timeout,
        maximum_invocations=function.maximum_invocations,
        timeout=function.timeout,
    )
    limits = process.Limits(function.memory_limit, function.open_files, function.nice, function.user)
    setting = process.Setting(
        environment=function.environment,
        region=mapping.arn.region,
        handler=function.handler or "",
        working_directory=code.root if code else function.working_directory,
        code_version=code.version if code else "",
        limits=limits,
        credentials=process.daemon_credentials(os.environ) if function.pass_credentials else None,
        role=None if role is None else role.variables,
    )
    if function.runtime == "python":
        return process.python(identity, setting, size)
    return process.command(identity, function.command, setting, size)


def arn(mapping: Mapping, function: Function, named: str | None = None) -> str:
    """The function's ARN as mapped: what the file says, or one in the account and region of the source.

    `named` is what the mapping calls it, by default as its function_name. A qualifier may stand there or in the function's
    own ARN.
    """
    named = named or mapping.function_name
    if function.function_arn is not None:
        whole, qualifier = split_function_arn(function.function_arn)
    elif named.startswith("arn:"):
        whole, qualifier = split_function_arn(named)
    else:
        source, qualifier = mapping.arn, None
        account = function_part(named, "account") or source.account
        name = function_part(named, "name")
        whole = f"arn:{source.partition}:lambda:{source.region}:{account}:function:{name}"
    qualifier = function_part(named, "qualifier") or qualifier
    return f"{whole}:{qualifier}" if qualifier else whole
