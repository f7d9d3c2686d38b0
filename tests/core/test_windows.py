from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.core.windows import GRACE, STATE_LIMIT, Window, carry, cut, dump, is_due, load, members, window_of
from poller.model import (
    Failed,
    FunctionError,
    NotInvoked,
    PartlyFailed,
    Record,
    Refused,
    Returned,
    Succeeded,
)

RESPONSE = json.loads((Path(__file__).parent / "event-examples" / "window-response.json").read_text())
WINDOW = Window(120, 130)
FAILED = FunctionError("ValueError", "no such order")


def record(arrived, number=0):
    return Record(str(number), None, 1, {}, None, arrived)


# --- membership ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrived", "length", "start"),
    [
        (0.0, 10, 0),
        (9.999, 10, 0),  # the end is not part of the window
        (10.0, 10, 10),
        (1768552801.204, 120, 1768552800),
        (30.5, 7, 28),  # 4 * 7
        (1768552801.204, 900, 1768552200),
    ],
)
def test_a_window_starts_at_a_multiple_of_its_length(arrived, length, start):
    assert window_of(arrived, length) == Window(start, start + length, "{}")


@given(st.floats(0, 4e9), st.integers(1, 900))
def test_a_record_is_inside_its_window(arrived, length):
    window = window_of(arrived, length)
    assert window.start <= arrived < window.end
    assert window.start % length == 0


def test_the_bounds_of_a_window_are_whole_seconds_of_utc():
    assert window_of(1768552801.204, 120).bounds == {
        "start": "2026-01-16T08:40:00Z",
        "end": "2026-01-16T08:42:00Z",
    }


@pytest.mark.parametrize(
    ("window", "arrivals", "opened", "count"),
    [
        (None, [125, 129.9, 130], WINDOW, 2),  # the first record opens its window, a later one is left out
        (None, [125, 126], WINDOW, 2),
        (WINDOW, [125, 126], WINDOW, 2),
        (WINDOW, [130, 126], WINDOW, 0),  # it has to be closed first
        (WINDOW, [119, 126], WINDOW, 2),  # a late record joins the open window
        (None, [125, 119, 126], WINDOW, 3),
        (Window(120, 130, '{"n":1}'), [125], Window(120, 130, '{"n":1}'), 1),
    ],
)
def test_a_batch_never_goes_past_the_end_of_its_window(window, arrivals, opened, count):
    assert cut(window, [record(arrived) for arrived in arrivals], 10) == (opened, count)


@given(st.lists(st.floats(0, 100), min_size=1), st.integers(1, 20))
def test_cut_into_windows_no_record_is_lost_and_each_window_ends_before_the_next(arrivals, length):
    records = [record(arrived, number) for number, arrived in enumerate(arrivals)]
    window, seen = None, []
    while len(seen) < len(records):
        rest = records[len(seen) :]
        if window and is_due(window, rest[0], 0, ended=False, at_tip=False):
            closed, window = window, None
            assert window_of(rest[0].arrived, length).start >= closed.end
        window, count = cut(window, rest, length)
        assert count > 0
        assert all(each.arrived < window.end for each in rest[:count])
        seen += rest[:count]
    assert seen == records


# --- the end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("following", "now", "ended", "at_tip", "due"),
    [
        (129.9, 999, True, True, False),  # a record of the same window goes first, whatever the time
        (130.0, 131, False, False, True),  # a record of a later window closes it
        (None, 125, True, False, True),  # the shard has ended
        (None, 130 + GRACE, False, True, False),
        (None, 130.1 + GRACE, False, True, True),  # nothing comes any more
        (None, 999, False, False, False),  # there is more to read: it may belong to this window
    ],
)
def test_a_window_is_due_when_nothing_more_can_belong_to_it(following, now, ended, at_tip, due):
    next_record = None if following is None else record(following)
    assert is_due(WINDOW, next_record, now, ended=ended, at_tip=at_tip) is due


