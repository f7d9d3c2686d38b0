"""Tumbling windows in the engine: state from invocation to invocation, cuts, and the end of each window.

A test begins at the start of a window, and windows take ten seconds here. A shard that is idle is asked every 20 seconds.
"""

from __future__ import annotations

from collections import Counter

import anyio
import pytest
import trio
from hypothesis import HealthCheck, given, register_random, settings
from hypothesis import strategies as st

from poller.core import windows
from poller.core.retry import StreamPolicy
from poller.destinations.memory import MemoryDestination
from poller.errors import Unreachable
from poller.model import Checkpoint, Delivered, Dropped, Invoked, Returned
from poller.stores.memory import MemoryStore
from tests.engine.fakes import BUSY, EPOCH, ERROR, Function, in_virtual_time, settle_down, virtual, world
from tests.engine.stream_fakes import Clicks, Stream

register_random(trio._core._run._r)

START = int(EPOCH)


def add_up(call):
    """The reply of a handler that counts the records of its window."""
    event = call.invocation.event
    return Returned({"state": {"seen": event["state"].get("seen", 0) + len(event["Records"])}})


class Counting(Function):
    """Counts, unless there is one of `replies` left (None: it counts). Keeps what it saw."""

    def __init__(self, *replies):
        super().__init__(handler=self._count)
        self.replies = list(replies)
        self.seen = []

    async def _count(self, call):
        event = call.invocation.event
        self.seen.append((call.ids, event["state"], event["isFinalInvokeForWindow"]))
        reply = add_up(call)
        event["state"] = event["Records"] = "changed by the handler"
        return (self.replies.pop(0) if self.replies else None) or reply


def windowed(*replies, **more):
    return Clicks(function=Counting(*replies), window_length=10, **more)


def seen(count):
    return {"seen": count} if count else {}


def invoked(*ids, after=0):
    """An invocation with records, `after` so many before it in its window."""
    return (list(ids), seen(after), False)


def final(count):
    return ([], seen(count), True)


def put_at(stream, second):
    """A record that arrived so many seconds after the start."""
    (id_,) = stream.put()
    stream.records["shard-000"][-1] = stream.records["shard-000"][-1]._replace(arrived=EPOCH + second)
    return id_


def window_of(clicks):
    return windows.load(clicks.keeper.checkpoints["shard-000"].window)


# --- state and cuts -----------------------------------------------------------------------------------------------------


@virtual
async def test_each_invocation_gets_the_state_that_the_one_before_it_returned():
    clicks = windowed(batch_size=2)
    clicks.stream.put(5)
    async with clicks.running():
        await settle_down()
        assert window_of(clicks) == windows.Window(START, START + 10, '{"seen":5}')
    assert clicks.function.seen == [invoked("1", "2"), invoked("3", "4", after=2), invoked("5", after=4)]
    event = clicks.function.calls[0].invocation.event
    assert event["window"] == {"start": "2023-11-14T22:13:20Z", "end": "2023-11-14T22:13:30Z"}
    assert event["isWindowTerminatedEarly"] is False


@virtual
async def test_a_batch_is_cut_at_the_end_of_its_window_which_ends_with_an_invocation_of_its_own():
    clicks = windowed()
    for second in (0, 9.9, 10, 35):
        put_at(clicks.stream, second)
    async with clicks.running():
        await settle_down()
    assert clicks.function.seen == [invoked("1", "2"), final(2), invoked("3"), final(1), invoked("4")]
    assert [call.invocation.event["window"]["start"][-3:] for call in clicks.function.calls] == [
        "20Z",
        "20Z",
        "30Z",
        "30Z",
        "50Z",
    ]
    facts = clicks.observer.of(Invoked)
    assert [fact.records for fact in facts] == [2, 0, 1, 0, 1]
    assert len({fact.request_id for fact in facts}) == 5


@virtual
async def test_a_late_record_joins_the_open_window():
    clicks = windowed()
    for second in (15, 3, 18, 22):
        put_at(clicks.stream, second)
    async with clicks.running():
        await settle_down()
    assert clicks.function.seen == [invoked("1", "2", "3"), final(3), invoked("4")]


