from __future__ import annotations

from typing import Any

import pytest

from tests.core.filtering import body_matches

OPERATORS: list[tuple[Any, list[Any], list[Any]]] = [
    ("a", ["a", ["b", "a"], [["a"]]], ["A", "", None, 1, {"a": "a"}, [{"a": "a"}], []]),
    (True, [True], [1, 1.0, "true", False]),
    (1, [1], [True, 1.0, "1", 2]),
    (1.5, [1.5], [1, "1.5"]),
    (None, [None, [None]], ["null", 0, False, "", {}]),
    ({"prefix": "us-"}, ["us-", "us-east-1"], ["US-", "eu", None, 1]),
    ({"prefix": {"equals-ignore-case": "US-"}}, ["us-1", "Us-1"], ["us", 1]),
    ({"suffix": ".png"}, [".png", "a.png"], [".PNG", "png", 1]),
    ({"suffix": {"equals-ignore-case": ".PNG"}}, ["a.png", "a.Png"], ["png", None]),
    ({"equals-ignore-case": "alICE"}, ["Alice", "ALICE"], ["Alic", None, 5]),
    ({"anything-but": "a"}, ["b", "", 1, None, True, ["a", "b"]], ["a", ["a"], [], {}]),
    ({"anything-but": ["a", "b"]}, ["c", 0], ["a", "b", ["a", "b"]]),
    ({"anything-but": [1, 2.5]}, [3, "1", None, True], [1, 1.0, 2.5]),
    ({"anything-but": {"prefix": "a"}}, ["b", 1, None], ["a", "ab"]),
    ({"anything-but": {"prefix": ["a", "b"]}}, ["c"], ["ab", "ba"]),
    ({"anything-but": {"suffix": "a"}}, ["b", 1], ["a", "ba"]),
    ({"anything-but": {"equals-ignore-case": ["A", "b"]}}, ["c", 1], ["a", "A", "B"]),
    ({"anything-but": {"wildcard": "a*b"}}, ["a", 1], ["ab", "a-b"]),
    ({"numeric": ["=", 3e2]}, [300, 300.0], ["300", 301, None, True]),
    ({"numeric": ["<", 0]}, [-1, -0.5], [0, "-1"]),
    ({"numeric": [">=", 0]}, [0, 1e300], [-1, False]),
    ({"numeric": [">=", 0, "<", 5.5]}, [0, 5], [5.5, -1, "3", [6, -1]]),
    ({"exists": True}, ["", None, 0, [1]], [{}, [], {"a": 1}, [{}]]),
    ({"exists": False}, [{}, [], {"a": 1}, [{"a": 1}], [[]]], ["", None, 0, [1], [{}, 1]]),
    ({"wildcard": "a*c"}, ["ac", "abc", "a*c", "acc"], ["ab", "bac", "a", 1]),
    ({"wildcard": "ab"}, ["ab"], ["abc", "a*b"]),
    ({"wildcard": "*b*c*"}, ["bc", "abbcd", "bxc"], ["cb", "b", ""]),
    ({"wildcard": "aba*aba"}, ["abaaba", "aba-aba"], ["aba", "ababa"]),
    ({"wildcard": "a\\*\\\\*"}, ["a*\\", "a*\\b"], ["ab\\", "a*"]),
    ({"cidr": "10.0.0.0/24"}, ["10.0.0.0", "10.0.0.255"], ["10.0.1.0", "::1", "text", 10]),
    ({"cidr": "10.0.0.7/24"}, ["10.0.0.1"], ["10.0.1.1"]),
    ({"cidr": "2001:db8::/32"}, ["2001:db8::1"], ["2001:db9::1", "10.0.0.1"]),
]


@pytest.mark.parametrize(
    ("condition", "accepted", "rejected"), OPERATORS, ids=[str(row[0]) for row in OPERATORS]
)
def test_an_operator_accepts_and_rejects(condition: Any, accepted: list[Any], rejected: list[Any]) -> None:
    assert [one for one in accepted if not body_matches([condition], one)] == []
    assert [one for one in rejected if body_matches([condition], one)] == []


def test_conditions_of_one_array_are_alternatives() -> None:
    alternatives: list[Any] = ["x", {"prefix": "a"}, {"numeric": [">", 5]}, {"exists": False}]
    assert [one for one in ["x", "ab", 6, {}] if not body_matches(alternatives, one)] == []
    assert not body_matches(alternatives, 5)
