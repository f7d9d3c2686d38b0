from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.core.progress import Progress, Token


def test_nothing_is_safe_before_the_first_batch_is_resolved() -> None:
    progress = Progress[str]()
    progress.track("a")
    assert progress.position is None
    assert len(progress) == 1


def test_a_batch_that_finishes_early_waits_for_those_before_it() -> None:
    progress = Progress[str]()
    first, second, third = progress.track("a"), progress.track("b"), progress.track("c")
    assert progress.resolve(second) is None
    assert progress.resolve(first) == "b"
    assert progress.position == "b"
    assert progress.resolve(third) == "c"
    assert len(progress) == 0


def test_resolving_twice_moves_nothing() -> None:
    progress = Progress[int]()
    first, _ = progress.track(1), progress.track(2)
    assert progress.resolve(first) == 1
    assert progress.resolve(first) is None
    assert progress.position == 1


def test_a_position_may_be_falsy() -> None:
    progress = Progress[int]()
    assert progress.resolve(progress.track(0)) == 0


@pytest.mark.slow
@given(st.data(), st.integers(1, 30))
def test_the_checkpoint_is_the_contiguous_prefix_of_what_is_resolved(
    data: st.DataObject, batches: int
) -> None:
    progress = Progress[int]()
    tokens: dict[int, Token[int]] = {}
    resolved: set[int] = set()
    before = -1
    while len(resolved) < batches:
        open_tokens = sorted(set(tokens) - resolved)
        if len(tokens) < batches and (not open_tokens or data.draw(st.booleans())):
            tokens[len(tokens)] = progress.track(len(tokens))
            continue
        position = data.draw(st.sampled_from(open_tokens))
        resolved.add(position)
        moved = progress.resolve(tokens[position])
        still_open = set(range(len(tokens))) - resolved
        expected = min(still_open, default=len(tokens)) - 1
        assert moved == (expected if expected > before else None)
        assert progress.position == (expected if expected >= 0 else None)
        before = expected
    assert progress.position == batches - 1
    assert len(progress) == 0
