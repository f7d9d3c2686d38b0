"""The matcher against the definition that it must agree with, written out without any thought of speed.

A record is the list of its leaves, each with its path and the array elements that it lies in. A pattern matches when
there is a choice of one leaf for every field that lies in one and the same element of every array the chosen leaves
share; a field that must be absent has no leaf that would go with the choice.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.core.filters import compile_filters

if TYPE_CHECKING:
    from collections.abc import Iterator

Path = tuple[str, ...]
Elements = tuple[tuple[Path, int], ...]
ABSENT = {"exists": False}

leaf_values = st.sampled_from([0, 1, "x", None])
names = st.sampled_from("abc")
records = st.dictionaries(
    names,
    st.recursive(
        leaf_values,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
        max_leaves=8,
    ),
    min_size=1,
)
leaf_patterns = st.lists(leaf_values | st.sampled_from([ABSENT, {"exists": True}]), min_size=1, max_size=2)
patterns = st.recursive(
    st.dictionaries(names, leaf_patterns, min_size=1, max_size=2),
    lambda inner: (
        st.dictionaries(names, inner | leaf_patterns, min_size=1, max_size=2)
        | st.builds(lambda some: {"$or": some}, st.lists(inner, min_size=2, max_size=2))
    ),
    max_leaves=4,
)


def leaves(value: Any, path: Path = (), inside: Elements = ()) -> Iterator[tuple[Path, Any, Elements]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, (*path, name), inside)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, path, (*inside, (path, index)))
    else:
        yield path, value, inside


def go_together(choice: list[Elements]) -> bool:
    """Tell whether no two leaves part ways at the same array."""
    parted: dict[tuple[Elements, Path], int] = {}
    for inside in choice:
        for depth, (path, index) in enumerate(inside):
            if parted.setdefault((inside[:depth], path), index) != index:
                return False
    return True


def alternatives(pattern: dict[str, Any], path: Path = ()) -> list[list[tuple[Path, list[Any]]]]:
    """Multiply out `$or`."""
    parts: list[list[Any]] = []
    for name, inner in pattern.items():
        if name == "$or":
            parts.append([one for branch in inner for one in alternatives(branch, path)])
        else:
            below = (*path, name)
            parts.append(alternatives(inner, below) if isinstance(inner, dict) else [[(below, inner)]])
    return [list(itertools.chain(*combination)) for combination in itertools.product(*parts)]


def holds(condition: Any, leaf: Any) -> bool:
    return bool(condition["exists"] if isinstance(condition, dict) else condition == leaf)


def matches_by_definition(pattern: dict[str, Any], record: dict[str, Any]) -> bool:
    found = list(leaves(record))

    def choices(path: Path, conditions: list[Any]) -> list[tuple[str, Any]]:
        present = [
            ("leaf", inside)
            for at, leaf, inside in found
            if at == path and any(holds(c, leaf) for c in conditions)
        ]
        return [*present, *([("absent", path)] if ABSENT in conditions else [])]

    for fields in alternatives(pattern):
        for combination in itertools.product(*(choices(path, conditions) for path, conditions in fields)):
            chosen: list[Any] = [inside for kind, inside in combination if kind == "leaf"]
            absent = [path for kind, path in combination if kind == "absent"]
            in_the_way = any(at in absent and go_together([*chosen, inside]) for at, _, inside in found)
            if go_together(chosen) and not in_the_way:
                return True
    return False


@pytest.mark.slow
@settings(max_examples=300)
@given(patterns, records)
def test_a_pattern_matches_just_when_the_definition_says_so(
    pattern: dict[str, Any], record: dict[str, Any]
) -> None:
    filters = compile_filters([{"body": pattern}], "sqs")
    assert filters.match({"body": json.dumps(record)}) is matches_by_definition(pattern, record)


def test_the_definition_itself_tells_elements_apart() -> None:
    pattern = {"a": {"b": ["x"], "c": [ABSENT]}}
    assert matches_by_definition(pattern, {"a": [{"b": "x"}, {"c": 1}]})
    assert not matches_by_definition(pattern, {"a": [{"b": "x", "c": 1}, {"b": 0}]})
