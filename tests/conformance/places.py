"""The destinations that the suite runs over: each a place to send to, with a look at what came."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import orjson
import pytest

from poller.aws.session import AwsSession
from poller.config import Aws
from poller.core.failure import with_payload
from poller.destinations.eventbridge import EventBridgeDestination
from poller.destinations.function import LambdaDestination, OwnFunctionDestination
from poller.destinations.memory import MemoryDestination
from poller.destinations.s3 import S3Destination
from poller.destinations.sns import SnsDestination
from poller.destinations.sqs import SqsDestination
from poller.errors import ResourceNotFound
from poller.model import Failed, FunctionError, Succeeded
from tests.cable import Cable
from tests.engine.fakes import Recorder
from tests.scripted_aws import Raw, Refuse, Reply
from tests.scripted_session import LOADER, open_aws

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from poller.model import Delivery, Outcome
    from poller.ports import Destination
    from tests.scripted_aws import ScriptedAws, Step

REGION = "eu-west-1"
ACCOUNT = "000000000000"
MAPPING_ID = "11111111-2222-3333-4444-555555555555"


class Place(ABC):
    """Somewhere to send deliveries, and a look at what came."""

    destination: Destination
    #: Whether what is sent again is there once.
    idempotent = False

    def expected(self, delivery: Delivery) -> dict[str, Any]:
        """The document that arrives of `delivery`."""
        return delivery.document

    @abstractmethod
    async def taken(self, number: int) -> list[dict[str, Any]]:
        """All documents that it has, in any order, `number` of them if all is well."""

    @abstractmethod
    async def break_down(self) -> None:
        """From now on nothing is taken."""

    @abstractmethod
    async def repair(self) -> None: ...


class Memory(Place):
    def __init__(self) -> None:
        self.destination = self.memory = MemoryDestination()

    async def taken(self, number: int) -> list[dict[str, Any]]:
        return [delivery.document for delivery in self.memory.deliveries]

    async def break_down(self) -> None:
        self.memory.broken = ResourceNotFound("no such list")

    async def repair(self) -> None:
        self.memory.broken = None


class OwnFunction(Place):
    """A function of the daemon, as far as a destination sees it; it changes what it gets."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.outcome: Outcome = Succeeded()
        self.destination = OwnFunctionDestination("undo", self.invoke)

    async def invoke(self, event: dict[str, Any]) -> Outcome:
        if isinstance(self.outcome, Succeeded):
            self.events.append(json.dumps(event))
        event.clear()
        return self.outcome

    async def taken(self, number: int) -> list[dict[str, Any]]:
        return [json.loads(event) for event in self.events]

    async def break_down(self) -> None:
        self.outcome = Failed(FunctionError("ValueError", "no such order"))

    async def repair(self) -> None:
        self.outcome = Succeeded()


# --- over an emulator ---------------------------------------------------------------------------------------------------


class Emulated(Place):
    """Something of an emulator behind a cable: it is down when that is cut."""

    def __init__(self, session: AwsSession, cable: Cable) -> None:
        """`session` is that of a test: it does not go through the cable."""
        self.session = session
        self.cable = cable
        self.name = f"failed-{uuid4().hex}"

    async def call(self, service: str, operation: str, **params: Any) -> dict[str, Any]:
        return await self.session.call(service, operation, params, region=REGION)

    @abstractmethod
    async def build(self, session: AwsSession) -> None:
        """Create what deliveries go to, and the destination that sends them through `session`."""

    async def break_down(self) -> None:
        self.cable.cut()

    async def repair(self) -> None:
        self.cable.mend()


