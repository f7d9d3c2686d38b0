"""What `/status` says, as tables for a terminal: the mappings, and the shards of those on streams.

A name, a shard or a figure is never broken over two lines: a terminal too narrow for every column gets fewer of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from poller.telemetry.log_format import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.console import RenderableType

#: Shards, of all mappings together, that are all shown.
FEW = 20
#: Shards of one mapping that are shown when there are more.
WORST = 5
#: Spaces between two columns.
GAP = 2
#: Characters that a reason has to have for a column of its own.
ROOM_FOR_WHY = 30
#: Characters in which two or three words can be read.
ROOM_FOR_WORDS = 12
#: Seconds for which progress may wait to be saved without a word about it; it is written once a second.
LONG_UNSAVED = 5.0
#: The last digits of a sequence number, which tell it from its neighbours.
DIGITS = 12

_STYLES = {
    "running": "green",
    "degraded": "yellow",
    "paused": "cyan",
    "failed": "bold red",
    "draining": "magenta",
}
_WELL = frozenset({"reading", "idle", "working", "paused", "opening", "waiting", "ended"})
_POSITION, _NOWHERE = "done up to", "nothing yet"
_WAITING_FOR_PARENT = "waiting for its parent"


@dataclass(frozen=True)
class _Column:
    """A figure of a mapping."""

    heading: str
    figure: Callable[[dict[str, Any]], str]
    wanted: int
    """The higher, the sooner it gives way to others."""
    only_if_any: bool = False
    """Shown only when one of the mappings has something there."""


def _total(*keys: str) -> Callable[[dict[str, Any]], str]:
    return lambda mapping: f"{sum(mapping['totals'].get(key, 0) for key in keys):,}"


def _number(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda mapping: f"{mapping[key]:,}"


#: In the order in which they are shown.
_COLUMNS = (
    _Column("polls", _number("receivers"), 8),
    _Column("at work", _number("in_flight_records"), 5),
    _Column("lag", lambda mapping: _seconds(_lag(mapping)), 3, only_if_any=True),
    _Column("received", _total("received"), 6),
    _Column("filtered", _total("filtered"), 9),
    _Column("invoked", _total("invoked"), 7),
    _Column("failed", _total("failed"), 4),
    # A queue's records are deleted, a stream's are committed.
    _Column("done", _total("deleted", "committed"), 0),
    _Column("dropped", _total("dropped"), 1, only_if_any=True),
    _Column("delivered", _total("delivered"), 2, only_if_any=True),
    _Column("given back", _total("released"), 10),
)


def overview(status: dict[str, Any], now: float, width: int) -> RenderableType:
    """All mappings, and their shards when these are few or among the worst of many."""
    title = (
        f"poller {status['version']}, pid {status['pid']}, up {age(now - status['started'])}, "
        f"{status['in_flight']} of {status['concurrency']} invocations"
    )
    title += ", stopping" if status["stopping"] else ""
    mappings = status["mappings"]
    shown = _worst(mappings)
    shards = [
        _shards(mapping, rows, width)
        for mapping, rows in zip(mappings, shown, strict=True)
        if mapping["shards"]
    ]
    waiting = [line for mapping in mappings for line in (*_spool(mapping, now), *_parked(mapping, now, 1))]
    return Group(Text(title, style="bold"), *_mappings(mappings, width), *shards, *waiting)


def _worst(mappings: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The shards of each mapping to be shown: all when they are few, else the worst of each, and these of all."""
    if sum(len(mapping["shards"]) for mapping in mappings) <= FEW:
        return [mapping["shards"] for mapping in mappings]
    ranked = [
        (_badness(shard), index, shard)
        for index, mapping in enumerate(mappings)
        for shard in sorted(mapping["shards"], key=_badness, reverse=True)[:WORST]
    ]
    ranked.sort(key=itemgetter(0), reverse=True)
    shown: list[list[dict[str, Any]]] = [[] for _ in mappings]
    for _, index, shard in ranked[:FEW]:
        shown[index].append(shard)
    return shown