@virtual
async def test_halves_of_a_batch_hand_their_state_on():
    clicks = windowed(ERROR, policy=StreamPolicy(bisect_batch_on_function_error=True))
    clicks.stream.put(4)
    async with clicks.running():
        await settle_down()
    assert clicks.function.seen == [
        invoked("1", "2", "3", "4"),
        invoked("1", "2"),
        invoked("3", "4", after=2),
    ]


@virtual
async def test_the_state_of_a_partial_response_is_carried_on_to_what_is_left():
    partly = Returned({"state": {"seen": 2}, "batchItemFailures": [{"itemIdentifier": "3"}]})
    clicks = windowed(partly, partial=True)
    clicks.stream.put(4)
    async with clicks.running():
        await settle_down()
        assert clicks.keeper.checkpoints["shard-000"].sequence_number == "4"
    assert clicks.function.seen == [invoked("1", "2", "3", "4"), invoked("3", "4", after=2)]


@pytest.mark.parametrize(
    "reply",
    [ERROR, BUSY, Returned(None), Returned({"batchItemFailures": []}), Returned({"state": 7}), Returned([])],
)
@virtual
async def test_a_retry_gets_the_old_state_after_an_error_and_after_a_reply_without_a_state(reply):
    clicks = windowed(None, reply, reply, batch_size=2)
    clicks.stream.put(4)
    async with clicks.running():
        await anyio.sleep(1)
        # As saved: nothing of an attempt that failed.
        assert window_of(clicks).state == '{"seen":2}'
        await anyio.sleep(5)
        assert window_of(clicks).state == '{"seen":4}'
    assert clicks.function.seen == [invoked("1", "2"), *[invoked("3", "4", after=2)] * 3]
    assert clicks.function.times == [0, 0, 0.5, 1.5]


# --- how a window ends --------------------------------------------------------------------------------------------------


@virtual
async def test_the_window_of_an_idle_shard_is_closed_when_it_is_over_for_long():
    clicks = windowed()
    clicks.stream.put(1)
    async with clicks.running():
        await anyio.sleep(10 + windows.GRACE)
        assert clicks.function.seen == [invoked("1")]
        await anyio.sleep(20)
        assert clicks.function.seen == [invoked("1"), final(1)]
        assert window_of(clicks) is None
        clicks.stream.put(1)
        await settle_down()
    assert clicks.function.seen[2:] == [invoked("2")]
    assert await clicks.position_of() == "2"


@virtual
async def test_the_window_of_a_shard_that_cannot_be_read_stays_open():
    clicks = windowed()
    clicks.stream.put(1)
    async with clicks.running():
        await settle_down()
        clicks.stream.failures = [Unreachable()] * 10
        await anyio.sleep(21)
        put_at(clicks.stream, 5)
        await anyio.sleep(500)
    assert clicks.function.seen[:2] == [invoked("1"), invoked("2", after=1)]


@virtual
async def test_the_end_of_a_shard_ends_its_window():
    clicks = windowed()
    clicks.stream.put(1)
    async with clicks.running():
        await settle_down()
        child, _ = clicks.stream.split("shard-000")
        clicks.stream.put(1, shard=child)
        await anyio.sleep(25)
    assert clicks.function.seen == [invoked("1"), final(1), invoked("2")]
    saved = (await clicks.saved())["shard-000"]
    assert (saved.finished, saved.window) == (True, "")


BIG = Returned({"state": {"text": "x" * windows.STATE_LIMIT}})


def flags(clicks):
    return [
        (
            call.ids,
            call.invocation.event["isFinalInvokeForWindow"],
            call.invocation.event["isWindowTerminatedEarly"],
        )
        for call in clicks.function.calls
    ]


@virtual
async def test_a_state_that_has_grown_too_large_ends_its_window_early():
    clicks = windowed(BIG, batch_size=2)
    clicks.stream.put(3)
    async with clicks.running():
        await settle_down()
    assert flags(clicks) == [(["1", "2"], False, False), ([], True, True), (["3"], False, False)]
    assert clicks.function.seen[1][1] == BIG.payload["state"]
    assert clicks.function.seen[2][1] == {}
    assert clicks.function.calls[2].invocation.event["window"]["start"] == "2023-11-14T22:13:20Z"


