"""Aggregates as the Kinesis Producer Library makes them."""

from __future__ import annotations

from hashlib import md5

from poller.sources._deaggregate import aggregated_record


def packed(*texts: str, key: str = "inner", hash_keys: dict[str, int] | None = None) -> bytes:
    """One record of the stream that holds a record for each of `texts`, those in `hash_keys` with an explicit hash key."""
    explicit = {text: str(hash_key).encode() for text, hash_key in (hash_keys or {}).items()}
    table = list(explicit.values())
    inner = [
        {"partition_key_index": 0, "data": text.encode()}
        | ({"explicit_hash_key_index": table.index(explicit[text])} if text in explicit else {})
        for text in texts
    ]
    message = aggregated_record()(
        partition_key_table=[key.encode()], explicit_hash_key_table=table, records=inner
    ).SerializeToString()
    return b"\xf3\x89\x9a\xc2" + bytes(message) + md5(message).digest()
