"""The demo's screen: a live table on a terminal, a line a second elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from types import TracebackType

_STATES = {"running": "green", "degraded": "yellow", "failed": "red", "stopped": "dim"}
_TOTALS = {
    "received": ("received",),
    "filtered": ("filtered",),
    "invoked": ("invoked",),
    "failed": ("failed",),
    # A queue's records are deleted, a stream's are committed.
    "done": ("deleted", "committed"),
}


@dataclass(frozen=True)
class Counters:
    """What the demo itself knows."""

    phase: str
    sent: int
    handled: int
    dead_lettered: int

    def __str__(self) -> str:
        return f"{self.phase}: sent {self.sent}, handled {self.handled}, dead-lettered {self.dead_lettered}"


class Screen:
    """Shows the daemon's status and the demo's counters, each time `show` is called."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def say(self, line: str) -> None:
        """Print one line that stays."""
        self.console.print(line, markup=False, soft_wrap=True)

    def show(self, status: dict[str, Any], counters: Counters) -> None:
        """Show where things stand; `status` is the daemon's, empty while it does not answer."""
        mappings = status.get("mappings", [])
        if self._live:
            heading = Text(str(counters), style="bold")
            self._live.update(Group(heading, table_of(mappings)), refresh=True)
        else:
            self.say(f"{counters} | {line_of(mappings)}")


def line_of(mappings: list[dict[str, Any]]) -> str:
    """Return the mappings in one line."""
    return "; ".join(f"{mapping['name']} {_state_of(mapping)}" for mapping in mappings) or "daemon not ready"


def table_of(mappings: list[dict[str, Any]]) -> Table:
    """Return the mappings as a table, a row each, as wide as eighty columns are."""
    table = Table(
        "mapping", "state", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for heading in ("at work", *_TOTALS, "lag"):
        table.add_column(heading, justify="right", no_wrap=True)
    for mapping in mappings:
        state = Text(_state_of(mapping), style=_STATES.get(mapping["state"], ""))
        totals = mapping["totals"]
        numbers = [sum(totals[key] for key in keys) for keys in _TOTALS.values()]
        cells = [mapping["in_flight_records"], *numbers, _lag(mapping)]
        table.add_row(Text(mapping["name"]), state, *map(str, cells))
    return table


def _lag(mapping: dict[str, Any]) -> str:
    """Seconds that a stream's mapping is behind; a queue has no such measure."""
    known = [shard["iterator_age"] for shard in mapping["shards"] if shard["iterator_age"] is not None]
    return f"{max(known):.1f} s" if known else ""


def _state_of(mapping: dict[str, Any]) -> str:
    reason = mapping.get("reason")
    return f"{mapping['state']} ({reason})" if reason else str(mapping["state"])
