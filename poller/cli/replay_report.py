"""What `poller replay` says of a replay: its progress, its end, the list of all."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

#: Kinds of errors, and sequence numbers, that a report lists.
LISTED = 10


def report(replay: dict[str, Any]) -> list[str]:
    """What has become of the records, in lines."""
    counts = replay["counts"]
    lines = [f"{replay['mapping']}: replay {replay['id']} {_state(replay)}"]
    lines += [f"  {counts['succeeded']:>9,} succeeded", f"  {counts['failed']:>9,} failed again"]
    errors = sorted(counts["errors"].items(), key=lambda one: -one[1])
    lines += [f"            {number:,} {kind}" for kind, number in errors[:LISTED]]
    if counts["example"]:
        lines.append(f"            the last one: {_short(counts['example'])}")
    if numbers := counts["failed_ids"]:
        more = f" and {counts['failed'] - LISTED:,} more" if counts["failed"] > LISTED else ""
        lines.append(f"            {', '.join(numbers[:LISTED])}{more}")
    lines.append(f"  {counts['gone']:>9,} gone from the stream")
    lines.append(f"  {counts['filtered']:>9,} filtered out")
    if replay["unit"] != "records":
        over = counts["passed_over"]
        why = f", {over:,} of these because not all of their records were asked for" if over else ""
        lines.append(
            f"  {replay['unit']}: {counts['messages']:,} done, {counts['kept']:,} stay where they are{why}"
        )
    if counts["unreadable"]:
        lines.append(f"  {counts['unreadable']:,} of these cannot be used: {counts['why_unreadable']}")
    return lines


def _state(replay: dict[str, Any]) -> str:
    reason = f": {replay['reason']}" if replay["reason"] else ""
    return f"is {replay['state']}{reason}"


def _short(text: str, width: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def went_well(replay: dict[str, Any]) -> bool:
    """Whether everything that was asked for was replayed and succeeded."""
    counts = replay["counts"]
    stay = counts["kept"] - counts["passed_over"]
    return bool(replay["state"] == "done" and not (counts["failed"] or stay or counts["gone"]))


def doing(replay: dict[str, Any]) -> str:
    """What there is to say beside the bar."""
    counts = replay["counts"]
    parts = [f"{counts['succeeded']:,} succeeded"]
    parts += [f"{counts[name]:,} {what}" for name, what in _OTHERS if counts[name]]
    if replay["note"]:
        parts.append(_short(replay["note"], 80))
    return ", ".join(parts)


_OTHERS = (("failed", "failed again"), ("gone", "gone"), ("filtered", "filtered out"))


def how_far(replay: dict[str, Any]) -> str:
    """One line for a replay that was stopped."""
    return (
        f"stopped: {doing(replay | {'note': ''})}; poller replay --resume {replay['id']} goes on where it was"
    )


def listing(replays: list[dict[str, Any]]) -> Table:
    """All of them as a table, the newest first."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("id", "mapping", "what", "state", "began", "succeeded", "failed", "gone", "reason"):
        table.add_column(name, justify="right" if name in ("succeeded", "failed", "gone") else "left")
    for one in reversed(replays):
        counts, wish = one["counts"], one["wish"]
        began = datetime.fromtimestamp(one["began"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        table.add_row(
            one["id"],
            one["mapping"],
            wish["target"] or f"from {wish['start']} to {wish['end'] or began}",
            one["state"],
            began,
            f"{counts['succeeded']:,}",
            f"{counts['failed']:,}",
            f"{counts['gone']:,}",
            one["reason"] or one["note"],
        )
    return table
