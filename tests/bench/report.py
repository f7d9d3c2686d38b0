"""Rounds -> medians -> a table."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.bench.scenarios import BASELINES, OTHERS, PLAIN, SCENARIOS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.bench.scenarios import Bar, Figures, Scenario

RESULTS = Path(__file__).parent / "results"
Rounds = dict[str, list["Figures"]]
_LABELS = {
    "core": ("CPU", " % of a core"),
    "mb": ("resident", " MB"),
    "reads": ("reads a queue or shard", " a minute"),
    "read_us": ("CPU a read", " us"),
    "records": ("records a reply", ""),
    "longest": ("longest block of the loop", " ms"),
    "typical": ("typical one", " ms"),
    "ready": ("ready after", " s"),
    "start_cpu": ("CPU until ready", " s"),
    "check": ("takes", " s"),
    "ratio": ("against aiobotocore", " x"),
    "other": ("against sqs-consumer or async-kinesis", " x"),
    "of_plain": ("against neither filter nor TLS", " %"),
    "per_cpu": ("a CPU second", ""),
}


def add_ratios(rounds: Rounds) -> None:
    """Compare within each round: what else the machine did then was the same for all."""
    for scenario in SCENARIOS:
        if not scenario.throughput:
            continue
        for number, one in enumerate(rounds.get(scenario.name, [])):
            if base := _at(rounds, BASELINES[scenario.throughput], number):
                one["ratio"] = one["per_cpu"] / base
            if base := _at(rounds, OTHERS.get(scenario.throughput, ""), number):
                one["other"] = one["per_cpu"] / base
            if base := _at(rounds, PLAIN[scenario.throughput], number):
                one["of_plain"] = 100 * one["per_cpu"] / base


def _at(rounds: Rounds, name: str, number: int) -> float | None:
    figures = rounds.get(name, [])
    return figures[number]["per_cpu"] if number < len(figures) else None


def medians(figures: list[Figures]) -> Figures:
    """The median of each figure over the rounds."""
    return {key: median(one[key] for one in figures) for key in figures[0]}


def machine() -> dict[str, Any]:
    """The kind of machine, as far as it explains figures."""
    info = Path("/proc/cpuinfo")
    models = [line.partition(": ")[2] for line in _lines(info) if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


# --- the table ----------------------------------------------------------------------------------------------------------


def markdown(rounds: Rounds, seconds: float) -> str:
    """The report of a run."""
    results = {name: medians(figures) for name, figures in rounds.items() if figures}
    ran = [scenario for scenario in SCENARIOS if scenario.name in results]
    where = machine()
    most = max(len(figures) for figures in rounds.values())
    about = f"{where['cpu']}, {where['cores']} cores, {where['system']}, Python {where['python']}"
    lines = [f"{about}; medians of {most} rounds of {seconds:g} s.", ""]
    for source in BASELINES:
        fast = [scenario for scenario in ran if scenario.throughput == source]
        if fast:
            lines += [*_throughput(fast, results, rounds), ""]
    return "\n".join([*lines, *_bars(ran, results)]) + "\n"


def _throughput(ran: list[Scenario], results: dict[str, Figures], rounds: Rounds) -> Iterable[str]:
    yield (
        "| scenario | messages or records a CPU second | lowest to highest | x aiobotocore | CPU us each | a second | "
        "core used | endpoint's core | resident MB | longest block ms | allocations each | of them kept |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|"
    for scenario in ran:
        one = results[scenario.name]
        spread = sorted(figures["per_cpu"] for figures in rounds[scenario.name])
        ratio = f"{one['ratio']:.2f}" if "ratio" in one else "-"
        cells = [
            scenario.title,
            f"{one['per_cpu']:,.0f}",
            f"{spread[0]:,.0f} to {spread[-1]:,.0f}",
            ratio,
            f"{one['us']:,.1f}",
            f"{one['per_wall']:,.0f}",
            f"{one['cpu'] / one['wall']:.0%}",
            f"{one['endpoint_share']:.0%}",
            f"{one['rss'] / 1e6:.0f}",
            f"{one['longest']:.0f}" if "longest" in one else "-",
            f"{one['allocations']:,.1f}" if "allocations" in one else "-",
            f"{one['kept']:.2f}" if "kept" in one else "-",
        ]
        yield f"| {' | '.join(cells)} |"


def _bars(ran: list[Scenario], results: dict[str, Figures]) -> Iterable[str]:
    yield "| scenario | figure | measured | bar | met |"
    yield "|---|---|---|---|---|"
    for scenario in ran:
        bars = {bar.figure: bar for bar in scenario.bars}
        shown = [*bars] if scenario.throughput else list(results[scenario.name])
        for figure in shown:
            if figure in results[scenario.name]:
                yield _line(scenario, figure, results[scenario.name][figure], bars.get(figure))


def _line(scenario: Scenario, figure: str, value: float, bar: Bar | None) -> str:
    label, unit = _LABELS[figure]
    verdict = "-" if bar is None else "yes" if bar.met(value) else "**no**"
    return f"| {scenario.title} | {label} | {value:,.{0 if value >= 1000 else 2}f}{unit} | {bar or '-'} | {verdict} |"


def save(rounds: Rounds, text: str, seconds: float, part: str) -> Path:
    """Keep the report by date, as Markdown and as JSON with every round; a second run of a day replaces the first."""
    today = datetime.now(UTC).date().isoformat()
    name = f"{today}-{part}" if part else today
    RESULTS.mkdir(exist_ok=True)
    kept = {
        "date": today,
        "machine": machine(),
        "seconds": seconds,
        "medians": {name: medians(figures) for name, figures in rounds.items() if figures},
        "rounds": rounds,
    }
    file = RESULTS / f"{name}.md"
    file.write_text(f"# {name}\n\n{text}")
    file.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")
    return file
