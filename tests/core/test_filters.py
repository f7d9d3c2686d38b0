from __future__ import annotations

import base64
import json
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from poller.core.filters import MAX_PATTERN_LENGTH, Filters, PatternError, Source, compile_filters
from poller.core.patterns import MAX_DEPTH

VECTORS = json.loads(Path(__file__).with_name("filter-vectors.json").read_text())

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abcd") | st.text(), inner, max_size=4)
    ),
    max_leaves=20,
)
conditions = st.one_of(
    scalars,
    st.sampled_from(
        [
            {"exists": True},
            {"exists": False},
            {"prefix": "a"},
            {"suffix": {"equals-ignore-case": "A"}},
            {"anything-but": ["a"]},
            {"anything-but": 0},
            {"anything-but": {"wildcard": "a*"}},
            {"numeric": [">", 0, "<=", 9]},
            {"equals-ignore-case": "A"},
            {"wildcard": "*a*"},
            {"cidr": "10.0.0.0/8"},
        ]
    ),
)
patterns = st.recursive(
    st.dictionaries(
        st.sampled_from("abcd"), st.lists(conditions, min_size=1, max_size=3), min_size=1, max_size=3
    ),
    lambda inner: (
        st.dictionaries(st.sampled_from("abcd"), inner, min_size=1, max_size=3)
        | st.builds(lambda some: {"$or": some}, st.lists(inner, min_size=2, max_size=3))
    ),
    max_leaves=6,
)


def sqs(body: Any) -> dict[str, Any]:
    return {
        "messageId": "m-1",
        "body": body if isinstance(body, str) else json.dumps(body),
        "eventSource": "aws:sqs",
    }


def kinesis(data: bytes) -> dict[str, Any]:
    return {
        "kinesis": {"partitionKey": "p1", "sequenceNumber": "49", "data": base64.b64encode(data).decode()},
        "eventID": "shardId-000000000000:49",
    }


def matches(pattern: Any, record: dict[str, Any], source: Source = "sqs") -> bool:
    filters = compile_filters([pattern], source)
    matched = filters.match(record)
    assert filters.explain(record)[0] is matched
    return matched


def body_matches(conditions: Any, value: Any) -> bool:
    return matches({"body": {"k": conditions}}, sqs({"k": value}))


# --- the vectors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["id"] for vector in VECTORS])
def test_every_vector_holds(vector: dict[str, Any]) -> None:
    pattern = vector["pattern"]
    texts = pattern if isinstance(pattern, list) else [pattern]
    if vector["expect"] == "reject-at-create":
        with pytest.raises(PatternError):
            compile_filters(texts, vector["source"])
        return
    filters = compile_filters(texts, vector["source"])
    assert filters.match(vector["record"]) is vector["match"]
    assert filters.explain(vector["record"])[0] is vector["match"]


# --- criteria -----------------------------------------------------------------------------------------------


def test_no_patterns_let_every_record_pass() -> None:
    filters = compile_filters([], "sqs")
    assert len(filters) == 0
    assert filters.match({})
    assert filters.explain({}) == (True, "no filters")


def test_a_table_means_the_same_as_its_json_text() -> None:
    table = MappingProxyType({"body": MappingProxyType({"k": ("v",)})})
    assert matches(table, sqs({"k": "v"}))
    assert not matches(table, sqs({"k": "w"}))


def test_a_pattern_may_be_as_long_as_lambda_allows_and_no_longer() -> None:
    frame = len('{"body":{"k":[""]}}')
    longest = "x" * (MAX_PATTERN_LENGTH - frame)
    assert body_matches([longest], longest)
    for pattern in ({"body": {"k": [longest + "x"]}}, '{"body":{"k":["' + longest + 'x"]}}'):
        with pytest.raises(PatternError, match="4097 characters; Lambda takes at most 4096"):
            compile_filters([pattern], "sqs")


def test_only_documented_keys_pass_without_a_warning() -> None:
    assert compile_filters([{"body": {"a": [1]}}], "sqs").warnings == ()
    assert compile_filters([{"data": {"a": [1]}}], "kinesis").warnings == ()
    assert (
        compile_filters(
            [{"dynamodb": {"Keys": {"a": {"S": ["x"]}}}, "eventName": ["INSERT"]}], "dynamodb"
        ).warnings
        == ()
    )
    (warning,) = compile_filters([{"eventSource": ["aws:dynamodb"]}], "dynamodb").warnings
    assert warning.startswith("eventSource: ")
    (warning,) = compile_filters(
        [{"body": {"a": [1]}}, {"$or": [{"body": {"a": [1]}}, {"messageId": ["m"]}]}], "sqs"
    ).warnings
    assert warning.startswith("filter 2: messageId: ")
    assert (
        len(compile_filters([{"partitionKey": ["p"], "kinesis": {"data": ["x"]}}], "kinesis").warnings) == 2
    )


