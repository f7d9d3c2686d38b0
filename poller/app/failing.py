"""What waits because it failed: in the destinations of mappings, in dead-letter queues, in the spool and under parked keys.

Looking changes nothing, as far as that can be: messages are received, and shown again at once, which counts as one receive of
each; so a queue that has a redrive policy of its own is only counted. What is looked at is bounded everywhere, and what is more
than that is told of as a number.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from poller.app.replay_counts import COUNTED_ONLY
from poller.app.replay_sources import ReplayObserver
from poller.config.arn import parse_arn
from poller.core import spooled
from poller.core.failure import function_name, mapping_id
from poller.core.failures import Failure, Place, group, make_id, of_document, split_id
from poller.core.replay import same_source
from poller.engine.child import leaf
from poller.errors import PollerError, ReplayRefused, StoreError
from poller.sources.failed_objects import newest, read_object
from poller.sources.failed_queue import attributes, open_failed_queue
from poller.sources.sqs import QueueId

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from poller.app.mappings import Surroundings
    from poller.config import Mapping
    from poller.config.arn import Arn
    from poller.core.failures import Where
    from poller.model import SpoolEntry, SpoolKind, SpoolTotals
    from poller.ports import Spool
    from poller.sources._letters import Letter

#: Messages, objects and entries that are looked at in each place; keys and objects that are counted.
MESSAGES = 100
OBJECTS = 50
ENTRIES = 1_000
COUNTED = 10_000
#: Entries, and about the bytes of their bodies, that are taken from the spool at a time.
TAKEN = 50
BYTES = 16 * 2**20
#: Bytes of a spooled delivery that is looked into.
SMALL = 64 * 1024
#: Parked keys that are listed.
KEYS = 100
#: Seconds in which one place is looked into.
PATIENCE = 12.0
#: What is in the spool, by where it is said to be.
KINDS: dict[str, SpoolKind] = {"spool": "delivery", "parked": "parked"}
#: The parts of a document that hold records.
_PAYLOADS = ("payload", "requestPayload")


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in one queue."""

    attributes: dict[str, str]
    letters: Sequence[Letter] = ()
    why_counted: str = ""
    """Why it was only counted; empty when it was looked into."""


@dataclass(frozen=True, slots=True)
class Looking:
    """One look, and what it is done with."""

    around: Surroundings
    function_arn: Callable[[Mapping], str]
    spools: bool = True
    """Whether there is a spool to look into."""
    contents: dict[str, Contents] = field(default_factory=dict)
    """Of queues, by their ARNs. One that several mappings share is received from once, or each would hide some from others."""
    turns: defaultdict[str, anyio.Lock] = field(default_factory=lambda: defaultdict(anyio.Lock))


async def look(mappings: Sequence[Mapping], looking: Looking) -> list[dict[str, Any]]:
    """What waits, place by place, as JSON has it; each group with the id of one of its failures."""
    found: list[list[Place]] = [[] for _ in mappings]

    async def look_at(at: int, mapping: Mapping) -> None:
        found[at] = await _places(mapping, looking)

    async with anyio.create_task_group() as tasks:
        for at, mapping in enumerate(mappings):
            tasks.start_soon(look_at, at, mapping)
    return [asdict(place) | {"sample": place.sample} for places in found for place in places]


async def _places(mapping: Mapping, looking: Looking) -> list[Place]:
    places: list[Place] = []
    for key, text in mapping.destinations.items():
        if key == "on_failure":
            places.append(await _destination(mapping, text, looking))
    if mapping.source == "sqs":
        places += await _dead_letters(mapping, looking)
    return places + await _spooled(mapping, looking)


async def _guarded(place: Place, work: Callable[[], Awaitable[None]]) -> Place:
    """Look into `place`; what goes wrong is said of it, and harms no other."""
    try:
        with anyio.fail_after(PATIENCE):
            await work()
    except PollerError as error:
        place.note = str(error)
    except TimeoutError:
        place.note = f"it could not be looked into within {PATIENCE:.0f} s"
    return place


