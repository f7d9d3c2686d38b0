from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.core.quoting import LIMIT, quote


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError


def circle() -> list[Any]:
    values: list[Any] = []
    values.append(values)
    return values


def deep() -> list[Any]:
    values: list[Any] = []
    for _ in range(100_000):
        values = [values]
    return values


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("a\nb", '"a\\nb"'),
        ({"k": [None, True]}, '{"k": [null, true]}'),
        ("é\ud800", '"é\\ud800"'),
        (Odd(), '"<Odd>"'),
        ({(1, 2): 3}, "<dict>"),
        (circle(), "<list>"),
        (10**5000, "<int>"),
        (deep(), "[" * LIMIT + "…"),
    ],
    ids=["line break", "structure", "surrogate", "object", "odd keys", "circle", "huge number", "deep"],
)
def test_any_value_is_quoted_on_one_line(value: Any, quoted: str) -> None:
    assert quote(value) == quoted


@given(st.text() | st.lists(st.text()) | st.dictionaries(st.text(), st.text()))
def test_a_quotation_is_short_and_can_be_written(value: Any) -> None:
    quoted = quote(value)
    assert len(quoted) <= LIMIT + 1
    assert "\n" not in quoted
    quoted.encode()
