from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

import pytest

from poller.core.filters import PatternError, compile_filters
from poller.core.patterns import MAX_DEPTH
from tests.core.filtering import matches, sqs

if TYPE_CHECKING:
    from poller.core.filters import Source

REFUSED: list[tuple[Any, str]] = [
    ("", "pattern: not JSON"),
    ("{", "pattern: not JSON"),
    ("[" * 4000, "pattern: not JSON"),
    ('{"body":{"k":[1e999]}}', "pattern: not JSON"),
    ("[]", "pattern: [] is not an object"),
    ('"text"', 'pattern: "text" is not an object'),
    ("{}", "pattern: empty object"),
    ({"body": {}}, "body: empty object"),
    ({"body": {"k": []}}, "body.k: empty array"),
    ({"body": {"k": 5}}, "body.k: 5 stands alone; write it in an array: [5]"),
    ({"body": {"k": [["a"]]}}, "body.k[0]: array inside an array"),
    ({"body": {"k": ["a", {}]}}, "body.k[1]: 0 operators in one object"),
    ({"body": {"k": [{"prefix": "a", "suffix": "b"}]}}, "body.k[0]: 2 operators in one object"),
    ({"body": {"k": [{"exactly": "a"}]}}, 'body.k[0]: unknown operator "exactly"'),
    ({"body": {"k": [{"prefix": 1}]}}, "body.k[0].prefix: 1 is not a string"),
    ({"body": {"k": [{"suffix": ["a"]}]}}, 'body.k[0].suffix: ["a"] is not a string'),
    ({"body": {"k": [{"prefix": {"suffix": "a"}}]}}, 'body.k[0].prefix: "suffix" cannot stand here'),
    ({"body": {"k": [{"equals-ignore-case": None}]}}, "body.k[0].equals-ignore-case: null is not a string"),
    ({"body": {"k": [{"exists": 1}]}}, "body.k[0].exists: 1 is not a boolean"),
    ({"body": {"k": [{"anything-but": []}]}}, "body.k[0].anything-but: [] is neither"),
    ({"body": {"k": [{"anything-but": [True]}]}}, "body.k[0].anything-but: [true] is neither"),
    ({"body": {"k": [{"anything-but": None}]}}, "body.k[0].anything-but: null is neither"),
    ({"body": {"k": [{"anything-but": {"numeric": ["=", 1]}}]}}, 'anything-but cannot hold "numeric"'),
    ({"body": {"k": [{"anything-but": {"prefix": ""}}]}}, 'body.k[0].anything-but.prefix: "" excludes'),
    ({"body": {"k": [{"anything-but": {"wildcard": []}}]}}, "body.k[0].anything-but.wildcard: [] excludes"),
    (
        {"body": {"k": [{"anything-but": {"suffix": [1]}}]}},
        "body.k[0].anything-but.suffix: 1 is not a string",
    ),
    ({"body": {"k": [{"wildcard": "a**b"}]}}, "body.k[0].wildcard: two * in a row"),
    ({"body": {"k": [{"wildcard": "a\\b"}]}}, 'body.k[0].wildcard: backslash before "b"'),
    ({"body": {"k": [{"wildcard": "a\\"}]}}, 'body.k[0].wildcard: backslash before ""'),
    ({"body": {"k": [{"cidr": "10.0.0.1"}]}}, 'body.k[0].cidr: "10.0.0.1" is not a range'),
    ({"body": {"k": [{"cidr": "10.0.0.0/33"}]}}, 'body.k[0].cidr: "10.0.0.0/33" is not a range'),
    ({"body": {"k": [{"numeric": 5}]}}, "body.k[0].numeric: 5 is not a comparison"),
    ({"body": {"k": [{"numeric": [">"]}]}}, 'body.k[0].numeric: [">"] is not a comparison'),
    ({"body": {"k": [{"numeric": ["=", True]}]}}, "body.k[0].numeric: true is not a number"),
    ({"body": {"k": [{"numeric": ["!=", 1]}]}}, 'body.k[0].numeric: ["!=", 1] is not a comparison'),
    ({"body": {"k": [{"numeric": [[], 1]}]}}, "body.k[0].numeric: [[], 1] is not a comparison"),
    ({"body": {"k": [{"numeric": ["<", 2, ">", 1]}]}}, "is not a comparison"),
    ({"body": {"k": [{"numeric": [">", 2, "<", 2]}]}}, "is not a comparison"),
    ({"body": {"k": [{"numeric": ["=", 1, "<", 2]}]}}, "is not a comparison"),
    ({"body": {"$or": []}}, "body.$or: empty array"),
    ({"body": {"$or": [{}]}}, "body.$or[0]: empty object"),
    ({"body": {"$or": [{"a": ["1"]}, {}]}}, "body.$or[1]: empty object"),
    ({"body": {"$or": [{"a": ["1"]}, {"prefix": ["1"]}]}}, 'body.$or[0]: unknown operator "a"'),
    ({"body": {"k": [float("nan")]}}, "pattern: not JSON"),
    ({"body": {"k": [date(2026, 1, 1)]}}, "pattern: not JSON (2026-01-01 is a date)"),
]


