"""What waits because it failed, gathered from wherever it waits: grouped by what went wrong.

A stream's document names no error, only why it was given up and whether the function failed (spec 5.7): such are grouped by
that. Invocation records, spooled deliveries and parked records know the error's type and its message.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from poller.core.fingerprint import fingerprint
from poller.core.replay import read

if TYPE_CHECKING:
    from collections.abc import Iterable

Where = Literal["queue", "objects", "elsewhere", "dead_letters", "spool", "parked"]
#: Characters of a message that a group shows.
MESSAGE = 300
UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Failure:
    """One message, object or entry that waits."""

    id: str
    """Says where it waits, and which one it is there."""
    what: str
    """The error's type, or the condition under which it was given up."""
    message: str = ""
    at: float = 0.0
    """Unix time at which it came there; 0 when that is not known."""
    records: int = 0
    shard: str = ""
    source: str = ""
    """The ARN of the stream or queue that it is about, where it says so."""


@dataclass(slots=True)
class Group:
    """Failures that look alike."""

    what: str
    fingerprint: str
    message: str
    """Of the newest."""
    newest_id: str
    newest: float
    oldest: float
    count: int = 0
    records: int = 0


@dataclass(slots=True)
class Place:
    """One place in which failures wait."""

    mapping: str
    where: Where
    name: str
    """ARN, prefix or parked key."""
    total: int | None = None
    """About how many wait there; None when that is not known."""
    looked_at: int = 0
    note: str = ""
    """Why it was not looked into, or what is to be said besides."""
    groups: list[Group] = field(default_factory=list)

    @property
    def sample(self) -> bool:
        """Whether there is more than was looked at."""
        return self.total is not None and self.total > self.looked_at


def of_document(id_: str, body: str | bytes, at: float, shard: str = "") -> Failure:
    """What a document of a destination says."""
    try:
        batch = read(body)
    except ValueError as error:
        return Failure(id_, UNREADABLE, str(error), at)
    what = batch.error_type or batch.condition
    if batch.function_error and not batch.error_type:
        what = f"{what} ({batch.function_error})"
    records = batch.span.records if batch.span else len(batch.records or ())
    shard = batch.span.shard if batch.span else shard
    return Failure(id_, what, batch.error_message, at, records, shard, batch.source_arn)


def group(failures: Iterable[Failure]) -> list[Group]:
    """The groups, the largest first."""
    groups: dict[tuple[str, str], Group] = {}
    for one in failures:
        key = one.what, fingerprint(one.message)
        known = groups.get(key)
        if known is None:
            known = groups[key] = Group(*key, one.message[:MESSAGE], one.id, one.at, one.at)
        elif one.at >= known.newest:
            known.newest, known.newest_id, known.message = one.at, one.id, one.message[:MESSAGE]
        known.oldest = min(known.oldest, one.at)
        known.count += 1
        known.records += one.records
    return sorted(groups.values(), key=lambda one: -one.count)


# --- ids ----------------------------------------------------------------------------------------------------------------


def make_id(where: Where, mapping: str, name: Any) -> str:
    """The id of a failure: names of mappings have no colon."""
    return f"{where}:{mapping}:{name}"


def split_id(id_: str) -> tuple[str, str, str]:
    """Where, which mapping, and which one there; ValueError for what is no id."""
    where, _, rest = id_.partition(":")
    mapping, _, name = rest.partition(":")
    if not (mapping and name) or where not in ("queue", "objects", "dead_letters", "spool", "parked"):
        raise ValueError("an id is as `poller failures` shows it, like queue:orders:0f5f...")
    return where, mapping, name
