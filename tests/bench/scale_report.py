"""Curves -> Markdown, JSON and a figure."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tests.bench.bends import WHY, slope, where
from tests.bench.report import RESULTS, machine

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tests.bench.curves import Curve, Point, Timing

    Measured = Mapping[Curve, Sequence[Point]]

#: What is drawn of each curve: attribute, label, whether the axis is logarithmic.
ROWS = (("cost", "", True), ("mb", "resident MB", False), ("longest", "longest block, ms of CPU", False))
#: Of a loop that is held up.
BAR = 20.0


def markdown(measured: Measured, timing: Timing, busy: float) -> str:
    """The report of a run; `busy` is what was running on the machine meanwhile, on average."""
    about = machine()
    where_from = f"{about['cpu']}, {about['cores']} cores, {about['system']}, Python {about['python']}"
    how = f"medians of {timing.windows} windows of {timing.seconds:g} s, of idle queues one of 20 s"
    lines = [f"{where_from}; {how}. Load average of the machine meanwhile: {busy:.1f}.", ""]
    for curve, points in measured.items():
        lines += [f"## {curve.title}", "", *_table(curve, points), ""]
        lines += [*_slopes(curve, points), f"**Where:** {where(points, curve.load, idle=curve.idle)}", ""]
        lines += [f"**Why:** {WHY[curve.name]}", ""]
    return "\n".join(lines)


def _table(curve: Curve, points: Sequence[Point]) -> Iterator[str]:
    head = [
        curve.load,
        curve.unit,
        curve.rate,
        "core used",
        "resident MB",
        "longest block ms",
        "ready after s",
        "endpoint's core",
    ]
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for point in points:
        cells = [
            f"{point.x:,}",
            f"{point.cost:,.2f}",
            f"{point.rate:,.{0 if point.rate >= 100 else 1}f}",
            f"{point.core:.1%}",
            f"{point.mb:,.0f}",
            f"{point.longest:.0f}",
            f"{point.ready:.1f}",
            f"{point.endpoint:.0%}",
        ]
        yield f"| {' | '.join(cells)} |"


def _slopes(curve: Curve, points: Sequence[Point]) -> Iterator[str]:
    if not curve.idle or len(points) < 2:
        return
    xs = [float(point.x) for point in points]
    memory = 1000 * slope(xs, [point.mb for point in points])
    cpu = 1000 * slope(xs, [point.cost for point in points])
    name = curve.load.removesuffix("s")
    yield f"Each {name}: {memory:,.1f} KB of memory, {cpu:,.1f} us of CPU a second (least squares over all points)."
    yield ""


def save(measured: Measured, timing: Timing, text: str, part: str, folder: Path = RESULTS) -> Path:
    """Keep all three by date; a second run of a day replaces the first. Returns the Markdown file."""
    today = datetime.now(UTC).date().isoformat()
    file = folder / f"{today}-{part}.md"
    folder.mkdir(exist_ok=True)
    figure = file.with_suffix(".svg")
    draw(measured, figure)
    file.write_text(f"# {file.stem}\n\n![cost against load]({figure.name})\n\n{text}")
    kept = {
        "date": today,
        "machine": machine(),
        "timing": asdict(timing),
        "curves": {
            curve.name: {
                "load": curve.load,
                "unit": curve.unit,
                "rate": curve.rate,
                "points": [asdict(point) for point in points],
            }
            for curve, points in measured.items()
        },
    }
    file.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")
    return file


def draw(measured: Measured, file: Path) -> None:
    """One column a panel, one row each for cost, memory and the longest block."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    panels = list(dict.fromkeys(curve.panel for curve in measured))
    # Text stays text, and two runs differ in nothing but their figures.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 9}):
        figure, axes = plt.subplots(
            len(ROWS), len(panels), figsize=(3.4 * len(panels), 8), squeeze=False, layout="constrained"
        )
        for column, panel in enumerate(panels):
            curves = [(curve, points) for curve, points in measured.items() if curve.panel == panel]
            for (attribute, label, logarithmic), axis in zip(ROWS, axes[:, column], strict=True):
                for curve, points in curves:
                    values = [getattr(point, attribute) for point in points]
                    axis.plot(
                        [point.x for point in points], values, marker="o", markersize=4, label=curve.name
                    )
                axis.set_xscale("log")
                axis.set_yscale("log" if logarithmic else "linear")
                if not logarithmic:
                    axis.set_ylim(bottom=0)
                if attribute == "longest":
                    axis.axhline(BAR, color="grey", linestyle=":", linewidth=1)
                axis.set_ylabel(label or curves[0][0].unit.replace(" a message", " each"))
                axis.set_xlabel(
                    curves[0][0].load if len({curve.load for curve, _ in curves}) == 1 else "number"
                )
                axis.grid(visible=True, which="major", alpha=0.3)
            axes[0, column].set_title(panel)
            axes[0, column].legend(fontsize=7)
        figure.savefig(file, metadata={"Date": None})
        plt.close(figure)
