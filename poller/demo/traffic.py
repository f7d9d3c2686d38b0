"""The demo's queues, and the orders that flow through them and through its streams."""

from __future__ import annotations

import json
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import anyio
from aiobotocore.session import get_session

from poller.demo.streams import BATCH as ITEMS
from poller.demo.streams import Streams
from poller.errors import PollerError

if TYPE_CHECKING:
    from types import TracebackType

REGION = "eu-west-1"
#: What the emulator is told; it checks none of it, and a real account would refuse it.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "demo"}
#: Seconds after which a failed order comes back; `config/demo.toml` keeps the functions' timeouts within it.
VISIBILITY_TIMEOUT = 3
MAX_RECEIVE_COUNT = 3

QUEUES = ("orders", "payments.fifo")
DEAD_LETTER_QUEUES = ("orders-dead", "payments-dead.fifo")
#: Where poller tells of the records of the Kinesis stream that it has given up.
FAILED_QUEUE = "clicks-failed"

_TICKS_PER_SECOND = 5
_BATCH = 10
_POISON, _DRAFTS, _CUSTOMERS = 0.02, 0.05, 20
#: How many of ten orders go which way.
_WAYS = {"order": 4, "payment": 1, "click": 3, "customer": 2}
_STREAMED = ("click", "customer")
#: A broken payment would hold back its customer's group, and its neighbours would die with it: as on AWS, but hard to follow on
#: a screen. The table's stream has no destination, so a broken customer would be tried for ever.
_CAN_BE_BROKEN = ("order", "click")
#: The mappings that have a filter.
_CAN_BE_DRAFTS = ("order", "customer")


@dataclass
class Sent:
    """The ids of the orders that a queue or a stream has accepted."""

    all: set[str] = field(default_factory=set)
    streamed: set[str] = field(default_factory=set)
    """Those that a stream holds, not a queue."""
    drafts: set[str] = field(default_factory=set)
    """Those that the mapping's filter is to drop."""
    poison: set[str] = field(default_factory=set)
    """Those that the handler cannot but fail."""