def one(mapping: dict[str, Any], now: float, width: int) -> RenderableType:
    """One mapping, with every shard that it has."""
    source = Text(f"{mapping['source']} -> {mapping['function']}", overflow="fold")
    shards = [_shards(mapping, mapping["shards"], width)] if mapping["shards"] else []
    return Group(source, *_mappings([mapping], width), *shards, *_spool(mapping, now), *_parked(mapping, now))


# --- mappings ---------------------------------------------------------------------------------------------------------------


def _mappings(mappings: Sequence[dict[str, Any]], width: int) -> list[RenderableType]:
    columns, room = _chosen(mappings, width)
    reasons = {mapping["name"]: why for mapping in mappings if (why := _why(mapping))}
    beside = room >= ROOM_FOR_WHY
    table = _table()
    table.add_column("mapping", no_wrap=True, overflow="ellipsis")
    table.add_column("state", no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    if beside and reasons:
        table.add_column("why", overflow="fold")
    for mapping in mappings:
        name, state = mapping["name"], mapping["state"]
        cells = [Text(name), Text(state, style=_STYLES.get(state, ""))]
        cells += [Text(column.figure(mapping)) for column in columns]
        if beside and reasons:
            cells.append(Text(reasons.get(name, "")))
        table.add_row(*cells)
    beneath = [] if beside else [Text(f"{name}: {why}", overflow="fold") for name, why in reasons.items()]
    return [table, *beneath]


def _chosen(mappings: Sequence[dict[str, Any]], width: int) -> tuple[list[_Column], int]:
    """The columns that `width` has room for, and the room that they leave."""
    room = width - _widest("mapping", (mapping["name"] for mapping in mappings))
    room -= GAP + _widest("state", (mapping["state"] for mapping in mappings))
    chosen = []
    for column in sorted(_COLUMNS, key=lambda column: column.wanted):
        figures = [column.figure(mapping) for mapping in mappings]
        if column.only_if_any and not any(figure.strip("0") for figure in figures):
            continue
        needed = GAP + _widest(column.heading, figures)
        if needed > room:
            break
        room -= needed
        chosen.append(column)
    return [column for column in _COLUMNS if column in chosen], room - GAP


def _why(mapping: dict[str, Any]) -> str:
    error = mapping["totals"]["last_error"]
    ramping = mapping.get("circuit") == "ramping" and "circuit ramping up after an outage of the function"
    return str(mapping["reason"] or ramping or (error and f"last error: {error}"))


# --- shards -----------------------------------------------------------------------------------------------------------------


def _shards(mapping: dict[str, Any], shown: Sequence[dict[str, Any]], width: int) -> RenderableType:
    heading = Text(f"\n{mapping['name']}: {_summary(mapping)}", style="bold")
    if len(shown) < len(mapping["shards"]):
        heading.append(f"; all of them: poller status {mapping['name']}", style="not bold")
    return Group(heading, _shard_table(shown, width)) if shown else heading


def _shard_table(shown: Sequence[dict[str, Any]], width: int) -> Table:
    columns = {"lag": [_seconds(shard["iterator_age"]) for shard in shown]}
    room = (
        width - _widest("shard", (shard["shard"] for shard in shown)) - GAP - _widest("lag", columns["lag"])
    )
    # Whole sequence numbers, then the number of open records, only where a sentence still fits beside them.
    for least, heading, cells in (
        (ROOM_FOR_WHY, _POSITION, [shard["sequence_number"] or _NOWHERE for shard in shown]),
        (ROOM_FOR_WORDS, _POSITION, [_short(shard["sequence_number"]) or _NOWHERE for shard in shown]),
        (ROOM_FOR_WHY, "open", [f"{shard['open_records']:,}" for shard in shown]),
    ):
        left = room - GAP - _widest(heading, cells)
        if heading not in columns and left - GAP >= least:
            columns[heading], room = cells, left
    table = _table()
    table.add_column("shard", no_wrap=True, overflow="ellipsis")
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("doing", overflow="fold")
    for shard, *cells in zip(shown, *columns.values(), strict=True):
        doing = Text(_doing(shard), style="yellow" if _in_trouble(shard) else "")
        table.add_row(Text(shard["shard"]), *cells, doing)
    return table


def _summary(mapping: dict[str, Any]) -> str:
    shards = mapping["shards"]
    parts = [f"{len(shards):,} shard{'' if len(shards) == 1 else 's'}"]
    if waiting := sum(shard["doing"].startswith(_WAITING_FOR_PARENT) for shard in shards):
        parts.append(f"{waiting:,} waiting for a parent")
    if trouble := sum(map(_in_trouble, shards)):
        parts.append(f"{trouble:,} held up")
    lag = _lag(mapping)
    return ", ".join(parts if lag is None else [*parts, f"lag at most {_seconds(lag)}"])


def _in_trouble(shard: dict[str, Any]) -> bool:
    return shard["doing"] not in _WELL and not shard["doing"].startswith(_WAITING_FOR_PARENT)


def _badness(shard: dict[str, Any]) -> tuple[bool, float]:
    return _in_trouble(shard), shard["iterator_age"] or 0.0


def _doing(shard: dict[str, Any]) -> str:
    unsaved = shard["checkpoint_age"]
    late = f", progress not saved for {age(unsaved)}" if unsaved >= LONG_UNSAVED else ""
    return f"{shard['doing']}{late}"


def _short(number: str) -> str:
    return number if len(number) <= DIGITS else f"…{number[-DIGITS:]}"


def _lag(mapping: dict[str, Any]) -> float | None:
    known = [shard["iterator_age"] for shard in mapping["shards"] if shard["iterator_age"] is not None]
    return max(known, default=None)


# --- the spool --------------------------------------------------------------------------------------------------------------


def _spool(mapping: dict[str, Any], now: float) -> Iterator[RenderableType]:
    for line in mapping["spool"]:
        count = f"{line['entries']:,} batch{'' if line['entries'] == 1 else 'es'}"
        text = Text(
            f"\n{mapping['name']}: {count} ({_size(line['bytes'])}) spooled", "bold yellow", overflow="fold"
        )
        text.append(
            f" for {line['destination']}, the oldest for {age(now - line['oldest'])}"
            f"{': ' if line['why'] else ''}{line['why']}",
            style="not bold default",
        )
        yield text


def _parked(mapping: dict[str, Any], now: float, most: int = 10) -> Iterator[RenderableType]:
    """What is parked: how much, and of the first keys why."""
    parked = mapping["parked"]
    if not (parked and parked["keys"]):
        return
    keys = f"{parked['keys']:,} key{'' if parked['keys'] == 1 else 's'} parked"
    text = Text(f"\n{mapping['name']}: {keys}", "bold yellow", overflow="fold")
    since = age(now - parked["oldest"])
    full = f"; {parked['waiting']}" if parked["waiting"] else ""
    text.append(
        f", {parked['records']:,} records ({_size(parked['bytes'])}), the oldest for {since}{full}",
        style="not bold default",
    )
    yield text
    for one in parked["first"][:most]:
        line = Text(f"  {_clipped(one['key'])}: {one['records']:,} records, {one['doing']}", overflow="fold")
        error = f"{one['error_type']}: {one['error_message']}".removeprefix(": ")
        yield line.append(f": {_clipped(error, 200)}" if error else "")
    if parked["keys"] > most:
        more = parked["keys"] - most
        yield Text(
            f"  and {more:,} more: poller status {mapping['name']}" if most == 1 else f"  and {more:,} more"
        )


def _clipped(text: str, limit: int = 64) -> str:
    text = escape(text)
    return text if len(text) <= limit else f"{text[:limit]}…"


def _size(count: int) -> str:
    return (
        f"{count:,} bytes"
        if count < 1000
        else f"{count / 1e6:,.1f} MB"
        if count >= 1e5
        else f"{count / 1e3:,.1f} kB"
    )


# --- words ------------------------------------------------------------------------------------------------------------------


def age(seconds: float) -> str:
    """A length of time in its two largest units."""
    minutes, seconds = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _seconds(lag: float | None) -> str:
    """A lag in seconds, which is what alerts compare; empty when it is not known."""
    return "" if lag is None else f"{lag:,.0f} s" if lag >= 10 else f"{lag:.1f} s"


def _widest(heading: str, cells: Iterable[str]) -> int:
    return max(len(heading), *map(len, cells), 0)


def _table() -> Table:
    # The box puts one more space between two columns.
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
