"""What can be wrong and be seen without running anything: a function's program, module, folder, user; certificates."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pwd
import ssl
import sys
from contextlib import closing
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

from poller.runtimes import http, process
from poller.runtimes.code import BadCode, Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from importlib.machinery import ModuleSpec

    from poller.config import Aws, Config, Function


def all_problems(config: Config) -> tuple[str, ...]:
    """Return one line for each thing that keeps a function of `config` from being started, or AWS from being called."""
    with closing(Store()) as store:
        return of_aws(config.aws) + tuple(
            line for name, function in config.functions.items() for line in _with_code(name, function, store)
        )


def of_aws(aws: Aws) -> tuple[str, ...]:
    """Return one line for each thing that keeps every call to AWS from being made."""
    found = () if aws.ca_bundle is None else _of_ca_bundle(aws.ca_bundle)
    return tuple(f"aws.{line}" for line in found)


def _with_code(name: str, function: Function, store: Store) -> tuple[str, ...]:
    if function.code is None:
        return problems(name, function)
    try:
        return problems(name, function, store.look(function.code).root)
    except BadCode as error:
        return (f"functions.{name}.code: {error}",)


def problems(name: str, function: Function, root: Path | None = None) -> tuple[str, ...]:
    """Return one line for each thing that keeps one function from being started.

    `root` is where its code is, when it has one.
    """
    if function.runtime in ("python", "command"):
        found = _of_worker(function, root)
    elif function.ca_bundle is not None:
        found = _of_ca_bundle(function.ca_bundle)
    else:
        return ()
    return tuple(f"functions.{name}.{line}" for line in found)


def _of_ca_bundle(path: Path) -> Iterator[str]:
    try:
        http.tls_context(path)
    except ssl.SSLError:
        yield f"ca_bundle: {path} holds no certificates in PEM form"
    except OSError as error:
        yield f"ca_bundle: {path} cannot be read: {error.strerror}"


def _of_worker(function: Function, root: Path | None) -> Iterator[str]:
    if not hasattr(os, "pidfd_open"):
        yield f'runtime = "{function.runtime}": worker processes need Linux 5.3 or later'
    folder = root or function.working_directory
    if folder is not None and not folder.is_dir():
        yield f"working_directory: there is no folder {folder}"
        return
    if function.user is not None:
        yield from _of_user(function.user)
    if function.runtime == "command":
        yield from _of_command(function, folder)
        return
    yield from _of_wrapper(function, folder)
    if not importable((function.handler or "").partition(":")[0], _folders(function, folder)):
        place = "working directory" if root is None else "code"
        yield (
            f'handler = "{function.handler}": names a module that is neither in its {place} nor on'
            " Python's path"
        )


def _of_user(user: str) -> Iterator[str]:
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        yield f"user: there is no user {user}"
        return
    if os.geteuid() not in (0, entry.pw_uid):
        yield f"user: only root can run workers as {user}"


def _of_command(function: Function, folder: Path | None) -> Iterator[str]:
    setting = process.Setting(function.environment, "", working_directory=folder)
    try:
        process.program(function.command[0], setting)
    except OSError as error:
        yield f"command: {error}"


def _of_wrapper(function: Function, folder: Path | None) -> Iterator[str]:
    if wrapper := function.environment.get(process.WRAPPER):
        setting = process.Setting(function.environment, "", working_directory=folder)
        try:
            process.program(wrapper, setting)
        except OSError:
            yield f"environment.{process.WRAPPER}: must name a program that can be run"


def _folders(function: Function, folder: Path | None) -> tuple[str, ...]:
    own = [one for one in function.environment.get("PYTHONPATH", "").split(os.pathsep) if one]
    return (str(folder or Path.cwd()), *own)


def importable(module: str, folders: Sequence[str] = ()) -> bool:
    """Tell whether Python would find `module`, in `folders` or the current directory too, without running its code."""
    importlib.invalidate_caches()  # a folder may have changed since, within one tick of its clock
    first, *rest = module.split(".")
    spec = _find(first, folders or (str(Path.cwd()),))
    for part in rest:
        if spec is None:
            return False
        # By its last name only: for a dotted one a package without __init__.py asks for its parent, which nobody imported.
        # What is no package has nowhere to look; PathFinder would take None for sys.path.
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations or ()))
    return spec is not None


def _find(name: str, folders: Sequence[str]) -> ModuleSpec | None:
    try:
        return PathFinder.find_spec(name, [*folders, *sys.path]) or importlib.util.find_spec(name)
    except ValueError:  # a module that was made by hand and has no spec, such as __main__
        return None
