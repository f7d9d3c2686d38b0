"""What every on-failure destination promises (`poller.ports`), run over each of them. A new one adds an entry to `PLACES`."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import anyio
import orjson
import pytest

from poller.aws import session as aws_session
from poller.aws.session import AwsSession
from poller.config import Aws
from poller.destinations.memory import MemoryDestination
from poller.destinations.sqs import SqsDestination
from poller.errors import AwsError, PollerError, ResourceNotFound
from tests.engine.fakes import Recorder, delivery_of
from tests.scripted_aws import Refuse
from tests.scripted_session import open_aws

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from poller.model import Delivery
    from poller.ports import Destination
    from tests.scripted_aws import ScriptedAws

pytestmark = pytest.mark.anyio

REGION = "eu-west-1"
EXAMPLES = Path(__file__).parent.parent / "core" / "event-examples"
DOCUMENTS = [
    "dest-kinesis-retries-exhausted.json",
    "dest-kinesis-partial-response.json",
    "dest-kinesis-record-age.json",
    "dest-dynamodb-retries-exhausted.json",
]


def failure(name: str = DOCUMENTS[0], **changes: Any) -> Delivery:
    document = json.loads((EXAMPLES / name).read_text()) | changes
    return delivery_of(document, {"Records": [{"secret": 1}]})


# --- the places ---------------------------------------------------------------------------------------------------------


class Place(ABC):
    """Somewhere to send failures, and a look at what came."""

    destination: Destination

    @abstractmethod
    async def taken(self) -> list[dict[str, Any]]:
        """The documents that it has, in any order."""

    @abstractmethod
    async def break_down(self) -> None:
        """From now on nothing is taken."""

    @abstractmethod
    async def repair(self) -> None: ...


class Memory(Place):
    def __init__(self) -> None:
        self.destination = self.memory = MemoryDestination()

    async def taken(self) -> list[dict[str, Any]]:
        return [delivery.document for delivery in self.memory.deliveries]

    async def break_down(self) -> None:
        self.memory.broken = ResourceNotFound("no such list")

    async def repair(self) -> None:
        self.memory.broken = None


class Sqs(Place):
    """A queue of the emulator."""

    def __init__(self, session: AwsSession) -> None:
        self.session = session
        self.name = f"failed-{uuid4().hex}"
        self.destination = SqsDestination(self.name, "000000000000", partial(session.api, "sqs", REGION))

    async def call(self, operation: str, **params: Any) -> dict[str, Any]:
        return await self.session.call("sqs", operation, params, region=REGION)

    async def repair(self) -> None:
        self.url = (await self.call("CreateQueue", QueueName=self.name))["QueueUrl"]

    async def break_down(self) -> None:
        await self.call("DeleteQueue", QueueUrl=self.url)

    async def taken(self) -> list[dict[str, Any]]:
        reply = await self.call(
            "ReceiveMessage", QueueUrl=self.url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        )
        assert all("MessageAttributes" not in message for message in reply.get("Messages", ()))
        return [orjson.loads(message["Body"]) for message in reply.get("Messages", ())]


class ScriptedSqs(Place):
    """A queue behind an endpoint that fails on command and checks signatures."""

    def __init__(self, session: AwsSession, aws: ScriptedAws) -> None:
        self.aws = aws
        self.destination = SqsDestination("orders", "123456789012", partial(session.api, "sqs", REGION))

    async def taken(self) -> list[dict[str, Any]]:
        return [orjson.loads(body) for body in self.aws.visible("orders")]

    async def break_down(self) -> None:
        self.aws.always(
            "SendMessage", Refuse("com.amazonaws.sqs#RequestThrottled", legacy="RequestThrottled")
        )

    async def repair(self) -> None:
        self.aws.always("SendMessage", None)


PLACES = ["memory", "sqs", "scripted sqs"]


@pytest.fixture(params=PLACES)
async def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    # botocore's retries would sleep.
    monkeypatch.setattr(aws_session, "COLD_ATTEMPTS", 1)
    if request.param == "memory":
        yield Memory()
    elif request.param == "sqs":
        endpoint = request.getfixturevalue("emulator").endpoint_url
        async with AwsSession(Aws(region=REGION, endpoint_url=endpoint), Recorder()) as session:
            place = Sqs(session)
            await place.repair()
            yield place
    else:
        async with open_aws() as aws:
            config = Aws(region=REGION, endpoint_url=aws.endpoint)
            async with AwsSession(config, Recorder()) as session:
                yield ScriptedSqs(session, aws)


# --- the promises -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOCUMENTS)
async def test_the_document_arrives_equal_and_without_the_event(place: Place, name: str) -> None:
    await place.destination.send(failure(name))
    (arrived,) = await place.taken()
    assert arrived == failure(name).document
    assert list(arrived) == list(failure(name).document)


async def test_text_of_any_language_arrives_as_it_is(place: Place) -> None:
    odd = failure(note='grüße \u2028 😀 "quoted" \\ <&> \t\n')
    await place.destination.send(odd)
    assert await place.taken() == [odd.document]


async def test_a_failure_may_be_sent_again(place: Place) -> None:
    for _ in range(2):
        await place.destination.send(failure())
    assert await place.taken() == [failure().document] * 2


async def test_several_may_be_sent_at_the_same_time(place: Place) -> None:
    async with anyio.create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(place.destination.send, failure(number=number))
    assert sorted(document["number"] for document in await place.taken()) == list(range(5))


async def test_what_is_not_taken_is_an_error_with_a_name_and_may_be_sent_once_it_can_be(place: Place) -> None:
    await place.break_down()
    with pytest.raises(PollerError) as caught:
        await place.destination.send(failure())
    assert isinstance(caught.value, AwsError)
    assert str(caught.value)
    await place.repair()
    assert await place.taken() == []
    await place.destination.send(failure())
    assert await place.taken() == [failure().document]


async def test_a_destination_changes_nothing_of_a_failure(place: Place) -> None:
    sent = failure()
    await place.destination.send(sent)
    assert sent == failure()
