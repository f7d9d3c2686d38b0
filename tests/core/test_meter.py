"""What a shard costs, smoothed."""

from __future__ import annotations

from poller.core.meter import LEAST, SMOOTHING, WARM_UP, Meter


def test_a_rate_is_not_known_before_it_has_been_measured_for_a_while():
    meter = Meter(None, 100.0)
    meter.count(50_000)
    assert meter.rate(100.0 + WARM_UP - 0.1) is None
    meter.count(50_000)
    assert meter.rate(100.0 + WARM_UP) == 10_000.0
    assert repr(meter) == "<Meter 10000.0>"


def test_that_of_the_worker_before_counts_until_then():
    meter = Meter(7_000.0, 0.0)
    assert meter.rate(1.0) == 7_000.0


def test_a_burst_counts_little_and_what_lasts_counts_in_the_end():
    meter = Meter(10_000.0, 0.0)
    meter.count(10_000 * 12)
    before = meter.rate(12.0)
    assert before == 10_000.0
    meter.count(100_000)
    after = meter.rate(13.0)
    assert after is not None
    assert 11_000 < after < 12_000
    now = 13.0
    for _ in range(int(10 * SMOOTHING)):
        now += 1.0
        meter.count(50_000)
        after = meter.rate(now)
    assert after is not None
    assert 49_900 < after < 50_001


def test_idle_shards_all_cost_the_same():
    meter = Meter(50_000.0, 0.0)
    rate: float | None = None
    for now in range(20, 2000, 5):
        meter.count(1)
        rate = meter.rate(float(now))
    assert rate == LEAST


def test_two_looks_at_the_same_time_say_the_same():
    meter = Meter(None, 0.0)
    meter.count(20_480)
    assert meter.rate(20.0) == meter.rate(20.0) == 1024.0
