from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from poller.core.filters import MAX_PATTERN_LENGTH, Filters, PatternError, Source, compile_filters
from tests.core.filtering import body_matches, kinesis, matches, sqs

VECTORS = json.loads(Path(__file__).with_name("filter-vectors.json").read_text())

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abcd") | st.text(), inner, max_size=4)
    ),
    max_leaves=8,
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
    max_leaves=4,
)


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


# --- the filter view ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "42",
        '"x"',
        "null",
        '{"k":"v"',
        "",
        "\ufeff{}",
        "[" * 2000,
        '{"k":NaN}',
        '{"k":-Infinity}',
        "1e999",
    ],
)
def test_a_body_that_is_no_json_structure_is_plain_text(text: str) -> None:
    assert matches({"body": [text]}, sqs(text))
    assert matches({"body": [{"exists": True}]}, sqs(text))
    assert not matches({"body": {"k": [{"exists": False}]}}, sqs(text))


@pytest.mark.parametrize(
    "unusual",
    [
        # What JSON.stringify and json.dumps make of a text that was cut in the middle of an emoji.
        r'"\ud83d"',
        r'{"\udc00":["a\ud83d"]}',
        "1e999",
        "9" * 400,
    ],
)
def test_json_that_few_writers_write_is_json_all_the_same(unusual: str) -> None:
    text = f' {{"k":"v","large":18446744073709551616,"low":-9223372036854775808,"rest":{unusual}}}\n'
    pattern = {"k": ["v"], "large": [18446744073709551616], "low": [-9223372036854775808]}
    assert matches({"body": pattern}, sqs(text))
    assert not matches({"body": {**pattern, "k": ["w"]}}, sqs(text))
    assert not matches({"body": [text]}, sqs(text))
    data = compile_filters([{"data": pattern}], "kinesis")
    assert data.match(kinesis(text.encode()))
    assert not data.match(kinesis(text.encode("utf-16")))


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@given(patterns, json_values)
def test_a_sole_absence_is_the_opposite_of_a_sole_presence(pattern: dict[str, Any], body: Any) -> None:
    record = sqs({"k": body})
    assert body_matches([{"exists": True}], body) is not body_matches([{"exists": False}], body)
    either = {"body": {"$or": [pattern, {"k": [{"exists": True}]}, {"k": [{"exists": False}]}]}}
    assert matches(either, record)
