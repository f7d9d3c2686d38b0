from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.core.response import parse
from poller.model import (
    Failed,
    FunctionError,
    NotInvoked,
    Outcome,
    PartlyFailed,
    Refused,
    Returned,
    Succeeded,
)

if TYPE_CHECKING:
    from poller.core.filters import Source

IDS = ("id-1", "id-2", "id-3")
SOURCES: tuple[Source, ...] = ("sqs", "kinesis", "dynamodb")
STREAMS: tuple[Source, ...] = ("kinesis", "dynamodb")


def outcome(payload: Any, source: Source, ids: Any = IDS) -> Outcome:
    return parse(Returned(payload), ids, partial=True, source=source)


def failures(*entries: Any) -> dict[str, Any]:
    return {"batchItemFailures": list(entries)}


def named(*identifiers: Any) -> dict[str, Any]:
    return failures(*({"itemIdentifier": identifier} for identifier in identifiers))


@pytest.mark.parametrize("partial", [False, True])
def test_a_function_that_failed_fails_its_batch(partial: bool) -> None:
    error = FunctionError("ValueError", "no", timed_out=True)
    assert parse(error, IDS, partial=partial, source="sqs") == Failed(error)


@pytest.mark.parametrize("partial", [False, True])
def test_a_refused_invocation_is_no_attempt(partial: bool) -> None:
    assert parse(Refused("throttled"), IDS, partial=partial, source="sqs") == NotInvoked("throttled")


@pytest.mark.parametrize("payload", [None, "", 5, [1], {"batchItemFailures": 5}, named("id-1"), object()])
def test_without_partial_responses_whatever_is_returned_is_success(payload: Any) -> None:
    assert parse(Returned(payload), IDS, partial=False, source="sqs") == Succeeded()


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("payload", [None, {}, failures(), {"batchItemFailures": None}, {"statusCode": 200}])
def test_a_reply_that_names_nothing_is_success(payload: Any, source: Source) -> None:
    assert outcome(payload, source) == Succeeded()


@pytest.mark.parametrize("source", STREAMS)
@pytest.mark.parametrize("payload", ["", []])
def test_an_empty_string_or_list_is_success_for_streams(payload: Any, source: Source) -> None:
    assert outcome(payload, source) == Succeeded()


@pytest.mark.parametrize("payload", ["", []])
def test_an_empty_string_or_list_fails_a_batch_of_a_queue(payload: Any) -> None:
    assert isinstance(outcome(payload, "sqs"), Failed)


@pytest.mark.parametrize("source", SOURCES)
def test_the_named_records_failed_each_once(source: Source) -> None:
    assert outcome(named("id-2"), source) == PartlyFailed(frozenset({"id-2"}))
    assert outcome(named("id-3", "id-2", "id-3"), source) == PartlyFailed(frozenset({"id-2", "id-3"}))
    assert outcome(named(*IDS), source) == PartlyFailed(frozenset(IDS))


def test_other_members_of_an_entry_are_ignored() -> None:
    assert outcome(failures({"itemIdentifier": "id-1", "why": 1}), "sqs") == PartlyFailed(frozenset({"id-1"}))


MALFORMED: list[tuple[Any, str]] = [
    (named("id-9"), 'batchItemFailures[0].itemIdentifier is "id-9", which is no record of this batch'),
    (
        named("id-1", "id-9"),
        'batchItemFailures[1].itemIdentifier is "id-9", which is no record of this batch',
    ),
    (named(17), "batchItemFailures[0].itemIdentifier is 17 instead of"),
    (named(""), 'batchItemFailures[0].itemIdentifier is "" instead of'),
    (named(None), "batchItemFailures[0].itemIdentifier is null instead of"),
    (named(["id-1"]), 'batchItemFailures[0].itemIdentifier is ["id-1"] instead of'),
    (
        failures({"foo": "id-1"}),
        'batchItemFailures[0] is {"foo": "id-1"} instead of an object with itemIdentifier',
    ),
    (failures({"foo": None}), 'batchItemFailures[0] is {"foo": null} instead of'),
    (failures({}), "batchItemFailures[0] is {} instead of"),
    (failures("id-1"), 'batchItemFailures[0] is "id-1" instead of'),
    (failures(None), "batchItemFailures[0] is null instead of"),
    ({"batchItemFailures": "id-1"}, 'batchItemFailures is "id-1" instead of an array'),
    ({"batchItemFailures": {"itemIdentifier": "id-1"}}, "batchItemFailures is {"),
    ({"batchItemFailures": 0}, "batchItemFailures is 0 instead of an array"),
    ({"batchItemFailures": ""}, 'batchItemFailures is "" instead of an array'),
]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(("payload", "message"), MALFORMED, ids=[message for _, message in MALFORMED])
def test_a_malformed_list_fails_the_whole_batch_and_says_why(
    payload: Any, message: str, source: Source
) -> None:
    result = outcome(payload, source)
    assert isinstance(result, Failed)
    assert result.returned
    assert result.error.error_type == "Poller.InvalidBatchItemFailures"
    assert message in result.error.error_message


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "payload", ["text", 5, 0, False, True, [{"itemIdentifier": "id-1"}], object(), {1, 2}]
)
def test_a_reply_that_is_no_object_fails_the_whole_batch(payload: Any, source: Source) -> None:
    result = outcome(payload, source)
    assert isinstance(result, Failed)
    assert result.error.error_type == "Poller.ResponseNotAnObject"
    assert result.error.error_message.startswith("The function returned ")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(("", *IDS)) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(("batchItemFailures", "itemIdentifier")) | st.text(), inner, max_size=3
        )
    ),
    max_leaves=10,
)
rubbish = (
    st.sets(st.integers()) | st.binary() | st.complex_numbers() | st.builds(object) | st.tuples(st.text())
)
payloads = (
    json_values
    | rubbish
    | st.builds(failures, json_values | rubbish)
    | st.builds(named, json_values | rubbish)
)


@given(payloads, st.sampled_from(SOURCES))
def test_any_payload_has_an_outcome(payload: Any, source: Source) -> None:
    result = outcome(payload, source, list(IDS))
    assert isinstance(result, Succeeded | PartlyFailed | Failed)
    if isinstance(result, PartlyFailed):
        assert result.ids
        assert result.ids <= set(IDS)


def test_what_a_function_says_is_text_that_every_store_and_log_takes():
    error = FunctionError("Odd\ud83d", "grün \ud83d", ("line \udcff\n",))
    assert (error.error_type, error.error_message) == ("Odd\\ud83d", "grün \\ud83d")
    assert error.stack_trace == ("line \\udcff\n",)
