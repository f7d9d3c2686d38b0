from __future__ import annotations

from graphlib import CycleError

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from poller.core.shards import ShardTree
from poller.model import Checkpoint, Shard, StartAt

NOW = 1000.0
T = 700.0
NOTHING = Checkpoint()
DONE = Checkpoint(finished=True)
#: Less the difference of the clocks.
LATEST = Checkpoint(since=NOW - 10)

# a splits into b and c, these merge into d, and z stands alone:
#
#   a --> b --> d        z
#     \-> c -/
A, B, C = Shard("a"), Shard("b", ("a",)), Shard("c", ("a",))
D, Z = Shard("d", ("b", "c")), Shard("z")
LISTING = [A, B, C, D, Z]


def started(listing=LISTING, position="TRIM_HORIZON", checkpoints=None, timestamp=0.0):
    tree = ShardTree(checkpoints or {}, position, timestamp)
    tree.learn(listing, NOW)
    return tree


def ready(tree):
    return [shard.id for shard in tree.ready()]


def work_through(tree, *names):
    for name in names:
        assert name in ready(tree)
        tree.begin(name, NOTHING, NOW)
        tree.finish(name)


# --- the starting position ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "closed", "opened"),
    [
        ("TRIM_HORIZON", NOTHING, NOTHING),
        (
            "AT_TIMESTAMP",
            Checkpoint(since=T),
            Checkpoint(since=T),
        ),  # a closed shard may hold records from T on
        ("LATEST", DONE, LATEST),  # what a closed shard holds is older than now
    ],
)
def test_the_first_listing_gets_the_starting_position(position, closed, opened):
    new = ShardTree({}, position, T).learn(LISTING, NOW)
    assert new == {"a": closed, "b": closed, "c": closed, "d": opened, "z": opened}


@pytest.mark.parametrize("position", ["TRIM_HORIZON", "LATEST", "AT_TIMESTAMP"])
def test_a_shard_that_appears_later_is_read_from_its_beginning(position):
    tree = started([A], position)
    assert tree.learn([A, B, C], NOW + 60) == {"b": NOTHING, "c": NOTHING}


@pytest.mark.parametrize("position", ["TRIM_HORIZON", "LATEST", "AT_TIMESTAMP"])
def test_after_a_restart_new_shards_are_read_from_their_beginning(position):
    tree = ShardTree({"a": Checkpoint("7")}, position, T)
    assert tree.learn(LISTING, NOW) == dict.fromkeys("bcdz", NOTHING)


@pytest.mark.parametrize(
    ("position", "checkpoint", "start"),
    [
        ("TRIM_HORIZON", NOTHING, StartAt("TRIM_HORIZON")),
        ("AT_TIMESTAMP", Checkpoint(since=T), StartAt("AT_TIMESTAMP", timestamp=T)),
        ("LATEST", NOTHING, StartAt("TRIM_HORIZON")),  # a child, which is read from its beginning
        # Wherever the mapping began: a command may have put the checkpoint there.
        ("LATEST", Checkpoint(since=T), StartAt("AT_TIMESTAMP", timestamp=T)),
        ("TRIM_HORIZON", Checkpoint(since=T), StartAt("AT_TIMESTAMP", timestamp=T)),
        ("LATEST", Checkpoint("7", since=T), StartAt("AFTER_SEQUENCE_NUMBER", "7")),
        ("TRIM_HORIZON", Checkpoint("7", 3), StartAt("AFTER_SEQUENCE_NUMBER", "7", 3)),
    ],
)
def test_a_shard_goes_on_where_its_checkpoint_is(position, checkpoint, start):
    tree = started([A], position, {"a": checkpoint})
    assert tree.begin("a", checkpoint, NOW) == start


def test_the_end_of_a_shard_is_where_it_is_when_the_shard_begins_for_the_first_time():
    tree = started([A], "LATEST")
    assert tree.begin("a", LATEST, NOW) == StartAt("LATEST", timestamp=NOW)
    tree.release("a")
    assert tree.begin("a", LATEST, NOW) == StartAt("AT_TIMESTAMP", timestamp=NOW - 10)
    assert started([A], "LATEST").begin("a", LATEST, NOW + 10) == StartAt("AT_TIMESTAMP", timestamp=NOW - 10)


def test_with_latest_a_shard_that_is_closed_is_not_read_even_when_no_child_is_listed():
    tree = ShardTree({}, "LATEST")
    assert tree.learn([Shard("a", closed=True)], NOW) == {"a": DONE}
    assert tree.learn([Shard("b", ("a",))], NOW) == {"b": NOTHING}


