"""The real daemon in a process of its own, and the queues that it reads."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
REGION = "eu-west-1"
ACCOUNT = "000000000000"
#: Seconds for something that should take well under one; the machine may be busy.
PATIENCE = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Ask again and again until `condition()` is true, and return what it said."""
    pause = threading.Event()
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if found := condition():
            return found
        pause.wait(0.02)
    raise AssertionError(f"not within {patience} s: {what}")


class Queues:
    """A client of the emulator."""

    def __init__(self, endpoint_url: str) -> None:
        self.endpoint_url = endpoint_url
        self.client = boto3.client(
            "sqs",
            endpoint_url=endpoint_url,
            region_name=REGION,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(retries={"total_max_attempts": 5}, read_timeout=30),
        )

    def create(self, *, fifo: bool = False, **attributes: str) -> Queue:
        name = f"q-{uuid.uuid4().hex[:12]}" + (".fifo" if fifo else "")
        if fifo:
            attributes |= {"FifoQueue": "true", "ContentBasedDeduplication": "true"}
        url = self.client.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
        return Queue(self.client, name, url)


class Queue:
    """One queue of the emulator."""

    def __init__(self, client: Any, name: str, url: str) -> None:
        self._client = client
        self.name = name
        self.url = url
        self.arn = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}"

    def send(self, bodies: list[str], group: Callable[[str], str] | None = None) -> None:
        for at in range(0, len(bodies), 10):
            entries = [
                {"Id": str(index), "MessageBody": body} | ({"MessageGroupId": group(body)} if group else {})
                for index, body in enumerate(bodies[at : at + 10])
            ]
            reply = self._client.send_message_batch(QueueUrl=self.url, Entries=entries)
            assert not reply.get("Failed"), reply

    def counts(self) -> tuple[int, int]:
        """Messages that can be received now, and messages that are in flight."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self._client.get_queue_attributes(QueueUrl=self.url, AttributeNames=names)["Attributes"]
        return int(found[names[0]]), int(found[names[1]])

    def empty(self) -> bool:
        return self.counts() == (0, 0)

    def take_all(self) -> dict[str, int]:
        """Body -> receive count, this receive included, of all that can be received now."""
        taken: dict[str, int] = {}
        while True:
            reply = self._client.receive_message(
                QueueUrl=self.url,
                MaxNumberOfMessages=10,
                WaitTimeSeconds=0,
                AttributeNames=["All"],
                VisibilityTimeout=300,
            )
            if not reply.get("Messages"):
                return taken
            for message in reply["Messages"]:
                taken[message["Body"]] = int(message["Attributes"]["ApproximateReceiveCount"])


class Daemon:
    """`poller run` on a config of its own."""

    def __init__(self, folder: Path, endpoint_url: str, config: str, **environment: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.file = folder / "poller.toml"
        self.ledger = folder / "ledger"
        self.ledger.touch()
        self._endpoint_url = endpoint_url
        self._environment = environment
        self.logs: list[str] = []
        self.options: tuple[str, ...] = ()
        self.process: subprocess.Popen[str] | None = None
        self.write(config)

    @classmethod
    def at(cls, other: Daemon, port: int) -> Daemon:
        """One that `other` has started, to be asked things."""
        one = copy(other)
        one.port = port
        one.process = None
        return one

    def write(self, config: str) -> None:
        daemon = "" if "[daemon]" in config else "[daemon]\n"
        text = f"{daemon}{config}".replace("[daemon]\n", f'[daemon]\nlisten = "127.0.0.1:{self.port}"\n')
        aws = f'[aws]\nregion = "{REGION}"\nendpoint_url = "{self._endpoint_url}"\n'
        self.file.write_text(text if "[aws]" in text else text + aws)

    def start(self) -> Daemon:
        environment = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_EC2_METADATA_DISABLED": "true",
            "LEDGER": str(self.ledger),
            "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent.parent}",
            **self._environment,
        }
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "poller",
                "run",
                "-c",
                str(self.file),
                "--log-format",
                "json",
                *self.options,
            ],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd=self.folder,
        )
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()
        return self

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr:
            self.logs.extend(iter(process.stderr.readline, ""))

    def ready(self) -> Daemon:
        until(lambda: self._get("/readyz") is not None or self._ended(), "the daemon is ready")
        assert not self._ended(), "".join(self.logs)
        return self

    def _ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def _get(self, path: str) -> bytes | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as reply:
                return bytes(reply.read())
        except (OSError, urllib.error.HTTPError):
            return None

    def page(self, path: str) -> str:
        found = self._get(path)
        assert found is not None, path
        return found.decode()

    def status(self) -> dict[str, Any]:
        """Each mapping's status by its name."""
        found = self._get("/status")
        return {one["name"]: one for one in json.loads(found)["mappings"]} if found else {}

    def command(self, name: str, verb: str) -> None:
        page = f"http://127.0.0.1:{self.port}/mappings/{name}/{verb}"
        with urllib.request.urlopen(urllib.request.Request(page, method="POST", headers={"X-Poller": "1"})):
            pass

    def metric(self, line: str) -> float:
        """The value of the series whose name and labels are `line`."""
        for found in self.page("/metrics").splitlines():
            if found.startswith(line + " "):
                return float(found.rpartition(" ")[2])
        raise AssertionError(f"no series {line}")

    def handled(self) -> list[str]:
        return self.ledger.read_text().splitlines()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, patience: float = PATIENCE) -> int:
        assert self.process is not None
        return self.process.wait(patience)

    def stop(self) -> int:
        """SIGINT, and a second signal so that idle long polls are not waited for."""
        self.signal(signal.SIGINT)
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextmanager
def running(daemon: Daemon) -> Iterator[Daemon]:
    """Start `daemon`, and let no process outlive the test."""
    try:
        yield daemon.start().ready()
    finally:
        daemon.kill()
