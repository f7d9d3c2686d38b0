"""De-aggregation of what the Kinesis Producer Library packed: one record of the stream -> the records inside it.

An aggregate is four magic bytes, a protobuf message and the MD5 of that message. Data that only begins like one is a record
like any other.

Inner records that name a shard other than the one they are in (by an explicit hash key outside its range) were packed with an
old map of the shards. The producer library keeps those that are in range and sends the others again, to the right shard. So
with a range they are dropped here one by one, which is what the KCL documents; Lambda drops the whole aggregate, and with it
the records that nobody sends again. A record without an explicit hash key is never dropped, since producers other than
Amazon's pack keys of many shards together.
"""

from __future__ import annotations

from base64 import b64encode
from binascii import a2b_base64
from functools import cache
from hashlib import md5
from typing import TYPE_CHECKING, Any

from poller.core.stream_envelope import SUB_SEQUENCE_NUMBER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from poller.model import StartAt

    #: A record as the wire has it.
    Wire = dict[str, Any]
    #: The sub-sequence number, None for a record that is no aggregate; and the record.
    Inner = tuple[int | None, Wire]
    #: The lowest and the highest hash key of a shard.
    HashRange = tuple[int, int]

_MAGIC = b"\xf3\x89\x9a\xc2"
_DIGEST_SIZE = 16
#: What the magic bytes look like in base64, as far as they decide it: one look tells most records apart.
_ENCODED_MAGIC = "84maw"


def deaggregate(wire: Wire, hash_range: HashRange | None = None) -> list[Inner]:
    """Return the records inside `wire`, numbered from 0 in their order, or `wire` itself with None when it is no aggregate.

    An inner record keeps the outer one's members, its own PartitionKey and Data excepted. A range drops records, so the
    result may be empty; the numbers of the others do not depend on it. Never raises: what cannot be read comes back as it is.
    """
    message = _packed(wire)
    try:
        inner = _inner(message, wire, hash_range) if message else None
    except (ValueError, IndexError):
        # A partition key that is not UTF-8, or one that the aggregate does not have.
        inner = None
    return [(None, wire)] if inner is None else inner


def skip_done(inner: Sequence[Inner], sub_done: int) -> list[Inner]:
    """Return those of `inner` that come after the sub-sequence number `sub_done`.

    For the record at which a reader starts. One that is no aggregate has the number 0 in the KCL's checkpoints. An aggregate
    that is not (or no longer) taken apart is kept: twice beats never.
    """
    return [(sub, wire) for sub, wire in inner if not _is_done(sub, wire, sub_done)]


def _is_done(sub: int | None, wire: Wire, sub_done: int) -> bool:
    if sub is None:
        return sub_done == 0 and _packed(wire) is None
    return sub <= sub_done


def numbered(inner: Sequence[Inner]) -> list[Wire]:
    """Return the records, each with the sub-sequence number of the checkpoint behind it under `SUB_SEQUENCE_NUMBER`.

    Without one the whole record is done: behind the last of an aggregate, and behind a record that is none.
    """
    last = len(inner) - 1
    return [
        wire if sub is None or at == last else {**wire, SUB_SEQUENCE_NUMBER: sub}
        for at, (sub, wire) in enumerate(inner)
    ]


class Unpack:
    """What a reader that begins at `start` makes of a record: the records inside it, numbered.

    Of the record at which it begins, what is done is left out. With `apart` false that is all that it does: what is packed
    stays so.
    """

    def __init__(self, start: StartAt, hash_range: HashRange | None, *, apart: bool = True) -> None:
        self._start = start
        self._hash_range = hash_range
        self._apart = apart

    @classmethod
    def wanted(cls, start: StartAt, hash_range: HashRange | None, *, apart: bool) -> Unpack | None:
        """What a reader needs; None where records are handed out as they are."""
        if apart or start.sub_sequence_number is not None:
            return cls(start, hash_range, apart=apart)
        return None

    def __call__(self, wire: Wire) -> list[Wire]:
        """Return the records, as `numbered` does; none when all of them are done or belong elsewhere."""
        inner = deaggregate(wire, self._hash_range) if self._apart else [(None, wire)]
        done = self._start.sub_sequence_number
        if done is not None and wire["SequenceNumber"] == self._start.sequence_number:
            inner = skip_done(inner, done)
        return numbered(inner)