def _reason(raised: Exception) -> str:
    """What went wrong in a queue that was open: its own tasks make a group of it. Raises what is a bug."""
    error = leaf(raised)
    if not isinstance(error, PollerError):
        raise error from raised
    return str(error)


# --- destinations -------------------------------------------------------------------------------------------------------


async def _destination(mapping: Mapping, text: str, looking: Looking) -> Place:
    service = parse_arn(text).service if text.startswith("arn:") else ""
    if service == "sqs":
        place = Place(mapping.name, "queue", text)
        return await _guarded(place, partial(_look_into_queue, place, mapping, parse_arn(text), looking))
    if service == "s3":
        bucket = parse_arn(text).resource
        prefix = object_prefix(mapping, looking.function_arn(mapping))
        place = Place(mapping.name, "objects", f"s3://{bucket}/{prefix}")
        return await _guarded(place, partial(_look_into_bucket, place, bucket, prefix, mapping, looking))
    note = "it passes on what it gets: look where that goes"
    return Place(mapping.name, "elsewhere", text, note=note)


async def _dead_letters(mapping: Mapping, looking: Looking) -> list[Place]:
    place = Place(mapping.name, "dead_letters", "")

    async def look_into() -> None:
        place.name = await _dead_letter_arn(mapping, looking)
        if place.name:
            await _look_into_queue(place, mapping, parse_arn(place.name), looking)

    await _guarded(place, look_into)
    return [place] if place.name or place.note else []


async def _dead_letter_arn(mapping: Mapping, looking: Looking) -> str:
    known = await _attributes(mapping.arn, looking)
    policy = json.loads(known.get("RedrivePolicy") or "{}")
    return str(policy.get("deadLetterTargetArn") or "")


async def _attributes(arn: Arn, looking: Looking) -> dict[str, str]:
    api = await looking.around.session.api("sqs", arn.region)
    return await attributes(api, arn.resource, arn.account)


async def _look_into_queue(place: Place, mapping: Mapping, arn: Arn, looking: Looking) -> None:
    async with looking.turns[str(arn)]:
        if str(arn) not in looking.contents:
            looking.contents[str(arn)] = await _contents(mapping, arn, looking)
        found = looking.contents[str(arn)]
    place.total = _visible(found.attributes)
    if hidden := int(found.attributes.get("ApproximateNumberOfMessagesNotVisible", 0)):
        place.note = f"{hidden} more are received by somebody now"
    if found.why_counted:
        place.note = found.why_counted
        return
    failures = [_of_letter(place, letter) for letter in found.letters]
    mine = [one for one in failures if not one.source or same_source(one.source, mapping.event_source_arn)]
    if others := len(failures) - len(mine):
        place.note = f"{others} of those looked at are about other sources"
    place.looked_at = len(failures)
    place.total = max(place.total, len(failures))
    place.groups = group(mine)


async def _contents(mapping: Mapping, arn: Arn, looking: Looking) -> Contents:
    known = await _attributes(arn, looking)
    if known.get("RedrivePolicy"):
        return Contents(known, (), COUNTED_ONLY)
    if not (total := _visible(known)):
        return Contents(known)
    try:
        return Contents(known, await _peek(mapping.name, arn, looking, min(MESSAGES, total)))
    except Exception as raised:
        return Contents(known, (), _reason(raised))


def _visible(attributes: dict[str, str]) -> int:
    return int(attributes.get("ApproximateNumberOfMessages", 0))


async def _peek(mapping: str, arn: Arn, looking: Looking, most: int, wanted: str = "") -> list[Letter]:
    """Up to `most` messages, or up to the one that is wanted; all are shown again."""
    around = looking.around
    queue = QueueId(
        mapping=mapping,
        arn=str(arn),
        region=arn.region,
        account=arn.account,
        name=arn.resource,
        fifo=arn.resource.endswith(".fifo"),
        function_timeout=0.0,
        close_timeout=around.close_timeout,
    )
    observer = ReplayObserver(around.observer, moves=True)
    letters: list[Letter] = []
    async with open_failed_queue(queue, partial(around.session.api, "sqs", arn.region), observer) as box:
        while len(letters) < most:
            taken = await box.take(most - len(letters))
            letters += taken
            if not taken or any(letter.id == wanted for letter in taken):
                break
    return letters


