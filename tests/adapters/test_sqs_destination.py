"""What is particular to an on-failure destination that is a queue: finding it, refusals, replies that say nothing, sizes."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import orjson
import pytest

from poller.aws import session as aws_session
from poller.aws.session import AwsSession
from poller.config import Aws
from poller.destinations.sqs import SqsDestination
from poller.errors import (
    AccessDenied,
    AwsError,
    BadReply,
    DocumentTooLarge,
    RequestRefused,
    ResourceNotFound,
    ServiceFault,
    Throttled,
    Unreachable,
)
from tests.engine.fakes import Recorder, delivery_of
from tests.scripted_aws import Close, CutOff, Refuse, Reply, ScriptedAws, Step
from tests.scripted_session import Facts, open_aws

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from poller.demo.emulator import Emulator
    from poller.model import Delivery

pytestmark = pytest.mark.anyio

REGION = "eu-west-1"


def failure(**document: Any) -> Delivery:
    return delivery_of({"requestContext": {"condition": "RetryAttemptsExhausted"}} | document)


@pytest.fixture
async def aws() -> AsyncIterator[ScriptedAws]:
    async with open_aws() as scripted:
        yield scripted


@pytest.fixture
def facts() -> Facts:
    return Facts()


@pytest.fixture
async def session(
    aws: ScriptedAws, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[AwsSession]:
    # botocore's retries would sleep.
    monkeypatch.setattr(aws_session, "COLD_ATTEMPTS", 1)
    async with AwsSession(Aws(region=REGION, endpoint_url=aws.endpoint), facts) as opened:
        yield opened


def destination(session: AwsSession, name: str = "orders", account: str = "123456789012") -> SqsDestination:
    return SqsDestination(name, account, session.cold("sqs", REGION))


async def test_the_queue_is_looked_up_once_by_its_name_and_owner(
    aws: ScriptedAws, session: AwsSession, facts: Facts
) -> None:
    queue = destination(session)
    assert repr(queue) == "<SqsDestination orders>"
    for _ in range(2):
        await queue.send(failure())
    (found,) = aws.calls("GetQueueUrl")
    assert found.params == {"QueueName": "orders", "QueueOwnerAWSAccountId": "123456789012"}
    assert [set(sent.params) for sent in aws.calls("SendMessage")] == [{"QueueUrl", "MessageBody"}] * 2
    assert [fact.operation for fact in facts.requests] == ["GetQueueUrl", "SendMessage", "SendMessage"]


async def test_without_an_account_the_queue_is_one_of_our_own(aws: ScriptedAws, session: AwsSession) -> None:
    await destination(session, account="").send(failure())
    assert aws.calls("GetQueueUrl")[0].params == {"QueueName": "orders"}


async def test_a_lookup_that_failed_is_made_again(aws: ScriptedAws, session: AwsSession) -> None:
    queue = destination(session, "failed")
    with pytest.raises(ResourceNotFound):
        await queue.send(failure())
    aws.create_queue("failed")
    await queue.send(failure())
    assert len(aws.visible("failed")) == 1


FAILURES: list[tuple[Step, type[AwsError]]] = [
    (Refuse("com.amazonaws.sqs#QueueDoesNotExist"), ResourceNotFound),
    (Refuse("AccessDeniedException", status=403), AccessDenied),
    (Refuse("com.amazonaws.sqs#KmsAccessDenied", legacy="KMS.AccessDeniedException"), AccessDenied),
    (Refuse("com.amazonaws.sqs#RequestThrottled", legacy="RequestThrottled"), Throttled),
    (Refuse("InternalFailure", status=500), ServiceFault),
    (Refuse("InvalidParameterValue"), RequestRefused),
    (CutOff(), BadReply),
    (CutOff(honest=False), BadReply),
    (Reply({}), BadReply),
    (Reply({"QueueUrl": None, "MessageId": None}), BadReply),
    (Close(), Unreachable),
]


@pytest.mark.parametrize("operation", ["GetQueueUrl", "SendMessage"])
@pytest.mark.parametrize(("step", "kind"), FAILURES)
async def test_whatever_goes_wrong_is_an_error_of_its_class(
    aws: ScriptedAws, session: AwsSession, operation: str, step: Step, kind: type[AwsError]
) -> None:
    queue = destination(session)
    aws.script(operation, step)
    with pytest.raises(AwsError) as caught:
        await queue.send(failure())
    assert (type(caught.value), caught.value.operation) == (kind, operation)
    assert operation in str(caught.value)
    await queue.send(failure())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Sending a large body")
@pytest.mark.parametrize(
    ("attributes", "size", "taken"),
    [
        ({"MaximumMessageSize": "262144"}, 260_000, True),
        ({"MaximumMessageSize": "262144"}, 263_000, False),
        ({}, 1_040_000, True),
        ({}, 1_050_000, False),
    ],
)
async def test_over_a_server_a_document_may_be_as_large_as_the_queue_takes(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, attributes: dict[str, str], size: int, taken: bool
) -> None:
    monkeypatch.setattr(aws_session, "COLD_ATTEMPTS", 1)
    name, large = f"failed-{uuid4().hex}", failure(note="x" * size)
    async with AwsSession(Aws(region=REGION, endpoint_url=emulator.endpoint_url), Recorder()) as session:
        created = {"QueueName": name, "Attributes": attributes}
        url = (await session.call("sqs", "CreateQueue", created))["QueueUrl"]
        refused = pytest.raises(DocumentTooLarge, match="the destination takes")
        with nullcontext() if taken else refused:
            await destination(session, name, "000000000000").send(large)
        reply = await session.call("sqs", "ReceiveMessage", {"QueueUrl": url})
    arrived = [orjson.loads(message["Body"]) for message in reply.get("Messages", ())]
    assert arrived == ([large.document] if taken else [])


TOO_LONG = Refuse(
    "com.amazonaws.sqs#InvalidParameterValue",
    "One or more parameters are invalid. Reason: Message must be shorter than 200 bytes.",
)


@pytest.mark.parametrize(
    ("limit", "taken"),
    [(200, True), (60, False)],
)
async def test_a_queue_that_takes_less_than_others_says_how_much_and_gets_no_more(
    aws: ScriptedAws, session: AwsSession, limit: int, taken: bool
) -> None:
    said = Refuse(TOO_LONG.code, TOO_LONG.message.replace("200", str(limit)))
    aws.script("SendMessage", said)
    sent = failure(requestPayload={}, responsePayload="e" * 300)
    refused = pytest.raises(DocumentTooLarge, match=f"a document of .* the destination takes {limit}")
    with nullcontext() if taken else refused:
        await destination(session).send(sent)
    arrived = [list(orjson.loads(body)) for body in aws.visible("orders")]
    assert arrived == ([["requestContext", "requestPayload"]] if taken else [])


async def test_a_queue_that_is_never_content_with_the_size_gets_two_tries(
    aws: ScriptedAws, session: AwsSession
) -> None:
    aws.always("SendMessage", TOO_LONG)
    with pytest.raises(DocumentTooLarge, match="Message must be shorter than 200 bytes"):
        await destination(session).send(failure())
    assert len(aws.calls("SendMessage")) == 2


async def test_another_refusal_of_the_shorter_document_is_an_error_that_may_pass(
    aws: ScriptedAws, session: AwsSession
) -> None:
    aws.script("SendMessage", TOO_LONG, Refuse("InvalidParameterValue"))
    with pytest.raises(RequestRefused, match="InvalidParameterValue"):
        await destination(session).send(failure())


@pytest.mark.parametrize(
    ("shard", "group"),
    [
        ("shardId-000000000003", "clicks/shardId-000000000003"),
        ("s" * 200, "s" * 128),
        ("", "clicks"),
    ],
)
async def test_a_fifo_queue_gets_the_mapping_and_shard_as_its_group_and_the_id_against_repeats(
    aws: ScriptedAws, session: AwsSession, shard: str, group: str
) -> None:
    aws.create_queue("failed.fifo")
    sent = replace(failure(), shard=shard)
    await destination(session, "failed.fifo").send(sent)
    params = aws.calls("SendMessage")[0].params
    assert (params["MessageGroupId"], params["MessageDeduplicationId"]) == (group, sent.id)