def test_a_shard_keeps_its_hash_keys_whoever_names_them_and_whoever_does_not():
    tree = started([Shard("a", hash_range=(0, 9))], checkpoints={"a": NOTHING, "b": NOTHING})
    tree.learn([Shard("a", closed=True), Shard("b", hash_range=(0, 4))], NOW)
    assert tree.ready() == [Shard("a", (), True, (0, 9)), Shard("b", hash_range=(0, 4))]


def test_a_closed_shard_stays_closed():
    tree = started([Shard("a", closed=True)])
    tree.learn([A], NOW)
    assert tree.ready() == [Shard("a", closed=True)]


def test_with_latest_only_the_open_shards_are_read():
    assert ready(started(position="LATEST")) == ["d", "z"]


@pytest.mark.parametrize("position", ["TRIM_HORIZON", "AT_TIMESTAMP"])
def test_otherwise_reading_begins_at_the_oldest_shards(position):
    assert ready(started(position=position)) == ["a", "z"]


def test_new_checkpoints_come_parents_first_whatever_the_listing():
    new = list(ShardTree({}, "TRIM_HORIZON").learn(reversed(LISTING), NOW))
    assert all(new.index(parent) < new.index(shard.id) for shard in LISTING for parent in shard.parents)


def test_a_stream_without_shards_at_first_is_read_from_its_beginning():
    tree = started([], "LATEST")
    assert tree.learn([A], NOW + 60) == {"a": NOTHING}
    assert ready(tree) == ["a"]


# --- parents before children --------------------------------------------------------------------------------


def test_a_child_waits_for_its_parent():
    tree = started()
    tree.begin("a", NOTHING, NOW)
    assert ready(tree) == ["z"]
    assert tree.waits_for("b") == {"a"}
    tree.finish("a")
    assert tree.waits_for("b") == frozenset()
    assert ready(tree) == ["b", "c", "z"]


def test_a_merged_child_waits_for_both_parents():
    tree = started()
    work_through(tree, "a", "b")
    assert tree.waits_for("d") == {"c"}
    assert ready(tree) == ["c", "z"]
    work_through(tree, "c")
    assert tree.ready() == [D, Z]


def test_a_parent_that_was_trimmed_away_is_not_waited_for():
    assert ready(started([B, D])) == ["b"]
    assert ready(started([D])) == ["d"]


def test_a_parent_that_was_known_is_waited_for_even_when_it_is_no_longer_listed():
    tree = started([A])
    tree.begin("a", NOTHING, NOW)
    tree.learn([B, C], NOW)
    assert ready(tree) == []


def test_a_parent_that_was_known_before_a_restart_is_read_even_when_it_is_no_longer_listed():
    tree = started([B, C, D], checkpoints={"a": Checkpoint("7")})
    assert ready(tree) == ["a"]


def test_a_child_that_waits_takes_in_a_parent_that_is_listed_late():
    tree = started([D, C])
    assert ready(tree) == ["c"]
    tree.learn([B], NOW)
    work_through(tree, "c")
    assert ready(tree) == ["b"]
    work_through(tree, "b")
    assert ready(tree) == ["d"]


def test_the_parents_of_a_shard_may_become_known_one_after_the_other():
    tree = started([B, C, Shard("d", ("b",))])
    tree.learn([Shard("d", ("c",))], NOW)
    assert tree.waits_for("d") == {"b", "c"}


def test_a_parent_that_is_listed_after_its_child_began_is_read_all_the_same():
    tree = started([B])
    tree.begin("b", NOTHING, NOW)
    assert tree.learn([A, B], NOW) == {"a": NOTHING}
    assert ready(tree) == ["a"]


def test_the_children_named_at_the_end_of_a_shard_follow_at_once():
    tree = started([A])
    tree.begin("a", NOTHING, NOW)
    tree.learn([B, C], NOW)
    tree.finish("a")
    assert ready(tree) == ["b", "c"]


def test_a_child_that_is_named_with_a_parent_that_no_listing_has_shown_waits_for_the_next_one():
    tree = started([A, Z])
    merged = Shard("y", ("c", "z"))
    assert tree.acquainted([merged]) == []
    assert tree.acquainted([Shard("x", ("z",)), merged]) == [Shard("x", ("z",))]
    tree.learn([A, B, C, Z, merged], NOW)
    tree.begin("z", NOTHING, NOW)
    tree.finish("z")
    assert ready(tree) == ["a"]
    assert tree.waits_for("y") == {"c"}
    assert tree.acquainted([merged]) == [merged]


def test_a_shard_that_descends_from_itself_is_refused():
    with pytest.raises(CycleError):
        started([Shard("a", ("b",)), Shard("b", ("a",))])