class Queue(Emulated):
    """A queue: the destination itself, or what others are read through."""

    fifo = False

    async def build(self, session: AwsSession) -> None:
        await self.create_queue()
        self.destination = SqsDestination(self.name, ACCOUNT, session.cold("sqs", REGION))

    async def create_queue(self) -> str:
        """Create the queue and return its ARN."""
        if self.fifo:
            self.name += ".fifo"
            self.idempotent = True
        attributes = {"FifoQueue": "true"} if self.fifo else {}
        made = await self.call("sqs", "CreateQueue", QueueName=self.name, Attributes=attributes)
        self.url = made["QueueUrl"]
        return f"arn:aws:sqs:{REGION}:{ACCOUNT}:{self.name}"

    async def bodies(self, number: int) -> list[dict[str, Any]]:
        """All messages that come; a receive that brings nothing shows that no more will."""
        found: list[dict[str, Any]] = []
        while True:
            reply = await self.call(
                "sqs",
                "ReceiveMessage",
                QueueUrl=self.url,
                MaxNumberOfMessages=10,
                MessageAttributeNames=["All"],
                # What a topic or a rule has taken may still be on its way.
                WaitTimeSeconds=5 if len(found) < number else 0,
            )
            messages = reply.get("Messages", ())
            assert all("MessageAttributes" not in message for message in messages)
            found += [orjson.loads(message["Body"]) for message in messages]
            for message in messages:
                await self.call(
                    "sqs", "DeleteMessage", QueueUrl=self.url, ReceiptHandle=message["ReceiptHandle"]
                )
            if not messages:
                return found

    async def taken(self, number: int) -> list[dict[str, Any]]:
        return await self.bodies(number)


class FifoQueue(Queue):
    fifo = True


class Topic(Queue):
    """A topic with a queue that gets its messages as they are."""

    async def build(self, session: AwsSession) -> None:
        queue = await self.create_queue()
        attributes = {"FifoTopic": "true"} if self.fifo else {}
        made = await self.call("sns", "CreateTopic", Name=self.name, Attributes=attributes)
        self.arn = made["TopicArn"]
        raw = {"RawMessageDelivery": "true"}
        await self.call("sns", "Subscribe", TopicArn=self.arn, Protocol="sqs", Endpoint=queue, Attributes=raw)
        self.destination = SnsDestination(self.arn, session.cold("sns", REGION))


class FifoTopic(Topic):
    fifo = True


class Bus(Queue):
    """An event bus with a rule that puts everything into a queue."""

    async def build(self, session: AwsSession) -> None:
        queue = await self.create_queue()
        self.arn = (await self.call("events", "CreateEventBus", Name=self.name))["EventBusArn"]
        pattern = json.dumps({"source": ["lambda"]})
        await self.call("events", "PutRule", Name="all", EventBusName=self.name, EventPattern=pattern)
        targets = [{"Id": "queue", "Arn": queue}]
        await self.call("events", "PutTargets", Rule="all", EventBusName=self.name, Targets=targets)
        self.events: list[dict[str, Any]] = []
        self.destination = EventBridgeDestination(self.arn, session.cold("events", REGION))

    async def taken(self, number: int) -> list[dict[str, Any]]:
        self.events = await self.bodies(number)
        return [event["detail"] for event in self.events]


class Bucket(Emulated):
    idempotent = True

    async def build(self, session: AwsSession) -> None:
        self.name = self.name[:60]
        where = {"LocationConstraint": REGION}
        await self.call("s3", "CreateBucket", Bucket=self.name, CreateBucketConfiguration=where)
        self.destination = S3Destination(self.name, MAPPING_ID, session.cold("s3", REGION))

    def expected(self, delivery: Delivery) -> dict[str, Any]:
        return (
            delivery.document if delivery.event is None else with_payload(delivery.document, delivery.event)
        )

    async def keys(self) -> list[str]:
        reply = await self.call("s3", "ListObjectsV2", Bucket=self.name)
        return [found["Key"] for found in reply.get("Contents", ())]

    async def taken(self, number: int) -> list[dict[str, Any]]:
        return [await self._object(key) for key in await self.keys()]

    async def _object(self, key: str) -> dict[str, Any]:
        reply = await self.call("s3", "GetObject", Bucket=self.name, Key=key)
        assert reply["ContentType"] == "application/octet-stream"
        async with reply["Body"] as stream:
            return dict(orjson.loads(await stream.read()))


EMULATED: dict[str, type[Emulated]] = {
    "sqs": Queue,
    "sqs fifo": FifoQueue,
    "sns": Topic,
    "sns fifo": FifoTopic,
    "s3": Bucket,
    "eventbridge": Bus,
}