@pytest.mark.parametrize(("pattern", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_refusal_says_where_and_what(pattern: Any, message: str) -> None:
    with pytest.raises(PatternError) as caught:
        compile_filters([pattern], "sqs")
    assert message in str(caught.value)


def test_a_refusal_among_several_filters_says_which_one() -> None:
    with pytest.raises(PatternError, match=r"^filter 2: body\.price\[0\]: unknown operator"):
        compile_filters([{"body": {"k": [1]}}, {"body": {"price": [{"above": 1}]}}], "sqs")


@pytest.mark.parametrize(("source", "payload"), [("kinesis", "data"), ("dynamodb", "dynamodb")])
def test_a_stream_payload_cannot_be_matched_as_text(source: Source, payload: str) -> None:
    with pytest.raises(PatternError, match=f"^{payload}: conditions on the payload itself"):
        compile_filters([{payload: ["text"]}], source)
    with pytest.raises(PatternError, match=rf"^\$or\[1\].{payload}: conditions on the payload itself"):
        compile_filters([{"$or": [{"eventName": ["x"]}, {payload: ["text"]}]}], source)


def nested(step: str, depth: int) -> dict[str, Any]:
    pattern: dict[str, Any] = {"k": ["v"]}
    for _ in range(depth):
        pattern = {step: pattern} if step != "$or" else {"$or": [pattern, {"x": ["y"]}]}
    return pattern


@pytest.mark.parametrize("step", ["a", "$or"])
def test_a_pattern_has_bounded_depth(step: str) -> None:
    pattern = {"body": nested(step, MAX_DEPTH - 1)}
    record = {"k": "v"}
    for _ in range(MAX_DEPTH - 1 if step == "a" else 0):
        record = {"a": [[record]]}  # type: ignore[dict-item]
    assert matches(pattern, sqs(record))
    assert not matches(pattern, sqs([{"a": []}]))
    with pytest.raises(PatternError, match="nested too deep"):
        compile_filters([{"body": nested(step, MAX_DEPTH)}], "sqs")


def test_a_circular_or_endless_table_is_refused() -> None:
    endless: dict[str, Any] = {}
    endless["a"] = endless
    with pytest.raises(PatternError, match="not JSON"):
        compile_filters([endless], "sqs")


BEYOND_LAMBDA: list[Any] = [
    {"wildcard": "a*"},
    {"cidr": "10.0.0.0/8"},
    {"anything-but": {"prefix": "a"}},
    {"prefix": {"equals-ignore-case": "a"}},
    {"suffix": {"equals-ignore-case": "a"}},
]


@pytest.mark.parametrize("condition", BEYOND_LAMBDA, ids=str)
def test_strict_refuses_operators_outside_lambdas_table(condition: Any) -> None:
    compile_filters([{"body": {"k": [condition]}}], "sqs")
    with pytest.raises(PatternError, match=r"^body\.k\[0\].* is not an operator of Lambda"):
        compile_filters([{"body": {"k": [condition]}}], "sqs", strict=True)


def test_strict_takes_lambdas_own_table() -> None:
    own = [
        "a",
        1,
        None,
        True,
        {"prefix": "a"},
        {"suffix": "a"},
        {"equals-ignore-case": "a"},
        {"exists": False},
    ]
    own += [{"anything-but": ["a"]}, {"numeric": ["=", 1]}]
    pattern = {"body": {"k": own, "$or": [{"a": [1]}, {"b": [1]}]}}
    assert len(compile_filters([pattern], "sqs", strict=True)) == 1


# --- arrays and absence -------------------------------------------------------------------------------------


def test_one_element_must_satisfy_all_that_is_said_below_an_array() -> None:
    pattern = {"body": {"items": {"sku": ["A"], "n": [1]}}}
    assert matches(pattern, sqs({"items": [{"sku": "B", "n": 1}, {"sku": "A", "n": 1}]}))
    assert not matches(pattern, sqs({"items": [{"sku": "A", "n": 2}, {"sku": "B", "n": 1}]}))


def test_a_field_under_an_array_is_absent_when_no_element_has_it() -> None:
    pattern = {"body": {"items": {"error": [{"exists": False}]}}}
    assert matches(pattern, sqs({"items": [{"sku": "A"}, 5]}))
    assert matches(pattern, sqs({"items": [{"error": [{}, []]}]}))
    assert not matches(pattern, sqs({"items": [{"error": [{}, 0]}]}))
    assert matches(pattern, sqs({"items": []}))
    assert matches(pattern, sqs({"items": "text"}))
    assert matches(pattern, sqs({}))
    assert not matches(pattern, sqs({"items": [{"sku": "A"}, {"error": None}]}))


def test_a_sibling_picks_the_element_in_which_a_field_must_be_absent() -> None:
    pattern = {"body": {"items": {"sku": ["A"], "error": [{"exists": False}]}}}
    assert matches(pattern, sqs({"items": [{"sku": "A"}, {"sku": "B", "error": 1}]}))
    assert not matches(pattern, sqs({"items": [{"sku": "A", "error": 1}, {"sku": "B"}]}))


def test_absence_beside_a_value_is_an_alternative_for_the_whole_array() -> None:
    pattern = {"body": {"items": {"state": [{"exists": False}, "ok"]}}}
    assert matches(pattern, sqs({"items": [{"state": "bad"}, {"state": "ok"}]}))
    assert matches(pattern, sqs({"items": [{}, {}]}))
    assert not matches(pattern, sqs({"items": [{"state": "bad"}, {}]}))


def test_absence_reaches_through_nested_arrays_and_alternatives() -> None:
    either = {"$or": [{"x": [{"exists": False}]}, {"y": {"z": [{"exists": False}]}}]}
    pattern = {"body": {"a": either}}
    assert matches(pattern, sqs({"a": [{"x": 1, "y": [[]]}]}))
    assert matches(pattern, sqs({"a": [{"y": {"z": 1}}, {"y": {"z": 2}}]}))
    assert not matches(pattern, sqs({"a": [{"x": 1, "y": [{"z": 1}]}]}))


def test_an_or_binds_to_one_element_together_with_its_siblings() -> None:
    pattern = {"body": {"items": {"sku": ["A"], "$or": [{"n": [1]}, {"n": [2]}]}}}
    assert matches(pattern, sqs({"items": [{"sku": "A", "n": 2}]}))
    assert not matches(pattern, sqs({"items": [{"sku": "A", "n": 3}, {"sku": "B", "n": 1}]}))


# --- $or ----------------------------------------------------------------------------------------------------


def test_an_or_may_stand_over_the_payload() -> None:
    pattern = {"$or": [{"body": {"k": ["v"]}}, {"eventSource": ["other"]}]}
    assert matches(pattern, sqs({"k": "v"}))
    assert not matches(pattern, sqs("plain"))


def test_an_or_may_be_nested() -> None:
    pattern = {"body": {"$or": [{"a": [1]}, {"$or": [{"b": [1]}, {"c": [1]}]}]}}
    assert matches(pattern, sqs({"c": 1}))
    assert not matches(pattern, sqs({"c": 2}))


def test_an_or_with_one_branch_warns_and_is_refused_when_strict() -> None:
    pattern = {"body": {"$or": [{"a": ["1"]}]}}
    filters = compile_filters([pattern], "sqs")
    assert not filters.match(sqs({"a": "1", "$or": [{"a": "1"}]}))
    assert filters.warnings[0].startswith("body.$or: an $or with one branch")
    with pytest.raises(PatternError, match=r"^body\.\$or: not an \$or"):
        compile_filters([pattern], "sqs", strict=True)


def test_an_or_of_operators_or_fields_is_a_field_with_that_name() -> None:
    assert matches({"body": {"$or": [{"prefix": "a"}, "b"]}}, sqs({"$or": "ab"}))
    assert matches({"body": {"$or": {"a": [1]}}}, sqs({"$or": {"a": 1}}))
