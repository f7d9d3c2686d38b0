"""The demo's queues, and the orders that flow through them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import anyio
from aiobotocore.session import get_session

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

_TICKS_PER_SECOND = 5
_BATCH = 10
_POISON, _DRAFTS, _PAYMENTS, _CUSTOMERS = 0.02, 0.05, 0.1, 20


@dataclass
class Sent:
    """The ids of the orders that a queue has accepted."""

    all: set[str] = field(default_factory=set)
    drafts: set[str] = field(default_factory=set)
    """Those that the mapping's filter is to drop."""
    poison: set[str] = field(default_factory=set)
    """Those that the handler cannot but fail."""


class Traffic:
    """Makes the queues on entering; `run` sends `rate` orders a second until it is cancelled."""

    def __init__(self, endpoint_url: str, *, rate: float = 50, seed: int | None = None) -> None:
        self._rate = rate
        self._chance = random.Random(seed)
        self._made = 0
        self._urls: dict[str, str] = {}
        self._client = get_session().create_client(
            "sqs",
            region_name=REGION,
            endpoint_url=endpoint_url,
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        )
        self._sqs: Any = None
        self.sent = Sent()

    async def __aenter__(self) -> Self:
        self._sqs = await self._client.__aenter__()
        for queue, dead in zip(QUEUES, DEAD_LETTER_QUEUES, strict=True):
            await self._make_queue(dead, {})
            redrive = {"deadLetterTargetArn": await self._arn(dead), "maxReceiveCount": MAX_RECEIVE_COUNT}
            await self._make_queue(queue, {"RedrivePolicy": json.dumps(redrive)})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def run(self) -> None:
        """Send at a steady rate; what a slow queue has held up is made good afterwards."""
        started = anyio.current_time()
        while True:
            due = int((anyio.current_time() - started) * self._rate) - self._made
            await self.send(due)
            await anyio.sleep(1 / _TICKS_PER_SECOND)

    async def send(self, count: int) -> None:
        """Send `count` new orders. When cancelled, the present request still ends: what is sent is always known."""
        batches: dict[str, list[dict[str, Any]]] = {queue: [] for queue in QUEUES}
        for _ in range(count):
            order = self._next_order()
            batches[QUEUES[order["kind"] == "payment"]].append(order)
        for queue, orders in batches.items():
            for start in range(0, len(orders), _BATCH):
                with anyio.CancelScope(shield=True):
                    await self._send_batch(queue, orders[start : start + _BATCH])
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
        order = {
            "id": f"order-{self._made}",
            "kind": "payment" if chance.random() < _PAYMENTS else "order",
            "customer": f"customer-{chance.randrange(_CUSTOMERS)}",
            "status": "paid",
            "amount": round(chance.uniform(1, 500), 2),
        }
        # A broken payment would hold back its customer's group, and its neighbours would die with it: as on AWS,
        # but hard to follow on a screen.
        if order["kind"] == "order":
            dice = chance.random()
            if dice < _POISON:
                order["amount"] = -1
            elif dice < _POISON + _DRAFTS:
                order["status"] = "draft"
        return order

    async def _send_batch(self, queue: str, orders: list[dict[str, Any]]) -> None:
        entries = [_entry(number, order, queue) for number, order in enumerate(orders)]
        reply = await self._sqs.send_message_batch(QueueUrl=self._urls[queue], Entries=entries)
        for accepted in reply.get("Successful", []):
            self._note(orders[int(accepted["Id"])])
        if failed := reply.get("Failed"):
            raise PollerError(f"the emulator refused an order: {failed[0].get('Message', failed[0])}")

    def _note(self, order: dict[str, Any]) -> None:
        self.sent.all.add(order["id"])
        if order["status"] == "draft":
            self.sent.drafts.add(order["id"])
        if order["amount"] <= 0:
            self.sent.poison.add(order["id"])


def _entry(number: int, order: dict[str, Any], queue: str) -> dict[str, str]:
    entry = {"Id": str(number), "MessageBody": json.dumps(order)}
    if queue.endswith(".fifo"):
        entry |= {"MessageGroupId": order["customer"], "MessageDeduplicationId": order["id"]}
    return entry