# --- states -------------------------------------------------------------------------------------------------


def test_nothing_is_ready_before_the_first_listing():
    assert ShardTree({"a": NOTHING}, "LATEST").ready() == []


def test_a_released_shard_may_begin_again():
    tree = started()
    tree.begin("a", NOTHING, NOW)
    tree.release("a")
    assert ready(tree) == ["a", "z"]
    tree.release("a")
    assert ready(tree) == ["a", "z"]


def test_a_finished_shard_never_begins_again():
    tree = started(checkpoints={"a": DONE, "b": NOTHING, "c": NOTHING, "d": NOTHING, "z": Checkpoint("9")})
    assert ready(tree) == ["b", "c", "z"]
    tree.release("a")
    assert ready(tree) == ["b", "c", "z"]


def test_a_shard_may_be_finished_by_somebody_else():
    tree = started([B])
    tree.finish("a")
    assert "a" in tree
    tree.learn([A], NOW)
    assert ready(tree) == ["b"]


def test_a_finished_shard_that_is_open_and_has_no_children_was_made_again():
    a, b = Shard("a"), Shard("b")
    tree = started([a, b])
    work_through(tree, "a")
    assert [
        tree.revived(listed)
        for listed in ([a, b], [Shard("a", closed=True), b], [a, Shard("c", ("a",))], [b])
    ] == [
        ["a"],
        [],
        [],
        [],
    ]


def test_it_says_what_it_does():
    tree = started()
    work_through(tree, "z")
    tree.begin("a", NOTHING, NOW)
    assert repr(tree) == "<ShardTree 1 reading, 3 waiting, 1 finished>"


# --- forgetting ---------------------------------------------------------------------------------------------


def test_a_finished_shard_is_kept_while_it_is_listed_or_its_children_are_not_finished():
    tree = started([A, B, C])
    work_through(tree, "a", "b")
    assert tree.forgettable(["b", "c"]) == []  # c is not finished
    work_through(tree, "c")
    assert tree.forgettable(["a", "b", "c"]) == []  # still listed
    assert tree.forgettable(["b", "c"]) == ["a"]


def test_a_finished_shard_whose_children_are_not_known_is_kept():
    tree = started([A])
    work_through(tree, "a")
    assert tree.forgettable([]) == []


def test_a_forgotten_shard_holds_nobody_up():
    tree = started(LISTING)
    work_through(tree, "a", "b", "c", "d")
    tree.learn([Shard("e", ("d",))], NOW)
    assert tree.forgettable([]) == ["a", "b", "c"]
    tree.forget(["a", "b", "c"])
    assert "a" not in tree
    assert ready(tree) == ["e", "z"]
    assert tree.forgettable([]) == []


def test_a_shard_may_be_forgotten_before_its_parent():
    tree = started([A, Shard("b", ("a",)), Shard("c", ("b",))])
    work_through(tree, "a", "b", "c")
    tree.forget(["b"])
    assert tree.forgettable([]) == ["a"]


def test_one_parent_of_two_may_be_forgotten_before_the_other():
    tree = started([D], checkpoints={"b": DONE, "c": DONE})
    work_through(tree, "d")
    tree.forget(["b"])
    assert tree.forgettable(["d"]) == ["c"]
    tree.forget(["c"])
    assert "d" in tree


def test_a_shard_with_a_parent_that_never_was_known_is_forgotten_too():
    tree = started([B, C, Shard("e", ("b",)), Shard("f", ("c",))])
    work_through(tree, "b", "c", "e", "f")
    tree.forget(["b"])
    tree.forget(["c"])
    assert tree.forgettable([]) == []


def test_a_forgotten_shard_that_is_listed_again_is_not_read_again():
    tree = started([A, B, C], checkpoints={"b": Checkpoint("7"), "c": DONE})
    assert ready(tree) == ["b"]


def test_neither_is_its_own_forgotten_parent():
    tree = ShardTree({"c": DONE}, "TRIM_HORIZON")
    new = tree.learn([Shard("c", ("b",)), Shard("b", ("a",)), Shard("a")], NOW)
    assert new == {"a": DONE, "b": DONE}
    assert ready(tree) == []


# --- laws ---------------------------------------------------------------------------------------------------


