"""Rows of the KCL's lease tables, and what checkpoints mean on both sides."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.core.positions import position
from poller.core.shards import SKEW
from poller.errors import StoreError
from poller.model import Checkpoint, Lease, StartAt
from poller.sources._deaggregate import SUB_SEQUENCE_NUMBER, Unpack
from poller.stores._kcl_rows import (
    WHOLE_RECORD,
    Origin,
    checkpoint_item,
    has_begun,
    heir_of,
    is_lease,
    key_item,
    lease_of,
    number,
    told,
)
from tests.adapters.aggregates import packed
from tests.adapters.kcl_library import Extended, delivered, from_record, rank

NOW = 1_800_000_000.0
CLICKS = Origin("clicks", "TRIM_HORIZON")
SEQUENCE = "49590338271490256608559692538361571095921575989136588898"

#: Rows as the library has left them in a table: 2.x, then 3.x in the middle of a hand-over, then 3.5.
OF_2 = {
    "leaseKey": {"S": "shardId-000000000002"},
    "leaseOwner": {"S": "ip-10-0-0-1:7f1d"},
    "leaseCounter": {"N": "1842"},
    "ownerSwitchesSinceCheckpoint": {"N": "2"},
    "checkpoint": {"S": SEQUENCE},
    "checkpointSubSequenceNumber": {"N": "3"},
    "parentShardId": {"SS": ["shardId-000000000001", "shardId-000000000000"]},
    "startingHashKey": {"S": "0"},
    "endingHashKey": {"S": "340282366920938463463374607431768211455"},
}
OF_3 = OF_2 | {
    "leaseOwner": {"S": "heir"},
    "checkpointOwner": {"S": "former"},
    "childShardIds": {"SS": ["shardId-000000000005"]},
    "throughputKBps": {"N": "12.875"},
    "pendingCheckpoint": {"S": SEQUENCE},
    "pendingCheckpointSubSequenceNumber": {"N": "4"},
    "pendingCheckpointState": {"B": b"state"},
}
OF_3_5 = OF_2 | {"entityType": {"S": "LEASE"}}
WORKER_OF_3_5 = {
    "leaseKey": {"S": "ip-10-0-0-1:7f1d"},
    "entityType": {"S": "WORKER_METRIC_STATS"},
    "lut": {"N": "1753970461"},
}


def lease(row: dict[str, Any], origin: Origin = CLICKS) -> Lease:
    return lease_of(row, origin, NOW)


def of_checkpoint(text: str, sub: int = 0, **more: str) -> dict[str, Any]:
    row = {"leaseKey": {"S": "s"}, "leaseCounter": {"N": "1"}, "checkpoint": {"S": text}}
    return (
        row
        | {"checkpointSubSequenceNumber": {"N": str(sub)}}
        | {key: {"S": value} for key, value in more.items()}
    )


# --- rows ---------------------------------------------------------------------------------------------------------------


def test_a_row_of_2_is_a_lease():
    assert lease(OF_2) == Lease(
        "clicks",
        "shardId-000000000002",
        ("shardId-000000000000", "shardId-000000000001"),
        "ip-10-0-0-1:7f1d",
        1842,
        Checkpoint(SEQUENCE, 3),
    )
    assert lease(OF_3_5) == lease(OF_2)
    unowned = {name: value for name, value in OF_2.items() if name != "leaseOwner"}
    assert lease(unowned).owner == ""


def test_while_the_kcl_hands_a_lease_over_its_owner_is_who_still_reads_it():
    asked = lease(OF_3)
    assert (asked.owner, asked.wanted_by) == ("former", "heir")
    assert heir_of(OF_3) == "heir"
    assert heir_of(OF_2) == ""


def test_rows_of_other_kinds_are_told_apart():
    assert [is_lease(row) for row in (OF_2, OF_3, OF_3_5, WORKER_OF_3_5)] == [True, True, True, False]
    assert is_lease(OF_2 | {"entityType": {"S": "OF_THE_FUTURE"}}) is False


def test_a_shard_is_begun_when_the_kcl_may_remove_its_parents():
    assert has_begun(OF_2)
    assert has_begun(of_checkpoint("SHARD_END"))
    assert has_begun(of_checkpoint("LATEST"))
    assert not has_begun(of_checkpoint("TRIM_HORIZON"))
    assert not has_begun(of_checkpoint("AT_TIMESTAMP", pollerSince="5.0"))
    assert has_begun(of_checkpoint("TRIM_HORIZON", pollerSince="0.0")), "somebody has sought there"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"leaseKey": {"S": "s"}, "n": {"N": "1"}}, "s: no lease of the KCL, which have leaseCounter and checkpoint"),
        (of_checkpoint("5") | {"leaseCounter": {"S": "one"}}, "s: no lease of the KCL, which have"),
        (of_checkpoint("elsewhere"), "s: 'elsewhere' is not a sequence number"),
        (of_checkpoint("5", -1), "s: -1 is not a sub-sequence number"),
        (of_checkpoint("5", streamName="1234:clicks:1700"), "s: the table of an application that reads several streams"),
        (of_checkpoint("5", shardId="s"), "s: the table of an application that reads several streams"),
        (of_checkpoint("AT_TIMESTAMP"), "s: begins AT_TIMESTAMP, and only the application's configuration has the time"),
    ],
)  # fmt: skip
def test_what_is_no_lease_or_cannot_be_understood_is_said_in_one_line(row: dict[str, Any], says: str):
    with pytest.raises(StoreError) as refused:
        lease(row)
    assert str(refused.value).startswith(says)
    assert "\n" not in str(refused.value)


# --- where nothing is done ----------------------------------------------------------------------------------------------


def test_words_are_places_to_begin_at():
    at_time = Origin("clicks", "AT_TIMESTAMP", 1_700_000_000.0)
    assert lease(of_checkpoint("TRIM_HORIZON")).checkpoint == Checkpoint()
    assert lease(of_checkpoint("LATEST")).checkpoint == Checkpoint(since=NOW - SKEW)
    assert lease(of_checkpoint("AT_TIMESTAMP"), at_time).checkpoint == Checkpoint(since=1_700_000_000.0)
    assert lease(of_checkpoint("SHARD_END")).checkpoint == Checkpoint(finished=True)
    assert lease(of_checkpoint("LATEST", pollerSince="5.0")).checkpoint == Checkpoint(since=5.0)
    assert lease(of_checkpoint("7", pollerSince="5.0")).checkpoint == Checkpoint("7", 0), "it is over"


@pytest.mark.parametrize("word", ["LATEST", "AT_TIMESTAMP"])
def test_a_time_keeps_the_word_that_the_kcl_would_have_for_it(word: str):
    written = checkpoint_item(Checkpoint(since=1_700_000_000.5), word)
    assert written["checkpoint"] == {"S": word}
    row = of_checkpoint("") | written
    assert lease(row).checkpoint == Checkpoint(since=1_700_000_000.5)


# --- laws ---------------------------------------------------------------------------------------------------------------

numbers = st.integers(1, 9) | st.integers(1, 10**56)
subs = st.none() | st.integers(0, 5) | st.integers(0, 2**40)
checkpoints = st.builds(
    Checkpoint,
    sequence_number=st.just("") | numbers.map(str),
    sub_sequence_number=subs,
    since=st.just(0.0) | st.floats(1, 2e9),
    finished=st.booleans(),
)


def written(checkpoint: Checkpoint) -> dict[str, Any]:
    switches = {"ownerSwitchesSinceCheckpoint": number(0)}
    return (
        key_item("s") | {"leaseCounter": number(0)} | switches | checkpoint_item(told(checkpoint), "LATEST")
    )


@given(checkpoints)
def test_what_is_told_comes_back(checkpoint: Checkpoint):
    assert lease(written(checkpoint)).checkpoint == told(checkpoint)
    assert told(told(checkpoint)) == told(checkpoint)


@given(checkpoints, checkpoints)
def test_what_is_further_here_is_further_there(one: Checkpoint, other: Checkpoint):
    one, other = told(one), told(other)
    here = position(one) < position(other)
    there = [from_record(written(each)) for each in (one, other)]
    assert there[0]
    assert there[1]
    ranks = [rank(each.checkpoint) for each in there if each]
    begins = not (one.sequence_number or one.finished or other.sequence_number or other.finished)
    assert (ranks[0] < ranks[1]) == here or begins


def test_the_state_of_a_window_has_no_room():
    with pytest.raises(StoreError, match="no room for the state of a tumbling window"):
        told(Checkpoint("5", window="{}"))


#: A shard: how many records each of its records holds; None for one that is no aggregate.
shards = st.lists(st.none() | st.integers(1, 4), min_size=1, max_size=5)


def wires(shard: list[int | None]) -> list[dict[str, Any]]:
    contents = [
        f"{at}.0".encode() if size is None else packed(*(f"{at}.{sub}" for sub in range(size)))
        for at, size in enumerate(shard)
    ]
    return [
        {"SequenceNumber": str(at + 1), "PartitionKey": "k", "Data": b64encode(content).decode()}
        for at, content in enumerate(contents)
    ]


def user_records(shard: list[int | None]) -> list[Extended]:
    return [(str(at + 1), sub) for at, size in enumerate(shard) for sub in range(size or 1)]


def ours(shard: list[int | None]) -> list[Checkpoint]:
    """The checkpoints behind each user record, as our readers have them."""
    unpack = Unpack(StartAt(), None)
    return [
        Checkpoint(wire["SequenceNumber"], wire.get(SUB_SEQUENCE_NUMBER))
        for whole in wires(shard)
        for wire in unpack(whole)
    ]


def read_here(shard: list[int | None], checkpoint: Checkpoint) -> list[Extended]:
    """What our readers hand out behind a checkpoint."""
    start = StartAt("AFTER_SEQUENCE_NUMBER", checkpoint.sequence_number, checkpoint.sub_sequence_number)
    unpack = Unpack(start, None)
    first = int(checkpoint.sequence_number) - (checkpoint.sub_sequence_number is not None)
    left = [wire for whole in wires(shard)[first:] for wire in unpack(whole)]
    known = {
        b64encode(f"{int(seq) - 1}.{sub}".encode()).decode(): (seq, sub) for seq, sub in user_records(shard)
    }
    return [known[wire["Data"]] for wire in left]


@given(shards, st.data())
def test_the_kcl_goes_on_exactly_behind_our_checkpoints_and_we_behind_its(
    shard: list[int | None], data: st.DataObject
):
    records = user_records(shard)
    done = data.draw(st.integers(1, len(records)))
    row = from_record(written(ours(shard)[done - 1]))
    assert row
    assert delivered(records, row.checkpoint) == records[done:]
    theirs = lease(of_checkpoint(*records[done - 1])).checkpoint
    assert read_here(shard, theirs) == records[done:]


def test_all_of_a_record_is_more_than_any_record_can_hold():
    assert lease(of_checkpoint("5", WHOLE_RECORD)).checkpoint == Checkpoint("5")
    assert lease(of_checkpoint("5", WHOLE_RECORD - 1)).checkpoint == Checkpoint("5", WHOLE_RECORD - 1)
    assert told(Checkpoint("5", WHOLE_RECORD)) == Checkpoint("5")
