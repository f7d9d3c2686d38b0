"""Failed batches of a stream: which records come of what letters say, and what becomes of the letters."""

from __future__ import annotations

from itertools import chain
from typing import Any

import anyio
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poller.core.failure import with_payload
from poller.core.lanes import lane_of
from poller.core.replay import Tally
from poller.errors import RequestRefused, Throttled
from poller.model import StartAt
from poller.sources import _walk, failed_batches
from tests.adapters.aggregates import packed
from tests.adapters.replay_reading import Box, Reading, document
from tests.adapters.stream_reading import KINDS, Rig, data
from tests.engine.fakes import in_virtual_time, virtual
from tests.fake_streams import FakeKinesis


def reading(rig: Rig, *spans: Any, **more: Any) -> Reading:
    """Failed batches with one letter a span; a span is the sequence numbers of the batch, or a body."""
    shard = next(iter(rig.fake.shards))
    arn = str(rig.fake.arn)  # type: ignore[attr-defined]
    bodies = [document(arn, shard, span) if isinstance(span, list) else span for span in spans]
    return Reading(rig, Box(*bodies), **more)


@pytest.mark.parametrize("kind", KINDS)
@virtual
async def test_the_records_of_each_batch_are_read_again_in_the_order_of_the_stream(kind: str):
    rig = Rig.of(kind)
    numbers = rig.fake.put(*"abcdefghij")
    failed = reading(rig, numbers[6:8], numbers[1:4])
    assert await failed.all(limit=3) == [["b", "c", "d"], ["g", "h"]]
    assert (failed.box.finished, failed.box.kept) == (["m2", "m1"], [])
    assert failed.tally == Tally(succeeded=5, messages=2)
    assert failed.source.exhausted
    failed.box.cut_short = True
    assert not failed.source.exhausted
    assert failed.source.note == ""


@virtual
async def test_small_batches_share_an_invocation_and_none_is_cut():
    rig = Rig.of("kinesis")
    numbers = rig.fake.put(*"abcdefgh")
    failed = reading(rig, numbers[0:2], numbers[2:4], numbers[4:7])
    (shard,) = await failed.source.shards()
    async with failed.source.open(shard, StartAt()) as reader:
        await anyio.sleep(5)
        assert [data(await reader.receive(5, 1)) for _ in range(2)] == [["a", "b", "c", "d"], ["e", "f", "g"]]


@virtual
async def test_a_batch_that_is_larger_than_an_invocation_is_cut():
    rig = Rig.of("kinesis")
    numbers = rig.fake.put(*"abcde")
    assert await reading(rig, numbers).all(limit=2) == [["a", "b"], ["c", "d"], ["e"]]
    assert await reading(rig, numbers, group=2).all(limit=3) == [["a", "b"], ["c", "d", "e"]]


@virtual
async def test_a_letter_of_which_a_record_fails_again_is_kept():
    rig = Rig.of("kinesis")
    numbers = rig.fake.put(*"abcdef")
    failed = reading(rig, numbers[0:3], numbers[3:6])
    await failed.all(failing=["b"])
    assert (failed.box.finished, failed.box.kept) == (["m2"], ["m1"])
    assert (failed.tally.succeeded, failed.tally.messages, failed.tally.kept) == (5, 1, 1)


@virtual
async def test_a_letter_that_does_not_go_is_counted_as_one_that_stays():
    rig = Rig.of("kinesis")
    numbers = rig.fake.put(*"abcd")
    failed = reading(rig, numbers[0:2], numbers[2:4])
    failed.box.stubborn = {"m1"}
    await failed.all()
    assert (failed.box.finished, failed.tally.messages, failed.tally.kept) == (["m2"], 1, 1)


@virtual
async def test_a_letter_is_not_done_with_before_its_last_record_is():
    rig = Rig.of("kinesis")
    numbers = rig.fake.put(*"abcd")
    failed = reading(rig, numbers)
    (shard,) = await failed.source.shards()
    async with failed.source.open(shard, StartAt()) as reader:
        first, second = await reader.receive(2, 5), await reader.receive(2, 5)
        await failed.source.passed(shard.id, first[-1])
        assert failed.box.finished == []
        await failed.source.passed(shard.id, second[-1])
        assert failed.box.finished == ["m1"]


@pytest.mark.parametrize("kind", KINDS)
@virtual
async def test_records_that_are_gone_leave_their_letter_where_it_is(kind: str):
    rig = Rig.of(kind)
    numbers = rig.fake.put(*"abcdef")
    rig.fake.trim(3)
    failed = reading(rig, numbers[0:2], numbers[2:4], numbers[4:6])
    assert sorted(chain(*await failed.all())) == ["d", "e", "f"]
    assert (failed.box.finished, sorted(failed.box.kept)) == (["m3"], ["m1", "m2"])
    assert (failed.tally.gone, failed.tally.succeeded) == (3, 3)


