"""`${NAME}` in the strings of a file. `$${` stands for a literal `${`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from poller.config.section import Mistake

if TYPE_CHECKING:
    from collections.abc import Mapping

Path = tuple[str | int, ...]

_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}|(?P<broken>\$\{)")


def expand(value: Any, environ: Mapping[str, str], mistakes: list[Mistake], at: Path = ()) -> Any:
    """Return a copy of `value` with its references replaced; one that cannot be stays and adds a mistake."""
    if isinstance(value, str):
        return _expand_text(value, environ, mistakes, at)
    if isinstance(value, dict):
        return {key: expand(item, environ, mistakes, (*at, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [expand(item, environ, mistakes, (*at, index)) for index, item in enumerate(value)]
    return value


def has_reference(value: Any) -> bool:
    """Tell whether the environment is anywhere in `value`, as the file has it."""
    if isinstance(value, str):
        return "${" in value
    if isinstance(value, dict):
        return any(map(has_reference, value.values()))
    return isinstance(value, list) and any(map(has_reference, value))


def _expand_text(text: str, environ: Mapping[str, str], mistakes: list[Mistake], at: Path) -> str:
    def replaced(found: re.Match[str]) -> str:
        name = found["name"]
        if found["broken"]:
            mistakes.append(Mistake(at, "must close ${NAME}; write $${ for the two characters themselves"))
        elif name and name not in environ:
            mistakes.append(Mistake(at, f"needs the environment variable {name}, which is not set"))
        elif name:
            return environ[name]
        return found[0].removeprefix("$") if found[0].startswith("$$") else found[0]

    return _REFERENCE.sub(replaced, text)
