"""What both wires promise: equal results, equal errors, equal patience."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest
from anyio import create_task_group
from anyio.lowlevel import checkpoint

from poller.aws.session import AwsSession
from poller.config import Aws
from poller.errors import (
    AccessDenied,
    AwsError,
    BadReply,
    CredentialsInvalid,
    RequestRefused,
    ResourceNotFound,
    ServiceFault,
    Throttled,
    Unreachable,
)
from tests.scripted_aws import Close, CutOff, FailEntries, Hold, Raw, Refuse, Reply, ScriptedAws, Step
from tests.scripted_session import Facts, open_aws

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from poller.aws.calls import HotApi

pytestmark = pytest.mark.anyio


@pytest.fixture
def facts() -> Facts:
    return Facts()


@pytest.fixture
async def aws() -> AsyncIterator[ScriptedAws]:
    async with open_aws() as scripted:
        yield scripted


@pytest.fixture(params=["fast", "sdk"])
async def session(
    request: pytest.FixtureRequest, aws: ScriptedAws, facts: Facts
) -> AsyncIterator[AwsSession]:
    config = Aws(region=aws.region, endpoint_url=aws.endpoint, wire=request.param)
    async with AwsSession(config, facts) as opened:
        yield opened


@pytest.fixture
async def sqs(session: AwsSession, naps: list[float]) -> HotApi:
    return await hot(session, "sqs", naps)


@pytest.fixture
def naps() -> list[float]:
    """How long the wire would have slept between attempts; it does not."""
    return []


async def hot(session: AwsSession, service: str, naps: list[float]) -> HotApi:
    api = await session.hot(service)

    async def nap(seconds: float) -> None:
        naps.append(seconds)

    api._sleep = nap
    return api


async def receive(sqs: HotApi, timeout: float = 5, **params: Any) -> list[dict[str, Any]]:
    reply = await sqs.call("ReceiveMessage", {"QueueUrl": "q/orders", **params}, timeout=timeout)
    return reply.get("Messages", [])


async def delete(sqs: HotApi, *receipts: str, timeout: float = 5) -> dict[str, Any]:
    entries = [{"Id": str(n), "ReceiptHandle": receipt} for n, receipt in enumerate(receipts)]
    return await sqs.call("DeleteMessageBatch", {"QueueUrl": "q/orders", "Entries": entries}, timeout=timeout)


async def failure(sqs: HotApi, timeout: float = 5) -> AwsError:
    with pytest.raises(AwsError) as caught:
        await receive(sqs, timeout=timeout)
    return caught.value


async def test_a_message_is_received_as_the_json_that_aws_sent(aws: ScriptedAws, sqs: HotApi) -> None:
    colour = {"DataType": "String", "StringValue": "blue"}
    blob = {"DataType": "Binary", "BinaryValue": "AAH/"}
    (sent,) = aws.send("orders", "grüße \u2028 😀", colour=colour, blob=blob)
    (message,) = await receive(sqs, AttributeNames=["All"], MessageAttributeNames=["All"])
    assert message["MessageId"] == sent
    assert message["Body"] == "grüße \u2028 😀"
    assert message["Attributes"]["ApproximateReceiveCount"] == "1"
    assert message["MessageAttributes"] == {"colour": colour, "blob": blob}


async def test_a_receive_that_found_nothing_is_an_empty_reply(sqs: HotApi) -> None:
    assert await sqs.call("ReceiveMessage", {"QueueUrl": "q/orders"}, timeout=5) == {}


async def test_a_long_poll_returns_what_is_sent_while_it_waits(aws: ScriptedAws, sqs: HotApi) -> None:
    async with create_task_group() as tasks:

        async def poll() -> None:
            (message,) = await receive(sqs, WaitTimeSeconds=20, timeout=30)
            assert message["Body"] == "late"

        tasks.start_soon(poll)
        while not aws.calls("ReceiveMessage"):
            await checkpoint()
        aws.send("orders", "late")


async def test_messages_are_deleted_and_given_back(aws: ScriptedAws, sqs: HotApi) -> None:
    aws.send("orders", "a", "b")
    a, b = await receive(sqs, MaxNumberOfMessages=10)
    assert await delete(sqs, a["ReceiptHandle"]) == {"Successful": [{"Id": "0"}]}
    entry = {"Id": "0", "ReceiptHandle": b["ReceiptHandle"], "VisibilityTimeout": 0}
    params = {"QueueUrl": "q/orders", "Entries": [entry]}
    reply = await sqs.call("ChangeMessageVisibilityBatch", params, timeout=5)
    assert reply == {"Successful": [{"Id": "0"}]}
    assert aws.visible("orders") == ["b"]
    assert aws.in_flight("orders") == []


async def test_failed_entries_of_a_batch_are_a_result_and_no_error(aws: ScriptedAws, sqs: HotApi) -> None:
    aws.send("orders", "a", "b", "c")
    receipts = [message["ReceiptHandle"] for message in await receive(sqs, MaxNumberOfMessages=10)]
    aws.script("DeleteMessageBatch", FailEntries("InternalError", entries={"1"}))
    reply = await delete(sqs, *receipts)
    assert reply["Successful"] == [{"Id": "0"}, {"Id": "2"}]
    assert reply["Failed"] == [{"Id": "1", "Code": "InternalError", "Message": "no", "SenderFault": False}]
    assert aws.in_flight("orders") == ["b"]


async def test_a_stale_receipt_is_a_failed_entry(aws: ScriptedAws, sqs: HotApi) -> None:
    aws.send("orders", "a")
    (message,) = await receive(sqs)
    aws.expire_receipts("orders")
    assert (await delete(sqs, message["ReceiptHandle"]))["Failed"][0]["Code"] == "ReceiptHandleIsInvalid"


CLICK = {"SequenceNumber": "4961", "ApproximateArrivalTimestamp": 1545084650.987, "Data": "AAH/"}
RECORDS: dict[str, dict[str, Any]] = {
    "kinesis": {"NextShardIterator": "AAAA", "MillisBehindLatest": 7, "Records": [CLICK]},
    "dynamodbstreams": {
        "Records": [
            {
                "eventID": "1",
                "eventName": "INSERT",
                "dynamodb": {
                    "ApproximateCreationDateTime": 1479499740,
                    "Keys": {"Id": {"N": "101"}, "raw": {"B": "AAH/"}},
                    "NewImage": {
                        "set": {"BS": ["AAH/", "AA=="]},
                        "deep": {"M": {"l": {"L": [{"NULL": True}]}}},
                    },
                },
            }
        ]
    },
}


def parsed(service: str, found: dict[str, Any]) -> dict[str, Any]:
    """The wire leaves the records of DynamoDB's streams as JSON."""
    return found if service == "kinesis" else {**found, "Records": list(map(orjson.loads, found["Records"]))}