@virtual
async def test_a_letter_whose_first_record_is_gone_stays_although_other_lanes_fill_its_place():
    rig = Rig.of("kinesis")
    numbers = [rig.fake.put(text, key=text)[0] for text in "abcdef"]
    rig.fake.trim(1)
    failed = reading(rig, document(FakeKinesis.arn, next(iter(rig.fake.shards)), numbers, count=2), lanes=4)
    assert await failed.all() == [["b", "c", "d", "e", "f"]]
    assert (failed.box.finished, failed.box.kept, failed.tally.gone) == ([], ["m1"], 1)


@pytest.mark.parametrize("kind", KINDS)
@virtual
async def test_a_shard_of_which_all_is_gone_ends(kind: str):
    rig = Rig.of(kind)
    numbers = rig.fake.put(*"abc")
    rig.fake.trim(3)
    failed = reading(rig, numbers)
    assert await failed.all() == []
    assert (failed.box.kept, failed.tally.gone) == (["m1"], 3)


@virtual
async def test_a_shard_that_is_gone_leaves_its_letters_where_they_are():
    rig = Rig.of("kinesis")
    failed = reading(rig, document(FakeKinesis.arn, "shardId-000000000009", ["1", "2"]))
    assert await failed.all() == []
    assert (failed.box.kept, failed.tally.gone) == (["m1"], 2)


@virtual
async def test_a_number_that_the_shard_never_gave_is_gone():
    rig = Rig.of("kinesis")
    numbers = rig.fake.put(*"ab")
    rig.fake.script("GetShardIterator", RequestRefused("no such number", operation="GetShardIterator"))
    failed = reading(rig, ["1", "2"], numbers)
    assert await failed.all() == [["a", "b"]]
    assert (failed.box.finished, failed.box.kept) == (["m2"], ["m1"])


@virtual
async def test_a_read_that_fails_is_told_to_whoever_receives_and_then_tried_again():
    rig = Rig.of("kinesis")
    numbers = rig.fake.put(*"abc")
    failed = reading(rig, numbers)
    rig.fake.script("GetShardIterator", *[Throttled("slow down")] * 12)
    (shard,) = await failed.source.shards()
    async with failed.source.open(shard, StartAt()) as reader:
        with pytest.raises(Throttled):
            await reader.receive(10, 200.0)
        assert data(await reader.receive(10, 200.0)) == ["a", "b", "c"]


@virtual
async def test_reading_goes_on_behind_the_last_record_after_a_failure():
    rig = Rig.of("kinesis")
    numbers = rig.fake.put(*[f"{number}" for number in range(1500)])
    failed = reading(rig, numbers)
    rig.fake.script("GetRecords", None, RequestRefused("odd", operation="GetRecords"))
    groups: list[str] = []
    (shard,) = await failed.source.shards()
    async with failed.source.open(shard, StartAt()) as reader:
        while not reader.ended:
            try:
                records = await reader.receive(100, 20.0)
            except RequestRefused:
                continue
            groups += data(records)
            if records:
                await failed.source.passed(shard.id, records[-1])
    assert groups == [f"{number}" for number in range(1500)]
    assert failed.box.finished == ["m1"]


@virtual
async def test_a_closed_shard_has_not_ended_because_reads_bring_nothing():
    rig = Rig.of("dynamodb")
    numbers = rig.fake.put(*"abc")
    rig.fake.shards[next(iter(rig.fake.shards))].closed = True
    rig.fake.script("GetRecords", *[{"Records": [], "NextShardIterator": "iterator-0"}] * 10)
    failed = reading(rig, numbers)
    assert await failed.all() == [["a", "b", "c"]]
    assert (failed.box.finished, failed.box.kept) == (["m1"], [])


@virtual
async def test_a_long_way_between_two_batches_is_skipped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_walk, "SKIP", 20)
    monkeypatch.setattr(_walk, "LOOK", 10)
    rig = Rig.of("kinesis")
    numbers = rig.fake.put(*[f"{number}" for number in range(3000)])
    failed = reading(rig, numbers[0:2], numbers[2900:2902])
    assert await failed.all() == [["0", "1"], ["2900", "2901"]]
    sought = [call.params["StartingSequenceNumber"] for call in rig.fake.calls_of("GetShardIterator")]
    assert sought == [numbers[0], numbers[2900]]


@virtual
async def test_filters_drop_what_the_batch_did_not_hold():
    rig = Rig.of("kinesis")
    numbers = rig.fake.put(*"aXbXc")
    shard = next(iter(rig.fake.shards))
    failed = reading(
        rig,
        document(FakeKinesis.arn, shard, numbers, count=3),
        passes=lambda record: data([record]) != ["X"],
    )
    assert await failed.all() == [["a", "b", "c"]]
    assert (failed.tally.filtered, failed.tally.gone, failed.box.finished) == (0, 0, ["m1"])


