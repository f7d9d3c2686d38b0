from __future__ import annotations

import pytest

from poller.core.seek import Target, check, moves, parse
from poller.core.shards import ShardTree
from poller.errors import SeekRefused
from poller.model import Checkpoint, Shard, StartAt

NOW = 1_800_000_000.0
TIME = 1_769_860_800.0
HORIZON, LATEST = Target("TRIM_HORIZON"), Target("LATEST")
LOW = "49590338271490256608559692538361571095921575989136588898"
HIGH = "49590338271490256608559692538361571095921575989136588899"
DONE = Checkpoint(HIGH, finished=True)

# --- what a user writes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("TRIM_HORIZON", HORIZON),
        (" latest", LATEST),
        (LOW, Target("SEQUENCE_NUMBER", LOW)),
        ("000000017954384091890000000003", Target("SEQUENCE_NUMBER", "000000017954384091890000000003")),
        ("1769860800", Target("TIME", time=TIME)),
        ("1769860800.5", Target("TIME", time=TIME + 0.5)),
        ("2026-01-31T12:00:00Z", Target("TIME", time=TIME)),
        ("2026-01-31t13:00+01:00", Target("TIME", time=TIME)),
        ("0", Target("TIME", time=0.0)),
    ],
)
def test_a_place_may_be_written_in_four_ways(text, target):
    assert parse(text, NOW) == target


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2026-01-31T12:00:00", "must name its offset from UTC, like 2026-01-31T12:00:00Z"),
        ("2026-01-31", "must name its offset from UTC, like 2026-01-31T12:00:00Z"),
        ("1800000001", "must be a time since 1970 that is not in the future"),
        ("-1", "must be a time since 1970 that is not in the future"),
        ("nan", "must be a time since 1970 that is not in the future"),
        ("inf", "must be a time since 1970 that is not in the future"),
        ("yesterday", "must be TRIM_HORIZON, LATEST, a time (2026-01-31T12:00:00Z, or seconds since 1970)"),
        ("", "must be TRIM_HORIZON, LATEST, a time"),
    ],
)
def test_what_is_no_place_is_refused_with_what_would_be(text, why):
    with pytest.raises(SeekRefused) as caught:
        parse(text, NOW)
    assert str(caught.value).startswith(f"{text}: {why}")


