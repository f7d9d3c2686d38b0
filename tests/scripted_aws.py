"""An AWS endpoint that does what a test tells it to: SQS in memory, signatures checked for real, faults on command.

    async with ScriptedAws() as aws:
        url = aws.create_queue("orders")
        aws.send("orders", "a body")
        aws.script("ReceiveMessage", Refuse("RequestThrottled"), CutOff())   # the next two receives
        aws.script("DeleteMessageBatch", FailEntries("InternalError", entries={"0"}))
        ...                                                                  # endpoint: aws.endpoint
        assert [request.operation for request in aws.requests] == [...]

A client signs with `aws.key_id`, `aws.secret` and `aws.region`. The server runs in the loop of the test and
speaks HTTP by itself, so that it can break every rule of it. SQS's queue operations work; anything else is
answered by `script(name, Reply({...}))` or `always`. Nothing here uses poller's code.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict, deque
from email.utils import formatdate
from itertools import count
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from tests.scripted_steps import (
    Close,
    CutOff,
    Duplicate,
    FailEntries,
    Hold,
    Message,
    Queue,
    Raw,
    Refuse,
    Reply,
    Request,
    Short,
    Step,
    amz_time,
    canonical,
    failed,
    md5,
    operation_of,
    refusal_of,
    signature,
    wreck,
)

if TYPE_CHECKING:
    import ssl

__all__ = [
    "Close",
    "CutOff",
    "Duplicate",
    "FailEntries",
    "Hold",
    "Message",
    "Queue",
    "Raw",
    "Refuse",
    "Reply",
    "Request",
    "ScriptedAws",
    "Short",
    "Step",
]


class Refused(Exception):
    """A handler refuses a request."""

    def __init__(self, refusal: Refuse) -> None:
        self.refusal = refusal


NO_QUEUE = Refuse(
    "com.amazonaws.sqs#QueueDoesNotExist",
    "The specified queue does not exist.",
    legacy="AWS.SimpleQueueService.NonExistentQueue",
)


class ScriptedAws:
    """The endpoint. An async context manager."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self.key_id = "AKIDSCRIPTED"
        self.secret = "scripted/secret+key"
        self.region = "eu-west-1"
        self.keys: dict[str, tuple[str, str | None]] = {self.key_id: (self.secret, None)}
        """The credentials that are good: key id -> (secret, session token)."""
        self.expired: set[str] = set()
        """Key ids whose use is answered with ExpiredTokenException."""
        self.clock_ahead = 0.0
        """Seconds by which the server's clock differs from the machine's."""
        self.longest_poll: float | None = None
        """Bounds the wait of long polls, for tests that want an empty one."""
        self.requests: list[Request] = []
        self.queues: dict[str, Queue] = {}
        self.endpoint = ""
        self._tls = tls
        self._passed = 0.0
        self._once: defaultdict[str, deque[Step]] = defaultdict(deque)
        self._always: dict[str, Step] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self._connections = count(1)
        self._receipts = count(1)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, ssl=self._tls, limit=2**22, backlog=1024
        )
        port = self._server.sockets[0].getsockname()[1]
        self.endpoint = f"{'https' if self._tls else 'http'}://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self.drop_connections()
        await self._server.wait_closed()

    def environment(self) -> dict[str, str]:
        """Return environment variables for a client of this endpoint that is to find nothing else."""
        return {
            "AWS_ACCESS_KEY_ID": self.key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_CONFIG_FILE": "none",
            "AWS_SHARED_CREDENTIALS_FILE": "none",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }

    def script(self, operation: str, *steps: Step) -> None:
        """Apply each of `steps` to one of the next requests for `operation`, in order."""
        self._once[operation].extend(steps)

    def always(self, operation: str, step: Step | None) -> None:
        """Apply `step` to every request for `operation` that has no other script; None ends it."""
        self._always.pop(operation, None)
        if step is not None:
            self._always[operation] = step

    def throttle(self, operation: str, times: int = 1) -> None:
        """Throttle the next `times` requests the way SQS does."""
        step = Refuse("com.amazonaws.sqs#RequestThrottled", "Rate exceeded", legacy="RequestThrottled")
        self.script(operation, *[step] * times)

    def create_queue(self, name: str, *, visibility: float = 30.0, **attributes: str) -> str:
        """Create a queue and return its URL."""
        url = f"{self.endpoint}/123456789012/{name}"
        self.queues[name] = Queue(name, url, visibility, attributes)
        return url

    def send(
        self, queue: str, *bodies: str, group: str | None = None, **message_attributes: Any
    ) -> list[str]:
        """Put messages into `queue`, waking its long polls, and return their ids."""
        return [self._put(self.queues[queue], body, group, message_attributes) for body in bodies]

    def pass_time(self, seconds: float) -> None:
        """Let visibility timeouts run on by `seconds`, now."""
        self._passed += seconds
        for queue in self.queues.values():
            queue.wake()

    def expire_receipts(self, queue: str) -> None:
        """Make the receipts given so far stale: settling with them fails with ReceiptHandleIsInvalid."""
        for message in self.queues[queue].messages.values():
            message.receipts.clear()

    def in_flight(self, queue: str) -> list[str]:
        """Return the bodies of the messages that are hidden now."""
        return [m.body for m in self.queues[queue].messages.values() if m.visible_at > self._now()]

    def visible(self, queue: str) -> list[str]:
        """Return the bodies of the messages that a receive would find now."""
        return [m.body for m in self.queues[queue].messages.values() if m.visible_at <= self._now()]

    def calls(self, operation: str) -> list[Request]:
        """Return the requests for `operation` so far."""
        return [request for request in self.requests if request.operation == operation]

    async def drop_connections(self) -> None:
        """Close every connection, as a server does with idle ones."""
        writers, self._writers = self._writers, set()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        connection = next(self._connections)
        try:
            while await self._exchange(reader, writer, connection):
                pass
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort() if writer.transport.is_closing() else writer.close()

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int
    ) -> bool:
        """Answer one request; False when the connection is to be closed."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        method, url, _ = head[0].split(" ")
        operation, params = operation_of(headers, body, url)
        self.requests.append(Request(operation, params, headers, url, self._now(), connection))
        refusal = self._check_signature(method, url, headers, body)
        step = refusal or self._step(operation)
        writer_part, go_on = wreck(step, self._encode(await self._answer(step, operation, params)))
        writer.write(writer_part)
        await writer.drain()
        return go_on

    def _step(self, operation: str) -> Step | None:
        steps = self._once[operation]
        return steps.popleft() if steps else self._always.get(operation)

    async def _answer(self, step: Step | None, operation: str, params: dict[str, Any]) -> Raw:
        if isinstance(step, Hold):
            step.arrived.set()
            await step.released.wait()
        if isinstance(step, Refuse):
            return refusal_of(step)
        if isinstance(step, Raw):
            return step
        if isinstance(step, Reply):
            return Raw(json.dumps(step.body).encode())
        try:
            return await self._carry_out(operation, params, step)
        except Refused as error:
            return refusal_of(error.refusal)

    async def _carry_out(self, operation: str, params: dict[str, Any], step: Step | None) -> Raw:
        handler = getattr(self, f"_do_{operation}", None)
        if handler is None:
            raise Refused(Refuse("UnknownOperationException", f"{operation} is not scripted"))
        reply = await handler(params, step)
        return reply if isinstance(reply, Raw) else Raw(json.dumps(reply).encode())

    def _encode(self, reply: Raw) -> tuple[bytes, bytes]:
        headers = {
            "Content-Type": "application/x-amz-json-1.0",
            "Date": formatdate(time.time() + self.clock_ahead, usegmt=True),
            "x-amzn-RequestId": str(uuid4()),
            "Content-Length": str(len(reply.body)),
        } | reply.headers
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value)
        return f"HTTP/1.1 {reply.status} Scripted\r\n{lines}\r\n".encode(), reply.body

    def _check_signature(self, method: str, url: str, headers: dict[str, str], body: bytes) -> Refuse | None:
        scheme, _, rest = headers.get("authorization", "").partition(" ")
        parts = dict(part.strip().partition("=")[::2] for part in rest.split(","))
        if scheme != "AWS4-HMAC-SHA256" or {"Credential", "SignedHeaders", "Signature"} - parts.keys():
            return Refuse("MissingAuthenticationTokenException", "Missing Authentication Token", 403)
        key_id, *scope = parts["Credential"].split("/")
        if key_id in self.expired:
            return Refuse(
                "ExpiredTokenException", "The security token included in the request is expired", 403
            )
        secret, token = self.keys.get(key_id, (None, None))
        if secret is None or headers.get("x-amz-security-token") != token:
            message = "The security token included in the request is invalid."
            return Refuse("UnrecognizedClientException", message, 403)
        if abs(amz_time(headers["x-amz-date"]) - time.time() - self.clock_ahead) > 300:
            return Refuse("InvalidSignatureException", "Signature expired: it is now later", 403)
        text = canonical(method, url, headers, parts["SignedHeaders"], body)
        if signature(secret, scope, headers["x-amz-date"], text) != parts["Signature"]:
            # As AWS does, the message quotes the request, secrets included.
            quoted = f"The request signature we calculated does not match.\n\nThe Canonical String:\n{text}"
            return Refuse("InvalidSignatureException", quoted, 403)
        return None

    def _now(self) -> float:
        return time.monotonic() + self._passed

    def _queue(self, params: dict[str, Any]) -> Queue:
        queue = self.queues.get(str(params.get("QueueUrl") or params.get("QueueName")).rsplit("/", 1)[-1])
        if queue is None:
            raise Refused(NO_QUEUE)
        return queue

    def _put(self, queue: Queue, body: str, group: str | None, attributes: dict[str, Any]) -> str:
        system = {"SenderId": "AIDASCRIPTED", "SentTimestamp": str(int(time.time() * 1000))}
        if group is not None:
            system |= {"MessageGroupId": group, "SequenceNumber": f"{next(self._receipts):020}"}
        message = Message(str(uuid4()), body, system, attributes)
        queue.messages[message.id] = message
        queue.wake()
        return message.id

    async def _do_CreateQueue(self, params: dict[str, Any], step: Step | None) -> Any:
        return {"QueueUrl": self.create_queue(params["QueueName"], **params.get("Attributes", {}))}

    async def _do_GetQueueUrl(self, params: dict[str, Any], step: Step | None) -> Any:
        return {"QueueUrl": self._queue(params).url}

    async def _do_GetQueueAttributes(self, params: dict[str, Any], step: Step | None) -> Any:
        queue = self._queue(params)
        arn = f"arn:aws:sqs:{self.region}:123456789012:{queue.name}"
        visibility = str(int(queue.visibility))
        return {"Attributes": {"QueueArn": arn, "VisibilityTimeout": visibility} | queue.attributes}

    async def _do_SendMessage(self, params: dict[str, Any], step: Step | None) -> Any:
        group, attributes = params.get("MessageGroupId"), params.get("MessageAttributes", {})
        id_ = self._put(self._queue(params), params["MessageBody"], group, attributes)
        return {"MessageId": id_, "MD5OfMessageBody": md5(params["MessageBody"])}

    async def _do_ReceiveMessage(self, params: dict[str, Any], step: Step | None) -> Any:
        queue = self._queue(params)
        limit = step.messages if isinstance(step, Short) else params.get("MaxNumberOfMessages", 1)
        hide = 0.0 if isinstance(step, Duplicate) else params.get("VisibilityTimeout", queue.visibility)
        wait = params.get("WaitTimeSeconds", 0)
        deadline = self._now() + min(wait, wait if self.longest_poll is None else self.longest_poll)
        while not (found := queue.take(limit, self._now(), hide)) and self._now() < deadline:
            await self._change(queue, deadline)
        return {"Messages": [self._delivery(m, params) for m in found]} if found else {}

    async def _change(self, queue: Queue, deadline: float) -> None:
        times = [m.visible_at for m in queue.messages.values() if m.visible_at > self._now()]
        try:
            async with asyncio.timeout(max(min([deadline, *times]) - self._now(), 0)):
                await queue.changed.wait()
        except TimeoutError:
            pass

    def _delivery(self, message: Message, params: dict[str, Any]) -> dict[str, Any]:
        receipt = f"{message.id}#{next(self._receipts)}"
        message.receipts.add(receipt)
        wanted = {*params.get("AttributeNames", ()), *params.get("MessageSystemAttributeNames", ())}
        system = {k: v for k, v in message.attributes.items() if k in wanted or "All" in wanted}
        known = {"MessageId": message.id, "ReceiptHandle": receipt, "Body": message.body}
        attributes = message.message_attributes if params.get("MessageAttributeNames") else {}
        extra = {"Attributes": system, "MessageAttributes": attributes}
        return {**known, "MD5OfBody": md5(message.body)} | {k: v for k, v in extra.items() if v}

    async def _do_DeleteMessageBatch(self, params: dict[str, Any], step: Step | None) -> Any:
        return self._settle(params, step, lambda queue, message, entry: queue.messages.pop(message.id))

    async def _do_ChangeMessageVisibilityBatch(self, params: dict[str, Any], step: Step | None) -> Any:
        def change(queue: Queue, message: Message, entry: dict[str, Any]) -> None:
            message.visible_at = self._now() + entry.get("VisibilityTimeout", 0)
            queue.wake()

        return self._settle(params, step, change)

    def _settle(self, params: dict[str, Any], step: Step | None, verb: Any) -> dict[str, Any]:
        queue = self._queue(params)
        done: dict[str, list[dict[str, Any]]] = {"Successful": [], "Failed": []}
        for entry in params["Entries"]:
            message = queue.held_by(entry["ReceiptHandle"])
            if isinstance(step, FailEntries) and (step.entries is None or entry["Id"] in step.entries):
                done["Failed"].append(failed(entry["Id"], step.code, step.sender_fault))
            elif message is None and not self._was_deleted(queue, entry["ReceiptHandle"]):
                done["Failed"].append(failed(entry["Id"], "ReceiptHandleIsInvalid", True))
            else:
                if message is not None:
                    verb(queue, message, entry)
                done["Successful"].append({"Id": entry["Id"]})
        return {name: entries for name, entries in done.items() if entries}

    @staticmethod
    def _was_deleted(queue: Queue, receipt: str) -> bool:
        return "#" in receipt and receipt.partition("#")[0] not in queue.messages

    async def _do_AssumeRole(self, params: dict[str, Any], step: Step | None) -> Raw:
        number = next(self._receipts)
        key_id, secret, token = f"ASIAROLE{number}", f"role-secret-{number}", f"role-token-{number}=="
        self.keys[key_id] = (secret, token)
        until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
        return Raw(
            _ASSUMED.format(key_id, secret, token, until).encode(), headers={"Content-Type": "text/xml"}
        )


_ASSUMED = (
    '<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>'
    "<AccessKeyId>{}</AccessKeyId><SecretAccessKey>{}</SecretAccessKey><SessionToken>{}</SessionToken>"
    "<Expiration>{}</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
)
