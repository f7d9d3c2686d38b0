"""What a replay is asked to do: read from what a user or another program sends, and checked against the mapping.

============  ==============================================================================================================
queue         an on-failure destination that is an SQS queue
objects       an on-failure destination that is an S3 bucket: `s3://BUCKET/PREFIX`
dead_letters  the dead-letter queue of a queue: through the function, or back to the queue that it belongs to
range         the records of a stream from one place to another
============  ==============================================================================================================
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, get_args

import orjson

from poller.core import seek
from poller.core.filters import MAX_PATTERN_LENGTH, PatternError, compile_filters
from poller.errors import ReplayRefused, SeekRefused

if TYPE_CHECKING:
    from poller.core.filters import Source

Kind = Literal["queue", "objects", "dead_letters", "range"]
_OBJECTS = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?")
#: As a mapping's filters.
MAXIMUM_FILTERS = 10
MAXIMUM_BATCH_SIZE = 10_000
#: SQS takes no larger batch back.
QUEUE_BATCH = 10


@dataclass(frozen=True, slots=True)
class ReplayWish:
    """One replay, as it was asked for."""

    mapping: str
    kind: Kind
    target: str = ""
    """ARN or URL of the queue, or `s3://BUCKET/PREFIX`; empty for a range."""
    to_source: bool = False
    """Dead letters only: back to the queue that they came from."""
    delete: bool = False
    """Objects only: delete those of which everything succeeded."""
    start: str = ""
    end: str = ""
    """Range only: TRIM_HORIZON, a time or a sequence number; an empty end is the moment at which the replay begins."""
    shard: str = ""
    key: str = ""
    """Only records of this partition key; for DynamoDB its Keys as JSON."""
    filters: tuple[str, ...] = ()
    """Only records that one of these patterns matches, besides those of the mapping."""
    rate: float | None = None
    """Records a second."""
    batch_size: int | None = None
    """Records in one invocation at most; the mapping's by default."""

    def dump(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def parse(body: Any) -> ReplayWish:
    """Read a wish from JSON; raises ReplayRefused for what is none."""
    names = {field.name for field in fields(ReplayWish)}
    if not isinstance(body, dict) or body.keys() - names:
        raise ReplayRefused(f"send a JSON object of {', '.join(sorted(names))}" + _unknown(body, names))
    texts = ("mapping", "kind", "target", "start", "end", "shard", "key")
    if any(not isinstance(body.get(name, ""), str) for name in texts):
        raise ReplayRefused(f"{', '.join(texts)}: must be strings")
    if any(not isinstance(body.get(name, False), bool) for name in ("to_source", "delete")):
        raise ReplayRefused("to_source, delete: must be true or false")
    filters = body.get("filters") or ()
    if not isinstance(filters, list | tuple) or any(not isinstance(one, str) for one in filters):
        raise ReplayRefused("filters: must be a list of patterns, each as a string")
    rate, size = body.get("rate"), body.get("batch_size")
    if rate is not None and not (_is_number(rate) and rate > 0):
        raise ReplayRefused("rate: must be a number of records a second above 0")
    if size is not None and not (isinstance(size, int) and 1 <= size <= MAXIMUM_BATCH_SIZE):
        raise ReplayRefused(f"batch_size: must be a whole number from 1 to {MAXIMUM_BATCH_SIZE}")
    wish = ReplayWish(**{"mapping": "", "kind": "", **body, "filters": tuple(filters)})
    _check(wish)
    return wish


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _unknown(body: Any, names: set[str]) -> str:
    if not isinstance(body, dict):
        return ""
    return f"; nobody knows {', '.join(sorted(map(str, body.keys() - names)))}"


def _check(wish: ReplayWish) -> None:
    """What is wrong whatever the mapping is."""
    if wish.kind not in get_args(Kind):
        raise ReplayRefused(f"kind: must be one of {', '.join(get_args(Kind))}")
    if wish.to_source and wish.kind != "dead_letters":
        raise ReplayRefused("only dead letters can go back to their source")
    if wish.delete and wish.kind != "objects":
        raise ReplayRefused("--delete is for objects; messages that succeed are always deleted")
    if (wish.start or wish.end or wish.shard) and wish.kind != "range":
        raise ReplayRefused("a start, an end or a shard belong to a range of a stream, not to a destination")
    if wish.kind == "range":
        _check_range(wish)
    elif not wish.target:
        raise ReplayRefused("it must say where the failed records are")
    if wish.kind == "objects" and not _OBJECTS.fullmatch(wish.target):
        raise ReplayRefused(f"{wish.target}: must be s3://BUCKET or s3://BUCKET/PREFIX")
    if len(wish.filters) > MAXIMUM_FILTERS or any(len(one) > MAX_PATTERN_LENGTH for one in wish.filters):
        raise ReplayRefused(
            f"at most {MAXIMUM_FILTERS} filters of {MAX_PATTERN_LENGTH} characters each are allowed"
        )


def _check_range(wish: ReplayWish) -> None:
    if not wish.start:
        raise ReplayRefused("it must say where the range begins: TRIM_HORIZON, a time or a sequence number")


def places(wish: ReplayWish, now: float) -> tuple[seek.Target, seek.Target]:
    """The first and the last place of a range; an open end is now. Raises ReplayRefused."""
    try:
        start, end = seek.parse(wish.start, now), seek.parse(wish.end or repr(now), now)
    except SeekRefused as error:
        raise ReplayRefused(str(error)) from error
    if start.kind == "LATEST" or end.kind in ("LATEST", "TRIM_HORIZON"):
        raise ReplayRefused(
            "a range goes from TRIM_HORIZON, a time or a sequence number to a time or a number"
        )
    if "SEQUENCE_NUMBER" in (start.kind, end.kind) and not wish.shard:
        raise ReplayRefused("a sequence number belongs to one shard: name it with --shard")
    backwards = (start.kind, end.kind) == ("TIME", "TIME") and start.time > end.time
    if (start.kind, end.kind) == ("SEQUENCE_NUMBER", "SEQUENCE_NUMBER"):
        backwards = int(start.sequence_number) > int(end.sequence_number)
    if backwards:
        raise ReplayRefused("the range ends before it begins")
    return start, end


def check(wish: ReplayWish, source: Source, now: float, *, windows: bool, fifo: bool) -> None:
    """Raise ReplayRefused for a wish that makes no sense for a mapping on this kind of source."""
    if windows:
        raise ReplayRefused(
            "the mapping has tumbling windows: their state would begin anew and be wrong, so its records are not replayed"
        )
    if wish.kind == "range":
        if source == "sqs":
            raise ReplayRefused(
                "a queue keeps no records: replay from its dead-letter queue or its destination"
            )
        places(wish, now)
    if wish.kind == "dead_letters" and source != "sqs":
        raise ReplayRefused("a stream has no dead-letter queue: replay from its on-failure destination")
    key_of(wish, source)
    if (fifo or wish.to_source) and (wish.batch_size or 1) > QUEUE_BATCH:
        raise ReplayRefused(f"batch_size: at most {QUEUE_BATCH} here")
    try:
        compile_filters(wish.filters, source)
    except PatternError as error:
        raise ReplayRefused(str(error)) from error


def key_of(wish: ReplayWish, source: Source) -> str:
    """The key that records must have, as they have it; empty for any. Raises ReplayRefused."""
    if not wish.key or source == "kinesis":
        return wish.key
    if source == "sqs":
        raise ReplayRefused("the messages of a queue have no partition key")
    try:
        keys = orjson.loads(wish.key)
    except ValueError:
        keys = None
    if not isinstance(keys, dict):
        raise ReplayRefused('key: must be the Keys of an item as JSON, such as {"id": {"S": "a"}}')
    return orjson.dumps(keys, option=orjson.OPT_SORT_KEYS).decode()


def bucket(target: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://BUCKET/PREFIX`."""
    found = _OBJECTS.fullmatch(target)
    if found is None:
        raise ReplayRefused(f"{target}: must be s3://BUCKET or s3://BUCKET/PREFIX")
    return found[1], found[2] or ""