@pytest.mark.parametrize(
    ("target", "source", "shard", "why"),
    [
        (HORIZON, "sqs", None, "SQS keeps the position of a queue itself: there is nothing to move"),
        (
            Target("TIME", time=TIME),
            "dynamodb",
            "a",
            "a DynamoDB stream cannot be read from a time: use TRIM_HORIZON, LATEST or a sequence number",
        ),
        (
            Target("SEQUENCE_NUMBER", LOW),
            "kinesis",
            None,
            "a sequence number belongs to one shard: name it with --shard",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(target, source, shard, why):
    with pytest.raises(SeekRefused) as caught:
        check(target, source, shard)
    assert str(caught.value) == why


@pytest.mark.parametrize(
    ("target", "source"),
    [
        (HORIZON, "kinesis"),
        (LATEST, "dynamodb"),
        (Target("TIME"), "kinesis"),
        (Target("SEQUENCE_NUMBER"), "dynamodb"),
    ],
)
def test_the_others_are_not(target, source):
    check(target, source, "a")


def test_a_mapping_without_checkpoints_has_nothing_to_move():
    with pytest.raises(SeekRefused, match="it begins at its starting_position"):
        moves({}, HORIZON, None, NOW)


def test_an_unknown_shard_is_answered_with_the_known_ones():
    known = {f"s{number}": Checkpoint() for number in range(9)}
    with pytest.raises(
        SeekRefused, match=r"no checkpoint in a shard s9; it has in s0, s1, s2, s3, s4, s5, s6, s7$"
    ):
        moves(known, HORIZON, "s9", NOW)


# --- what it means ------------------------------------------------------------------------------------------------

AT_LOW, AT_HIGH = Target("SEQUENCE_NUMBER", LOW), Target("SEQUENCE_NUMBER", HIGH)
AT_TIME = Target("TIME", time=TIME)
REPEATS_OR_SKIPS = "repeats what is done and came since then, skips what is not done and came before"
SINCE = "2026-01-31T12:00:00Z"


@pytest.mark.parametrize(
    ("before", "target", "effect", "says"),
    [
        (
            Checkpoint(LOW),
            HORIZON,
            "repeats",
            f"from record {LOW} to its beginning: repeats what it still holds between them",
        ),
        (
            DONE,
            HORIZON,
            "repeats",
            "from its end to its beginning: opens it again and repeats what it still holds after that",
        ),
        (
            Checkpoint(since=TIME),
            HORIZON,
            "repeats",
            f"from {SINCE} to its beginning: takes in what it holds between them",
        ),
        (Checkpoint(), HORIZON, "nothing", "stays at its beginning"),
        (
            Checkpoint(LOW),
            LATEST,
            "skips",
            f"from record {LOW} to the latest: skips what lies between and is not done yet",
        ),
        (DONE, LATEST, "nothing", "stays at its end"),
        (
            Checkpoint(LOW),
            AT_HIGH,
            "skips",
            f"from record {LOW} to record {HIGH}: skips what lies between and is not done yet",
        ),
        (
            Checkpoint(HIGH),
            AT_LOW,
            "repeats",
            f"from record {HIGH} to record {LOW}: repeats what it still holds between them",
        ),
        (Checkpoint(LOW), AT_LOW, "nothing", f"stays at record {LOW}"),
        (
            Checkpoint(LOW, 3),
            AT_LOW,
            "skips",
            f"from record {LOW} to record {LOW}: skips what lies between and is not done yet",
        ),
        (
            Checkpoint(since=TIME),
            AT_LOW,
            "skips",
            f"from {SINCE} to record {LOW}: skips what lies between and is not done yet",
        ),
        (
            DONE,
            AT_LOW,
            "repeats",
            f"from its end to record {LOW}: opens it again and repeats what it still holds after that",
        ),
        (
            Checkpoint(LOW),
            AT_TIME,
            "repeats or skips",
            f"from record {LOW} to {SINCE}: {REPEATS_OR_SKIPS}",
        ),
        (
            Checkpoint(),
            AT_TIME,
            "skips",
            f"from its beginning to {SINCE}: skips what lies between and is not done yet",
        ),
        (
            Checkpoint(since=TIME + 60),
            AT_TIME,
            "repeats",
            f"from 2026-01-31T12:01:00Z to {SINCE}: takes in what it holds between them",
        ),
        (Checkpoint(since=TIME), AT_TIME, "nothing", f"stays at {SINCE}"),
        (
            DONE,
            AT_TIME,
            "repeats",
            f"from its end to {SINCE}: opens it again and repeats what it still holds after that",
        ),
    ],
)
def test_each_move_says_what_it_repeats_or_skips(before, target, effect, says):
    (move,) = moves({"a": before}, target, None, NOW)
    assert (move.shard, move.effect, move.says) == ("a", effect, says)
    assert not move.after.finished or effect == "nothing"
    if effect == "nothing":
        assert move.after == before


@pytest.mark.parametrize("target", [HORIZON, LATEST, AT_TIME, AT_HIGH])
def test_an_open_window_begins_anew(target):
    (move,) = moves({"a": Checkpoint(LOW, window="{}")}, target, "a", NOW)
    assert move.says.endswith("; its open window begins anew")
    assert move.after.window == ""


def test_every_shard_is_moved_unless_one_is_named():
    known = {"b": Checkpoint(LOW), "a": DONE}
    assert [move.shard for move in moves(known, HORIZON, None, NOW)] == ["a", "b"]
    assert [move.shard for move in moves(known, AT_LOW, "b", NOW)] == ["b"]


@pytest.mark.parametrize("position", ["TRIM_HORIZON", "LATEST", "AT_TIMESTAMP"])
@pytest.mark.parametrize(
    ("target", "start"),
    [
        (HORIZON, StartAt("TRIM_HORIZON")),
        (LATEST, StartAt("AT_TIMESTAMP", timestamp=NOW - 10)),  # no record falls between two clocks
        (AT_TIME, StartAt("AT_TIMESTAMP", timestamp=TIME)),
        (AT_HIGH, StartAt("AFTER_SEQUENCE_NUMBER", HIGH)),
    ],
)
def test_a_mapping_goes_on_at_the_place_whatever_its_starting_position(position, target, start):
    (move,) = moves({"a": Checkpoint(LOW, since=5.0)}, target, "a", NOW)
    tree = ShardTree({"a": move.after}, position, 7.0)
    tree.learn([Shard("a")], NOW + 60)
    assert tree.begin("a", move.after, NOW) == start
