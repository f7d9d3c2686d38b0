"""The operators of a filter pattern. Each becomes a test of one leaf: a string, number, boolean or null.

A test never sees an array, an object or an absent field; those are the business of `poller.core.patterns`.
Values of different JSON types are never equal, and `numeric` compares numbers only: the `N` of a DynamoDB
attribute is a string.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address, ip_network
from operator import eq, ge, gt, le, lt
from typing import Any, NamedTuple

from poller.core.quoting import quote

Test = Callable[[Any], bool]

_NUMBERS = frozenset((int, float))
_LOWER: dict[object, Callable[[Any, Any], bool]] = {">": gt, ">=": ge}
_UPPER: dict[object, Callable[[Any, Any], bool]] = {"<": lt, "<=": le}
_COMPARISONS = _LOWER | _UPPER | {"=": eq}


class PatternError(ValueError):
    """A filter pattern that Lambda would refuse; the message says where, what, and what would be right."""


class Place(NamedTuple):
    """Where the compiler is in a pattern."""

    path: str
    strict: bool
    """Refuse what is not in Lambda's own table of operators."""
    depth: int = 0
    """Names above this place, those of `$or` included."""

    def below(self, step: str) -> Place:
        """Return the place one name further down."""
        return Place(f"{self.path}.{step}" if self.path else step, self.strict, self.depth + 1)

    def at(self, index: int) -> Place:
        """Return the place of one element of the array that is here."""
        return self._replace(path=f"{self.path}[{index}]")

    def refusal(self, problem: str, remedy: str) -> PatternError:
        """Make the error that names this place."""
        return PatternError(f"{self.path or 'pattern'}: {problem}; {remedy}")

    def beyond_lambda(self, what: str) -> None:
        """Refuse `what` in strict mode."""
        if self.strict:
            raise self.refusal(
                f"{what} is not an operator of Lambda", "strict mode takes Lambda's own table only"
            )


def compile_operator(match: dict[str, Any], place: Place) -> Test:
    """Return the test for a match object such as `{"prefix": "a"}`; raises `PatternError`."""
    name, operand = _only_member(match, place)
    if name not in _OPERATORS:
        raise place.refusal(f"unknown operator {quote(name)}", f"the operators are {', '.join(_OPERATORS)}")
    return _OPERATORS[name](operand, place.below(name))


def is_number(value: object) -> bool:
    """Tell a JSON number from everything else; a boolean is none, though Python thinks so."""
    return type(value) in _NUMBERS


# --- strings ------------------------------------------------------------------------------------------------


def _prefix(operand: object, place: Place) -> Test:
    if isinstance(operand, dict):
        folded = _ignoring_case(operand, place)
        return lambda value: type(value) is str and value.lower().startswith(folded)
    text = _string(operand, place)
    return lambda value: type(value) is str and value.startswith(text)


def _suffix(operand: object, place: Place) -> Test:
    if isinstance(operand, dict):
        folded = _ignoring_case(operand, place)
        return lambda value: type(value) is str and value.lower().endswith(folded)
    text = _string(operand, place)
    return lambda value: type(value) is str and value.endswith(text)


def _equals_ignore_case(operand: object, place: Place) -> Test:
    folded = _string(operand, place).lower()
    return lambda value: type(value) is str and value.lower() == folded


def _wildcard(operand: object, place: Place) -> Test:
    place.beyond_lambda("wildcard")
    first, *others = _pieces(_string(operand, place), place)
    if not others:
        return lambda value: type(value) is str and value == first
    *middle, last = others

    def test(value: Any) -> bool:
        if type(value) is not str or not value.startswith(first):
            return False
        # Leftmost finds are enough and cost one pass; a regular expression may try every combination.
        position = len(first)
        for piece in middle:
            found = value.find(piece, position)
            if found < 0:
                return False
            position = found + len(piece)
        return len(value) - len(last) >= position and value.endswith(last)

    return test


def _pieces(text: str, place: Place) -> list[str]:
    """Split at each `*`; a backslash makes the `*` or backslash after it an ordinary character."""
    pieces = [""]
    characters = iter(text)
    starred = False
    for character in characters:
        if character == "*" and starred:
            raise place.refusal("two * in a row", "write one")
        starred = character == "*"
        if starred:
            pieces.append("")
            continue
        pieces[-1] += _unescaped(next(characters, ""), place) if character == "\\" else character
    return pieces


def _unescaped(character: str, place: Place) -> str:
    if character not in ("*", "\\"):
        raise place.refusal(f"backslash before {quote(character)}", r"only \* and \\ are escapes")
    return character


def _cidr(operand: object, place: Place) -> Test:
    place.beyond_lambda("cidr")
    text = _string(operand, place)
    try:
        network = ip_network(text if "/" in text else "", strict=False)
    except ValueError:
        raise place.refusal(
            f"{quote(text)} is not a range of addresses", 'write it like "10.0.0.0/24"'
        ) from None

    def test(value: Any) -> bool:
        try:
            return type(value) is str and ip_address(value) in network
        except ValueError:
            return False

    return test


