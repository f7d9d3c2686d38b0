"""Functions that run elsewhere, with the real process: behind a URL that comes and goes, and in Lambda."""

from __future__ import annotations

import io
import json
import signal
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import boto3
import pytest

from tests.e2e.harness import REGION, Daemon, Queues, free_port, running, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from poller.demo.emulator import Emulator

pytestmark = pytest.mark.slow

HTTP = """
[functions.work]
runtime = "http"
url = "http://127.0.0.1:{port}/work?key=${{KEY}}"
headers = {{ Authorization = "Bearer ${{TOKEN}}" }}
timeout = 5
[[mappings]]
name = "work"
event_source_arn = "{arn}"
function_name = "work"
function_response_types = ["ReportBatchItemFailures"]
"""

LAMBDA = """
[aws]
region = "{region}"
endpoint_url = "{endpoint}"
{more}
[functions.{name}]
runtime = "lambda"
timeout = 10
[[mappings]]
name = "work"
event_source_arn = "{arn}"
function_name = "{name}:live"
function_response_types = ["ReportBatchItemFailures"]
"""

CODE = """
def handler(event, context):
    failed = [one["messageId"] for one in event["Records"] if one["body"].startswith("bad")]
    return {"batchItemFailures": [{"itemIdentifier": one} for one in failed]}
"""


@pytest.fixture
def queues(emulator: Emulator) -> Queues:
    return Queues(emulator.endpoint_url)


class Work(ThreadingHTTPServer):
    """Takes messages; what begins with `bad`, it reports as failed."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Exchange)
        self.done: list[str] = []
        self.requests: list[tuple[str, str]] = []


class _Exchange(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Work

    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, self.headers["Authorization"]))
        failed = [one["messageId"] for one in event["Records"] if one["body"].startswith("bad")]
        self.server.done += [one["body"] for one in event["Records"] if one["messageId"] not in failed]
        body = json.dumps({"batchItemFailures": [{"itemIdentifier": one} for one in failed]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def working(port: int) -> Iterator[Work]:
    with Work(port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_an_endpoint_gets_every_message_once_it_runs_and_its_secrets_are_in_no_log(
    queues: Queues, tmp_path: Path
) -> None:
    work, port = queues.create(), free_port()
    config = HTTP.format(port=port, arn=work.arn)
    daemon = Daemon(tmp_path, queues.endpoint_url, config, KEY="s3cret-key", TOKEN="s3cret-token")
    bodies = [f"good {number}" for number in range(50)]
    with running(daemon):
        work.send(bodies)
        reason = f"http://127.0.0.1:{port} cannot be connected to: Connection refused; check the url, and whether it runs"
        until(lambda: daemon.status()["work"]["totals"]["last_error"] == reason, "the status says why")
        assert daemon.metric('poller_errors_total{function="work"}') == 0
        with working(port) as server:
            until(lambda: len(server.done) >= len(bodies) and work.empty(), "all are done")
            assert sorted(server.done) == sorted(bodies)
            assert set(server.requests) == {("/work?key=s3cret-key", "Bearer s3cret-token")}
        status = daemon.page("/status")
        assert daemon.stop() == 0
    assert "s3cret" not in "".join(daemon.logs) + status


def test_only_what_an_endpoint_names_as_failed_stays_in_the_queue(queues: Queues, tmp_path: Path) -> None:
    work, port = queues.create(VisibilityTimeout="300"), free_port()
    daemon = Daemon(tmp_path, queues.endpoint_url, HTTP.format(port=port, arn=work.arn), KEY="k", TOKEN="t")
    with working(port) as server, running(daemon):
        work.send(["good 1", "bad", "good 2"])
        until(
            lambda: work.counts() == (0, 1),
            "the bad one waits for its visibility timeout, the others are gone",
        )
        assert sorted(server.done) == ["good 1", "good 2"]
        assert daemon.stop() == 0


def test_a_function_in_lambda_is_invoked_by_its_alias_before_and_after_a_reload(
    queues: Queues, emulator: Emulator, tmp_path: Path
) -> None:
    work = queues.create(VisibilityTimeout="300")
    name = deployed(emulator.endpoint_url)
    keys = {"region": REGION, "endpoint": emulator.endpoint_url, "name": name, "arn": work.arn}
    daemon = Daemon(tmp_path, emulator.endpoint_url, LAMBDA.format(**keys, more=""))
    with running(daemon):
        work.send(["good 1"])
        until(work.empty, "it is done")
        daemon.write(LAMBDA.format(**keys, more='wire = "sdk"'))  # takes a new session
        daemon.signal(signal.SIGHUP)
        work.send(["good 2"])  # so that the old mapping's long poll returns
        until(lambda: any('"reloaded' in line for line in daemon.logs), "the file is taken")
        work.send(["good 3", "bad", "good 4"])
        until(
            lambda: work.counts() == (0, 1),
            "the bad one waits for its visibility timeout, the others are gone",
        )
        assert daemon.metric(f'poller_errors_total{{function="{name}"}}') == 0
        assert daemon.stop() == 0


def deployed(endpoint_url: str) -> str:
    """The name of a new function with an alias `live`."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("app.py", CODE)
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    client = boto3.client("lambda", endpoint_url=endpoint_url, region_name=REGION, **keys)
    name = f"work-{uuid4().hex[:8]}"
    client.create_function(
        FunctionName=name,
        Runtime="python3.11",
        Role="arn:aws:iam::000000000000:role/r",
        Handler="app.handler",
        Code={"ZipFile": packed.getvalue()},
        Publish=True,
    )
    client.create_alias(FunctionName=name, Name="live", FunctionVersion="1")
    client.close()
    return name
