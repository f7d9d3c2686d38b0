"""One filter pattern as a tree that tests a value.

What a pattern means is defined over leaves: the strings, numbers, booleans and nulls of a record. From this
follow the rules that surprise:

* an array stands for its elements, however deep arrays are nested, and one element must satisfy everything
  that the pattern says below that array;
* empty arrays and objects hold no leaf, so the field counts as absent; so does an object where a leaf is
  asked for;
* under an array, a field is absent when *no* element has it, unless a sibling condition has picked the
  element.

Recursion follows the pattern, whose depth is bounded, never the record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from poller.core.operators import RESERVED, Place, Test, compile_operator
from poller.core.quoting import quote

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Levels of a pattern; far more than anyone writes, few enough for the stack.
MAX_DEPTH: Final = 64


class _Absent:
    """The value of a field that is not there."""


ABSENT: Final = _Absent()


def elements(values: list[Any]) -> Iterator[Any]:
    """Yield what arrays within arrays hold, in order."""
    pending = [iter(values)]
    while pending:
        for value in pending[-1]:
            if type(value) is list:
                pending.append(iter(value))
                break
            yield value
        else:
            pending.pop()


class Leaf:
    """An array of conditions, of which one must hold for one leaf."""

    __slots__ = ("_exact", "_tests", "_wanted", "on_absent")

    def __init__(
        self, exact: dict[type, set[Any]], tests: list[Test], *, on_absent: bool, wanted: str
    ) -> None:
        self._exact = exact
        self._tests = tests
        self._wanted = wanted
        self.on_absent = on_absent

    def test(self, value: Any) -> bool:
        """Tell whether `value`, any JSON value or `ABSENT`, satisfies a condition."""
        kind = type(value)
        if kind is list:
            leaves = [element for element in elements(value) if type(element) is not dict]
            return any(map(self._holds, leaves)) if leaves else self.on_absent
        if kind is dict or kind is _Absent:
            return self.on_absent
        return self._holds(value)

    def _holds(self, leaf: Any) -> bool:
        if leaf in self._exact.get(type(leaf), ()):
            return True
        for test in self._tests:  # noqa: SIM110 - a generator would double the price of the common single test
            if test(leaf):
                return True
        return False

    def missing(self, value: Any) -> bool:
        """Tell whether the pattern asks for absence and `value` holds no leaf."""
        if type(value) is list:
            return self.on_absent and all(type(element) is dict for element in elements(value))
        return self.on_absent and type(value) in (dict, _Absent)

    def failure(self, value: Any, path: str) -> str:
        """Say why `test` is false."""
        if value is ABSENT:
            return f"{path}: absent, wanted {self._wanted}"
        return f"{path}: {quote(value)} does not match {self._wanted}"


class Fields:
    """An object of a pattern: every field and, when there is an `$or`, one of its branches must match."""

    __slots__ = ("_branches", "_members", "on_absent")
    on_absent: bool

    def __init__(self, members: dict[str, Node], branches: list[Fields]) -> None:
        self._members = tuple(members.items())
        self._branches = tuple(branches)
        self.on_absent = self._all_missing({})

    @property
    def names(self) -> set[str]:
        """The fields that are looked at on this level."""
        own = {name for name, _ in self._members}
        return own.union(*(branch.names for branch in self._branches))

    def test(self, value: Any) -> bool:
        """Tell whether `value`, any JSON value or `ABSENT`, matches."""
        kind = type(value)
        if kind is dict:
            return self._test_object(value)
        if kind is not list:
            return self.on_absent
        if not self.on_absent:
            return any(map(self.test, elements(value)))
        return self.missing(value) or any(
            self.test(element) and not self.missing(element) for element in elements(value)
        )

    def _test_object(self, value: dict[str, Any]) -> bool:
        for name, node in self._members:
            if not node.test(value.get(name, ABSENT)):
                return False
        return not self._branches or any(branch.test(value) for branch in self._branches)

    def missing(self, value: Any) -> bool:
        """Tell whether absence of everything named is enough, and `value` holds no leaf that is named."""
        kind = type(value)
        if kind is list:
            return self.on_absent and all(map(self.missing, elements(value)))
        return self._all_missing(value) if kind is dict else self.on_absent

    def _all_missing(self, value: dict[str, Any]) -> bool:
        return all(node.missing(value.get(name, ABSENT)) for name, node in self._members) and (
            not self._branches or any(branch.missing(value) for branch in self._branches)
        )

    def failure(self, value: Any, path: str) -> str:
        """Say why `test` is false: the first field that fails."""
        if type(value) is list:
            return f"{path}: no element of {quote(value)} matches"
        fields = value if type(value) is dict else {}
        for name, node in self._members:
            field = fields.get(name, ABSENT)
            if not node.test(field):
                return node.failure(field, f"{path}.{name}" if path else name)
        first = self._branches[0].failure(value, path)
        return (
            f"{path + '.' if path else ''}$or: none of {len(self._branches)} branches matches ({first} ...)"
        )


class Payload:
    """The field that carries the payload: JSON matches JSON, plain text matches plain text, never across."""

    __slots__ = ("_node", "_structured")

    def __init__(self, node: Leaf | Fields) -> None:
        self._node = node
        self._structured = isinstance(node, Fields)

    def test(self, value: Any) -> bool:
        """Tell whether `value` (an object or array when the payload is JSON, otherwise raw) matches."""
        return (type(value) in (dict, list)) is self._structured and self._node.test(value)

    def missing(self, _value: Any) -> bool:
        """Tell that a payload without the asked form is never as good as a match."""
        return False

    def failure(self, value: Any, path: str) -> str:
        """Say why `test` is false."""
        if self._structured and type(value) not in (dict, list):
            found = "absent" if value is ABSENT else f"{quote(value)} is not a JSON object or array"
            return f"{path}: {found}, wanted fields in it"
        return self._node.failure(value, path)


Node = Leaf | Fields | Payload


class Compiler:
    """Turns one parsed pattern into its tree, collecting warnings on the way.

    `payload` is the top-level field that holds the payload; `plain` allows conditions on it as text.
    """

    def __init__(self, payload: str, *, plain: bool, strict: bool) -> None:
        self.warnings: list[str] = []
        self._payload = payload
        self._plain = plain
        self._top = Place("", strict)

    def compile(self, pattern: Any) -> Fields:
        """Return the tree; raises `PatternError`."""
        if not isinstance(pattern, dict):
            raise self._top.refusal(
                f"{quote(pattern)} is not an object", 'write an object like {"field": ["value"]}'
            )
        return self._fields(pattern, self._top, top=True)

    def _fields(self, pattern: dict[str, Any], place: Place, *, top: bool) -> Fields:
        if place.depth > MAX_DEPTH:
            raise place.refusal("nested too deep", f"a pattern has at most {MAX_DEPTH} levels")
        if not pattern:
            raise place.refusal("empty object", "name at least one field")
        branches = self._branches(pattern, place, top=top)
        fields = {name: value for name, value in pattern.items() if not (branches and name == "$or")}
        return Fields(
            {name: self._node(value, place.below(name), name, top) for name, value in fields.items()},
            branches,
        )

    def _branches(self, pattern: dict[str, Any], place: Place, *, top: bool) -> list[Fields]:
        value: Any = pattern.get("$or")
        here = place.below("$or")
        if _is_alternatives(value) and len(value) > 1:
            # A branch describes the object that holds the $or, so it is at the top when that object is.
            return [self._fields(branch, here.at(index), top=top) for index, branch in enumerate(value)]
        if "$or" in pattern and place.strict:
            raise here.refusal(
                "not an $or", "it takes an array of two or more objects without operator names"
            )
        return []

    def _node(self, value: Any, place: Place, name: str, top: bool) -> Node:
        if isinstance(value, list):
            node = self._leaf(value, place, name)
            return self._plain_payload(node, place) if top and name == self._payload else node
        if isinstance(value, dict):
            fields = self._fields(value, place, top=False)
            return Payload(fields) if top and name == self._payload else fields
        raise place.refusal(f"{quote(value)} stands alone", f"write it in an array: [{quote(value)}]")

    def _plain_payload(self, leaf: Leaf, place: Place) -> Payload:
        if not self._plain:
            raise place.refusal(
                "conditions on the payload itself", "write an object with fields of the payload"
            )
        return Payload(leaf)

    def _leaf(self, conditions: list[Any], place: Place, name: str) -> Leaf:
        if name == "$or" and _is_alternatives(conditions) and len(conditions) == 1:
            return self._unreachable(conditions[0], place)
        if not conditions:
            raise place.refusal("empty array", "name at least one value")
        exact: dict[type, set[Any]] = {}
        tests = []
        for index, condition in enumerate(conditions):
            if isinstance(condition, dict):
                tests.append(compile_operator(condition, place.at(index)))
            elif isinstance(condition, list):
                raise place.at(index).refusal("array inside an array", "list the values in one array")
            else:
                # By type as well: bare numbers compare as they are written, and true is not 1.
                exact.setdefault(type(condition), set()).add(condition)
        on_absent = any(
            isinstance(condition, dict) and condition.get("exists") is False for condition in conditions
        )
        return Leaf(exact, tests, on_absent=on_absent, wanted=" or ".join(map(quote, conditions)))

    def _unreachable(self, branch: dict[str, Any], place: Place) -> Leaf:
        self._fields(branch, place.at(0), top=False)
        self.warnings.append(
            f"{place.path}: an $or with one branch counts as a field called $or and matches nothing; "
            "write the fields of the branch without $or"
        )
        return Leaf({}, [], on_absent=False, wanted="an $or with two branches")


def _is_alternatives(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(branch, dict) and RESERVED.isdisjoint(branch) for branch in value
    )