@pytest.mark.parametrize("service", RECORDS)
async def test_stream_records_stay_base64_and_their_times_numbers(
    service: str, aws: ScriptedAws, session: AwsSession, naps: list[float]
) -> None:
    api = await hot(session, service, naps)
    aws.script("GetRecords", Reply(RECORDS[service]))
    found = await api.call("GetRecords", {"ShardIterator": "AAAA", "Limit": 10}, timeout=5)
    assert parsed(service, found) == RECORDS[service]


STREAM_REFUSALS = [
    ("kinesis", Refuse("ProvisionedThroughputExceededException"), Throttled),
    ("kinesis", Refuse("LimitExceededException"), Throttled),
    ("kinesis", Refuse("ExpiredIteratorException"), RequestRefused),
    ("kinesis", Refuse("ResourceNotFoundException"), ResourceNotFound),
    ("kinesis", Refuse("KMSAccessDeniedException"), AccessDenied),
    ("dynamodbstreams", Refuse("com.amazonaws.dynamodb.v20120810#TrimmedDataAccessException"), RequestRefused),
    ("dynamodbstreams", Refuse("com.amazonaws.dynamodb.v20120810#ExpiredIteratorException"), RequestRefused),
    ("dynamodbstreams", Refuse("com.amazonaws.dynamodb.v20120810#ResourceNotFoundException"), ResourceNotFound),
    ("dynamodbstreams", Refuse("com.amazonaws.dynamodb.v20120810#LimitExceededException"), Throttled),
    ("dynamodbstreams", Refuse("InternalServerError", status=500), ServiceFault),
]  # fmt: skip


