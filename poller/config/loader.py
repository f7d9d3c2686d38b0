"""Reads the file and names every mistake in it at once."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from poller.config.environment import expand
from poller.config.lines import Lines
from poller.config.mapping import Mapping
from poller.config.model import Aws, Config, Daemon, Function, check_function_name
from poller.config.problems import Problems, translate, unknown_key
from poller.config.rules import across
from poller.config.section import Mistake, Section
from poller.errors import ConfigError

if TYPE_CHECKING:
    import collections.abc
    from collections.abc import Callable, Iterator
    from pathlib import Path

S = TypeVar("S", bound=Section)

#: Levels of tables and lists in a file: room for the deepest filter pattern, and none for the stack's end.
MAXIMUM_DEPTH = 200

_TOO_DEEP = f"must not nest tables and lists deeper than {MAXIMUM_DEPTH}"
_ROUTE = ("name", "event_source_arn", "function_name")


def load(
    path: Path,
    *,
    environ: collections.abc.Mapping[str, str],
    now: float,
    importable: Callable[[str], bool] | None = None,
) -> Config:
    """Read the file at `path`; ConfigError names all that is wrong with it.

    `now` is the Unix time that no starting timestamp may pass. `importable`, when given, is asked for the
    module of each inline handler.
    """
    return parse(_text(path), where=str(path), environ=environ, now=now, importable=importable)


def parse(
    text: str,
    *,
    where: str,
    environ: collections.abc.Mapping[str, str],
    now: float,
    importable: Callable[[str], bool] | None = None,
) -> Config:
    """Do what `load` does with the text of a file; `where` begins every problem's line."""
    raw = _toml(text, where)
    problems = Problems(where, raw, Lines(text))
    unset: list[Mistake] = []
    reading = _Reading(expand(raw, environ, unset), problems, now)
    problems.add_unread(unset)
    config = reading.config()
    if importable is not None:
        problems.add(_unimportable(config.functions, importable))
    if lines := problems.render():
        raise ConfigError(lines)
    return config


class _Reading:
    """Validates section by section, so that a mistake in one hides none in another."""

    def __init__(self, data: dict[str, Any], problems: Problems, now: float) -> None:
        self._data = data
        self._problems = problems
        self._now = now
        self._routes: dict[int, Mapping] = {}

    def config(self) -> Config:
        """Return what is valid; what is not is among the problems."""
        unknown = (key for key in self._data if key not in Config.model_fields)
        self._problems.add(Mistake((key,), unknown_key(key, Config)) for key in unknown)
        named = self._table("functions")
        functions, mappings = self._functions(named), self._mappings()
        daemon = self._section(Daemon, self._data.get("daemon", {}), ("daemon",)) or Daemon()
        self._problems.add(across(daemon, named, functions, dict(sorted((mappings | self._routes).items()))))
        return Config.model_construct(
            daemon=daemon,
            aws=self._section(Aws, self._data.get("aws", {}), ("aws",)) or Aws(),
            functions=functions,
            mappings=tuple(mappings.values()),
        )

    def _functions(self, named: dict[str, Any]) -> dict[str, Function]:
        valid = {}
        for name, value in named.items():
            at = ("functions", name)
            self._problems.add(_bad_name(name))
            if function := self._section(Function, value, at):
                valid[name] = function
        return valid

    def _mappings(self) -> dict[int, Mapping]:
        listed = self._data.get("mappings", [])
        if not isinstance(listed, list):
            self._problems.add([Mistake(("mappings",), "must be a list of tables, each under [[mappings]]")])
            return {}
        if not listed:
            self._problems.add([Mistake((), "nothing to do: there is no [[mappings]]")])
        read = ((index, self._section(Mapping, one, ("mappings", index))) for index, one in enumerate(listed))
        return {index: mapping for index, mapping in read if mapping is not None}

    def _table(self, key: str) -> dict[str, Any]:
        value = self._data.get(key, {})
        if isinstance(value, dict):
            return value
        self._problems.add([Mistake((key,), "must be a table")])
        return {}

    def _section(self, kind: type[S], value: Any, at: tuple[str | int, ...]) -> S | None:
        try:
            return kind.model_validate(value, context={"now": self._now})
        except ValidationError as error:
            self._problems.add(translate(error, kind, at))
            if kind is Mapping:
                self._keep_route(int(at[-1]), value, {one["loc"][0] for one in error.errors() if one["loc"]})
            return None

    def _keep_route(self, index: int, value: Any, wrong: set[int | str]) -> None:
        # What leads where can be compared with other mappings even when some other key is wrong. A wrong name or source is
        # equal to no other.
        if not isinstance(value, dict) or "function_name" in wrong:
            return
        right = {key: value[key] for key in _ROUTE if key in value and key not in wrong}
        nowhere = dict.fromkeys(_ROUTE, f"?{index}")
        if "function_name" in right:
            # A batch size is given because its default is read off a source that may be wrong.
            self._routes[index] = Mapping.model_construct(batch_size=1, **nowhere | right)


def _text(path: Path) -> str:
    try:
        # An editor may have begun it with a byte order mark, which TOML knows nothing of.
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError((f"{path}: must be UTF-8 text; byte {error.start} is not",)) from error
    except FileNotFoundError as error:
        raise ConfigError((f"{path}: there is no such file",)) from error
    except IsADirectoryError as error:
        raise ConfigError((f"{path}: must be a file; it is a directory",)) from error
    except OSError as error:
        raise ConfigError((f"{path}: cannot be read: {error.strerror}",)) from error


def _toml(text: str, where: str) -> dict[str, Any]:
    try:
        raw = tomllib.loads(text)
    except RecursionError as error:
        raise ConfigError((f"{where}: {_TOO_DEEP}",)) from error
    except ValueError as error:
        raise ConfigError((f"{where}: must be TOML: {error}",)) from error
    if _is_deep(raw):
        raise ConfigError((f"{where}: {_TOO_DEEP}",))
    return raw


def _is_deep(raw: dict[str, Any]) -> bool:
    level: list[Any] = [raw]
    for _ in range(MAXIMUM_DEPTH):
        level = [item for value in level if isinstance(value, dict | list) for item in _items(value)]
    return bool(level)


def _items(value: dict[str, Any] | list[Any]) -> collections.abc.Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _bad_name(name: str) -> Iterator[Mistake]:
    try:
        check_function_name(name)
    except ValueError as error:
        yield Mistake(("functions", name), str(error))


def _unimportable(functions: dict[str, Function], importable: Callable[[str], bool]) -> Iterator[Mistake]:
    for name, function in functions.items():
        module = (function.handler or "").partition(":")[0]
        if function.runtime == "inline" and module and not importable(module):
            yield Mistake(
                ("functions", name, "handler"), "names a module that is neither here nor on Python's path"
            )