@virtual
async def test_filters_that_drop_more_than_they_did_are_told_of():
    rig = Rig.of("kinesis")
    numbers = rig.fake.put(*"abc")
    failed = reading(rig, numbers, passes=lambda record: data([record]) == ["a"])
    assert await failed.all() == [["a"]]
    assert (failed.tally.filtered, failed.tally.gone, failed.box.finished) == (2, 0, ["m1"])


@pytest.mark.parametrize("stored", [False, True])
@virtual
async def test_a_letter_of_which_not_all_was_asked_for_stays_with_what_is_left_out(stored: bool):
    rig = Rig.of("kinesis")
    numbers = rig.fake.put(*"abcdef")
    shard = next(iter(rig.fake.shards))
    async with rig.open() as reader:
        records = {record.id: record async for record in _all(reader, 6)}

    def letter(*wanted: str) -> Any:
        told = {"version": "1.0"} | document(FakeKinesis.arn, shard, wanted)
        return with_payload(told, {"Records": [records[one].event for one in wanted]}) if stored else told

    letters = [letter(*numbers[0:2]), letter(numbers[2]), letter(numbers[3]), letter(*numbers[4:6])]
    failed = reading(rig, *letters, wants=lambda record: data([record])[0] in "acf")
    assert sorted(chain(*await failed.all(failing=["f"]))) == ["a", "c", "f"]
    assert (failed.box.finished, sorted(failed.box.kept)) == (["m2"], ["m1", "m3", "m4"])
    assert (failed.tally.filtered, failed.tally.kept, failed.tally.passed_over) == (3, 3, 2)
    assert failed.tally.gone == 0
    assert failed.source.exhausted


@virtual
async def test_two_letters_about_one_record_replay_it_once():
    rig = Rig.of("kinesis")
    numbers = rig.fake.put(*"abc")
    failed = reading(rig, numbers, numbers)
    assert await failed.all() == [["a", "b", "c"]]
    assert (failed.box.finished, failed.tally.succeeded) == (["m1", "m2"], 3)
    again = reading(rig, numbers, numbers)
    await again.all(failing=["b"])
    assert again.box.kept == ["m1", "m2"]


@settings(max_examples=40)
@given(
    keys=st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40),
    lanes=st.integers(1, 4),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    failing=st.sets(st.integers(0, 39), max_size=3),
)
def test_of_lanes_each_letter_gets_back_what_its_batch_held(
    keys: list[str], lanes: int, sizes: list[int], failing: set[int]
):
    async def body() -> None:
        rig = Rig.of("kinesis")
        records = [(rig.fake.put(f"{at}", key=key)[0], key, f"{at}") for at, key in enumerate(keys)]
        batches: list[list[tuple[str, str, str]]] = []
        for lane in range(lanes):
            own = [one for one in records if lane_of(one[1], lanes) == lane]
            for size in sizes:
                if own:
                    batches.append(own[:size])
                    own = own[size:]
        failed = reading(rig, *([one[0] for one in batch] for batch in batches), lanes=lanes)
        bad = [f"{at}" for at in failing]
        replayed = [*chain(*await failed.all(failing=bad))]
        wanted = sorted((one[2] for batch in batches for one in batch), key=int)
        assert sorted(replayed, key=int) == wanted
        kept = [f"m{at}" for at, batch in enumerate(batches, 1) if {one[2] for one in batch} & set(bad)]
        assert sorted(failed.box.kept) == sorted(kept)
        assert len(failed.box.finished) == len(batches) - len(kept)
        assert failed.tally.gone == failed.tally.filtered == 0

    in_virtual_time(body)


@virtual
async def test_what_is_no_document_of_this_stream_is_kept_and_counted():
    rig = Rig.of("kinesis")
    numbers = rig.fake.put(*"a")
    other = document("arn:aws:kinesis:eu-west-1:123456789012:stream/other", "s", ["1"])
    window = document(FakeKinesis.arn, "s", ["1"])
    for name in ("startSequenceNumber", "endSequenceNumber", "batchSize"):
        del window["KinesisBatchInfo"][name]
    failed = reading(rig, b"what?", other, window, numbers)
    assert await failed.all() == [["a"]]
    assert (failed.box.kept, failed.box.finished) == (["m1", "m2", "m3"], ["m4"])
    assert (failed.tally.unreadable, failed.tally.why_unreadable) == (3, "it is no JSON")


@virtual
async def test_letters_that_are_all_useless_end_it():
    failed = reading(Rig.of("kinesis"), b"1", b"2")
    assert await failed.all() == []
    assert failed.tally.kept == 2


