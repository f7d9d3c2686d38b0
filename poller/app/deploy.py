"""The code that functions run now, and how another version of it takes its place.

Runtime, slots and mappings of a function stay as they are when its code changes: the next invocations run in new workers,
running ones end in those that they are in.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from poller.app import fitness
from poller.errors import ConfigError
from poller.runtimes import code
from poller.runtimes.code import BadCode
from poller.runtimes.process import ProcessRuntime

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from poller.app.functions import Loaded
    from poller.config import Config, Function
    from poller.runtimes.code import Code, Store

#: Seconds between two looks at what is watched, and how many times as long as a look the pause after it is at least.
LOOK_EVERY = 1.0
LOOK_SHARE = 20

_log = logging.getLogger("poller")


def survey(config: Config, running: Mapping[str, Loaded], store: Store) -> dict[str, Code]:
    """Look at the code of all functions that mappings use; ConfigError names what cannot be used. Blocks."""
    found: dict[str, Code] = {}
    problems: list[str] = []
    for name in config.used_functions():
        path = config.functions[name].code
        if path is None:
            continue
        known = running[name].code if name in running else None
        try:
            found[name] = store.look(path, known)
        except BadCode as error:
            problems.append(f"functions.{name}.code: {error}")
    if problems:
        raise ConfigError(tuple(problems))
    return found


def same_but_code(one: Function, other: Function) -> bool:
    """Whether nothing but their code tells these two apart."""
    if (one.code is None) != (other.code is None):
        return False
    return one == other or one.model_copy(update={"code": other.code, "watch": other.watch}) == other


def announce(name: str, code: Code | None) -> None:
    """Say which version a function begins with."""
    if code is not None:
        extra = {"function": name, "version": code.version}
        _log.info("function %s: code %s from %s", name, code.version, code.path, extra=extra)


def switch(old: Loaded, new: Loaded) -> None:
    """Let the runtime that both share run the code of `new`, if that is another version. On the event loop."""
    if old.code is None or new.code is None:
        return
    if (old.code.version, old.code.root) == (new.code.version, new.code.root):
        return
    assert isinstance(new.runtime, ProcessRuntime)
    new.runtime.deploy(new.code.root, new.code.version)
    extra = {"function": new.name, "version": new.code.version}
    _log.info(
        "function %s: code %s from %s replaces %s",
        new.name,
        new.code.version,
        new.code.path,
        old.code.version,
        extra=extra,
    )


def forget_bytecode(old: Loaded, new: Loaded) -> None:
    """Make Python compile anew what has changed. Blocks."""
    if old.code is not None and new.code is not None and old.code.version != new.code.version:
        code.forget_bytecode(old.code, new.code)


def folders(loaded: Iterable[Loaded]) -> set[Path]:
    """Where workers of these functions run, or will."""
    return {
        folder for one in loaded if isinstance(one.runtime, ProcessRuntime) for folder in one.runtime.folders
    }


class Watch:
    """Looks at the code of functions that want it, and deploys what has changed and is still again.

    Changed and still: not as it was when it was loaded, and as it was at the look before.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[str, tuple[int | None, bool]] = {}
        """What was there at the look before, and whether it was tried."""

    async def pause(self, took: float) -> None:
        """Wait until the next look; a look that takes long is rare."""
        await anyio.sleep(max(LOOK_EVERY, LOOK_SHARE * took))

    def look(self, loaded: Iterable[Loaded]) -> list[Loaded]:
        """Return the functions whose code is to be deployed. Blocks."""
        due, seen = [], {}
        for one in loaded:
            if one.code is None:
                continue
            now = code.signature(one.code.path)
            before, tried = self._seen.get(one.name, (one.code.signature, True))
            if now != before:
                tried = False
            elif now != one.code.signature and not tried:
                tried = True
                due.append(one)
            seen[one.name] = (now, tried)
        self._seen = seen
        return due

    def deployable(self, one: Loaded) -> Loaded | None:
        """Return the function with its code as it is now; None, said in the log, when that cannot be used. Blocks."""
        assert one.code is not None
        try:
            found = self._store.look(one.code.path, one.code)
            lines = fitness.problems(one.name, one.config, found.root)
        except BadCode as error:
            lines = (f"functions.{one.name}.code: {error}",)
        for line in lines:
            _log.error("not deployed, the old code keeps running: %s", line, extra={"function": one.name})
        if lines:
            return None
        code.forget_bytecode(one.code, found)
        return replace(one, code=found)