@virtual
async def test_a_window_that_a_start_finds_with_too_large_a_state_ends_before_the_next_batch():
    clicks = windowed()
    clicks.stream.put(2)
    outgrown = windows.dump(windows.Window(START, START + 10, '"' + "x" * windows.STATE_LIMIT + '"'))
    await clicks.store.save("clicks", "shard-000", Checkpoint("1", window=outgrown))

    async def handler(call):
        return Returned({"state": {}})

    clicks.function._handler = handler
    async with clicks.running():
        await settle_down()
    assert flags(clicks) == [([], True, True), (["2"], False, False)]


# --- the final invocation -----------------------------------------------------------------------------------------------


@virtual
async def test_the_final_invocation_is_retried_and_given_up_as_a_batch_is():
    clicks = windowed(None, ERROR, BUSY, ERROR, policy=StreamPolicy(maximum_retry_attempts=1))
    put_at(clicks.stream, 0)
    put_at(clicks.stream, 10)
    async with clicks.running():
        await settle_down()
        assert clicks.keeper.shards()[0].doing == "retrying the end of a window, 1 attempts failed"
        await anyio.sleep(0.6)
        assert clicks.keeper.shards()[0].doing == "waiting until the end of a window can be invoked"
        await anyio.sleep(10)
    assert clicks.function.seen == [invoked("1"), final(1), final(1), final(1), invoked("2")]
    ids = [call.invocation.request_id for call in clicks.function.calls]
    assert ids == ["r-1", "r-2", "r-2", "r-2", "r-3"]
    assert clicks.observer.of(Dropped) == [
        Dropped("clicks", "shard-000", 0, "RetryAttemptsExhausted", "", "")
    ]


@virtual
async def test_a_final_invocation_may_return_anything():
    clicks = windowed(None, Returned("done"))
    put_at(clicks.stream, 0)
    put_at(clicks.stream, 10)
    async with clicks.running():
        await settle_down()
    assert clicks.function.seen == [invoked("1"), final(1), invoked("2")]


@virtual
async def test_destinations_are_told_of_the_window():
    clicks = windowed(
        ERROR,
        None,
        ERROR,
        policy=StreamPolicy(maximum_retry_attempts=0),
        destination=MemoryDestination(),
        batch_size=1,
    )
    for second in (0, 5, 10):
        put_at(clicks.stream, second)
    async with clicks.running():
        await settle_down()
    batch, end = clicks.destination.deliveries
    bounds = {"start": "2023-11-14T22:13:20Z", "end": "2023-11-14T22:13:30Z"}
    told = {"window": bounds, "isFinalInvokeForWindow": False, "isWindowTerminatedEarly": False}
    assert batch.document["timeWindowInfo"] == told
    assert end.document["timeWindowInfo"] == {**told, "isFinalInvokeForWindow": True}
    assert set(end.document["KinesisBatchInfo"]) == {"shardId", "streamArn"}
    assert [record["messageId"] for record in batch.event["Records"]] == ["1"]
    assert (end.event["Records"], end.event["state"], end.event["isFinalInvokeForWindow"]) == (
        [],
        seen(1),
        True,
    )
    assert [fact.records for fact in clicks.observer.of(Delivered)] == [1, 0]


# --- pauses and restarts ------------------------------------------------------------------------------------------------


def _next_record(clicks):
    put_at(clicks.stream, 0)
    put_at(clicks.stream, 10)


def _idle(clicks):
    clicks.stream.put()


def _end_of_shard(clicks):
    clicks.stream.put()
    clicks.stream.close("shard-000")


