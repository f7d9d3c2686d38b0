"""Counters and histograms that cost next to nothing to feed.

prometheus_client's own take a lock and look at their labels for each count; fed from one event loop, and a dozen times for
each batch, they were a good part of what the daemon spends on it. These are plain numbers, and are only shown by that library.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric


class Count:
    """One series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, by: int = 1) -> None:
        """Count `by` more."""
        self.value += by


class Durations:
    """One series of a histogram: how many values lie below each bound, and their sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def show(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Add it to what a scrape shows."""
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        counts = map(float, accumulate(self._counts))
        family.add_metric(labels, list(zip(bounds, counts, strict=True)), self._sum)


_Series = TypeVar("_Series", Count, Durations)


class _Family(Collector, Generic[_Series]):
    """All series of one name, which differ in the values of their labels."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        new: Callable[[], _Series],
        registry: CollectorRegistry,
    ) -> None:
        self._about = (f"poller_{name}", text)
        self._labels = labels
        self._new: Callable[[], _Series] = new
        self._series: dict[tuple[str, ...], _Series] = {}
        registry.register(self)

    def of(self, *values: str) -> _Series:
        """The series with these labels, which begins at nothing."""
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = self._new()
        return series

    def remove(self, *values: str) -> None:
        """Show that series no more."""
        self._series.pop(values, None)


class Counter(_Family[Count]):
    """What is counted, by `labels`."""

    def __init__(self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        super().__init__(name, text, labels, Count, registry)

    def collect(self) -> Iterator[Metric]:
        """For a scrape."""
        family = CounterMetricFamily(*self._about, labels=self._labels)
        for labels, series in self._series.items():
            family.add_metric(labels, series.value)
        yield family


class Histogram(_Family[Durations]):
    """What is timed, by `labels`; `bounds` are seconds, in order."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        super().__init__(name, text, labels, partial(Durations, bounds), registry)

    def collect(self) -> Iterator[Metric]:
        """For a scrape."""
        family = HistogramMetricFamily(*self._about, labels=self._labels)
        for labels, series in self._series.items():
            series.show(family, labels)
        yield family
