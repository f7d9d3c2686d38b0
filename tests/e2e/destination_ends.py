"""The destinations of the end-to-end tests: each made at the emulator, and read from behind the daemon's back."""

from __future__ import annotations

import io
import json
import uuid
import zipfile
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from tests.e2e.harness import ACCOUNT, REGION, Queues
from tests.e2e.stream_harness import client

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.harness import Queue


class End(ABC):
    """Where documents go. `name` is what a config names it by."""

    #: Whether what is sent again within minutes arrives once.
    once = False
    name: str

    @abstractmethod
    def __init__(self, endpoint_url: str, folder: Path) -> None: ...

    @abstractmethod
    def documents(self) -> list[dict[str, Any]]:
        """All that have come so far."""


class QueueEnd(End):
    fifo = False

    def __init__(self, endpoint_url: str, folder: Path) -> None:
        self.queue: Queue = Queues(endpoint_url).create(fifo=self.fifo)
        self.name = self.queue.arn
        self.once = self.fifo
        self._sqs = client("sqs", endpoint_url)
        self._found: list[dict[str, Any]] = []

    def documents(self) -> list[dict[str, Any]]:
        while messages := self._sqs.receive_message(QueueUrl=self.queue.url, MaxNumberOfMessages=10).get(
            "Messages"
        ):
            self._found += [json.loads(message["Body"]) for message in messages]
            for message in messages:
                self._sqs.delete_message(QueueUrl=self.queue.url, ReceiptHandle=message["ReceiptHandle"])
        return self._found


class FifoEnd(QueueEnd):
    fifo = True


class TopicEnd(QueueEnd):
    def __init__(self, endpoint_url: str, folder: Path) -> None:
        super().__init__(endpoint_url, folder)
        sns = client("sns", endpoint_url)
        self.name = sns.create_topic(Name=f"t-{uuid.uuid4().hex}")["TopicArn"]
        raw = {"RawMessageDelivery": "true"}
        sns.subscribe(TopicArn=self.name, Protocol="sqs", Endpoint=self.queue.arn, Attributes=raw)


class BusEnd(QueueEnd):
    """Checks what an event is besides its detail."""

    def __init__(self, endpoint_url: str, folder: Path) -> None:
        super().__init__(endpoint_url, folder)
        events, bus = client("events", endpoint_url), f"b-{uuid.uuid4().hex}"
        self.name = events.create_event_bus(Name=bus)["EventBusArn"]
        events.put_rule(Name="all", EventBusName=bus, EventPattern=json.dumps({"source": ["lambda"]}))
        events.put_targets(Rule="all", EventBusName=bus, Targets=[{"Id": "queue", "Arn": self.queue.arn}])

    def documents(self) -> list[dict[str, Any]]:
        found = super().documents()
        for event in found:
            assert event["detail-type"] == "Lambda Function Invocation Result - Failure"
            bus, function = event["resources"]
            assert bus == self.name
            assert function.startswith(f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:work:")
        return [event["detail"] for event in found]


class BucketEnd(End):
    """Objects of which the last part of the key is the same are one: sent again, under another time."""

    once = True

    def __init__(self, endpoint_url: str, folder: Path) -> None:
        self._s3 = client("s3", endpoint_url)
        self.bucket = f"bucket-{uuid.uuid4().hex}"
        self._s3.create_bucket(Bucket=self.bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
        self.name = f"arn:aws:s3:::{self.bucket}"

    def documents(self) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        for key in [one["Key"] for page in pages for one in page.get("Contents", ())]:
            body = self._s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
            found[key[-36:]] = json.loads(body)
        return list(found.values())


class LambdaEnd(End):
    """A function in the emulator's Lambda that writes what it gets to a file."""

    def __init__(self, endpoint_url: str, folder: Path) -> None:
        self._file = folder / "lambda-end"
        code = io.BytesIO()
        with zipfile.ZipFile(code, "w") as archive:
            archive.writestr(
                "app.py",
                "import json, os\n"
                "def handler(event, context):\n"
                f"    end = os.open({str(self._file)!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)\n"
                "    os.write(end, (json.dumps(event) + chr(10)).encode())\n"
                "    os.close(end)\n",
            )
        made = client("lambda", endpoint_url).create_function(
            FunctionName=f"end-{uuid.uuid4().hex[:12]}",
            Runtime="python3.11",
            Role=f"arn:aws:iam::{ACCOUNT}:role/end",
            Handler="app.handler",
            Code={"ZipFile": code.getvalue()},
        )
        self.name = made["FunctionArn"]

    def documents(self) -> list[dict[str, Any]]:
        text = self._file.read_text() if self._file.exists() else ""
        return [json.loads(line) for line in text.splitlines()]


class OwnFunctionEnd(End):
    """A function of the daemon: `destination_handlers:keep`, which fails as long as there is a file `end-is-down`."""

    name = "keep"

    def __init__(self, endpoint_url: str, folder: Path) -> None:
        self._file = folder / "own-end"

    def documents(self) -> list[dict[str, Any]]:
        text = self._file.read_text() if self._file.exists() else ""
        return [json.loads(line) for line in text.splitlines()]


ENDS: dict[str, type[End]] = {
    "sqs": QueueEnd,
    "fifo": FifoEnd,
    "sns": TopicEnd,
    "s3": BucketEnd,
    "eventbridge": BusEnd,
    "lambda": LambdaEnd,
    "own": OwnFunctionEnd,
}