@pytest.mark.parametrize("shut", [0.0, 30.0])
@pytest.mark.parametrize("reply", [ERROR, BUSY])
@pytest.mark.parametrize(
    ("course", "until", "rest"),
    [(_next_record, 0.6, [invoked("2")]), (_idle, 140.6, []), (_end_of_shard, 0.6, [])],
)
@virtual
async def test_a_door_that_closes_during_the_retries_of_a_final_invocation_loses_nothing(
    course, until, rest, reply, shut
):
    clicks = windowed(None, *[reply] * 99)
    course(clicks)
    async with clicks.running() as keeper:
        await anyio.sleep(until)
        assert clicks.function.seen == [invoked("1"), *[final(1)] * 2]
        keeper.close()
        await anyio.sleep(shut)
        assert window_of(clicks) is not None
        clicks.function.replies.clear()
        keeper.open()
        await anyio.sleep(windows.QUIET + 41)
    assert clicks.function.seen == [invoked("1"), *[final(1)] * 3, *rest]
    assert await clicks.position_of() == str(1 + len(rest))
    saved = (await clicks.saved())["shard-000"]
    assert (saved.finished, bool(saved.window)) == (course is _end_of_shard, bool(rest))


@virtual
async def test_a_door_that_closes_during_an_early_end_leaves_that_end_for_later():
    clicks = windowed(BIG, *[ERROR] * 9, batch_size=1)
    clicks.stream.put(1)
    async with clicks.running() as keeper:
        await anyio.sleep(1)
        keeper.close()
        await anyio.sleep(60)
        clicks.stream.put(1)
        clicks.function.replies.clear()
        keeper.open()
        await settle_down()
    # Tried at 0, 0.5 and after the pause.
    assert flags(clicks) == [(["1"], False, False), *[([], True, True)] * 3, (["2"], False, False)]


@virtual
async def test_after_a_pause_a_batch_that_was_being_retried_goes_on_in_its_windows():
    clicks = windowed(None, None, ERROR, ERROR)
    for second in (0, 10, 12, 20):
        put_at(clicks.stream, second)
    async with clicks.running() as keeper:
        await anyio.sleep(0.7)
        keeper.close()
        await anyio.sleep(5)
        keeper.open()
        await settle_down()
    assert clicks.function.seen == [
        invoked("1"),
        final(1),
        *[invoked("2", "3")] * 3,
        final(2),
        invoked("4"),
    ]
    assert await clicks.position_of() == "4"


@virtual
async def test_what_a_handler_has_seen_stays_seen_when_its_window_ends_before_it_is_retried():
    partly = Returned({**BIG.payload, "batchItemFailures": [{"itemIdentifier": "2"}]})
    clicks = windowed(partly, ERROR, partial=True)
    clicks.stream.put(3)

    async with clicks.running() as keeper:
        await settle_down()
        keeper.close()
        await settle_down()
        keeper.open()
        await settle_down()
    assert [call[0] for call in clicks.function.seen] == [["1", "2", "3"], ["2", "3"], [], ["2", "3"]]
    assert clicks.envelope.rebuilt == ["2", "3"] * 2
    assert await clicks.position_of() == "3"


@virtual
async def test_the_state_survives_a_restart_together_with_the_position():
    clicks = windowed(batch_size=2)
    clicks.stream.put(4)
    async with clicks.running():
        await settle_down()
    saved = (await clicks.saved())["shard-000"]
    assert (saved.sequence_number, windows.load(saved.window).state) == ("4", '{"seen":4}')
    again = windowed(stream=clicks.stream, store=clicks.store)
    again.stream.put(1)
    async with again.running():
        await settle_down()
        put_at(again.stream, 10)
        await settle_down()
    assert again.function.seen == [invoked("5", after=4), final(5), invoked("6")]


@virtual
async def test_a_read_that_is_empty_although_more_is_to_come_ends_no_window_after_a_restart():
    clicks = windowed()
    clicks.stream.put(1)
    async with clicks.running():
        await settle_down()
    put_at(clicks.stream, 5)
    await anyio.sleep(600)
    clicks.stream.blank_reads = 10
    again = windowed(stream=clicks.stream, store=clicks.store, world=clicks.world)
    async with again.running():
        await anyio.sleep(15)
        assert again.function.seen == [invoked("2", after=1)]
        await anyio.sleep(windows.QUIET + 41)
    assert again.function.seen[1:] == [final(2)]


