"""The functions of a config, loaded: one runtime and one set of slots each, shared by the mappings that name it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from poller.app import fitness
from poller.engine.slots import Slots
from poller.errors import ConfigError, FunctionInitError
from poller.runtimes import inline, process
from poller.runtimes.context import FunctionIdentity

if TYPE_CHECKING:
    from collections.abc import Iterable

    from poller.config import Config, Function, Mapping
    from poller.engine.slots import Places
    from poller.ports import Runtime


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """One function, ready to run."""

    name: str
    config: Function
    runtime: Runtime
    slots: Slots


def load(config: Config, places: Places, running: dict[str, Loaded]) -> dict[str, Loaded]:
    """Load the functions that the mappings of `config` name; those of `running` that did not change stay as they are.

    Raises ConfigError with a line for each function that cannot be loaded; nothing is changed then but the environment.
    """
    loaded: dict[str, Loaded] = {}
    problems: list[str] = []
    for mapping in config.mappings:
        name, function = mapping.function, config.functions[mapping.function]
        if name in loaded:
            continue
        if name in running and running[name].config == function:
            loaded[name] = running[name]
            continue
        if lines := fitness.problems(name, function):
            problems.extend(lines)
            continue
        if function.runtime == "inline":
            # Inline code reads its variables where all of the process has them, and may do so while it is imported.
            os.environ.update(function.environment)
        try:
            loaded[name] = _load(name, function, mapping, places)
        except FunctionInitError as error:
            problems.append(f'functions.{name} (mapping "{mapping.name}"): {error.error_type}: {error}')
    if problems:
        raise ConfigError(tuple(problems))
    return loaded


def start(loaded: Iterable[Loaded]) -> None:
    """Let new runtimes begin, on the event loop."""
    for one in loaded:
        one.runtime.open()


def _load(name: str, function: Function, mapping: Mapping, places: Places) -> Loaded:
    slots = Slots(places, function.reserved_concurrent_executions)
    identity = FunctionIdentity(name=name, arn=arn(mapping), memory_size=function.memory_size)
    return Loaded(name, function, _runtime(identity, function, mapping, max(1, slots.total)), slots)


def _runtime(identity: FunctionIdentity, function: Function, mapping: Mapping, places: int) -> Runtime:
    if function.runtime == "inline":
        return inline.load(identity, function.handler or "", concurrency=places)
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
        working_directory=function.working_directory,
        limits=limits,
        credentials=process.daemon_credentials(os.environ) if function.pass_credentials else None,
    )
    if function.runtime == "python":
        return process.python(identity, setting, size)
    return process.command(identity, function.command, setting, size)


def arn(mapping: Mapping) -> str:
    """The function's ARN as mapped: what the file says, or one in the account and region of the source."""
    if mapping.function_name.startswith("arn:"):
        return mapping.function_name
    source = mapping.arn
    qualifier = f":{mapping.qualifier}" if mapping.qualifier else ""
    return f"arn:{source.partition}:lambda:{source.region}:{source.account}:function:{mapping.function}{qualifier}"