# --- numbers ------------------------------------------------------------------------------------------------


def _numeric(operand: object, place: Place) -> Test:
    bounds = _bounds(operand, place)
    compare, number = bounds[0]
    if len(bounds) == 1:
        return lambda value: type(value) in _NUMBERS and compare(value, number)
    under, top = bounds[1]
    return lambda value: type(value) in _NUMBERS and compare(value, number) and under(value, top)


def _bounds(operand: object, place: Place) -> list[tuple[Callable[[Any, Any], bool], Any]]:
    right = 'write ["=", n], one bound like [">", n], or a lower and then a higher one like [">=", n, "<", m]'
    if not isinstance(operand, list) or len(operand) not in (2, 4):
        raise place.refusal(f"{quote(operand)} is not a comparison", right)
    signs, numbers = operand[::2], operand[1::2]
    for number in numbers:
        if not is_number(number):
            raise place.refusal(f"{quote(number)} is not a number", right)
    known = all(isinstance(sign, str) and sign in _COMPARISONS for sign in signs)
    if not known or (len(signs) == 2 and not _is_range(signs, numbers)):
        raise place.refusal(f"{quote(operand)} is not a comparison", right)
    return [(_COMPARISONS[sign], number) for sign, number in zip(signs, numbers, strict=True)]


def _is_range(signs: list[Any], numbers: list[Any]) -> bool:
    return signs[0] in _LOWER and signs[1] in _UPPER and bool(numbers[0] < numbers[1])


# --- anything-but, exists -----------------------------------------------------------------------------------


def _anything_but(operand: object, place: Place) -> Test:
    if isinstance(operand, dict):
        return _anything_but_variant(operand, place)
    values = operand if isinstance(operand, list) else [operand]
    if values and all(type(value) is str for value in values):
        strings = frozenset(values)
        return lambda value: type(value) is not str or value not in strings
    if values and all(map(is_number, values)):
        numbers = frozenset(values)
        return lambda value: type(value) not in _NUMBERS or value not in numbers
    problem = f"{quote(operand)} is neither strings nor numbers"
    raise place.refusal(problem, "write a string, a number, or a list of only strings or only numbers")


def _anything_but_variant(operand: dict[str, Any], place: Place) -> Test:
    place.beyond_lambda("anything-but with an operator")
    name, inner = _only_member(operand, place)
    if name not in _NEGATABLE:
        raise place.refusal(f"anything-but cannot hold {quote(name)}", f"it takes {', '.join(_NEGATABLE)}")
    place = place.below(name)
    texts = [_string(text, place) for text in (inner if isinstance(inner, list) else [inner])]
    if not texts or (name in ("prefix", "suffix") and "" in texts):
        raise place.refusal(f"{quote(inner)} excludes nothing or everything", "write one or more strings")
    tests = [_OPERATORS[name](text, place) for text in texts]
    return lambda value: not any(test(value) for test in tests)


def _exists(operand: object, place: Place) -> Test:
    if type(operand) is not bool:
        raise place.refusal(f"{quote(operand)} is not a boolean", "write true or false")
    # A test is only asked about a leaf that is there.
    return lambda _value: operand


# --- operands -----------------------------------------------------------------------------------------------


def _only_member(match: dict[str, Any], place: Place) -> tuple[str, Any]:
    if len(match) != 1:
        raise place.refusal(f"{len(match)} operators in one object", "write one object for each operator")
    return next(iter(match.items()))


def _string(operand: object, place: Place) -> str:
    if not isinstance(operand, str):
        raise place.refusal(f"{quote(operand)} is not a string", "write a string")
    return operand


def _ignoring_case(operand: dict[str, Any], place: Place) -> str:
    place.beyond_lambda("a prefix or suffix with equals-ignore-case")
    name, text = _only_member(operand, place)
    if name != "equals-ignore-case":
        raise place.refusal(
            f"{quote(name)} cannot stand here", 'write a string or {"equals-ignore-case": string}'
        )
    return _string(text, place.below(name)).lower()


_OPERATORS: dict[str, Callable[[object, Place], Test]] = {
    "prefix": _prefix,
    "suffix": _suffix,
    "equals-ignore-case": _equals_ignore_case,
    "anything-but": _anything_but,
    "numeric": _numeric,
    "exists": _exists,
    "wildcard": _wildcard,
    "cidr": _cidr,
}
_NEGATABLE = ("prefix", "suffix", "equals-ignore-case", "wildcard")

#: Names that a branch of `$or` cannot use for fields, so that it is not taken for a list of operators.
RESERVED = frozenset((*_OPERATORS, "exactly", "regex", *_COMPARISONS))
