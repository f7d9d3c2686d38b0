"""What `tests.scripted_aws` is made of: requests, steps of a script, queues, and the rules of SigV4."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import time
from calendar import timegm
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Collection


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    operation: str
    params: dict[str, Any]
    headers: dict[str, str]
    url: str
    at: float
    connection: int


@dataclass(frozen=True)
class Refuse:
    """Answer with an error; `legacy` is the old SQS code for the x-amzn-query-error header."""

    code: str
    message: str = "no"
    status: int = 400
    legacy: str = ""


@dataclass(frozen=True)
class Reply:
    """Answer with this JSON."""

    body: dict[str, Any]


@dataclass(frozen=True)
class Raw:
    """Answer with these bytes."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Close:
    """Carry the request out, send only the first `after` bytes of the reply, headers included, and close the connection."""

    after: int = 0


@dataclass(frozen=True)
class CutOff:
    """Carry the request out and send half of the JSON; an honest Content-Length hides that, a dishonest one shows it."""

    honest: bool = True


@dataclass(frozen=True)
class Hold:
    """Carry the request out only once the test calls `release`; `arrived` is set when the request waits here."""

    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        self.released.set()


@dataclass(frozen=True)
class FailEntries:
    """Fail these entries of a batch (by their Id; None means all) and carry out the others."""

    code: str = "InternalError"
    entries: Collection[str] | None = None
    sender_fault: bool = False


@dataclass(frozen=True)
class Duplicate:
    """Receive without hiding the messages, so that the next receive brings them again."""


@dataclass(frozen=True)
class Short:
    """Receive at most this many messages, though more are there."""

    messages: int = 0


Step = Refuse | Reply | Raw | Close | CutOff | Hold | FailEntries | Duplicate | Short


@dataclass
class Message:
    """One message of a queue."""

    id: str
    body: str
    attributes: dict[str, str]
    message_attributes: dict[str, Any]
    visible_at: float = 0.0
    receives: int = 0
    receipts: set[str] = field(default_factory=set)

    def group(self) -> str | None:
        return self.attributes.get("MessageGroupId")


@dataclass
class Queue:
    """One queue; `messages` holds what is not deleted, in flight or not."""

    name: str
    url: str
    visibility: float
    attributes: dict[str, str]
    messages: dict[str, Message] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def take(self, limit: int, now: float, hide: float) -> list[Message]:
        blocked = {m.group() for m in self.messages.values() if m.visible_at > now} - {None}
        found = [m for m in self.messages.values() if m.visible_at <= now and m.group() not in blocked][
            :limit
        ]
        for message in found:
            message.visible_at = now + hide
            message.receives += 1
            message.attributes.setdefault("ApproximateFirstReceiveTimestamp", str(int(time.time() * 1000)))
            message.attributes["ApproximateReceiveCount"] = str(message.receives)
        return found

    def held_by(self, receipt: str) -> Message | None:
        return next((m for m in self.messages.values() if receipt in m.receipts), None)


_INVOKE = re.compile(r"/2015-03-31/functions/([^/]+)/invocations(?:\?Qualifier=(.+))?")


def operation_of(headers: dict[str, str], body: bytes, url: str) -> tuple[str, dict[str, Any]]:
    if found := _INVOKE.fullmatch(url):
        return "Invoke", {
            "FunctionName": unquote(found[1]),
            "Qualifier": unquote(found[2] or ""),
            "Payload": body,
        }
    if "x-amz-target" in headers:
        return headers["x-amz-target"].rsplit(".", 1)[-1], json.loads(body)
    form = dict(parse_qsl(body.decode()))
    return form.pop("Action", ""), form


def refusal_of(step: Refuse) -> Raw:
    body = json.dumps({"__type": step.code, "message": step.message}).encode()
    return Raw(body, step.status, {"x-amzn-query-error": step.legacy and f"{step.legacy};Sender"})


def failed(entry: str, code: str, sender_fault: bool) -> dict[str, Any]:
    return {"Id": entry, "Code": code, "Message": "no", "SenderFault": sender_fault}


def wreck(step: Step | None, reply: tuple[bytes, bytes]) -> tuple[bytes, bool]:
    head, body = reply
    if isinstance(step, Close):
        return (head + body)[: step.after], False
    if isinstance(step, CutOff):
        half = body[: len(body) // 2]
        length = f"Content-Length: {len(body)}".encode()
        honest = f"Content-Length: {len(half)}".encode() if step.honest else length
        return head.replace(length, honest) + half, step.honest
    return head + body, True


def amz_time(date: str) -> float:
    return timegm(time.strptime(date, "%Y%m%dT%H%M%SZ"))


def canonical(method: str, url: str, headers: dict[str, str], signed: str, body: bytes) -> str:
    named = "".join(f"{name}:{' '.join(headers[name].split())}\n" for name in signed.split(";"))
    path = quote(urlsplit(url).path or "/", safe="/~-._")
    return f"{method}\n{path}\n{urlsplit(url).query}\n{named}\n{signed}\n{hashlib.sha256(body).hexdigest()}"


def signature(secret: str, scope: list[str], date: str, canonical: str) -> str:
    key = f"AWS4{secret}".encode()
    for part in scope:
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    text = f"AWS4-HMAC-SHA256\n{date}\n{'/'.join(scope)}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
