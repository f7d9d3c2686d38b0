"""What the rows of a lease table look like in DynamoDB, and back.

One string key, `poller_key`, holds three kinds of rows: ``lease/MAPPING/SHARD``, ``worker/ID``, and ``window/VERSION/NUMBER``
for pieces of the state of a window. Whatever is read or written often is small: a lease stays below one kilobyte, the unit in
which writes are paid, so the state of a window, which may have a megabyte, lies beside it and is named in it by its version.

Numbers that DynamoDB would round, or refuse for their size, are text.
"""

from __future__ import annotations

from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from poller.core.positions import position
from poller.errors import StoreError
from poller.model import Checkpoint, Lease, Worker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KEY = "poller_key"
LEASE, WORKER, WINDOW = "lease/", "worker/", "window/"
#: Characters of a window's state that are kept in the lease; beyond that, of one piece. A character takes up to 4 bytes.
INLINE = 200
PIECE = 90_000

Item = dict[str, dict[str, Any]]


@contextmanager
def understood(table: str, item: Mapping[str, Any]) -> Iterator[None]:
    """Around reading a row of `table`; raises StoreError for one that somebody has made nonsense of."""
    try:
        yield
    except (LookupError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise StoreError(
            f"{table}: the row {item[KEY]['S']} makes no sense ({what}): put it right, or delete it to begin anew"
        ) from error


def lease_key(mapping: str, shard: str) -> Item:
    """The key of a lease. A mapping's name has no slash."""
    return {KEY: {"S": f"{LEASE}{mapping}/{shard}"}}


def worker_key(worker: str) -> Item:
    """The key of a worker."""
    return {KEY: {"S": f"{WORKER}{worker}"}}


def piece_key(version: str, number: int) -> Item:
    """The key of a piece of a window's state."""
    return {KEY: {"S": f"{WINDOW}{version}/{number}"}}


# --- checkpoints --------------------------------------------------------------------------------------------------------

#: All attributes that a checkpoint may have.
OF_CHECKPOINT = (
    "position",
    "sequence_number",
    "sub_sequence_number",
    "since",
    "finished",
    "window",
    "window_version",
    "window_pieces",
)


def checkpoint_item(checkpoint: Checkpoint, version: str) -> Item:
    """The attributes of a checkpoint; `version` names the pieces of its window if it needs some. Raises StoreError."""
    item: Item = {
        "position": {"S": position(checkpoint)},
        "sequence_number": {"S": checkpoint.sequence_number},
        "since": {"S": repr(checkpoint.since)},
        "finished": {"BOOL": checkpoint.finished},
    }
    if checkpoint.sub_sequence_number is not None:
        item["sub_sequence_number"] = {"N": str(checkpoint.sub_sequence_number)}
    if version:
        item["window_version"] = {"S": version}
        item["window_pieces"] = {"N": str(pieces_of(checkpoint.window))}
    elif checkpoint.window:
        item["window"] = {"S": checkpoint.window}
    return item


def window_version(checkpoint: Checkpoint, writer: str) -> str:
    """The name of a window's pieces, which nothing else ever has; empty for a state that needs none.

    `writer` tells apart writes of the same state, so that who removes the pieces of one does not remove another's.
    """
    if len(checkpoint.window) <= INLINE:
        return ""
    return blake2b(f"{writer}\n{checkpoint.window}".encode(), digest_size=16).hexdigest()


def pieces(checkpoint: Checkpoint, version: str) -> Iterator[Item]:
    """The rows beside the lease."""
    for number, at in enumerate(range(0, len(checkpoint.window), PIECE)):
        yield piece_key(version, number) | {"state": {"S": checkpoint.window[at : at + PIECE]}}


def pieces_of(window: str) -> int:
    """How many rows it takes."""
    return -(-len(window) // PIECE)


def stored_window(item: Mapping[str, Any]) -> tuple[str, int]:
    """Version and number of the pieces that a row names."""
    return _text(item, "window_version"), int(item.get("window_pieces", {"N": "0"})["N"])


def checkpoint_of(item: Mapping[str, Any], window: str = "") -> Checkpoint:
    """The checkpoint of a row, with the state of its window as given."""
    sub = item.get("sub_sequence_number")
    return Checkpoint(
        item["sequence_number"]["S"],
        None if sub is None else int(sub["N"]),
        float(item["since"]["S"]),
        window,
        bool(item["finished"]["BOOL"]),
    )


# --- leases and workers -------------------------------------------------------------------------------------------------


def name_item(mapping: str, shard: str) -> Item:
    """The attributes that say what a lease is of."""
    return {"mapping": {"S": mapping}, "shard": {"S": shard}}


def texts(values: tuple[str, ...] | frozenset[str]) -> dict[str, Any]:
    """Several texts as one value, in order."""
    ordered = sorted(values) if isinstance(values, frozenset) else values
    return {"L": [{"S": value} for value in ordered]}


def lease_of(item: Mapping[str, Any], window: str = "") -> Lease:
    """The lease of a row."""
    load = _text(item, "load")
    return Lease(
        item["mapping"]["S"],
        item["shard"]["S"],
        tuple(value["S"] for value in item.get("parents", {"L": ()})["L"]),
        _text(item, "owner"),
        int(item["counter"]["N"]),
        checkpoint_of(item, window),
        float(load) if load else None,
        _text(item, "wanted_by"),
    )


def worker_item(worker: Worker) -> Item:
    """The row of a worker."""
    counter, lag = {"N": str(worker.counter)}, {"S": repr(worker.lag)}
    return worker_key(worker.id) | {"mappings": texts(worker.mappings), "counter": counter, "lag": lag}


def worker_of(item: Mapping[str, Any]) -> Worker:
    """The worker of a row."""
    mappings = frozenset(value["S"] for value in item["mappings"]["L"])
    lag = float(_text(item, "lag") or 0.0)
    return Worker(item[KEY]["S"].removeprefix(WORKER), mappings, int(item["counter"]["N"]), lag)


def _text(item: Mapping[str, Any], name: str) -> str:
    value = item.get(name)
    return str(value["S"]) if value else ""
