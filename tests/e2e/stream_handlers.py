"""Handlers of the end-to-end tests on streams. A line of the ledger is one record: its shard, and what its producer wrote."""

from __future__ import annotations

import asyncio
import json
import os
import time
from base64 import b64decode
from pathlib import Path
from typing import Any

from ledger_handlers import write


def _data(record: dict[str, Any]) -> str:
    return b64decode(record["kinesis"]["data"]).decode()


def _line(record: dict[str, Any]) -> str:
    return f"{record['eventID'].partition(':')[0]} {_data(record)}"


async def record(event: dict[str, Any], context: Any) -> None:
    """Note every record."""
    write([_line(one) for one in event["Records"]])


async def steady(event: dict[str, Any], context: Any) -> None:
    """Note every record after a little work."""
    await asyncio.sleep(float(os.environ["WORK_SECONDS"]))
    write([_line(one) for one in event["Records"]])


async def down_while_flagged(event: dict[str, Any], context: Any) -> None:
    """Note every record; as long as the file OUTAGE exists, fail."""
    if os.path.exists(os.environ["OUTAGE"]):  # noqa: ASYNC240  too quick to matter
        raise ConnectionError("the database does not answer")
    write([_line(one) for one in event["Records"]])


async def picky(event: dict[str, Any], context: Any) -> None:
    """Refuse any batch that holds poison; note the others."""
    await asyncio.sleep(0.002)
    if bad := [one for one in map(_data, event["Records"]) if one.endswith("!")]:
        raise ValueError(f"poison: {bad[0]}")
    write([_line(one) for one in event["Records"]])


def confused(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Note every record, and name one that is not of the batch as failed, twice; then be content."""
    lines = [_line(one) for one in event["Records"]]
    write(lines)
    with open(os.environ["LEDGER"], encoding="utf-8") as ledger:
        attempts = ledger.read().splitlines().count(lines[0])
    return {"batchItemFailures": [{"itemIdentifier": "1234567890"}] if attempts < 3 else []}


async def add_up(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Carry the sum of a window; note it at the window's end."""
    total = event["state"].get("total", 0) + sum(int(_data(one)) for one in event["Records"])
    if event["isFinalInvokeForWindow"]:
        write([f"{event['window']['start']} {total}"])
    return {"state": {"total": total}}


async def changes(event: dict[str, Any], context: Any) -> None:
    """Note each change of an item: its key, the kind of change, what it was and what it is."""
    lines = []
    for one in event["Records"]:
        change = one["dynamodb"]
        old, new = (
            change.get(image, {}).get("version", {}).get("N", "-") for image in ("OldImage", "NewImage")
        )
        lines.append(f"{change['Keys']['id']['S']} {one['eventName']} {old} {new}")
    write(lines)


async def stamped(event: dict[str, Any], context: Any) -> None:
    """Note each record and when it came here."""
    at = time.time()
    write([json.dumps({"text": _data(one), "at": at}) for one in event["Records"]])


def repairable(event: dict[str, Any], context: Any) -> None:
    """Refuse any batch that holds poison until REPAIRED exists; note the others, and when they came here."""
    texts = [_data(one) for one in event["Records"]]
    if any(text.endswith("!") for text in texts) and not os.path.exists(os.environ["REPAIRED"]):
        raise ValueError("not repaired yet")
    at = time.time()
    write([f"{at} {text}" for text in texts])


def repairable_changes(event: dict[str, Any], context: Any) -> None:
    """Refuse every change until REPAIRED exists; then note the keys and kinds of all."""
    if not os.path.exists(os.environ["REPAIRED"]):
        raise ValueError("not repaired yet")
    write([f"{one['dynamodb']['Keys']['id']['S']} {one['eventName']}" for one in event["Records"]])


async def mendable(event: dict[str, Any], context: Any) -> None:
    """As `picky`, until a file named mended is there; what is poison is kept as it came, each time."""
    mended = Path(os.environ["LEDGER"]).with_name("mended").exists()
    bad = [one for one in event["Records"] if _data(one).endswith("!")]
    if len(event["Records"]) == 1 and bad:
        with Path(os.environ["LEDGER"]).with_name("poison").open("a", encoding="utf-8") as poison:
            poison.write(json.dumps(bad[0]) + "\n")
    if bad and not mended:
        raise ValueError(f"poison: {_data(bad[0])}")
    write([_line(one) for one in event["Records"]])


async def fleet(event: dict[str, Any], context: Any) -> None:
    """Note every record after a little work, with the process and the times at which the invocation began and ended."""
    began = time.time()
    await asyncio.sleep(float(os.environ["WORK_SECONDS"]))
    ended = time.time()
    write([f"{os.getpid()} {began:.3f} {ended:.3f} {_line(one)}" for one in event["Records"]])