@pytest.mark.parametrize("kind", KINDS)
@virtual
async def test_what_a_letter_holds_is_not_read_from_the_stream(kind: str):
    rig = Rig.of(kind)
    rig.fake.put(*"abcd")
    async with rig.open() as reader:
        records = [record async for record in _all(reader, 4)]
    arn = str(rig.fake.arn)  # type: ignore[attr-defined]
    shard = next(iter(rig.fake.shards))
    bodies = [
        orjson.dumps(
            with_payload(
                {"version": "1.0"} | document(arn, shard, [one.id for one in part]),
                {"Records": [one.event for one in part]},
            )
        )
        for part in (records[2:], records[:2])
    ]
    calls = len(rig.fake.calls)
    failed = reading(rig, *bodies, passes=lambda record: data([record]) != ["d"])
    assert await failed.all(limit=2) == [["a", "b"], ["c"]]
    assert len(rig.fake.calls) == calls
    assert failed.tally == Tally(succeeded=3, filtered=1, messages=2)


@virtual
async def test_a_letter_of_which_filters_leave_nothing_is_done_with():
    rig = Rig.of("kinesis")
    numbers = rig.fake.put("a")
    async with rig.open() as reader:
        (record,) = await reader.receive(1, 5)
    shard = next(iter(rig.fake.shards))
    body = with_payload(
        {"version": "1"} | document(FakeKinesis.arn, shard, numbers), {"Records": [record.event]}
    )
    failed = reading(rig, orjson.dumps(body), passes=lambda record: False)
    assert await failed.all() == []
    assert failed.tally == Tally(filtered=1, messages=1)


@virtual
async def test_a_box_that_cannot_be_opened_is_an_error_and_what_was_taken_before_is_not_lost():
    rig = Rig.of("kinesis")
    numbers = rig.fake.put(*"a")
    failed = reading(rig, numbers)
    failed.box.broken = [Throttled("slow down")]
    with pytest.raises(Throttled):
        await failed.source.shards()
    assert await failed.all() == [["a"]]


@virtual
async def test_it_goes_part_by_part(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(failed_batches, "PART_LETTERS", 10)
    rig = Rig.of("kinesis")
    numbers = rig.fake.put(*[f"{number}" for number in range(60)])
    failed = reading(rig, *([number] for number in numbers))
    seen: list[int] = []
    while shards := await failed.source.shards():
        seen.append(sum(map(len, await failed.part(shards[0]))))
    assert sum(seen) == 60
    assert max(seen) <= 40
    assert len(failed.box.finished) == 60


@virtual
async def test_a_part_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(failed_batches, "PART_BYTES", 1)
    rig = Rig.of("kinesis")
    numbers = rig.fake.put(*[f"{number}" for number in range(50)])
    failed = reading(rig, *([number] for number in numbers))
    (shard,) = await failed.source.shards()
    assert len(await failed.part(shard, limit=1)) < 50


@virtual
async def test_no_more_than_the_rate_is_handed_out():
    rig = Rig.of("kinesis")
    numbers = rig.fake.put(*[f"{number}" for number in range(100)])
    failed = reading(rig, *([number] for number in numbers), rate=10.0)
    began = anyio.current_time()
    await failed.all(limit=5)
    assert 9.0 <= anyio.current_time() - began <= 15.0


@virtual
async def test_a_reader_that_is_held_to_its_rate_answers_in_time():
    rig = Rig.of("kinesis")
    numbers = rig.fake.put(*"abcdef")
    failed = reading(rig, numbers, rate=0.1)
    (shard,) = await failed.source.shards()
    async with failed.source.open(shard, StartAt()) as reader:
        assert await reader.receive(3, 5.0)
        began = anyio.current_time()
        assert await reader.receive(3, 5.0) == ()
        assert anyio.current_time() - began == 5.0
        assert reader.doing == "held to its rate"
        assert "3 records wait" in repr(reader)
        await reader.release([], 0.0)


async def _all(reader: Any, count: int) -> Any:
    found = 0
    while found < count:
        for record in await reader.receive(count, 5):
            found += 1
            yield record


@virtual
async def test_records_inside_an_aggregate_are_read_again_as_the_mapping_reads_them():
    rig = Rig.of("kinesis")
    first = rig.fake.put("a", packed(*"bcd"))
    last = rig.fake.put(packed(*"ef"), "g")
    shard = next(iter(rig.fake.shards))
    bodies = [
        document(FakeKinesis.arn, shard, first, count=4),
        document(FakeKinesis.arn, shard, last[:1], count=2),
    ]
    failed = reading(rig, *bodies, deaggregate=True)
    assert await failed.all() == [["a", "b", "c", "d", "e", "f"]]
    assert (failed.box.finished, failed.tally.succeeded) == (["m1", "m2"], 6)
