"""What `poller failures` finds in the spool and under parked keys, and what it says of what it cannot look into.

Queues and buckets are looked into with the real daemon, in `tests/e2e/test_replay.py`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest

from poller.app import failing
from poller.app.failing import Looking, look, show
from poller.config.mapping import Mapping
from poller.core import spooled
from poller.errors import AccessDenied, ReplayRefused, StoreError
from poller.model import SpoolEntry, SpoolKind, SpoolLimits
from poller.stores.memory import MemoryStore
from tests.engine.fakes import EPOCH, Recorder, delivery_of

pytestmark = pytest.mark.anyio

STREAM = "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks"
QUEUE = "arn:aws:sqs:eu-west-1:123456789012:orders"
FAILED = "arn:aws:sqs:eu-west-1:123456789012:failed"
FUNCTION = "arn:aws:lambda:eu-west-1:123456789012:function:count"
LIMITS = SpoolLimits(100_000, 2**30)


class Session:
    """Calls of SQS and S3 that are answered from `replies`, or denied."""

    def __init__(self) -> None:
        self.replies: dict[str, Any] = {}
        self.calls: list[str] = []

    async def api(self, service: str, region: str | None = None) -> Any:
        return self._call

    def cold(self, service: str, region: str | None = None) -> Any:
        return self._call

    async def _call(self, operation: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        self.calls.append(operation)
        if operation not in self.replies:
            raise AccessDenied(f"the role needs {operation}")
        reply = self.replies[operation]
        return (reply.pop(0) if reply else {}) if isinstance(reply, list) else reply


class State:
    def __init__(self) -> None:
        self.store = MemoryStore()
        self.broken: StoreError | None = None

    async def spool(self) -> Any:
        if self.broken:
            raise self.broken
        return self.store.spool


@dataclass
class Around:
    session: Session
    state: State
    observer: Recorder
    close_timeout: float = 1.0


class Rig:
    spools = True

    def __init__(self) -> None:
        self.session, self.state = Session(), State()
        around: Any = Around(self.session, self.state, Recorder())
        self._around = around

    @property
    def looking(self) -> Looking:
        """Another look."""
        return Looking(self._around, lambda mapping: FUNCTION, spools=self.spools)

    async def put(self, kind: SpoolKind, key: str, count: int, message: str = "no order {}") -> None:
        entries = [
            SpoolEntry(
                kind=kind,
                mapping="clicks",
                id=f"{key}-{at}",
                key=key,
                shard="s-1",
                at=EPOCH + at,
                body=b'{"payload": "{\\"Records\\": [%d]}"}' % at,
                error_type="KeyError" if message else "",
                error_message=message.format(at),
            )
            for at in range(count)
        ]
        assert await self.state.store.spool.put(entries, LIMITS)

    async def look(self, *mappings: Mapping) -> list[dict[str, Any]]:
        return await look(mappings, self.looking)


def mapping(arn: str = STREAM, **more: Any) -> Mapping:
    streams = {} if ":sqs:" in arn else {"starting_position": "LATEST"}
    return Mapping(name="clicks", event_source_arn=arn, function_name="count", **streams, **more)


def failing_to(destination: str) -> dict[str, Any]:
    return {"destination_config": {"on_failure": {"destination": destination}}}


async def test_a_mapping_without_anything_has_no_places() -> None:
    assert await Rig().look(mapping(), mapping()) == []


async def test_what_is_spooled_and_parked_is_grouped_by_its_error() -> None:
    rig = Rig()
    sent = replace(delivery_of({"version": "1.0"}), error_type="KeyError", records=5)
    entries = [
        spooled.entry(replace(sent, id=f"d-{at}", error_message=f"no order {at}"), FAILED, EPOCH + at)
        for at in range(3)
    ]
    assert await rig.state.store.spool.put(entries, LIMITS)
    await rig.put("parked", "customer 7", 2, message="")
    spool, parked = await rig.look(mapping())
    assert (spool["where"], spool["name"], spool["total"], spool["sample"]) == ("spool", FAILED, 3, False)
    (group,) = spool["groups"]
    assert (group["what"], group["fingerprint"], group["count"]) == ("KeyError", "no order <number>", 3)
    assert (group["newest"], group["oldest"], group["records"]) == (EPOCH + 2, EPOCH, 15)
    assert (parked["where"], parked["name"], parked["total"]) == ("parked", "customer 7", 2)
    assert [(one["what"], one["records"]) for one in parked["groups"]] == [("parked", 2)]


async def test_of_very_many_only_a_sample_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failing, "ENTRIES", 60)
    rig = Rig()
    await rig.put("parked", "customer 7", 500)
    (place,) = await rig.look(mapping())
    assert (place["total"], place["looked_at"], place["sample"]) == (500, 60, True)
    await rig.put("parked", "customer 8", 500)
    assert [place["looked_at"] for place in await rig.look(mapping())] == [30, 30]


async def test_keys_that_are_too_many_to_be_listed_are_told_of_as_a_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(failing, "KEYS", 2)
    rig = Rig()
    for key in "abcd":
        await rig.put("parked", key, 3)
    places = await rig.look(mapping())
    assert [(one["name"], one["total"], one["looked_at"]) for one in places] == [
        ("a", 3, 3),
        ("b", 3, 3),
        ("(2 more)", 6, 0),
    ]


async def test_one_that_waits_is_shown_in_full_with_what_is_json_in_it() -> None:
    rig = Rig()
    await rig.put("parked", "customer 7", 2)
    (place,) = await rig.look(mapping())
    id_ = place["groups"][0]["newest_id"]
    shown = await show(id_, [mapping()], rig.looking)
    assert shown == {
        "id": id_,
        "key": "customer 7",
        "shard": "s-1",
        "at": "2023-11-14T22:13:21Z",
        "errorType": "KeyError",
        "errorMessage": "no order 1",
        "body": {"payload": {"Records": [1]}},
    }


@pytest.mark.parametrize("id_", ["parked:clicks:99", "parked:clicks:x", "spool:clicks:1"])
async def test_what_waits_no_more_is_not_there(id_: str) -> None:
    rig = Rig()
    await rig.put("parked", "customer 7", 2)
    with pytest.raises(KeyError):
        await show(id_, [mapping()], rig.looking)


@pytest.mark.parametrize(
    ("id_", "line"),
    [("nonsense", "as `poller failures` shows it"), ("parked:nobody:1", "there is no such mapping")],
)
async def test_what_is_no_id_is_refused(id_: str, line: str) -> None:
    with pytest.raises(ReplayRefused, match=line):
        await show(id_, [mapping()], Rig().looking)


async def test_a_store_that_cannot_be_read_is_said_so() -> None:
    rig = Rig()
    rig.state.broken = StoreError("the file is damaged")
    (place,) = await rig.look(mapping())
    assert (place["where"], place["note"]) == ("spool", "the file is damaged")


@pytest.mark.parametrize("destination", [FAILED, "arn:aws:s3:::failed"])
async def test_a_destination_that_cannot_be_looked_into_says_why_and_harms_no_other(destination: str) -> None:
    rig = Rig()
    await rig.put("parked", "customer 7", 1)
    denied, parked = await rig.look(mapping(**failing_to(destination)))
    assert denied["note"].startswith("the role needs ")
    assert denied["total"] is None
    assert parked["total"] == 1


async def test_what_only_passes_on_is_named() -> None:
    (place,) = await Rig().look(mapping(**failing_to("arn:aws:sns:eu-west-1:123456789012:failed")))
    assert (place["where"], place["note"]) == (
        "elsewhere",
        "it passes on what it gets: look where that goes",
    )


async def test_a_queue_that_counts_receives_is_only_counted() -> None:
    rig = Rig()
    attributes = {
        "ApproximateNumberOfMessages": "7",
        "ApproximateNumberOfMessagesNotVisible": "2",
        "RedrivePolicy": "{}",
    }
    rig.session.replies = {
        "GetQueueUrl": {"QueueUrl": "http://queue"},
        "GetQueueAttributes": {"Attributes": attributes},
    }
    (place,) = await rig.look(mapping(**failing_to(FAILED)))
    assert (place["total"], place["looked_at"]) == (7, 0)
    assert place["note"] == "it has a redrive policy, and to look counts as a receive: only counted"


async def test_an_empty_queue_is_not_received_from() -> None:
    rig = Rig()
    counts = {"ApproximateNumberOfMessages": "0", "ApproximateNumberOfMessagesNotVisible": "2"}
    rig.session.replies = {
        "GetQueueUrl": {"QueueUrl": "http://queue"},
        "GetQueueAttributes": {"Attributes": counts},
    }
    (place,) = await rig.look(mapping(**failing_to(FAILED)))
    assert (place["total"], place["note"]) == (0, "2 more are received by somebody now")


async def test_a_queue_whose_dead_letters_cannot_be_found_says_why() -> None:
    (place,) = await Rig().look(mapping(QUEUE))
    assert (place["where"], place["note"]) == ("dead_letters", "the role needs GetQueueUrl")


async def test_a_queue_without_dead_letters_has_no_such_place() -> None:
    rig = Rig()
    rig.session.replies = {
        "GetQueueUrl": {"QueueUrl": "http://queue"},
        "GetQueueAttributes": {"Attributes": {}},
    }
    assert await rig.look(mapping(QUEUE)) == []
    with pytest.raises(ReplayRefused, match="has no dead-letter queue"):
        await show("dead_letters:clicks:m-1", [mapping(QUEUE)], rig.looking)


@pytest.mark.parametrize("where", ["queue", "objects"])
async def test_a_mapping_without_that_destination_has_nothing_to_show(where: str) -> None:
    with pytest.raises(ReplayRefused, match="has no such destination"):
        await show(f"{where}:clicks:m-1", [mapping()], Rig().looking)


async def test_what_takes_too_long_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failing, "PATIENCE", 0.01)
    rig = Rig()

    async def slow(*_: Any) -> Any:
        import anyio

        await anyio.sleep_forever()

    monkeypatch.setattr(rig.session, "api", slow)
    (place,) = await rig.look(mapping(**failing_to(FAILED)))
    assert place["note"].startswith("it could not be looked into within")


def test_objects_of_queues_and_of_streams_lie_in_different_places() -> None:
    arn = "arn:aws:lambda:eu-west-1:123456789012:function:count"
    assert failing.object_prefix(mapping(QUEUE), arn) == "aws/lambda/async/count/"
    assert failing.object_prefix(mapping(), arn).startswith("aws/lambda/")


async def test_a_spooled_delivery_without_an_error_is_named_by_its_condition_unless_it_is_large() -> None:
    rig = Rig()
    small = replace(delivery_of({"version": "1.0"}), records=5)
    large = replace(small, id="d-2", document={"text": "x" * failing.SMALL})
    entries = [spooled.entry(one, FAILED, EPOCH) for one in (small, large)]
    assert await rig.state.store.spool.put(entries, LIMITS)
    (place,) = await rig.look(mapping())
    assert sorted((one["what"], one["records"]) for one in place["groups"]) == [
        ("RetryAttemptsExhausted", 5),
        ("not delivered", 0),
    ]


async def test_a_queue_that_may_be_counted_and_not_received_from_says_why_and_harms_no_other() -> None:
    rig = Rig()
    await rig.put("parked", "customer 7", 1)
    counts = {"ApproximateNumberOfMessages": "3", "ApproximateNumberOfMessagesNotVisible": "0"}
    rig.session.replies = {
        "GetQueueUrl": {"QueueUrl": "http://queue"},
        "GetQueueAttributes": {"Attributes": counts | {"VisibilityTimeout": "30"}},
    }
    denied, parked = await rig.look(mapping(**failing_to(FAILED)))
    assert (denied["total"], denied["note"]) == (3, "the role needs ReceiveMessage")
    assert parked["total"] == 1


def message(id_: str, source: str) -> dict[str, Any]:
    info = {"shardId": "s", "streamArn": source}
    body = {"requestContext": {"condition": "RetryAttemptsExhausted"}, "KinesisBatchInfo": info}
    return {
        "MessageId": id_,
        "ReceiptHandle": id_,
        "Body": json.dumps(body),
        "MD5OfBody": "",
        "Attributes": {},
    }


async def test_a_queue_that_two_mappings_share_is_received_from_once_and_each_sees_its_own() -> None:
    rig = Rig()
    other = STREAM.replace("clicks", "views")
    counts = {"ApproximateNumberOfMessages": "4", "ApproximateNumberOfMessagesNotVisible": "0"}
    messages = [message("a", STREAM), message("b", other), message("c", STREAM)]
    rig.session.replies = {
        "GetQueueUrl": {"QueueUrl": "http://queue"},
        "GetQueueAttributes": {"Attributes": counts | {"VisibilityTimeout": "30"}},
        "ReceiveMessage": [{"Messages": messages}, {"Messages": [message("d", STREAM) | {"Body": "what?"}]}],
        "ChangeMessageVisibilityBatch": {},
    }
    views = mapping(other, **failing_to(FAILED)).model_copy(update={"name": "views"})
    first, second = await rig.look(mapping(**failing_to(FAILED)), views)
    assert rig.session.calls.count("ReceiveMessage") == 2
    for place, count, others in ((first, 2, 1), (second, 1, 2)):
        assert (place["total"], place["looked_at"], place["sample"]) == (4, 4, False)
        assert place["note"] == f"{others} of those looked at are about other sources"
        assert {one["what"]: one["count"] for one in place["groups"]} == {
            "RetryAttemptsExhausted": count,
            "unreadable": 1,
        }


async def test_where_nothing_is_ever_spooled_no_state_is_opened() -> None:
    rig = Rig()
    rig.spools, rig.state.broken = False, StoreError("the state is shared")
    assert await rig.look(mapping()) == []


@pytest.mark.parametrize("key", ["private/key", "aws/lambda/another/object", "aws/lambda"])
async def test_of_a_bucket_nothing_is_shown_but_what_failed(key: str) -> None:
    rig = Rig()
    rig.session.replies = {"GetObject": {"Body": None}}
    with pytest.raises(KeyError):
        await show(f"objects:clicks:{key}", [mapping(**failing_to("arn:aws:s3:::failed"))], rig.looking)
    assert rig.session.calls == []


async def test_one_entry_of_the_spool_is_discarded_for_good_and_told_of_once_more() -> None:
    rig = Rig()
    await rig.put("parked", "customer 7", 3)
    shown = await show("parked:clicks:2", [mapping()], rig.looking)
    assert failing.mapping_of("parked:clicks:2") == "clicks"
    assert await failing.discard("parked:clicks:2", rig.looking) == shown
    with pytest.raises(KeyError):
        await failing.discard("parked:clicks:2", rig.looking)
    with pytest.raises(KeyError):
        await failing.discard("spool:clicks:1", rig.looking)
    left = await rig.state.store.spool.take("clicks", "parked")
    assert [entry.number for entry in left] == [1, 3]


@pytest.mark.parametrize(
    ("id_", "line"),
    [
        ("queue:clicks:m-1", "only what is spooled or parked can be discarded: delete others where they are"),
        ("nonsense", "an id is as `poller failures` shows it"),
    ],
)
async def test_nothing_else_is_discarded(id_: str, line: str) -> None:
    with pytest.raises(ReplayRefused, match=line):
        failing.mapping_of(id_)