class ReadingAStream(RuleBasedStateMachine):
    """A stream that is split, merged and trimmed while it is read, and lists its shards none too reliably."""

    def __init__(self):
        super().__init__()
        self.shards = {}
        self.open, self.trimmed = set(), set()
        self.begun, self.reading, self.finished = set(), set(), set()

    # --- the stream

    def add(self, *parents):
        shard = Shard(f"s{len(self.shards):03}", parents)
        self.shards[shard.id] = shard
        self.open = {*self.open, shard.id} - set(parents)

    def listed(self):
        return [shard for name, shard in self.shards.items() if name not in self.trimmed]

    @rule(data=st.data())
    def split(self, data):
        parent = data.draw(st.sampled_from(sorted(self.open)))
        self.add(parent)
        self.add(parent)

    @precondition(lambda self: len(self.open) > 1)
    @rule(data=st.data())
    def merge(self, data):
        two = st.lists(st.sampled_from(sorted(self.open)), min_size=2, max_size=2, unique=True)
        self.add(*data.draw(two))

    @rule(data=st.data())
    def trim(self, data):
        over = sorted(self.finished - self.open)
        self.trimmed |= data.draw(st.sets(st.sampled_from(over))) if over else set()
        gone = self.tree.forgettable([shard.id for shard in self.listed()])
        self.tree.forget(gone)
        for name in gone:
            del self.saved[name]
        # So what is kept is bounded by the shards that are listed or unfinished, however long the stream lives.
        for name in self.saved.keys() & self.trimmed:
            children = {shard.id for shard in self.shards.values() if name in shard.parents}
            assert children - self.finished or not children & self.saved.keys()

    # --- the mapping

    @initialize(
        roots=st.integers(1, 3),
        position=st.sampled_from(["TRIM_HORIZON", "LATEST", "AT_TIMESTAMP"]),
        data=st.data(),
        splits=st.integers(0, 2),
    )
    def begin_mapping(self, roots, position, data, splits):
        for _ in range(roots):
            self.add()
        for _ in range(splits):
            self.split(data)
        self.position = position
        self.tree = ShardTree({}, position, T)
        self.saved = self.tree.learn(data.draw(st.permutations(self.listed())), NOW)
        self.skipped = {name for name, checkpoint in self.saved.items() if checkpoint.finished}
        self.finished |= self.skipped

    @rule(data=st.data())
    def list_some(self, data):
        # A child is never listed before its parents were, but either may be missing at any time.
        known = self.trimmed | self.saved.keys()
        fair = [shard for shard in self.listed() if known.issuperset(shard.parents)]
        some = data.draw(st.lists(st.sampled_from(fair), unique=True)) if fair else []
        self.saved.update(self.tree.learn(some, NOW))

    @rule()
    def restart(self):
        self.tree, self.reading = ShardTree(self.saved, self.position, T), set()
        self.saved.update(self.tree.learn(self.listed(), NOW))

    @rule()
    def begin(self):
        for shard in self.tree.ready():
            assert shard.id not in self.finished | self.reading
            assert self.finished.issuperset(self.shards[shard.id].parents)
            self.tree.begin(shard.id, self.saved[shard.id], NOW)
            self.reading.add(shard.id)
            self.begun.add(shard.id)

    @precondition(lambda self: self.reading)
    @rule(data=st.data())
    def release(self, data):
        name = data.draw(st.sampled_from(sorted(self.reading)))
        self.tree.release(name)
        self.reading.discard(name)

    @rule(data=st.data())
    def finish(self, data):
        over = sorted(self.reading - self.open)
        for name in data.draw(st.sets(st.sampled_from(over))) if over else ():
            self.end(name)

    def end(self, name):
        self.tree.finish(name)
        self.saved[name] = DONE
        self.reading.discard(name)
        self.finished.add(name)

    def teardown(self):
        """Sooner or later everything is listed and ends."""
        while self.shards.keys() - self.finished:
            self.saved.update(self.tree.learn(self.listed(), NOW))
            self.begin()
            assert self.reading
            for name in sorted(self.reading):
                self.end(name)
        assert self.begun == self.shards.keys() - self.skipped


ReadingAStream.TestCase.settings = settings(max_examples=30, stateful_step_count=40)
TestEachShardIsReadToItsEndOnceAndAfterItsParents = pytest.mark.slow(ReadingAStream.TestCase)


@pytest.mark.slow
@given(st.permutations(LISTING), st.integers(1, 5), st.sampled_from(["TRIM_HORIZON", "AT_TIMESTAMP"]))
def test_neither_the_order_nor_the_parts_of_a_listing_matter(listing, parts, position):
    whole = started(LISTING, position)
    pieces = started(listing, position)
    for start in range(parts):
        assert pieces.learn(listing[start::parts], NOW) == {}
    while whole.ready():
        assert whole.ready() == pieces.ready()
        for tree in (whole, pieces):
            work_through(tree, *ready(tree))
    assert pieces.ready() == []