@pytest.mark.parametrize(("service", "refusal", "kind"), STREAM_REFUSALS)
async def test_a_read_of_a_stream_that_is_refused_is_an_error_of_its_class_and_is_left_to_the_reader(
    service: str, refusal: Refuse, kind: type[AwsError], aws: ScriptedAws, session: AwsSession, facts: Facts
) -> None:
    api = await session.api(service)
    aws.script("GetRecords", refusal)
    with pytest.raises(AwsError) as caught:
        await api("GetRecords", {"ShardIterator": "AAAA"}, 5)
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.operation) == (refusal.code.rpartition("#")[2], "GetRecords")
    assert facts.outcomes() == [caught.value.code]
    assert len(aws.requests) == 1


@pytest.mark.parametrize("service", RECORDS)
async def test_a_read_of_a_stream_that_is_cut_off_is_no_empty_one(
    service: str, aws: ScriptedAws, session: AwsSession
) -> None:
    api = await session.api(service)
    whole = orjson.dumps(RECORDS[service])
    aws.script("GetRecords", Raw(whole[: len(whole) // 2]))
    with pytest.raises(BadReply):
        await api("GetRecords", {"ShardIterator": "AAAA"}, 5)


@pytest.mark.parametrize("service", RECORDS)
async def test_the_calls_of_a_stream_go_to_one_place_and_all_of_them_are_told(
    service: str, aws: ScriptedAws, session: AwsSession, facts: Facts
) -> None:
    aws.script("GetShardIterator", Reply({"ShardIterator": "AAAA"}))
    aws.script("GetRecords", Reply(RECORDS[service]))
    api = await session.api(service)
    where = {"ShardId": "shardId-00000000000000000000-00000000", "ShardIteratorType": "LATEST"}
    arn = "StreamARN" if service == "kinesis" else "StreamArn"
    stream = {arn: f"arn:aws:kinesis:{aws.region}:123456789012:stream/clicks-and-a-longer-name"}
    sought = await api("GetShardIterator", where | stream, 10)
    assert parsed(service, await api("GetRecords", sought, 5)) == RECORDS[service]
    told = [(fact.service, fact.operation, fact.outcome) for fact in facts.requests]
    assert told == [(service, "GetShardIterator", "ok"), (service, "GetRecords", "ok")]


@pytest.mark.parametrize("service", RECORDS)
async def test_a_place_in_a_stream_is_asked_for_again_as_a_settlement_is(
    service: str, aws: ScriptedAws, session: AwsSession, naps: list[float], facts: Facts
) -> None:
    aws.script(
        "GetShardIterator",
        Refuse("LimitExceededException"),
        Raw(b'{"ShardIter'),
        Refuse("InternalFailure", status=500),
        Reply({"ShardIterator": "AAAA"}),
    )
    api = await hot(session, service, naps)
    where = {"ShardId": "shardId-00000000000000000000-00000000", "ShardIteratorType": "TRIM_HORIZON"}
    where["StreamARN" if service == "kinesis" else "StreamArn"] = (
        f"arn:aws:{service}:{aws.region}:123456789012:clicks"
    )
    assert await api.call("GetShardIterator", where, timeout=10) == {"ShardIterator": "AAAA"}
    assert facts.outcomes() == ["LimitExceededException", "BadReply", "InternalFailure", "ok"]
    assert all(nap <= most for nap, most in zip(naps, (0.1, 0.2, 0.4), strict=True))


REFUSALS = [
    (Refuse("com.amazonaws.sqs#QueueDoesNotExist", legacy="AWS.SimpleQueueService.NonExistentQueue"), ResourceNotFound),
    (Refuse("com.amazonaws.sqs#QueueDoesNotExist"), ResourceNotFound),
    (Refuse("AccessDeniedException", status=403), AccessDenied),
    (Refuse("com.amazonaws.sqs#KmsAccessDenied", legacy="KMS.AccessDeniedException"), AccessDenied),
    (Refuse("IncompleteSignature"), CredentialsInvalid),
    (Refuse("com.amazonaws.sqs#RequestThrottled", legacy="RequestThrottled"), Throttled),
    (Refuse("ThrottlingException"), Throttled),
    (Refuse("OverLimit", status=403), Throttled),
    (Refuse("SlowDown", status=503), Throttled),
    (Refuse("InternalFailure", status=500), ServiceFault),
    (Refuse("SomethingNew", status=502), ServiceFault),
    (Refuse("InvalidAddress", status=404), RequestRefused),
]  # fmt: skip


@pytest.mark.parametrize(("refusal", "kind"), REFUSALS)
async def test_a_refusal_is_an_error_of_its_class_with_the_code_of_the_sdks(
    refusal: Refuse, kind: type[AwsError], aws: ScriptedAws, sqs: HotApi, facts: Facts
) -> None:
    aws.script("ReceiveMessage", refusal)
    error = await failure(sqs)
    assert type(error) is kind
    assert error.code == (refusal.legacy or refusal.code.rpartition("#")[2])
    assert error.operation == "ReceiveMessage"
    assert str(error).startswith(f"sqs ReceiveMessage: no ({error.code}); ")
    assert facts.outcomes() == [error.code]


NO_JSON = [(503, ServiceFault), (403, AccessDenied), (429, Throttled), (404, RequestRefused)]


@pytest.mark.parametrize(("status", "kind"), NO_JSON)
async def test_a_refusal_by_something_that_is_not_aws_goes_by_its_status(
    status: int, kind: type[AwsError], aws: ScriptedAws, sqs: HotApi
) -> None:
    aws.script("ReceiveMessage", Raw(b"<html>go away</html>", status, {"Content-Type": "text/html"}))
    error = await failure(sqs)
    assert (type(error), error.code) == (kind, f"HTTP{status}")


UNUSABLE: list[Step] = [
    CutOff(),
    CutOff(honest=False),
    Raw(b""),
    Raw(b'["Messages"]'),
    Raw(b"\xff{}"),
    Close(after=250),
]


@pytest.mark.parametrize("step", UNUSABLE)
async def test_a_reply_that_is_not_whole_is_an_error_and_no_empty_receive(
    step: Step, aws: ScriptedAws, sqs: HotApi, facts: Facts
) -> None:
    aws.send("orders", "a" * 300)
    aws.script("ReceiveMessage", step)
    error = await failure(sqs)
    assert type(error) is BadReply
    assert error.transient
    assert facts.outcomes() == ["BadReply"]


@pytest.mark.parametrize("after", [0, 30])
async def test_a_connection_closed_before_the_reply_costs_one_more_request(
    after: int, aws: ScriptedAws, sqs: HotApi, facts: Facts
) -> None:
    aws.send("orders", "a", "b")
    aws.script("ReceiveMessage", Close(after))
    assert [message["Body"] for message in await receive(sqs)] == ["b"]
    assert facts.outcomes() == ["Unreachable", "ok"]


async def test_an_endpoint_that_closes_every_connection_is_unreachable(aws: ScriptedAws, sqs: HotApi) -> None:
    aws.always("ReceiveMessage", Close())
    error = await failure(sqs)
    assert type(error) is Unreachable
    assert len(aws.requests) == 2


async def test_idle_connections_that_the_server_dropped_do_no_harm(aws: ScriptedAws, sqs: HotApi) -> None:
    await receive(sqs)
    await aws.drop_connections()
    assert await receive(sqs) == []


async def test_an_endpoint_where_nobody_listens_is_unreachable_and_named(
    aws: ScriptedAws, sqs: HotApi
) -> None:
    await aws.__aexit__()
    error = await failure(sqs)
    assert type(error) is Unreachable
    assert f"sqs ReceiveMessage at {aws.endpoint.removeprefix('http://')}: " in str(error)


async def test_a_reply_that_takes_too_long_is_a_timeout(aws: ScriptedAws, sqs: HotApi) -> None:
    hold = Hold()
    aws.script("ReceiveMessage", hold)
    error = await failure(sqs, timeout=0.05)
    assert (type(error), error.code) == (Unreachable, "Timeout")
    hold.release()


async def test_a_failed_receive_is_left_to_the_reader(
    aws: ScriptedAws, sqs: HotApi, naps: list[float]
) -> None:
    aws.throttle("ReceiveMessage", times=2)
    await failure(sqs)
    assert len(aws.requests) == 1
    assert naps == []


async def test_settling_is_tried_again_with_growing_jitter(
    aws: ScriptedAws, sqs: HotApi, naps: list[float], facts: Facts
) -> None:
    aws.script(
        "DeleteMessageBatch", Refuse("RequestThrottled"), CutOff(), Refuse("InternalFailure", status=500)
    )
    assert await delete(sqs, "gone#1") == {"Successful": [{"Id": "0"}]}
    assert facts.outcomes() == ["RequestThrottled", "BadReply", "InternalFailure", "ok"]
    assert all(nap <= most for nap, most in zip(naps, (0.1, 0.2, 0.4), strict=True))


async def test_settling_is_given_up_after_four_attempts(
    aws: ScriptedAws, sqs: HotApi, naps: list[float]
) -> None:
    aws.throttle("DeleteMessageBatch", times=9)
    with pytest.raises(Throttled):
        await delete(sqs, "gone#1")
    assert len(aws.requests) == 4


async def test_settling_is_not_tried_again_past_its_timeout(
    aws: ScriptedAws, sqs: HotApi, facts: Facts
) -> None:
    aws.always("DeleteMessageBatch", Hold())
    with pytest.raises(Unreachable):
        await delete(sqs, "gone#1", timeout=0.05)
    assert facts.outcomes() == ["Timeout"]


async def test_settling_that_aws_refuses_is_not_tried_again(aws: ScriptedAws, sqs: HotApi) -> None:
    aws.script("DeleteMessageBatch", CutOff(), Refuse("AccessDenied", status=403))
    with pytest.raises(AccessDenied):
        await delete(sqs, "gone#1")
    assert len(aws.requests) == 2


async def test_expired_credentials_are_loaded_afresh_once(
    aws: ScriptedAws, sqs: HotApi, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await receive(sqs)
    aws.expired.add(aws.key_id)
    aws.keys["AKIDFRESH"] = ("fresh", "token==")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDFRESH")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fresh")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token==")
    assert await receive(sqs) == []
    assert facts.outcomes() == ["ok", "ExpiredTokenException", "ok"]


async def test_fresh_credentials_that_are_refused_as_well_are_an_error(
    aws: ScriptedAws, sqs: HotApi, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await receive(sqs)
    aws.expired.update((aws.key_id, "AKIDFRESH"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDFRESH")
    assert type(await failure(sqs)) is CredentialsInvalid
    assert facts.outcomes() == ["ok", "ExpiredTokenException", "ExpiredTokenException"]


async def test_expired_credentials_that_nobody_renewed_are_an_error_at_once(
    aws: ScriptedAws, sqs: HotApi
) -> None:
    aws.expired.add(aws.key_id)
    error = await failure(sqs)
    assert type(error) is CredentialsInvalid
    assert str(error).endswith("; refresh the credentials")
    assert len(aws.requests) == 1


async def test_credentials_that_went_away_are_an_error(
    aws: ScriptedAws, sqs: HotApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    await receive(sqs)
    aws.expired.add(aws.key_id)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    error = await failure(sqs)
    assert (type(error), error.code) == (CredentialsInvalid, "NoCredentials")


async def test_a_wrong_secret_shows_no_secret(
    aws: ScriptedAws, session: AwsSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.keys[aws.key_id] = ("something else", "session-token")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session-token")
    error = await failure(await session.hot("sqs"))
    assert type(error) is CredentialsInvalid
    assert "secret access key" in str(error)
    assert "session-token" not in str(error)


async def test_what_is_not_hot_is_refused_unsent(aws: ScriptedAws, sqs: HotApi) -> None:
    with pytest.raises(RequestRefused):
        await sqs.call("PurgeQueue", {}, timeout=5)
    assert aws.requests == []


async def test_a_cancelled_receive_leaves_the_wire_usable(aws: ScriptedAws, sqs: HotApi) -> None:
    hold = Hold()
    aws.script("ReceiveMessage", hold)
    async with create_task_group() as tasks:
        tasks.start_soon(receive, sqs)
        await hold.arrived.wait()
        tasks.cancel_scope.cancel()
    hold.release()
    aws.send("orders", "into the void", "found")
    assert len(await receive(sqs)) == 1