class Traffic:
    """Makes queues and streams on entering; `run` sends `rate` orders a second until it is cancelled."""

    def __init__(self, endpoint_url: str, *, rate: float = 50, seed: int | None = None) -> None:
        self._rate = rate
        self._chance = random.Random(seed)
        self._made = 0
        self._urls: dict[str, str] = {}
        self._endpoint_url = endpoint_url
        self._session = get_session()
        self._open = AsyncExitStack()
        self._sqs: Any = None
        self.streams = Streams(self._connect)
        self.sent = Sent()

    def _connect(self, service: str) -> Any:
        return self._session.create_client(
            service,
            region_name=REGION,
            endpoint_url=self._endpoint_url,
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        )

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._sqs = await stack.enter_async_context(self._connect("sqs"))
            for queue, dead in zip(QUEUES, DEAD_LETTER_QUEUES, strict=True):
                await self._make_queue(dead, {})
                redrive = {"deadLetterTargetArn": await self._arn(dead), "maxReceiveCount": MAX_RECEIVE_COUNT}
                await self._make_queue(queue, {"RedrivePolicy": json.dumps(redrive)})
            await self._make_queue(FAILED_QUEUE, {})
            await stack.enter_async_context(self.streams)
            self._open = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def run(self) -> None:
        """Send at a steady rate; what a slow queue has held up is made good afterwards."""
        started = anyio.current_time()
        while True:
            due = int((anyio.current_time() - started) * self._rate) - self._made
            await self.send(due)
            await anyio.sleep(1 / _TICKS_PER_SECOND)

    async def send(self, count: int) -> None:
        """Send `count` new orders. When cancelled, the present request still ends: what is sent is always known."""
        orders: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _WAYS}
        for _ in range(count):
            order = self._next_order()
            orders[order["kind"]].append(order)
        for kind, made in orders.items():
            size = ITEMS if kind in _STREAMED else _BATCH
            for start in range(0, len(made), size):
                with anyio.CancelScope(shield=True):
                    await self._send_batch(kind, made[start : start + size])
                await anyio.lowlevel.checkpoint_if_cancelled()

    async def waiting(self, *queues: str) -> int:
        """Return how many messages the queues hold, those in somebody's hands included."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        total = 0
        for queue in queues:
            reply = await self._sqs.get_queue_attributes(QueueUrl=self._urls[queue], AttributeNames=names)
            total += sum(int(reply["Attributes"][name]) for name in names)
        return total

    async def take(self, queue: str) -> set[str]:
        """Empty `queue` of what can be received now, and return the ids of its orders."""
        taken: set[str] = set()
        while messages := await self._receive(queue):
            for message in messages:
                taken.add(json.loads(message["Body"])["id"])
                await self._sqs.delete_message(
                    QueueUrl=self._urls[queue], ReceiptHandle=message["ReceiptHandle"]
                )
        return taken

    async def take_given_up(self) -> set[str]:
        """Empty the queue of what was given up, and return the ids of the orders that it tells of."""
        given_up: set[str] = set()
        while messages := await self._receive(FAILED_QUEUE):
            for message in messages:
                given_up |= await self.streams.given_up(json.loads(message["Body"]))
                await self._sqs.delete_message(
                    QueueUrl=self._urls[FAILED_QUEUE], ReceiptHandle=message["ReceiptHandle"]
                )
        return given_up

    async def _receive(self, queue: str) -> list[dict[str, Any]]:
        reply = await self._sqs.receive_message(
            QueueUrl=self._urls[queue], MaxNumberOfMessages=_BATCH, WaitTimeSeconds=0
        )
        return reply.get("Messages") or []

    async def _make_queue(self, name: str, attributes: dict[str, str]) -> None:
        attributes = {"VisibilityTimeout": str(VISIBILITY_TIMEOUT), **attributes}
        if name.endswith(".fifo"):
            attributes["FifoQueue"] = "true"
        reply = await self._sqs.create_queue(QueueName=name, Attributes=attributes)
        self._urls[name] = reply["QueueUrl"]

    async def _arn(self, name: str) -> str:
        reply = await self._sqs.get_queue_attributes(QueueUrl=self._urls[name], AttributeNames=["QueueArn"])
        return str(reply["Attributes"]["QueueArn"])

    def _next_order(self) -> dict[str, Any]:
        self._made += 1
        chance = self._chance
        (kind,) = chance.choices(tuple(_WAYS), tuple(_WAYS.values()))
        order = {
            "id": f"{kind}-{self._made}",
            "kind": kind,
            "customer": f"customer-{chance.randrange(_CUSTOMERS)}",
            "status": "paid",
            "amount": round(chance.uniform(1, 500), 2),
        }
        dice = chance.random()
        if dice < _POISON and kind in _CAN_BE_BROKEN:
            order["amount"] = -1
        elif _POISON <= dice < _POISON + _DRAFTS and kind in _CAN_BE_DRAFTS:
            order["status"] = "draft"
        return order

    async def _send_batch(self, kind: str, orders: list[dict[str, Any]]) -> None:
        if kind in _STREAMED:
            put = self.streams.put_clicks if kind == "click" else self.streams.put_customers
            await put(orders)
            for order in orders:
                self._note(order)
        else:
            await self._send_messages(QUEUES[kind == "payment"], orders)

    async def _send_messages(self, queue: str, orders: list[dict[str, Any]]) -> None:
        entries = [_entry(number, order, queue) for number, order in enumerate(orders)]
        reply = await self._sqs.send_message_batch(QueueUrl=self._urls[queue], Entries=entries)
        for accepted in reply.get("Successful", []):
            self._note(orders[int(accepted["Id"])])
        if failed := reply.get("Failed"):
            raise PollerError(f"the emulator refused an order: {failed[0].get('Message', failed[0])}")

    def _note(self, order: dict[str, Any]) -> None:
        self.sent.all.add(order["id"])
        if order["kind"] in _STREAMED:
            self.sent.streamed.add(order["id"])
        if order["status"] == "draft":
            self.sent.drafts.add(order["id"])
        if order["amount"] <= 0:
            self.sent.poison.add(order["id"])


def _entry(number: int, order: dict[str, Any], queue: str) -> dict[str, str]:
    entry = {"Id": str(number), "MessageBody": json.dumps(order)}
    if queue.endswith(".fifo"):
        entry |= {"MessageGroupId": order["customer"], "MessageDeduplicationId": order["id"]}
    return entry