def _of_letter(place: Place, letter: Letter) -> Failure:
    sent = letter.handle.event["attributes"].get("SentTimestamp")
    at = int(sent) / 1000 if sent else 0.0
    id_ = make_id(place.where, place.mapping, letter.id)
    if place.where == "dead_letters":
        return Failure(id_, "dead letter", at=at, records=1)
    return of_document(id_, letter.body, at)


def object_prefix(mapping: Mapping, function_arn: str) -> str:
    """Where the objects of a mapping are in its bucket."""
    if mapping.source == "sqs":
        return f"aws/lambda/async/{function_name(function_arn)}/"
    return f"aws/lambda/{mapping_id(mapping.name, mapping.event_source_arn)}/"


async def _look_into_bucket(
    place: Place, bucket: str, prefix: str, mapping: Mapping, looking: Looking
) -> None:
    api = looking.around.session.cold("s3", mapping.region)
    place.total, listed = await newest((bucket, prefix), api, COUNTED, OBJECTS)
    if place.total >= COUNTED:
        place.note = f"there are {COUNTED} or more: the newest of the first {COUNTED} were looked at"
    failures: list[Failure] = []
    for key, at in listed:
        body = await read_object((bucket, key), api)
        shard = key.removeprefix(prefix).partition("/")[0] if mapping.source != "sqs" else ""
        failures.append(of_document(make_id("objects", mapping.name, key), body, at, shard))
    place.looked_at = len(failures)
    # Objects about what succeeded may lie beside them.
    place.groups = group(one for one in failures if one.what != "Success")


# --- the spool ----------------------------------------------------------------------------------------------------------


async def _spooled(mapping: Mapping, looking: Looking) -> list[Place]:
    if not looking.spools:
        return []
    try:
        spool = await looking.around.state.spool()
        totals = (await spool.totals(mapping.name)).get(mapping.name, ())
    except StoreError as error:
        return [Place(mapping.name, "spool", "", note=str(error))]
    places: list[Place] = []
    listed, more = totals[:KEYS], totals[KEYS:]
    for line in listed:
        where: Where = "spool" if line.kind == "delivery" else "parked"
        place = Place(mapping.name, where, line.key, line.entries)
        places.append(await _guarded(place, partial(_look_into_spool, place, line, spool, len(listed))))
    if more:
        waiting = sum(line.entries for line in more)
        places.append(Place(mapping.name, "parked", f"({len(more):,} more)", waiting))
    return places