# --- patterns that are refused ------------------------------------------------------------------------------

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


# --- operators ----------------------------------------------------------------------------------------------

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
    assert [value for value in accepted if not body_matches([condition], value)] == []
    assert [value for value in rejected if body_matches([condition], value)] == []


def test_conditions_of_one_array_are_alternatives() -> None:
    alternatives = ["x", {"prefix": "a"}, {"numeric": [">", 5]}, {"exists": False}]
    assert all(body_matches(alternatives, value) for value in ("x", "ab", 6, {}))
    assert not body_matches(alternatives, 5)


# --- arrays and absence -------------------------------------------------------------------------------------


def test_one_element_must_satisfy_all_that_is_said_below_an_array() -> None:
    pattern = {"body": {"items": {"sku": ["A"], "n": [1]}}}
    assert matches(pattern, sqs({"items": [{"sku": "B", "n": 1}, {"sku": "A", "n": 1}]}))
    assert not matches(pattern, sqs({"items": [{"sku": "A", "n": 2}, {"sku": "B", "n": 1}]}))


def test_a_field_under_an_array_is_absent_when_no_element_has_it() -> None:
    pattern = {"body": {"items": {"error": [{"exists": False}]}}}
    assert matches(pattern, sqs({"items": [{"sku": "A"}, 5]}))
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


# --- the filter view ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["plain", "42", '"x"', "null", '{"k":"v"', "", "\ufeff{}", '{"n":1e999}', "[" * 2000]
)
def test_a_body_that_is_no_json_structure_is_plain_text(text: str) -> None:
    assert matches({"body": [text]}, sqs(text))
    assert matches({"body": [{"exists": True}]}, sqs(text))
    assert not matches({"body": {"k": [{"exists": False}]}}, sqs(text))


def test_a_json_body_is_never_matched_as_text() -> None:
    assert not matches({"body": ['{"k":"v"}']}, sqs('{"k":"v"}'))
    assert not matches({"body": ["v"]}, sqs('["v"]'))
    assert not matches({"body": [{"exists": False}]}, sqs('{"k":"v"}'))


def test_a_body_that_is_not_there_is_absent() -> None:
    assert not matches({"body": {"k": [{"exists": False}]}}, {})
    assert not matches({"body": ["x"]}, {})
    assert matches({"body": [{"exists": False}]}, {})


def test_kinesis_metadata_and_data_are_at_the_top() -> None:
    record = kinesis(b'{"a": [1]}')
    assert matches(
        {"data": {"a": [1]}, "partitionKey": ["p1"], "eventID": [{"suffix": ":49"}]}, record, "kinesis"
    )
    assert matches({"kinesis": {"partitionKey": ["p1"]}}, record, "kinesis")
    assert not matches({"data": {"a": [1]}}, {"kinesis": {"data": "?"}}, "kinesis")
    assert not matches({"data": {"a": [1]}}, {"kinesis": 5}, "kinesis")
    assert not matches({"data": {"a": [1]}}, {}, "kinesis")
    assert matches({"partitionKey": [{"exists": False}]}, {"kinesis": []}, "kinesis")


def test_nothing_is_decoded_unless_a_pattern_asks() -> None:
    class Untouchable(dict[str, Any]):
        def get(self, key: str, default: Any = None) -> Any:
            assert key == "messageId"
            return super().get(key, default)

    record = Untouchable(sqs({"k": "v"}))
    assert compile_filters([{"messageId": ["m-1"]}], "sqs").match(record)


def test_matching_leaves_the_record_as_it_was() -> None:
    record = sqs({"k": [1, {"a": 2}]})
    before = json.dumps(record)
    matches({"body": {"k": {"a": [2]}}}, record)
    assert json.dumps(record) == before


# --- explanations -------------------------------------------------------------------------------------------

EXPLANATIONS: list[tuple[Any, Any, str]] = [
    ({"k": ["v"]}, {"k": "w"}, 'body.k: "w" does not match "v"'),
    ({"k": ["v", None]}, {}, 'body.k: absent, wanted "v" or null'),
    ({"k": ["v"]}, "plain", 'body: "plain" is not a JSON object or array, wanted fields in it'),
    ({"k": {"l": ["v"]}}, {"k": 5}, 'body.k.l: absent, wanted "v"'),
    ({"k": {"l": ["v"]}}, {"k": [{"l": "w"}]}, 'body.k: no element of [{"l": "w"}] matches'),
    ({"n": [{"numeric": [">", 5]}]}, {"n": 5}, 'body.n: 5 does not match {"numeric": [">", 5]}'),
    (
        {"$or": [{"a": [1]}, {"b": [1]}]},
        {"a": 2},
        "body.$or: none of 2 branches matches (body.a: 2 does not match 1 ...)",
    ),
    (["text"], "other", 'body: "other" does not match "text"'),
]


