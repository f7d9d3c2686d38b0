"""Positions sort as checkpoints of one shard follow each other."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.core.positions import position
from poller.errors import StoreError
from poller.model import Checkpoint

CHECKPOINTS = st.builds(
    Checkpoint,
    sequence_number=st.just("") | st.integers(0, 10**56).map(str) | st.integers(0, 12).map(str),
    sub_sequence_number=st.none() | st.integers(0, 2**63 - 1) | st.integers(0, 12),
    finished=st.booleans(),
)


def meaning(checkpoint: Checkpoint) -> tuple[bool, int, float]:
    """The order by definition."""
    number, sub = checkpoint.sequence_number, checkpoint.sub_sequence_number
    return checkpoint.finished, int(number) if number else -1, math.inf if sub is None else sub


@given(CHECKPOINTS, CHECKPOINTS)
def test_positions_sort_by_finished_then_number_then_sub_sequence(one: Checkpoint, other: Checkpoint):
    assert (position(one) < position(other)) == (meaning(one) < meaning(other))
    assert (position(one) == position(other)) == (meaning(one) == meaning(other))


@given(CHECKPOINTS)
def test_time_and_window_are_no_part_of_the_position(checkpoint: Checkpoint):
    assert position(replace(checkpoint, since=5.0, window='{"a":1}')) == position(checkpoint)


def test_leading_zeros_change_nothing():
    assert position(Checkpoint("007")) == position(Checkpoint("7"))
    assert position(Checkpoint("000")) == position(Checkpoint("0")) > position(Checkpoint())


@pytest.mark.parametrize("number", ["-1", "1.5", "abc", " 1", "1_000", "\uff11", "LATEST", "9" * 1000])
def test_what_is_no_sequence_number_is_refused(number: str):
    with pytest.raises(StoreError, match="is not a sequence number"):
        position(Checkpoint(number))


@pytest.mark.parametrize("sub", [-1, 2**63])
def test_what_is_no_sub_sequence_number_is_refused(sub: int):
    with pytest.raises(StoreError, match="is not a sub-sequence number"):
        position(Checkpoint("1", sub))