async def _look_into_spool(place: Place, line: SpoolTotals, spool: Spool, places: int) -> None:
    # With many keys a few of each say as much.
    most = max(1, min(ENTRIES, ENTRIES // places))
    failures: list[Failure] = []
    after = 0
    taken = max(1, min(TAKEN, BYTES * line.entries // max(1, line.size)))
    while len(failures) < most:
        limit = min(taken, most - len(failures))
        entries = await spool.take(place.mapping, line.kind, key=line.key, after=after, limit=limit)
        failures += [_of_entry(place, entry) for entry in entries]
        if len(entries) < limit:
            break
        after = entries[-1].number
    place.looked_at, place.groups = len(failures), group(failures)


def _of_entry(place: Place, entry: SpoolEntry) -> Failure:
    id_ = make_id(place.where, place.mapping, entry.number)
    what, records = entry.error_type or entry.kind, 1
    if entry.kind == "delivery":
        # What a large one says besides is not worth the time that it would take.
        told = spooled.delivery(entry) if len(entry.body) <= SMALL else None
        what = entry.error_type or (told.condition if told else "not delivered")
        records = told.records if told else 0
    return Failure(id_, what, entry.error_message, entry.at, records, entry.shard)


# --- one in full --------------------------------------------------------------------------------------------------------


async def show(id_: str, mappings: Sequence[Mapping], looking: Looking) -> dict[str, Any]:
    """One failure with all that it holds; raises ReplayRefused for what is no id, KeyError for what is not there (any more)."""
    try:
        where, name, one = split_id(id_)
        mapping = next(mapping for mapping in mappings if mapping.name == name)
    except (ValueError, StopIteration) as error:
        raise ReplayRefused(str(error) or f"{id_}: there is no such mapping") from error
    if where in KINDS:
        return _told(id_, await _entry(id_, name, KINDS[where], one, await looking.around.state.spool()))
    if where == "objects":
        bucket = _destination_of(mapping, "s3").resource
        api = looking.around.session.cold("s3", mapping.region)
        # Nothing else of the bucket is anybody's business here.
        mine = one.startswith(object_prefix(mapping, looking.function_arn(mapping)))
        body = await read_object((bucket, one), api) if mine else b""
        if not body:
            raise KeyError(id_)
        return {"id": id_, "body": _readable(body)}
    return await _show_message(id_, mapping, where, one, looking)


def _destination_of(mapping: Mapping, service: str) -> Arn:
    text = mapping.destinations.get("on_failure", "")
    if not text.startswith(f"arn:{mapping.arn.partition}:{service}:"):
        raise ReplayRefused(f"{mapping.name} has no such destination")
    return parse_arn(text)


async def _show_message(id_: str, mapping: Mapping, where: str, one: str, looking: Looking) -> dict[str, Any]:
    if where == "queue":
        arn = _destination_of(mapping, "sqs")
    else:
        letters = await _dead_letter_arn(mapping, looking)
        if not letters:
            raise ReplayRefused(f"{mapping.name} has no dead-letter queue")
        arn = parse_arn(letters)
    for letter in await _peek(mapping.name, arn, looking, MESSAGES, wanted=one):
        if letter.id == one:
            event = letter.handle.event
            named = {name: event[name] for name in ("attributes", "messageAttributes")}
            return {"id": id_, **named, "body": _readable(letter.body)}
    raise KeyError(id_)


async def _entry(id_: str, mapping: str, kind: SpoolKind, number: str, spool: Spool) -> SpoolEntry:
    """One entry of the spool; raises KeyError, StoreError."""
    if number.isdigit():
        found = await spool.take(mapping, kind, after=int(number) - 1, limit=1)
        if found and found[0].number == int(number):
            return found[0]
    raise KeyError(id_)


def _told(id_: str, entry: SpoolEntry) -> dict[str, Any]:
    at = datetime.fromtimestamp(entry.at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return {
        "id": id_,
        "key": entry.key,
        "shard": entry.shard,
        "at": at,
        "errorType": entry.error_type,
        "errorMessage": entry.error_message,
        "body": _readable(entry.body),
    }


async def discard(id_: str, looking: Looking) -> dict[str, Any]:
    """Remove one entry of the spool for good, and return it as `show` does; its mapping must not be at work.

    Raises ReplayRefused for what is no id of an entry, KeyError for what is not there (any more), StoreError.
    """
    where, name, one = _place_of(id_)
    spool = await looking.around.state.spool()
    entry = await _entry(id_, name, KINDS[where], one, spool)
    await spool.remove(name, [entry.number])
    return _told(id_, entry)


def mapping_of(id_: str) -> str:
    """The mapping of an entry of the spool; raises ReplayRefused for what is no id of one."""
    return _place_of(id_)[1]


def _place_of(id_: str) -> tuple[str, str, str]:
    try:
        where, name, one = split_id(id_)
    except ValueError as error:
        raise ReplayRefused(str(error)) from error
    if where not in KINDS:
        raise ReplayRefused("only what is spooled or parked can be discarded: delete others where they are")
    return where, name, one


def _readable(body: str | bytes) -> Any:
    """JSON as such, what is JSON in it too; other text as text."""
    try:
        read = json.loads(body)
    except ValueError:
        return body if isinstance(body, str) else body.decode(errors="replace")
    if isinstance(read, dict):
        for name in _PAYLOADS:
            if isinstance(read.get(name), str):
                read[name] = _readable(read[name])
    return read
