from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.core.lanes import lane_of, split
from poller.model import Record

KEYS = st.none() | st.text(max_size=8)


def record(number, key):
    return Record(str(number), key, 1, {}, None)


@pytest.mark.parametrize(
    ("key", "lanes", "expected"),
    [
        ("a", 10, 7),  # crc32(b"a") = 0xE8B7BE43 = 3904355907
        ("a", 1000, 907),
        ("123456789", 10, 2),  # the check value of CRC-32: 0xCBF43926 = 3421780262
        ("", 10, 0),  # crc32(b"") = 0
        ("anything", 1, 0),
        (None, 10, 0),  # no key, no order to keep, but a lane there must be
    ],
)
def test_the_lane_of_a_key_is_the_same_for_ever(key, lanes, expected):
    assert lane_of(key, lanes) == expected


def test_half_a_surrogate_pair_is_a_key_too():
    assert 0 <= lane_of("\ud800", 10) < 10


def test_neighbouring_keys_are_spread_evenly():
    counts = [0] * 10
    for number in range(10_000):
        counts[lane_of(f"user-{number}", 10)] += 1
    assert min(counts) > 900  # 1,000 each, give or take
    assert max(counts) < 1100


@given(st.lists(KEYS, max_size=50), st.integers(1, 12))
def test_each_record_is_in_one_lane_and_each_key_keeps_its_order(keys, lanes):
    records = [record(number, key) for number, key in enumerate(keys)]
    shares = split(records, lanes)
    assert len(shares) == lanes
    assert sorted(int(each.id) for share in shares for each in share) == list(range(len(keys)))
    for number, share in enumerate(shares):
        assert [int(each.id) for each in share] == sorted(int(each.id) for each in share)
        assert all(lane_of(each.key, lanes) == number for each in share)
