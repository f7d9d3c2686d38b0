from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.core.fingerprint import LONGEST, fingerprint


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("", ""),
        ("no such order", "no such order"),
        ("order 4711 has 2 items", "order <number> has <number> items"),
        ("took 3.25 s", "took <number> s"),
        ("no order 0b3c1a7e-5d4f-4a7b-8f0a-9a1b2c3d4e5f", "no order <uuid>"),
        ("digest 9a1b2c3d4e5f0b3c", "digest <hex>"),
        ("at 0x7f3a", "at <hex>"),
        ("since 2026-01-16T08:41:12.345Z", "since <time>"),
        ("since 2026-01-16 08:41+01:00", "since <time>"),
        ("10.0.0.1 refuses", "<number> refuses"),
        ("two\n  lines\there", "two lines here"),
        ("deadbeefs and facade", "deadbeefs and facade"),
        ("table user_17", "table user_<number>"),
    ],
)
def test_what_varies_is_replaced_by_what_it_is(message: str, expected: str):
    assert fingerprint(message) == expected


@given(st.text(max_size=2000))
def test_a_fingerprint_is_short_on_one_line_and_its_own_fingerprint(message: str):
    short = fingerprint(message)
    assert len(short) <= LONGEST
    assert "\n" not in short
    assert not any(letter.isdecimal() and letter.isascii() for letter in short)


@given(st.integers(0, 10**30), st.integers(0, 10**30))
def test_numbers_make_no_difference(one: int, other: int):
    assert fingerprint(f"order {one} is missing") == fingerprint(f"order {other} is missing")