def test_the_grace_of_an_idle_window_can_be_chosen():
    assert is_due(WINDOW, None, 131.5, ended=False, at_tip=True, grace=1)
    assert not is_due(WINDOW, None, 130.5, ended=False, at_tip=True, grace=1)


@pytest.mark.parametrize(
    ("state", "outgrown"),
    [
        ("{}", False),
        ('"' + "x" * (STATE_LIMIT - 2) + '"', False),
        ('"' + "x" * (STATE_LIMIT - 1) + '"', True),
        ('"' + "é" * (STATE_LIMIT // 2 - 1) + '"', False),  # two bytes a character
        ('"' + "é" * (STATE_LIMIT // 2) + '"', True),
    ],
)
def test_a_window_whose_state_outgrows_its_limit_is_due_at_once(state, outgrown):
    window = Window(120, 130, state)
    assert is_due(window, record(125), 125, ended=False, at_tip=False) is outgrown
    assert members(window, final=True)["isWindowTerminatedEarly"] is outgrown
    assert members(window, final=False)["isWindowTerminatedEarly"] is False


# --- the state ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "outcome", "state"),
    [
        (RESPONSE, Succeeded(), '{"hits":42}'),
        ({"state": {}}, Succeeded(), "{}"),
        ({"state": None}, Succeeded(), "{}"),
        (RESPONSE, PartlyFailed(frozenset("a")), '{"hits":42}'),  # what came with the failures is carried on
    ],
)
def test_the_state_that_was_returned_is_carried_on(payload, outcome, state):
    assert carry(WINDOW, Returned(payload), outcome) == (outcome, Window(120, 130, state))


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (None, "returned null"),
        ({}, "returned {} "),
        ("state", 'returned "state"'),
        ([], "returned [] "),
        ({"batchItemFailures": []}, "batchItemFailures"),
        ({"state": 3}, "the state 3 "),
        ({"state": [1]}, "the state [1] "),
        ({"state": {"n": 2**70}}, "not JSON"),
        ({"state": {"n": "x" * 6 * 2**20}}, "6291464 bytes"),
    ],
)
def test_an_invocation_that_gives_no_state_has_failed_and_changes_nothing(payload, says):
    outcome, window = carry(Window(120, 130, '{"n":1}'), Returned(payload), Succeeded())
    assert isinstance(outcome, Failed)
    assert outcome.returned
    assert outcome.error.error_type == "Poller.InvalidWindowResponse"
    assert outcome.error.error_message.startswith("The function returned ")
    assert says in outcome.error.error_message
    assert window == Window(120, 130, '{"n":1}')


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (FAILED, Failed(FAILED)),
        (Refused("no worker is free"), NotInvoked("no worker is free")),
        (Returned({"state": {"hits": 42}, "batchItemFailures": 3}), Failed(FAILED)),
    ],
)
def test_an_invocation_that_failed_changes_nothing(reply, outcome):
    assert carry(WINDOW, reply, outcome) == (outcome, WINDOW)


def test_a_handler_that_changes_its_state_changes_nothing_of_the_next_attempt():
    window = Window(120, 130, '{"hits":[41]}')
    members(window, final=False)["state"]["hits"].append(42)
    assert members(window, final=False)["state"] == {"hits": [41]}


# --- across a restart ---------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@given(st.integers(0, 10**9), st.integers(1, 900), st.dictionaries(st.sampled_from("abc"), JSON))
def test_a_window_survives_a_restart(start, length, state):
    _, window = carry(Window(start, start + length), Returned({"state": state}), Succeeded())
    assert load(dump(window)) == window
    assert members(window, final=False)["state"] == state


def test_no_window_survives_a_restart_as_none():
    assert dump(None) == ""
    assert load("") is None


def test_a_window_is_kept_as_plain_json():
    assert dump(Window(120, 130, '{"hits":41}')) == '{"start":120,"end":130,"state":{"hits":41}}'


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"start":1,"end":2}', '{"start":"x","end":2,"state":{}}'])
def test_what_is_no_window_is_refused(text):
    with pytest.raises(ValueError, match="is not the state of a window"):
        load(text)
