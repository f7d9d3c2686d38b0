"""Handlers of the end-to-end tests. Each appends one line a message to the file that LEDGER names: a line survives a kill."""

from __future__ import annotations

import base64
import os
import random
import signal
import threading
from typing import Any

_lock = threading.Lock()


def write(lines: list[str]) -> None:
    """Append `lines`, whole, to the ledger."""
    with _lock:
        descriptor = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, "".join(f"{line}\n" for line in lines).encode())
        finally:
            os.close(descriptor)


async def record(event: dict[str, Any], context: Any) -> None:
    """Note every message."""
    write([message["body"] for message in event["Records"]])


async def record_stream(event: dict[str, Any], context: Any) -> None:
    """Note the data of every record of a Kinesis stream."""
    write([base64.b64decode(record["kinesis"]["data"]).decode() for record in event["Records"]])


async def sometimes(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Fail one message in a hundred, at random; note the others."""
    failed = {message["messageId"] for message in event["Records"] if random.random() < 0.01}
    write([message["body"] for message in event["Records"] if message["messageId"] not in failed])
    return {"batchItemFailures": [{"itemIdentifier": one} for one in failed]}


def slow(event: dict[str, Any], context: Any) -> None:
    """Note that it began, work for as long as it may, note that it ended: a handler that a stop will meet half-way."""
    bodies = [message["body"] for message in event["Records"]]
    write([f"begun {body}" for body in bodies])
    threading.Event().wait(float(os.environ["WORK_SECONDS"]))
    write([f"ended {body}" for body in bodies])


def poisoned(event: dict[str, Any], context: Any) -> None:
    """Fail whatever comes."""
    raise ValueError("poison")


async def down_while_flagged(event: dict[str, Any], context: Any) -> None:
    """Note each message and its receive count; as long as the file OUTAGE exists, fail and note that instead."""
    down = os.path.exists(os.environ["OUTAGE"])  # noqa: ASYNC240  too quick to matter
    what = "failed" if down else "handled"
    write(
        [
            f"{what} {message['body']} {message['attributes']['ApproximateReceiveCount']}"
            for message in event["Records"]
        ]
    )
    if down:
        raise ConnectionError("the database does not answer")


def record_with_pid(event: dict[str, Any], context: Any) -> None:
    """Note every message, and in which process."""
    write([f"{message['body']} {os.getpid()}" for message in event["Records"]])


_runs = 0


def segfaults_each_third(event: dict[str, Any], context: Any) -> None:
    """Die of every third invocation in this process; note the others."""
    global _runs
    _runs += 1
    if _runs % 3 == 0:
        os.kill(os.getpid(), signal.SIGSEGV)
    write([message["body"] for message in event["Records"]])


def repairable(event: dict[str, Any], context: Any) -> None:
    """Fail whatever comes until REPAIRED exists; then note every message."""
    if not os.path.exists(os.environ["REPAIRED"]):
        raise ValueError("not repaired yet")
    write([message["body"] for message in event["Records"]])
