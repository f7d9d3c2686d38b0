"""A large reply read in slices is what it is when read in one go, and the loop turns in between."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from poller.aws import slices

pytestmark = pytest.mark.anyio

TRICKY = [
    '},{"id":',
    '\\"},{\\"id\\":',
    '"}],"Records":[{"id":"',
    "]}",
    '{"id":',
    "\\",
    "grüße \u2028 😀",
    "",
]


def read(text: bytes, size: int) -> Any:
    """The reply in slices of `size` bytes; None when it cannot be cut."""
    commas = slices.cuts(text, size)
    if not commas:
        return None
    try:
        return asyncio.run(slices.joined(text, commas))
    except (orjson.JSONDecodeError, slices.Uncut):
        return None


def compact(value: Any, **options: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), **options).encode("utf-8", "surrogatepass")


texts = st.sampled_from(TRICKY) | st.text(max_size=12)
leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "L", "Records"]) | texts, inner, max_size=3)
        | st.lists(st.fixed_dictionaries({"id": inner}), min_size=2, max_size=3)
    ),
    max_leaves=8,
)
records = st.lists(st.fixed_dictionaries({"id": values}, optional={"Data": values}), min_size=1, max_size=12)
others = st.dictionaries(st.sampled_from(["NextShardIterator", "MillisBehindLatest", "id", "L"]), values)


@pytest.mark.slow
@given(before=others, records=records, after=others, size=st.integers(1, 200), ascii_only=st.booleans())
@example({}, [{"id": '},{"id":'}] * 3, {}, 1, True)
@example({}, [{"id": [{"id": 1}, {"id": 2}]}] * 3, {}, 1, True)
@example({"L": [{"id": 1}, {"id": 2}]}, [{"id": 3}] * 3, {"L": 4}, 1, True)
def test_slices_make_the_same_as_the_whole(
    before: dict[str, Any], records: list[Any], after: dict[str, Any], size: int, ascii_only: bool
) -> None:
    text = compact({**before, "Records": records, **after}, ensure_ascii=ascii_only)
    found = read(text, size)
    assert found is None or (found == orjson.loads(text) and list(found) == list(orjson.loads(text)))


@pytest.mark.slow
@given(records=records, size=st.integers(1, 60), name=st.sampled_from([b"Records", b"L", b"id"]))
def test_a_name_that_comes_twice_means_what_it_means_in_the_whole(
    records: list[Any], size: int, name: bytes
) -> None:
    array = compact(records)
    for text in (
        b'{"L":1,"%b":%b,"L":%b}' % (name, array, array),
        b'{"L":%b,"%b":%b,"L":%b,"%b":2}' % (array, name, array, array, name),
        b'{"%b":%b,"%b":%b}' % (name, array, name, array),
    ):
        found = read(text, size)
        assert found is None or found == orjson.loads(text)


@pytest.mark.slow
@given(records=records, size=st.integers(1, 60), data=st.data())
def test_what_is_no_json_is_none_in_slices_either(records: list[Any], size: int, data: st.DataObject) -> None:
    text = compact({"Records": records, "NextShardIterator": "AAAA"})
    at = data.draw(st.integers(0, len(text) - 1))
    broken = text[:at] + data.draw(st.binary(max_size=2)) + text[at + data.draw(st.integers(0, 3)) :]
    found = read(broken, size)
    assert found is None or found == orjson.loads(broken)


# --- objects that are left as they are ----------------------------------------------------------------------------------

#: As in DynamoDB: an attribute is an object, so none of them looks like a member of the record itself.
attributes = st.recursive(
    st.fixed_dictionaries({"S": texts}) | st.fixed_dictionaries({"NULL": st.just(True)}),
    lambda inner: (
        st.fixed_dictionaries({"L": st.lists(inner, max_size=3)})
        | st.fixed_dictionaries(
            {"M": st.dictionaries(st.sampled_from(["id", "n", "Records"]) | texts, inner)}
        )
    ),
    max_leaves=6,
)
changes = st.dictionaries(st.sampled_from(["id", "n", "Records"]) | texts, attributes, max_size=3).flatmap(
    lambda item: st.permutations([("id", 7), ("n", "1"), ("item", item)]).map(dict)
)


def laid_apart(text: bytes) -> Any:
    found = slices.apart(text, "Records", b'"n":"')
    return {**found, "Records": list(map(orjson.loads, found["Records"]))}


@pytest.mark.slow
@given(
    before=others,
    changes=st.lists(changes, max_size=6),
    after=others,
    ascii_only=st.booleans(),
    spaced=st.booleans(),
)
@example({}, [{"n": "1", "id": 7}], {"L": [{"id": 1}, {"id": 2}]}, True, False)
@example({}, [{"id": 7, "n": "1"}, {"n": "1", "id": 7}], {"L": [{"id": 1}, {"id": 2}]}, True, False)
def test_objects_that_are_laid_apart_are_those_of_the_whole(
    before: dict[str, Any], changes: list[Any], after: dict[str, Any], ascii_only: bool, spaced: bool
) -> None:
    reply = {**before, "Records": changes, **after}
    text = json.dumps(reply, ensure_ascii=ascii_only) if spaced else compact(reply, ensure_ascii=ascii_only)
    assert laid_apart(text.encode() if isinstance(text, str) else text) == reply


@pytest.mark.parametrize("name", ["Records", "L"])
def test_the_last_of_two_arrays_of_one_name_is_laid_apart(name: str) -> None:
    one, other = [{"n": "1"}], [{"n": "2"}, {"n": "3"}]
    text = b'{"Records":%b,"%b":%b,"Records":%b}' % tuple(
        map(bytes, (compact(one), name.encode(), compact(one), compact(other)))
    )
    assert laid_apart(text) == orjson.loads(text)


@pytest.mark.parametrize("text", [b"[]", b"null", b'{"Records":7}', b'{"else":[]}'])
def test_what_has_no_such_array_is_what_it_is(text: bytes) -> None:
    assert slices.apart(text, "Records", b'"n":"') == orjson.loads(text)


@pytest.mark.parametrize(
    "text", [b"", b'{"Records":[', b'{"Records":[{"n":"1"}]', b'{"Records":[{"n":"1"}],']
)
def test_what_is_no_json_is_laid_apart_neither(text: bytes) -> None:
    with pytest.raises(orjson.JSONDecodeError):
        slices.apart(text, "Records", b'"n":"')


# --- large replies ------------------------------------------------------------------------------------------------------


def reply(count: int) -> dict[str, Any]:
    """As large as GetRecords gets them, with about a kilobyte a record."""
    record = {"SequenceNumber": "4" * 56, "Data": "x" * 1000, "PartitionKey": "customer"}
    return {
        "MillisBehindLatest": 7,
        "Records": [{**record, "ApproximateArrivalTimestamp": n} for n in range(count)],
    }


@pytest.mark.parametrize("whole", [True, False])
async def test_the_loop_turns_while_a_large_reply_is_read(whole: bool) -> None:
    text = orjson.dumps(reply(6000))
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(turn)

    asyncio.get_running_loop().call_soon(turn)
    if whole:
        assert await slices.loads(text) == reply(6000)
    else:
        with pytest.raises(orjson.JSONDecodeError):
            await slices.loads(text[:-1])
    assert turns >= len(text) // slices.SLICE - 1 > 4


@pytest.mark.slow
@pytest.mark.parametrize("cut_off", [False, True])
async def test_a_large_reply_of_another_shape_is_read_in_one_go(cut_off: bool) -> None:
    for found in ({"Padding": "x" * 2**21}, {"Records": ["x" * 1000] * 2000}, {"Records": [[1]] * 10**6}):
        text = orjson.dumps(found)
        if cut_off:
            with pytest.raises(orjson.JSONDecodeError):
                await slices.loads(text[:-1])
        else:
            assert await slices.loads(text) == found