@asynccontextmanager
async def emulated(kind: str, endpoint_url: str, through: str | None = None) -> AsyncIterator[Emulated]:
    """A place of the emulator, reached through a cable, or through another endpoint in front of it."""
    with pytest.MonkeyPatch.context() as quick:
        quick.setattr("botocore.session.create_loader", LOADER)
        async with (
            Cable(endpoint_url) as cable,
            AwsSession(Aws(region=REGION, endpoint_url=endpoint_url), Recorder()) as direct,
            AwsSession(Aws(region=REGION, endpoint_url=through or cable.endpoint_url), Recorder()) as session,
        ):
            place = EMULATED[kind](direct, cable)
            await place.build(session)
            yield place


# --- behind an endpoint that does what it is told ---------------------------------------------------------------------------


class Scripted(Place):
    """What fails on command and checks signatures. `refusal` is how."""

    operation: str
    refusal: Step

    def __init__(self, aws: ScriptedAws) -> None:
        self.aws = aws

    async def break_down(self) -> None:
        self.aws.always(self.operation, self.refusal)

    async def repair(self) -> None:
        self.aws.always(self.operation, None)


class ScriptedQueue(Scripted):
    operation = "SendMessage"
    refusal = Refuse("com.amazonaws.sqs#RequestThrottled", legacy="RequestThrottled")

    def __init__(self, aws: ScriptedAws, session: AwsSession) -> None:
        super().__init__(aws)
        self.destination = SqsDestination("orders", "123456789012", session.cold("sqs", REGION))

    async def taken(self, number: int) -> list[dict[str, Any]]:
        return [orjson.loads(body) for body in self.aws.visible("orders")]


class Acknowledged(Scripted):
    """What only ever answers: its requests are what it has taken, unless it was broken at the time."""

    answer: Step

    def __init__(self, aws: ScriptedAws) -> None:
        super().__init__(aws)
        self.ignored = 0
        aws.always(self.operation, self.answer)

    async def break_down(self) -> None:
        self.before = len(self.aws.calls(self.operation))
        await super().break_down()

    async def repair(self) -> None:
        self.ignored += len(self.aws.calls(self.operation)) - self.before
        self.aws.always(self.operation, self.answer)

    async def taken(self, number: int) -> list[dict[str, Any]]:
        return [self.document(call.params) for call in self.aws.calls(self.operation)[self.ignored :]]

    @abstractmethod
    def document(self, params: dict[str, Any]) -> dict[str, Any]: ...


class ScriptedBus(Acknowledged):
    """A bus that takes requests and refuses what is in them."""

    operation = "PutEvents"
    answer = Reply({"FailedEntryCount": 0, "Entries": [{"EventId": "e-1"}]})
    refusal = Reply(
        {
            "FailedEntryCount": 1,
            "Entries": [{"ErrorCode": "ThrottlingException", "ErrorMessage": "Rate exceeded"}],
        }
    )

    def __init__(self, aws: ScriptedAws, session: AwsSession) -> None:
        super().__init__(aws)
        bus = f"arn:aws:events:{REGION}:123456789012:event-bus/results"
        self.destination = EventBridgeDestination(bus, session.cold("events", REGION))

    def document(self, params: dict[str, Any]) -> dict[str, Any]:
        (entry,) = params["Entries"]
        return dict(json.loads(entry["Detail"]))


class ScriptedLambda(Acknowledged):
    operation = "Invoke"
    answer = Raw(b"", status=202)
    refusal = Refuse("TooManyRequestsException", "Rate Exceeded.", 429)

    def __init__(self, aws: ScriptedAws, session: AwsSession) -> None:
        super().__init__(aws)
        arn = f"arn:aws:lambda:{REGION}:123456789012:function:undo"
        self.destination = LambdaDestination(arn, "live", session.cold("lambda", REGION))

    def document(self, params: dict[str, Any]) -> dict[str, Any]:
        assert params["Qualifier"] == "live"
        return dict(json.loads(params["Payload"]))


SCRIPTED = {
    "scripted sqs": ScriptedQueue,
    "scripted eventbridge": ScriptedBus,
    "scripted lambda": ScriptedLambda,
}
INSIDE = {"memory": Memory, "own function": OwnFunction}


@asynccontextmanager
async def scripted(kind: str) -> AsyncIterator[Place]:
    async with (
        open_aws() as aws,
        AwsSession(Aws(region=REGION, endpoint_url=aws.endpoint), Recorder()) as session,
    ):
        yield SCRIPTED[kind](aws, session)