@pytest.mark.parametrize(("pattern", "body", "why"), EXPLANATIONS, ids=[row[2] for row in EXPLANATIONS])
def test_an_explanation_names_the_first_path_that_fails(pattern: Any, body: Any, why: str) -> None:
    assert compile_filters([{"body": pattern}], "sqs").explain(sqs(body)) == (False, why)


def test_an_explanation_tells_several_filters_apart() -> None:
    filters = compile_filters([{"body": {"k": ["a"]}}, {"body": {"k": ["b"]}}], "sqs")
    assert filters.explain(sqs({"k": "b"})) == (True, "filter 2 of 2")
    why = 'filter 1: body.k: 1 does not match "a"; filter 2: body.k: 1 does not match "b"'
    assert filters.explain(sqs({"k": 1})) == (False, why)


def test_an_explanation_of_an_or_at_the_top_and_of_a_missing_payload() -> None:
    filters = compile_filters([{"$or": [{"body": {"k": ["a"]}}, {"messageId": ["b"]}]}], "sqs")
    first = "body: absent, wanted fields in it"
    assert filters.explain({}) == (False, f"$or: none of 2 branches matches ({first} ...)")


# --- properties ---------------------------------------------------------------------------------------------


@given(patterns, json_values)
def test_explain_agrees_with_match_for_any_pattern_and_body(pattern: dict[str, Any], body: Any) -> None:
    assume(len(json.dumps(pattern)) < MAX_PATTERN_LENGTH)
    filters = compile_filters([{"body": pattern}], "sqs")
    matched, why = filters.explain(sqs(body))
    assert matched is filters.match(sqs(body))
    assert "\n" not in why
    why.encode()


HARDY: list[tuple[Source, Filters]] = [
    (
        "sqs",
        compile_filters(
            [{"body": {"a": ["x"], "b": {"c": [{"exists": False}]}}}, {"body": [{"prefix": "a"}]}], "sqs"
        ),
    ),
    (
        "kinesis",
        compile_filters([{"data": {"a": {"b": [1]}}, "partitionKey": [{"anything-but": "a"}]}], "kinesis"),
    ),
    (
        "dynamodb",
        compile_filters([{"dynamodb": {"a": {"S": ["x"]}}, "eventName": [{"cidr": "::/0"}]}], "dynamodb"),
    ),
]
surrogates = st.text(st.characters(exclude_categories=()))
texts = (
    st.text()
    | surrogates
    | st.binary()
    | st.sampled_from(["[" * 5000, '{"a":' * 5000, "1" * 5000, "9e9999", "=", "é"])
)


@pytest.mark.parametrize(("_source", "filters"), HARDY, ids=[name for name, _ in HARDY])
@given(payload=texts | json_values | st.sets(st.integers()), data=texts)
def test_no_payload_makes_match_raise(_source: Source, filters: Filters, payload: Any, data: Any) -> None:
    records: list[dict[str, Any]] = [
        {"body": payload, "kinesis": payload, "dynamodb": payload, "eventName": payload},
        {"body": data, "kinesis": {"data": payload, "partitionKey": payload}, "dynamodb": {"a": payload}},
        {"kinesis": {"data": data}},
    ]
    for record in records:
        assert filters.explain(record)[0] is filters.match(record)


@given(st.binary())
def test_no_kinesis_data_makes_match_raise(data: bytes) -> None:
    HARDY[1][1].match(kinesis(data))


def leaves(value: Any) -> list[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        return [((name, *path), leaf) for name, inner in value.items() for path, leaf in leaves(inner)]
    if isinstance(value, list):
        return [found for inner in value for found in leaves(inner)]
    return [((), value)]


@given(st.dictionaries(st.text(), json_values, min_size=1), st.data())
def test_a_pattern_made_from_a_records_own_leaf_matches_it(body: dict[str, Any], data: st.DataObject) -> None:
    found = [item for item in leaves(body) if "$or" not in item[0]]
    assume(found)
    path, leaf = data.draw(st.sampled_from(found))
    pattern: Any = [leaf]
    for name in reversed(("body", *path)):
        pattern = {name: pattern}
    assume(len(json.dumps(pattern)) < MAX_PATTERN_LENGTH)
    record = sqs(json.dumps(body))
    assert matches(pattern, record)
    assert matches(json.dumps(pattern, ensure_ascii=False), record)


@given(patterns, json_values)
def test_a_sole_absence_is_the_opposite_of_a_sole_presence(pattern: dict[str, Any], body: Any) -> None:
    record = sqs({"k": body})
    assert body_matches([{"exists": True}], body) is not body_matches([{"exists": False}], body)
    either = {"body": {"$or": [pattern, {"k": [{"exists": True}]}, {"k": [{"exists": False}]}]}}
    assert matches(either, record)
