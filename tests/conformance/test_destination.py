"""What every destination promises (`poller.ports`), run over each of them. A new one adds an entry in `places`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from poller.aws import session as aws_session
from poller.errors import AwsError, DocumentTooLarge, FunctionFailed, PollerError
from tests.conformance.places import EMULATED, INSIDE, SCRIPTED, OwnFunction, emulated, scripted
from tests.engine.fakes import delivery_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from poller.model import Delivery
    from tests.conformance.places import Place

pytestmark = pytest.mark.anyio

EXAMPLES = Path(__file__).parent.parent / "core" / "event-examples"
DOCUMENTS = [
    "dest-kinesis-retries-exhausted.json",
    "dest-kinesis-partial-response.json",
    "dest-kinesis-record-age.json",
    "dest-dynamodb-retries-exhausted.json",
    "async-on-failure-retries-exhausted.json",
    "async-on-success.json",
]


def delivery(name: str = DOCUMENTS[0], **changes: Any) -> Delivery:
    document = json.loads((EXAMPLES / name).read_text()) | changes
    if name.startswith("dest-"):
        return delivery_of(document, {"Records": [{"secret": 1}]})
    condition = document["requestContext"]["condition"]
    of_queue = replace(delivery_of(document), mapping="orders", shard="", condition=condition)
    return replace(of_queue, succeeded=condition == "Success")


def order(value: Any, at: str = "") -> list[str]:
    """Every place of a document, in order."""
    found = [at]
    if isinstance(value, dict):
        for name, each in value.items():
            found += order(each, f"{at}.{name}")
    return found


@pytest.fixture(params=[*INSIDE, *EMULATED, *SCRIPTED])
async def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    # botocore's retries would sleep.
    monkeypatch.setattr(aws_session, "COLD_ATTEMPTS", 1)
    if request.param in INSIDE:
        yield INSIDE[request.param]()
    elif request.param in EMULATED:
        endpoint = request.getfixturevalue("emulator").endpoint_url
        async with emulated(request.param, endpoint) as found:
            yield found
    else:
        async with scripted(request.param) as scripted_place:
            yield scripted_place


@pytest.mark.parametrize("name", DOCUMENTS)
async def test_the_document_arrives_equal_with_its_members_in_their_order(place: Place, name: str) -> None:
    sent = delivery(name)
    await place.destination.send(sent)
    (arrived,) = await place.taken(1)
    assert arrived == place.expected(sent)
    assert order(arrived) == order(place.expected(sent))


async def test_text_of_any_language_arrives_as_it_is(place: Place) -> None:
    odd = delivery(note='grüße \u2028 \ufffe\uffff 😀 "quoted" \\ <&> \t\n')
    await place.destination.send(odd)
    assert await place.taken(1) == [place.expected(odd)]


async def test_a_delivery_may_be_sent_again(place: Place) -> None:
    for _ in range(2):
        await place.destination.send(delivery())
    times = 1 if place.idempotent else 2
    assert await place.taken(times) == [place.expected(delivery())] * times


async def test_several_may_be_sent_at_the_same_time(place: Place) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(place.destination.send, replace(delivery(number=number), id=f"id-{number}"))
    assert sorted(document["number"] for document in await place.taken(5)) == list(range(5))


async def test_what_is_not_taken_is_an_error_with_a_name_and_may_be_sent_once_it_can_be(place: Place) -> None:
    await place.break_down()
    with pytest.raises(PollerError) as caught:
        await place.destination.send(delivery())
    assert isinstance(caught.value, FunctionFailed if isinstance(place, OwnFunction) else AwsError)
    assert str(caught.value)
    await place.repair()
    assert await place.taken(0) == []
    await place.destination.send(delivery())
    assert await place.taken(1) == [place.expected(delivery())]


async def test_a_document_above_the_limit_is_refused_for_good_and_without_one_any_is_taken(
    place: Place,
) -> None:
    limit = place.destination.limit
    large = delivery(note="x" * (limit or 2**20))
    if limit is None:
        await place.destination.send(large)
        assert await place.taken(1) == [place.expected(large)]
    else:
        with pytest.raises(DocumentTooLarge):
            await place.destination.send(large)
        assert await place.taken(0) == []


async def test_a_destination_changes_nothing_of_a_delivery(place: Place) -> None:
    sent = delivery()
    await place.destination.send(sent)
    assert sent == delivery()
