"""What is particular to destinations other than queues: names, forms, sizes, and answers that say nothing or half of it."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio import to_thread

from poller.app import destinations, functions
from poller.aws import session as aws_session
from poller.aws.session import AwsSession
from poller.config import Aws, parse
from poller.core.failure import mapping_id
from poller.destinations.eventbridge import EventBridgeDestination
from poller.destinations.function import LambdaDestination, OwnFunctionDestination
from poller.destinations.s3 import S3Destination, key
from poller.destinations.sns import SnsDestination
from poller.engine.invoker import World
from poller.engine.slots import Places
from poller.errors import (
    AccessDenied,
    AwsError,
    BadReply,
    DocumentTooLarge,
    FunctionFailed,
    PollerError,
    RequestRefused,
    ResourceNotFound,
    ServiceFault,
    Throttled,
)
from poller.model import Invoked, NotInvoked
from tests.conformance.places import Bucket, Bus, emulated
from tests.e2e.harness import until
from tests.engine.fakes import Recorder, delivery_of
from tests.scripted_aws import Raw, Refuse, Reply, ScriptedAws, Step
from tests.scripted_session import open_aws

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from poller.demo.emulator import Emulator
    from poller.model import Delivery, Outcome

pytestmark = pytest.mark.anyio

REGION = "eu-west-1"
EXAMPLES = Path(__file__).parent.parent / "core" / "event-examples"
BUS = f"arn:aws:events:{REGION}:123456789012:event-bus/results"
FUNCTION = f"arn:aws:lambda:{REGION}:123456789012:function:orders-worker"
#: 2026-01-16T08:41:12.345Z
AT = 1768552872.345
ID = "5f3c1d8e-0000-4000-8000-000000000001"


def failure(name: str = "async-on-failure-retries-exhausted.json", **changes: Any) -> Delivery:
    document = json.loads((EXAMPLES / name).read_text()) | changes
    return replace(delivery_of(document), function_arn=FUNCTION, shard="", at=AT)


@pytest.fixture
async def aws(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ScriptedAws]:
    # botocore's retries would sleep.
    monkeypatch.setattr(aws_session, "COLD_ATTEMPTS", 1)
    async with open_aws() as opened:
        yield opened


@pytest.fixture
async def session(aws: ScriptedAws) -> AsyncIterator[AwsSession]:
    async with AwsSession(Aws(region=REGION, endpoint_url=aws.endpoint), Recorder()) as opened:
        yield opened


# --- S3 -----------------------------------------------------------------------------------------------------------------


def test_the_key_of_a_streams_object_holds_mapping_shard_day_time_and_the_id_of_the_delivery() -> None:
    esm = mapping_id("clicks", "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks")
    sent = replace(failure(), shard="shardId-000000000003")
    expected = f"aws/lambda/{esm}/shardId-000000000003/2026/01/16/2026-01-16T08.41.12-{ID}"
    assert key(sent, esm) == expected


@pytest.mark.parametrize("qualifier", ["", ":live"])
def test_the_key_of_a_queues_object_holds_the_function(qualifier: str) -> None:
    sent = replace(failure(), function_arn=FUNCTION + qualifier)
    assert key(sent, "unused") == f"aws/lambda/async/orders-worker/2026/01/16/2026-01-16T08.41.12-{ID}"


@pytest.mark.slow
async def test_an_object_of_a_stream_equals_what_lambda_writes_byte_for_byte(emulator: Emulator) -> None:
    wanted = json.loads((EXAMPLES / "dest-dynamodb-s3-object.json").read_text())
    metadata = {name: value for name, value in wanted.items() if name != "payload"}
    sent = replace(delivery_of(metadata, json.loads(wanted["payload"])), at=AT)
    async with emulated("s3", emulator.endpoint_url) as place:
        assert isinstance(place, Bucket)
        await place.destination.send(sent)
        assert await place.keys() == [key(sent, "11111111-2222-3333-4444-555555555555")]
        (arrived,) = await place.taken(1)
    assert list(arrived.items()) == list(wanted.items())


@pytest.mark.slow
async def test_a_bucket_takes_what_no_queue_does(emulator: Emulator) -> None:
    sent = failure(requestPayload={"Records": ["x" * 6_000_000]})
    async with emulated("s3", emulator.endpoint_url) as place:
        await place.destination.send(sent)
        assert await place.taken(1) == [sent.document]


async def test_a_bucket_that_does_not_exist_is_named(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws_session, "COLD_ATTEMPTS", 1)
    async with AwsSession(Aws(region=REGION, endpoint_url=emulator.endpoint_url), Recorder()) as session:
        bucket = S3Destination("no-such-bucket", "id", session.cold("s3", REGION))
        assert repr(bucket) == "<S3Destination no-such-bucket>"
        with pytest.raises(ResourceNotFound, match="check the bucket's name"):
            await bucket.send(failure())


# --- SNS ----------------------------------------------------------------------------------------------------------------


async def test_a_topic_that_does_not_exist_is_named(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws_session, "COLD_ATTEMPTS", 1)
    arn = f"arn:aws:sns:{REGION}:000000000000:no-such-topic"
    async with AwsSession(Aws(region=REGION, endpoint_url=emulator.endpoint_url), Recorder()) as session:
        topic = SnsDestination(arn, session.cold("sns", REGION))
        assert repr(topic) == f"<SnsDestination {arn}>"
        with pytest.raises(ResourceNotFound, match="check the topic's name"):
            await topic.send(failure())


async def test_a_message_may_have_256_kb_and_the_emulator_agrees(emulator: Emulator) -> None:
    room = 256 * 1024 - len(json.dumps(failure(requestPayload="").document, separators=(",", ":")))
    async with emulated("sns", emulator.endpoint_url) as place:
        largest = failure(requestPayload="x" * room)
        await place.destination.send(largest)
        assert await place.taken(1) == [largest.document]
        # A letter more, and the error that the function gave has to go.
        await place.destination.send(failure(requestPayload="x" * (room + 1)))
        (arrived,) = await place.taken(1)
        assert "responsePayload" not in arrived
        with pytest.raises(DocumentTooLarge):
            await place.destination.send(failure(requestPayload="x" * 262_144))


# --- EventBridge --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("succeeded", [False, True])
async def test_an_entry_is_what_lambda_puts(aws: ScriptedAws, session: AwsSession, succeeded: bool) -> None:
    event = json.loads((EXAMPLES / "async-eventbridge-failure.json").read_text())
    aws.script("PutEvents", Reply({"FailedEntryCount": 0, "Entries": [{"EventId": "e-1"}]}))
    bus = EventBridgeDestination(BUS, session.cold("events", REGION))
    assert repr(bus) == f"<EventBridgeDestination {BUS}>"
    await bus.send(replace(failure(), succeeded=succeeded))
    (entry,) = aws.calls("PutEvents")[0].params["Entries"]
    kind = event["detail-type"].replace("Failure", "Success" if succeeded else "Failure")
    assert (entry["Source"], entry["DetailType"], entry["Resources"], entry["EventBusName"]) == (
        event["source"],
        kind,
        event["resources"],
        event["resources"][0],
    )
    assert json.loads(entry["Detail"]) == event["detail"]
    assert entry["Time"] == pytest.approx(AT, abs=1)


async def test_what_a_rule_passes_on_is_the_event_that_lambda_would_have_sent(emulator: Emulator) -> None:
    expected = json.loads((EXAMPLES / "async-eventbridge-failure.json").read_text())
    async with emulated("eventbridge", emulator.endpoint_url) as place:
        assert isinstance(place, Bus)
        await place.destination.send(failure())
        assert await place.taken(1) == [expected["detail"]]
        (event,) = place.events
        same = ("detail-type", "source", "region", "detail")
        assert {name: event[name] for name in same} == {name: expected[name] for name in same}
        assert event["resources"] == [place.arn, expected["resources"][1]]


async def test_a_qualified_function_stays_as_it_is_among_the_resources(
    aws: ScriptedAws, session: AwsSession
) -> None:
    aws.script("PutEvents", Reply({"FailedEntryCount": 0, "Entries": [{"EventId": "e-1"}]}))
    await EventBridgeDestination(BUS, session.cold("events", REGION)).send(
        replace(failure(), function_arn=f"{FUNCTION}:live")
    )
    assert aws.calls("PutEvents")[0].params["Entries"][0]["Resources"] == [BUS, f"{FUNCTION}:live"]


def refused(code: str) -> Reply:
    return Reply({"FailedEntryCount": 1, "Entries": [{"ErrorCode": code, "ErrorMessage": "why"}]})


HALF_ANSWERS: list[tuple[Step, type[AwsError], str]] = [
    (refused("ThrottlingException"), Throttled, "why"),
    (refused("AccessDeniedException"), AccessDenied, "events:PutEvents on the event bus"),
    (refused("ResourceNotFoundException"), ResourceNotFound, "check the event bus's name"),
    (refused("InternalFailure"), ServiceFault, "why"),
    (refused("SomethingNew"), ServiceFault, "SomethingNew"),
    (Reply({"FailedEntryCount": 0, "Entries": [{"ErrorCode": "InternalFailure"}]}), ServiceFault, "again"),
    (Reply({"FailedEntryCount": 1, "Entries": [{}]}), BadReply, "without a reason"),
    (Reply({"FailedEntryCount": 1}), BadReply, "without a reason"),
    (Reply({"FailedEntryCount": 0, "Entries": []}), BadReply, "without EventId"),
    (Reply({}), BadReply, "without EventId"),
]


@pytest.mark.parametrize(("step", "kind", "said"), HALF_ANSWERS)
async def test_an_entry_that_was_refused_is_an_error_whatever_the_request_came_to(
    aws: ScriptedAws, session: AwsSession, step: Step, kind: type[AwsError], said: str
) -> None:
    aws.script("PutEvents", step)
    with pytest.raises(AwsError, match=said) as caught:
        await EventBridgeDestination(BUS, session.cold("events", REGION)).send(failure())
    assert (type(caught.value), caught.value.operation) == (kind, "PutEvents")


async def test_all_members_of_an_entry_count_for_its_size(aws: ScriptedAws, session: AwsSession) -> None:
    taken = Reply({"FailedEntryCount": 0, "Entries": [{"EventId": "e-1"}]})
    aws.always("PutEvents", taken)
    bus = EventBridgeDestination(BUS, session.cold("events", REGION))
    sent = failure(responsePayload=None)
    del sent.document["responsePayload"]
    with_text = replace(sent, document=sent.document | {"requestPayload": ""})
    empty = len(json.dumps(with_text.document, separators=(",", ":")))
    kind = "Lambda Function Invocation Result - Failure"
    others = 14 + len("lambda") + len(kind) + len(BUS) + len(f"{FUNCTION}:$LATEST")
    room = 256 * 1024 - others - empty
    await bus.send(replace(sent, document=sent.document | {"requestPayload": "x" * room}))
    with pytest.raises(DocumentTooLarge):
        await bus.send(replace(sent, document=sent.document | {"requestPayload": "x" * (room + 1)}))
    assert len(aws.calls("PutEvents")) == 1


# --- functions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (Raw(b"", status=200), BadReply),
        (Refuse("ResourceNotFoundException", "Function not found", 404), ResourceNotFound),
        (Refuse("TooManyRequestsException", "Rate Exceeded.", 429), Throttled),
        (Refuse("InvalidRequestContentException", "no JSON", 400), RequestRefused),
    ],
)
async def test_a_lambda_function_has_taken_it_when_lambda_says_accepted(
    aws: ScriptedAws, session: AwsSession, step: Step, kind: type[AwsError]
) -> None:
    function = LambdaDestination(FUNCTION, None, session.cold("lambda", REGION))
    assert repr(function) == f"<LambdaDestination {FUNCTION}>"
    aws.script("Invoke", step, Raw(b"", status=202))
    with pytest.raises(AwsError) as caught:
        await function.send(failure())
    assert type(caught.value) is kind
    await function.send(failure())
    call = aws.calls("Invoke")[-1]
    assert call.params["FunctionName"] == FUNCTION
    assert call.params["Qualifier"] == ""
    assert call.headers["x-amz-invocation-type"] == "Event"


async def test_an_event_of_a_lambda_function_may_have_a_megabyte(
    aws: ScriptedAws, session: AwsSession
) -> None:
    function = LambdaDestination(FUNCTION, None, session.cold("lambda", REGION))
    with pytest.raises(DocumentTooLarge):
        await function.send(failure(requestPayload="x" * 2**20))
    assert aws.calls("Invoke") == []


@pytest.mark.slow
async def test_a_real_function_gets_the_document_as_its_event(emulator: Emulator, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr(
            "app.py",
            f"import json\ndef handler(event, context):\n    with open({str(ledger)!r}, 'a') as ledger:\n"
            "        ledger.write(json.dumps(event) + '\\n')\n",
        )
    async with AwsSession(Aws(region=REGION, endpoint_url=emulator.endpoint_url), Recorder()) as session:
        api = session.cold("lambda", REGION)
        made = await api(
            "CreateFunction",
            {
                "FunctionName": tmp_path.name[:40],
                "Runtime": "python3.11",
                "Role": "arn:aws:iam::000000000000:role/undo",
                "Handler": "app.handler",
                "Code": {"ZipFile": code.getvalue()},
            },
            30.0,
        )
        await LambdaDestination(made["FunctionArn"], None, api).send(failure())
        done = partial(until, lambda: ledger.exists() and ledger.read_text().endswith("\n"), "it has run")
        await to_thread.run_sync(done)
    assert [json.loads(line) for line in ledger.read_text().splitlines()] == [failure().document]


async def test_a_function_of_the_daemon_that_was_not_invoked_has_not_taken_it() -> None:
    async def invoke(event: dict[str, Any]) -> Outcome:
        return NotInvoked("no worker is free")

    function = OwnFunctionDestination("undo", invoke)
    assert repr(function) == "<OwnFunctionDestination undo>"
    with pytest.raises(FunctionFailed, match="function undo: no worker is free"):
        await function.send(failure())


async def test_an_event_of_a_function_may_have_6_mb() -> None:
    async def invoke(event: dict[str, Any]) -> Outcome:
        raise AssertionError("it must not be invoked")

    with pytest.raises(DocumentTooLarge):
        await OwnFunctionDestination("undo", invoke).send(failure(requestPayload="x" * 6 * 2**20))


# --- from names to destinations -----------------------------------------------------------------------------------------

UNDO = """
[functions.undo]
handler = "operator:is_"
[functions.far]
runtime = "lambda"
function_arn = "arn:aws:lambda:us-east-1:123456789012:function:far-away:live"
[functions.orders]
handler = "handlers.echo:handler"
[[mappings]]
name = "clicks"
event_source_arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks"
function_name = "orders"
starting_position = "LATEST"
destination_config.on_success.destination = "{destination}"
"""


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ("arn:aws:sqs:eu-west-1:123456789012:done.fifo", "<SqsDestination done.fifo>"),
        (
            "arn:aws:sns:eu-west-1:123456789012:done",
            "<SnsDestination arn:aws:sns:eu-west-1:123456789012:done>",
        ),
        ("arn:aws:s3:::done", "<S3Destination done>"),
        (BUS, f"<EventBridgeDestination {BUS}>"),
        ("undo", "<OwnFunctionDestination undo>"),
        ("arn:aws:lambda:eu-west-1:123456789012:function:undo", "<OwnFunctionDestination undo>"),
        (FUNCTION, f"<LambdaDestination {FUNCTION}>"),
        ("far", "<LambdaDestination arn:aws:lambda:us-east-1:123456789012:function:far-away>"),
    ],
)
async def test_what_a_mapping_names_is_what_it_sends_to(session: AwsSession, named: str, found: str) -> None:
    config = parse(UNDO.format(destination=named), where="f", environ={}, now=0)
    (mapping,) = config.mappings
    loaded = functions.load(config, Places(10), {}, {}, lambda: session)
    world = World(wall=lambda: AT, chance=lambda: 0.5, request_id=lambda: "r-1")
    both = destinations.ends(mapping, destinations.Outside(loaded, session, Recorder(), world), None)
    assert both.on_success is not None
    assert (repr(both.on_success.destination), both.on_failure) == (found, None)
    own = [one.name for one in destinations.functions_of(mapping, loaded)]
    assert own == [name for name in ("undo", "far") if name in (named, named.rpartition(":")[2])]


async def test_a_function_of_the_daemon_runs_within_its_own_limits(session: AwsSession) -> None:
    config = parse(UNDO.format(destination="undo"), where="f", environ={}, now=0)
    places, observer = Places(10), Recorder()
    loaded = functions.load(config, places, {}, {}, lambda: session)
    world = World(wall=lambda: AT, chance=lambda: 0.5, request_id=lambda: "r-1")
    (mapping,) = config.mappings
    route = destinations.ends(
        mapping, destinations.Outside(loaded, session, observer, world), None
    ).on_success
    assert route is not None
    slots = loaded["undo"].slots
    for _ in range(10):
        await slots.acquire()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(route.destination.send, failure())
        await anyio.wait_all_tasks_blocked()
        assert (slots.waiting, observer.of(Invoked)) == (1, [])
        slots.release()
    (fact,) = observer.of(Invoked)
    assert (fact.mapping, fact.function, fact.records, fact.request_id) == ("clicks", "undo", 0, "r-1")
    assert slots.taken == 9


async def test_a_function_of_the_daemon_without_a_place_has_not_taken_it_and_says_why(
    session: AwsSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destinations, "PATIENCE", 0.05)
    text = UNDO.format(destination="undo").replace(
        '"operator:is_"', '"operator:is_"\nreserved_concurrent_executions = RESERVED'
    )
    world = World(wall=lambda: AT, chance=lambda: 0.5, request_id=lambda: "r-1")
    for reserved, taken, why in (
        (0, 0, "function undo: its reserved_concurrent_executions is 0, so it is never invoked"),
        (2, 2, r"function undo: no place of its 2 came free within 0.05 s"),
    ):
        config = parse(text.replace("RESERVED", str(reserved)), where="f", environ={}, now=0)
        loaded = functions.load(config, Places(10), {}, {}, lambda: session)
        for _ in range(taken):
            await loaded["undo"].slots.acquire()
        outside = destinations.Outside(loaded, session, Recorder(), world)
        route = destinations.ends(config.mappings[0], outside, None).on_success
        assert route is not None
        with anyio.fail_after(5), pytest.raises(FunctionFailed, match=why):
            await route.destination.send(failure())
        assert loaded["undo"].slots.waiting == 0


async def test_a_former_destination_is_what_its_function_is_by_now(session: AwsSession) -> None:
    config = parse(UNDO.format(destination="arn:aws:s3:::done"), where="f", environ={}, now=0)
    before = functions.load(config, Places(10), {}, {}, lambda: session)
    world = World(wall=lambda: AT, chance=lambda: 0.5, request_id=lambda: "r-1")
    outside = destinations.Outside(before, session, Recorder(), world)
    present = before
    make = partial(destinations.former, "undo", config.mappings[0], outside, lambda: present)
    with pytest.raises(PollerError, match="function undo is in use no more: name it in a destination_config"):
        make()
    both = parse(UNDO.format(destination="undo"), where="f", environ={}, now=0)
    present = functions.load(both, Places(10), {}, {}, lambda: session)
    await make().send(failure())
