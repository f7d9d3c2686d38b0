"""From mistakes to lines for a reader: where it is, what is there, what would be right.

A line shows the text of the file, never what the environment put in its place, and nothing that looks secret.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, get_args

from poller.config.environment import has_reference
from poller.config.section import Mistake, Mistakes, Section

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

    from poller.config.lines import Lines

Path = tuple[str | int, ...]

#: Characters of a value that a line shows.
SHOWN = 60
_ABSENT = object()
_UNKNOWN = "unknown key"
_PLAIN_KEY = re.compile(r"[\w$-]+")
_SECRET_KEY = re.compile(r"secret|password|passwd|token|credential|private|(api|access)_?key", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"(?<=//)[^/@\s]+(?=@)|\b(AKIA|ASIA)[A-Z0-9]{12,}|(?<=\?)[^\s#\"]*=[^\s#\"]*")

_WANTS = {
    "missing": "is required",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be a string",
    "string_too_long": "must have at most {max_length} characters",
    "too_long": "must have at most {max_length} entries",
    "literal_error": "must be {expected}",
    "tuple_type": "must be a list",
    "dict_type": "must be a table",
    "model_type": "must be a table",
    "path_type": "must be a string",
}


class Problems:
    """The problems of one file, gathered and put in the order of its lines."""

    def __init__(self, where: str, raw: dict[str, Any], lines: Lines) -> None:
        self._where = where
        self._raw = raw
        self._lines = lines
        self._mistakes: list[Mistake] = []
        self._unread: frozenset[Path] = frozenset()

    def add_unread(self, mistakes: Iterable[Mistake]) -> None:
        """Take note of places without a readable value: what else is wrong there follows from that."""
        self.add(mistakes)
        self._unread = frozenset(mistake.at for mistake in self._mistakes)

    def add(self, mistakes: Iterable[Mistake]) -> None:
        """Take note of `mistakes`."""
        self._mistakes.extend(mistake for mistake in mistakes if mistake.at not in self._unread)

    def render(self) -> tuple[str, ...]:
        """Return one line for each mistake."""
        return tuple(map(self._line, sorted(self._mistakes, key=self._order)))

    def _order(self, mistake: Mistake) -> int:
        return self._lines.of(mistake.at) or 0

    def _line(self, mistake: Mistake) -> str:
        number = self._lines.of(mistake.at)
        where = self._where if number is None else f"{self._where}:{number}"
        value = _lookup(self._raw, mistake.at)
        wants = mistake.wants
        if mistake.detail and not has_reference(value):
            wants = f"{wants}: {mistake.detail}"
        shown = "" if value is _ABSENT or wants.startswith(_UNKNOWN) else f" = {_show(mistake.at, value)}"
        subject = f" {self._place(mistake.at)}{shown}:" if mistake.at else ""
        return " ".join(f"{where}:{subject} {wants}".splitlines())

    def _place(self, at: Path) -> str:
        if at[:1] != ("mappings",) or len(at) < 2:
            return _dotted(at)
        name = _lookup(self._raw, (*at[:2], "name"))
        label = f" {json.dumps(name, ensure_ascii=False)}" if isinstance(name, str) else ""
        return f"{_dotted(at[:2])}{label} {_dotted(at[2:])}".rstrip()


def translate(error: ValidationError, section: type[Section], at: Path) -> Iterator[Mistake]:
    """Say in the words of the file what pydantic found wrong in a `section` that stands at `at`."""
    for one in error.errors(include_url=False, include_input=False):
        place = (*at, *one["loc"])
        cause = one.get("ctx", {}).get("error")
        if isinstance(cause, Mistakes):
            yield from (Mistake((*place, *inner), *rest) for inner, *rest in cause.mistakes)
        elif one["type"] == "extra_forbidden":
            yield Mistake(place, unknown_key(str(one["loc"][-1]), _section_at(section, one["loc"][:-1])))
        elif (
            one["type"] != "default_factory_not_called"
        ):  # a default that waits for a key which is wrong itself
            yield Mistake(place, str(cause) if cause else _wants(one))


def unknown_key(key: str, section: type[Section]) -> str:
    """Say that `section` has no such key, and which one may be meant."""
    import difflib

    known = tuple(section.model_fields)
    plain = {name.replace("_", ""): name for name in known}
    if same := plain.get(key.replace("_", "").replace("-", "").lower()):
        return f"{_UNKNOWN}: {key} is written {same} here"
    if near := difflib.get_close_matches(key.lower(), known, n=1):
        return f"{_UNKNOWN}; did you mean {near[0]}?"
    return f"{_UNKNOWN}; known are {', '.join(known)}"


def _wants(error: ErrorDetails) -> str:
    limits = {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in error.get("ctx", {}).items()
    }
    return _WANTS.get(error["type"], "is not valid").format(**limits).replace("'", '"')


def _section_at(section: type[Section], path: tuple[str | int, ...]) -> type[Section]:
    for key in path:
        field = section.model_fields.get(str(key))
        section = section if field is None else _inner(field.annotation) or section
    return section


def _inner(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_inner, get_args(annotation))), None)


def _lookup(value: Any, at: Path) -> Any:
    for key in at:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return _ABSENT
    return value


def _dotted(at: Path) -> str:
    parts = (f"[{key}]" if isinstance(key, int) else f".{_quoted(key)}" for key in at)
    return "".join(parts).removeprefix(".")


def _quoted(key: str) -> str:
    return key if _PLAIN_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False)


def _show(at: Path, value: Any) -> str:
    if any(key in ("environment", "headers") or _SECRET_KEY.search(str(key)) for key in at):
        return "***"
    if isinstance(value, dict):
        return "{…}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "[…]"
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = _SECRET_TEXT.sub("***", text)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"
