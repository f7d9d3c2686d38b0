"""Filter criteria: which records of a source a function wants to see.

A record passes when any pattern matches it. A pattern is matched against the *filter view* of a record: the
record as it is delivered, with its payload (`body` of SQS, `data` of Kinesis) parsed when it is a JSON object
or array. Kinesis metadata such as `partitionKey` are at the top of the view. Only the fields that a pattern
names are looked at, so nothing is decoded for a pattern without the payload.

Where AWS is silent or contradicts itself:

* bare numbers compare as they are written: `300` is neither `300.0` nor `3e2` (two spellings of a fraction
  are alike, though); `numeric` compares by value;
* metadata may be filtered on for every source, with a warning where AWS documents otherwise;
* a payload that is a bare JSON scalar is plain text, and plain text is matched with `{"body": ["text"]}`;
* EventBridge's operators are understood unless `strict`;
* an `$or` with one branch matches nothing and warns; it is refused when `strict`.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, NoReturn

import orjson

from poller.core.operators import PatternError, Place
from poller.core.patterns import ABSENT, Compiler, Fields

__all__ = ["MAX_PATTERN_LENGTH", "Filters", "PatternError", "Source", "compile_filters"]

Source = Literal["sqs", "kinesis", "dynamodb"]

#: Characters of JSON text.
MAX_PATTERN_LENGTH: Final = 4096

_View = Callable[[Mapping[str, Any]], Any]


class _Traits(NamedTuple):
    """What differs between the sources."""

    payload: str
    plain: bool
    """The payload may be matched as text."""
    documented: frozenset[str]
    """Top-level keys that AWS says or has shown to work."""


_TRAITS: Final[dict[Source, _Traits]] = {
    "sqs": _Traits("body", plain=True, documented=frozenset(("body",))),
    "kinesis": _Traits("data", plain=False, documented=frozenset(("data",))),
    "dynamodb": _Traits(
        "dynamodb", plain=False, documented=frozenset(("dynamodb", "eventName", "eventID", "userIdentity"))
    ),
}


class Filters:
    """Compiled patterns; made by `compile_filters`. No patterns at all let every record pass."""

    __slots__ = ("_roots", "_views", "warnings")

    def __init__(self, roots: Sequence[Fields], source: Source, warnings: Sequence[str] = ()) -> None:
        self._roots = tuple(roots)
        names = set[str]().union(*(root.names for root in roots))
        self._views = tuple((name, _view(source, name)) for name in sorted(names))
        self.warnings = tuple(warnings)

    def __len__(self) -> int:
        return len(self._roots)

    def match(self, record: Mapping[str, Any]) -> bool:
        """Tell whether the event record passes. Whatever it holds, nothing is raised."""
        view = {name: look(record) for name, look in self._views}
        for root in self._roots:
            if root.test(view):
                return True
        return not self._roots

    def explain(self, record: Mapping[str, Any]) -> tuple[bool, str]:
        """Return what `match` returns, and why in one line: which filter matches, or where each one fails."""
        if not self._roots:
            return True, "no filters"
        view = {name: look(record) for name, look in self._views}
        for number, root in enumerate(self._roots, 1):
            if root.test(view):
                return True, f"filter {number} of {len(self._roots)}"
        reasons = [root.failure(view, "") for root in self._roots]
        if len(reasons) == 1:
            return False, reasons[0]
        return False, "; ".join(f"filter {number}: {reason}" for number, reason in enumerate(reasons, 1))


def compile_filters(
    patterns: Sequence[str | Mapping[str, Any]], source: Source, *, strict: bool = False
) -> Filters:
    """Compile patterns that are JSON text, as in Lambda, or the same already parsed.

    `strict` refuses operators outside Lambda's own table. Raises `PatternError`, which names the filter by
    its number, counted from 1, when there are several.
    """
    roots: list[Fields] = []
    warnings: list[str] = []
    for number, pattern in enumerate(patterns, 1):
        prefix = f"filter {number}: " if len(patterns) > 1 else ""
        try:
            root, hints = _compile(pattern, source, strict=strict)
        except PatternError as error:
            raise PatternError(f"{prefix}{error}") from None
        roots.append(root)
        warnings += [prefix + hint for hint in hints]
    return Filters(roots, source, warnings)


def _compile(pattern: str | Mapping[str, Any], source: Source, *, strict: bool) -> tuple[Fields, list[str]]:
    payload, plain, documented = _TRAITS[source]
    compiler = Compiler(payload, plain=plain, strict=strict)
    root = compiler.compile(_parsed(pattern if isinstance(pattern, str) else _text(pattern)))
    undocumented = [
        f"{name}: not documented by AWS as a filter key of {source}; matched here, maybe not in Lambda"
        for name in sorted(root.names - documented)
    ]
    return root, compiler.warnings + undocumented


def _text(pattern: Mapping[str, Any]) -> str:
    try:
        return json.dumps(
            pattern, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain_value
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise Place("", strict=False).refusal(
            f"not JSON ({error})", "use strings, numbers, booleans, arrays, tables"
        ) from None


def _plain_value(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value} is a {type(value).__name__}")


def _parsed(text: str) -> Any:
    place = Place("", strict=False)
    if len(text) > MAX_PATTERN_LENGTH:
        raise place.refusal(f"{len(text)} characters", f"Lambda takes at most {MAX_PATTERN_LENGTH}")
    try:
        return orjson.loads(text)
    except ValueError as error:
        raise place.refusal(f"not JSON ({error})", 'write an object like {"field": ["value"]}') from None


# --- the filter view ----------------------------------------------------------------------------------------


def _view(source: Source, name: str) -> _View:
    if source == "sqs" and name == "body":
        return _body
    if source == "kinesis":
        return _data if name == "data" else lambda record: _kinesis_field(record, name)
    return lambda record: record.get(name, ABSENT)


def _body(record: Mapping[str, Any]) -> Any:
    text = record.get("body", ABSENT)
    return _structure(text, text)


def _data(record: Mapping[str, Any]) -> Any:
    kinesis = record.get("kinesis")
    encoded: Any = kinesis.get("data", ABSENT) if isinstance(kinesis, dict) else ABSENT
    try:
        return _structure(binascii.a2b_base64(encoded), encoded)
    except (TypeError, ValueError):
        return encoded


def _kinesis_field(record: Mapping[str, Any], name: str) -> Any:
    kinesis = record.get("kinesis")
    inner = kinesis.get(name, ABSENT) if isinstance(kinesis, dict) else ABSENT
    return record.get(name, inner)


def _structure(text: Any, otherwise: Any) -> Any:
    """Return the object or array that `text` is, or `otherwise` when it is none."""
    try:
        value = orjson.loads(text)
    except ValueError:
        value = _unusual(text)
    return value if type(value) in (dict, list) else otherwise


def _unusual(text: Any) -> Any:
    """Return what JSON allows and orjson refuses: half a surrogate pair as an escape, a number beyond a double; else None."""
    try:
        return _UNUSUAL.decode(text if isinstance(text, str) else str(text, "utf-8"))
    except (TypeError, ValueError, RecursionError):
        return None


def _integer(digits: str) -> int | float:
    # A float where 64 bits do not hold it, as orjson makes of it in the pattern.
    number = int(digits) if len(digits) <= len(str(-(2**63))) else 2**64
    return number if -(2**63) <= number < 2**64 else float(digits)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


_UNUSUAL: Final = json.JSONDecoder(parse_int=_integer, parse_constant=_no_constant)