def _packed(wire: Wire) -> bytes | None:
    """The protobuf message of an aggregate; None for a record that is none."""
    data = wire.get("Data")
    if not isinstance(data, str) or not data.startswith(_ENCODED_MAGIC):
        return None
    try:
        raw = a2b_base64(data)
    except ValueError:
        return None
    message, digest = raw[len(_MAGIC) : -_DIGEST_SIZE], raw[-_DIGEST_SIZE:]
    whole = raw.startswith(_MAGIC) and message and md5(message, usedforsecurity=False).digest() == digest
    return message if whole else None


def _inner(message: bytes, wire: Wire, hash_range: HashRange | None) -> list[Inner] | None:
    aggregate = _parser()(message)
    if aggregate is None:
        return None
    # Tuples say IndexError of any index that is too large; protobuf's own lists have more words for it.
    partition_keys, hash_keys = tuple(aggregate.partition_key_table), tuple(aggregate.explicit_hash_key_table)
    inner: list[Inner] = []
    for sub, record in enumerate(aggregate.records):
        own = {
            "PartitionKey": partition_keys[record.partition_key_index].decode(),
            "Data": b64encode(record.data).decode(),
        }
        named = record.HasField("explicit_hash_key_index")
        hash_key = hash_keys[record.explicit_hash_key_index] if named else b""
        if hash_range is None or _belongs(hash_key, hash_range):
            inner.append((sub, {**wire, **own}))
    return inner


def _belongs(hash_key: bytes, hash_range: HashRange) -> bool:
    try:
        return hash_range[0] <= int(hash_key) <= hash_range[1]
    except ValueError:
        return True  # none, or not a number


# --- the message --------------------------------------------------------------------------------------------------------

# Field names are the producer library's. The label and type of a field are protobuf's own numbers.
_OPTIONAL, _REQUIRED, _REPEATED = 1, 2, 3
_UINT64, _STRING, _MESSAGE, _BYTES = 4, 9, 11, 12
_FIELDS = {
    "Tag": (("key", _REQUIRED, _STRING), ("value", _OPTIONAL, _STRING)),
    "Record": (
        ("partition_key_index", _REQUIRED, _UINT64),
        ("explicit_hash_key_index", _OPTIONAL, _UINT64),
        ("data", _REQUIRED, _BYTES),
        ("tags", _REPEATED, _MESSAGE, "Tag"),
    ),
    "AggregatedRecord": (
        # Strings on the wire all the same; protobuf hands out a string that is not UTF-8 without a word.
        ("partition_key_table", _REPEATED, _BYTES),
        ("explicit_hash_key_table", _REPEATED, _BYTES),
        ("records", _REPEATED, _MESSAGE, "Record"),
    ),
}


@cache
def _parser() -> Callable[[bytes], Any]:
    """Parses an AggregatedRecord; returns None for what is not one. protobuf is imported by the first aggregate."""
    from google.protobuf.message import DecodeError

    kind = aggregated_record()

    def parse(message: bytes) -> Any:
        try:
            parsed = kind.FromString(message)
        except DecodeError:
            return None
        return parsed if parsed.IsInitialized() else None

    return parse


def aggregated_record() -> Any:
    """Make the message class. It has a pool of its own: a function's code may bring the same names with another content."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="poller/aggregated_record.proto", syntax="proto2")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for number, (field, label, kind, *type_name) in enumerate(fields, 1):
            message.field.add(
                name=field,
                number=number,
                label=label,
                type=kind,
                type_name=type_name[0] if type_name else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("AggregatedRecord"))
