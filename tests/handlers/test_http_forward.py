import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from handlers import http_forward
from handlers.http_forward import ForwardError


class Context:
    aws_request_id = "request-1"

    def __init__(self, milliseconds=30_000):
        self.milliseconds = milliseconds

    def get_remaining_time_in_millis(self):
        return self.milliseconds


class Receiver(ThreadingHTTPServer):
    """Takes what is posted; a record whose body names a status is answered with it."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.posted = []
        self.headers = []


class Answer(BaseHTTPRequestHandler):
    def do_POST(self):
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.posted.append(content)
        self.server.headers.append(self.headers)
        self.send_response(int(content.get("body", "200")))
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def receiver(monkeypatch):
    with Receiver() as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        monkeypatch.setenv("FORWARD_URL", f"http://127.0.0.1:{server.server_port}/orders?key=secret")
        yield server
        server.shutdown()
        serving.join()


def sqs(number, body="200", **attributes):
    return {"eventSource": "aws:sqs", "messageId": f"m-{number}", "body": body, "attributes": attributes}


def forward(*records, context=None):
    reply = http_forward.handler({"Records": list(records)}, context or Context())
    return [entry["itemIdentifier"] for entry in reply["batchItemFailures"]]


def test_each_record_is_posted_and_those_refused_are_reported(receiver, caplog):
    assert forward(sqs(1), sqs(2, "503"), sqs(3, "302"), sqs(4, "204")) == ["m-2", "m-3"]
    assert [record["messageId"] for record in receiver.posted] == ["m-1", "m-2", "m-3", "m-4"]
    assert receiver.headers[0]["X-Request-Id"] == "request-1"
    assert receiver.headers[0]["Content-Type"] == "application/json"
    assert caplog.messages[0] == "record m-2 was not forwarded: the receiver answered 503 Service Unavailable"


def test_a_token_is_sent_and_neither_it_nor_the_url_is_logged(receiver, caplog, monkeypatch):
    monkeypatch.setenv("FORWARD_TOKEN", "hush")

    assert forward(sqs(1, "500")) == ["m-1"]
    assert receiver.headers[0]["Authorization"] == "Bearer hush"
    assert "hush" not in caplog.text
    assert "secret" not in caplog.text


def test_a_token_from_a_file_with_a_line_break_is_sent_without_it(receiver, monkeypatch):
    monkeypatch.setenv("FORWARD_TOKEN", "hush\n")

    assert forward(sqs(1)) == []
    assert receiver.headers[0]["Authorization"] == "Bearer hush"


def test_a_token_that_no_header_can_hold_is_not_shown(receiver, caplog, monkeypatch):
    monkeypatch.setenv("FORWARD_TOKEN", "hush\nhush")

    with pytest.raises(ForwardError, match="FORWARD_TOKEN must be one line") as caught:
        forward(sqs(1))
    assert "hush" not in f"{caught.value} {caplog.text}"


def test_a_whole_batch_is_one_request(receiver, monkeypatch):
    monkeypatch.setenv("FORWARD_MODE", "batch")
    event = {"Records": [sqs(1), sqs(2)]}

    assert http_forward.handler(event, Context()) == {"batchItemFailures": []}
    assert receiver.posted == [event]


def test_a_whole_batch_that_is_refused_fails(receiver, monkeypatch):
    monkeypatch.setenv("FORWARD_MODE", "batch")

    with pytest.raises(ForwardError, match="answered 500"):
        http_forward.handler({"Records": [], "body": "500"}, Context())


def test_order_is_kept_by_not_going_past_a_failure(receiver):
    fifo = [sqs(1), sqs(2, "500", MessageGroupId="g"), sqs(3, MessageGroupId="g")]
    kinesis = [
        {"eventSource": "aws:kinesis", "kinesis": {"sequenceNumber": "1"}, "body": "500"},
        {"eventSource": "aws:kinesis", "kinesis": {"sequenceNumber": "2"}},
    ]
    dynamodb = [{"eventSource": "aws:dynamodb", "dynamodb": {"SequenceNumber": "9"}, "body": "500"}]

    assert forward(*fifo) == ["m-2", "m-3"]
    assert forward(*kinesis) == ["1", "2"]
    assert forward(*dynamodb) == ["9"]
    assert len(receiver.posted) == 4


def test_a_receiver_out_of_reach_fails_the_record(monkeypatch, caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("FORWARD_URL", f"http://127.0.0.1:{port}/")

    assert forward(sqs(1)) == ["m-1"]
    assert "the receiver cannot be reached: [Errno 111] Connection refused" in caplog.text


def test_a_receiver_that_does_not_answer_in_time_fails_the_record(monkeypatch, caplog):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("FORWARD_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/")

        assert forward(sqs(1), context=Context(http_forward.MARGIN * 1000 + 10)) == ["m-1"]
    assert "the receiver cannot be reached: timed out" in caplog.text


def test_nothing_is_sent_when_the_time_is_up(receiver, caplog):
    assert forward(sqs(1), context=Context(400)) == ["m-1"]
    assert receiver.posted == []
    assert "no time is left before the function times out" in caplog.text


@pytest.mark.parametrize(
    "url",
    ["", "file:///etc/passwd", "http://127.0.0.1:9/a b?key=secret", "http://poller:secret@127.0.0.1:9/"],
)
def test_a_url_that_is_not_one_fails_the_batch_and_is_not_shown(monkeypatch, caplog, url):
    monkeypatch.setenv("FORWARD_URL", url)

    with pytest.raises(ForwardError, match="FORWARD_URL must be") as caught:
        forward(sqs(1))
    assert "secret" not in f"{caught.value} {caplog.text}"
