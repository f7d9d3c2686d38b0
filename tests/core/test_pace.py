from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from poller.core.pace import Allowance


def test_without_a_rate_nobody_waits():
    allowance = Allowance(None)
    allowance.spend(1_000_000, 0.0)
    assert allowance.wait(0.0) == 0
    assert "no limit" in repr(allowance)


def test_a_batch_is_handed_out_whole_and_paid_for_afterwards():
    allowance = Allowance(100)
    assert allowance.wait(7.0) == 0
    allowance.spend(250, 7.0)
    assert allowance.wait(7.0) == 2.5
    assert allowance.wait(9.0) == 0.5
    assert allowance.wait(9.5) == 0


def test_what_is_not_used_is_kept_for_a_second_only():
    allowance = Allowance(10)
    allowance.wait(0.0)
    allowance.spend(15, 100.0)
    assert allowance.wait(100.0) == 0.5
    assert "10" in repr(allowance)


@given(
    rate=st.floats(0.1, 10_000),
    batches=st.lists(st.integers(1, 500), min_size=1, max_size=50),
)
def test_over_any_time_no_more_than_the_rate_and_one_batch_are_handed_out(rate: float, batches: list[int]):
    allowance, now, handed = Allowance(rate), 0.0, 0
    for batch in batches:
        now += allowance.wait(now)
        allowance.spend(batch, now)
        handed += batch
        assert handed <= rate * (now + 1) + max(batches) + 1e-6 * handed