@virtual
async def test_a_read_that_is_empty_although_more_is_to_come_ends_no_window_after_a_pause():
    clicks = windowed()
    clicks.stream.put(1)
    async with clicks.running() as keeper:
        await anyio.sleep(windows.QUIET + 50)
        keeper.close()
        put_at(clicks.stream, 5)
        await anyio.sleep(600)
        clicks.stream.blank_reads = 10
        keeper.open()
        await anyio.sleep(15)
    assert clicks.function.seen == [invoked("1"), invoked("2", after=1)]


@virtual
async def test_a_restart_in_the_middle_repeats_from_the_state_at_the_checkpoint():
    clicks = windowed(batch_size=1)
    clicks.stream.put(2)
    clicks.function._handler = None
    clicks.function._replies = [Returned({"state": seen(1)}), *[ERROR] * 9]
    async with clicks.running():
        await anyio.sleep(3)
    again = windowed(stream=clicks.stream, store=clicks.store)
    async with again.running():
        await settle_down()
    assert again.function.seen == [invoked("2", after=1)]


@virtual
async def test_a_window_that_was_closed_is_closed_for_the_next_start_too():
    clicks = windowed()
    clicks.stream.put(1)
    async with clicks.running():
        await anyio.sleep(150)
    saved = (await clicks.saved())["shard-000"]
    assert (saved.sequence_number, saved.window) == ("1", "")
    again = windowed(stream=clicks.stream, store=clicks.store)
    async with again.running():
        await anyio.sleep(300)
    assert again.function.seen == []


@virtual
async def test_without_windows_an_old_window_in_the_checkpoint_is_of_no_interest():
    clicks = Clicks()
    clicks.stream.put(1)
    await clicks.store.save("clicks", "shard-000", Checkpoint("", window=windows.dump(windows.Window(0, 10))))
    async with clicks.running():
        await anyio.sleep(200)
    assert clicks.function.batches == [["1"]]
    assert (await clicks.saved())["shard-000"].window == ""


# --- the law ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["put", "put", "pause", "restart", "outage"]),
            st.sampled_from([0.0, 0.7, 4.0, 35.0, 200.0]),
        ),
        max_size=15,
    ),
    replies=st.lists(st.sampled_from([None, None, ERROR, BUSY, Returned(None)]), max_size=15),
    batch_size=st.integers(1, 4),
    bisect=st.booleans(),
    closed=st.booleans(),
)
def test_every_window_ends_with_the_count_of_its_records_whatever_happens(
    steps, replies, batch_size, bisect, closed
):
    async def course():
        # One stream, store and time over all restarts.
        stream, store, clock, ended = Stream(), MemoryStore(), world(), set()

        async def handler(call):
            await anyio.sleep(0.1)
            event = call.invocation.event
            reply = (replies_left.pop(0) if replies_left else None) or add_up(call)
            if event["isFinalInvokeForWindow"] and isinstance(reply, Returned):
                ended.add((event["window"]["start"], event["state"]["seen"]))
            return reply

        replies_left, steps_left = list(replies), [*steps, ("restart", 0.0)]
        policy = StreamPolicy(bisect_batch_on_function_error=bisect)
        while steps_left:
            clicks = windowed(stream=stream, store=store, world=clock, batch_size=batch_size, policy=policy)
            clicks.function._handler = handler
            async with clicks.running() as keeper:
                while (step := steps_left.pop(0))[0] != "restart":
                    match step[0]:
                        case "put":
                            stream.put(3)
                        case "pause":
                            keeper.close()
                        case "outage":
                            stream.failures = [Unreachable()] * 8
                    await anyio.sleep(step[1])
                    keeper.open()
                if closed and not steps_left:
                    stream.close("shard-000")
                await anyio.sleep(step[1] if steps_left else 1000.0)
        expected = Counter(int(record.arrived) // 10 for record in stream.records["shard-000"])
        # At least once: an end that a restart repeats has the same count again.
        assert ended == {
            (windows.Window(number * 10, 0).bounds["start"], count) for number, count in expected.items()
        }

    in_virtual_time(course)
