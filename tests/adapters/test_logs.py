from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import subprocess
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from poller.model import (
    ApiRequest,
    Failed,
    FilteredOut,
    FunctionError,
    Invocation,
    Invoked,
    MappingState,
    NotInvoked,
    Outcome,
    PartlyFailed,
    Received,
    Settled,
    StaleReceipts,
    StateChanged,
    Succeeded,
    Trouble,
)
from poller.ports import current_invocation
from poller.telemetry import log_format, logs
from poller.telemetry.logs import LogObserver

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("test")


@pytest.fixture(autouse=True)
def restored_loggers() -> Iterator[None]:
    names = ("", *logs._TALKATIVE)
    before = {name: logging.getLogger(name).level for name in names}
    yield
    logs.shutdown()
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


class Log:
    """What was logged since `setup`; reading it ends the setup."""

    def __init__(self, level: str | int = "info", *, json: bool = True) -> None:
        self._stream = io.StringIO()
        logs.setup(self._stream, level, json=json)

    def text(self) -> str:
        logs.shutdown()
        return self._stream.getvalue()

    def lines(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.text().splitlines()]

    def line(self) -> dict[str, Any]:
        (line,) = self.lines()
        return line


class Unshowable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


# --- formats ------------------------------------------------------------------------------------------------------


def test_a_machine_gets_one_object_a_line_with_the_extras_in_it() -> None:
    out = Log()
    log.warning("%s is late", "orders", extra={"mapping": "orders", "records": 3})
    line = out.line()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "warning",
        "logger": "test",
        "message": "orders is late",
        "mapping": "orders",
        "records": 3,
    }


def test_a_person_gets_one_line_with_the_extras_behind_it() -> None:
    out = Log(json=False)
    log.warning("late", extra={"mapping": "orders", "why": 'a "b" c', "none": ""})
    text = out.text()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} WARNING late.*\n", text)
    assert text.endswith(' mapping=orders why="a \\"b\\" c" none=""\n')


def test_a_terminal_gets_lines_for_people_and_anything_else_gets_json() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, expected in ((Terminal(), "2"), (io.StringIO(), "{")):
        logs.setup(stream)
        log.info("hello")
        logs.shutdown()
        assert stream.getvalue().startswith(expected)


def test_standard_error_is_the_default(capfd: pytest.CaptureFixture[str]) -> None:
    logs.setup(sys.__stderr__)
    log.info("hello")
    logs.shutdown()
    assert '"message":"hello"' in capfd.readouterr().err


def test_an_exception_is_a_text_of_its_own_for_a_machine_and_indented_for_a_person() -> None:
    for json in (True, False):
        out = Log(json=json)
        try:
            raise ValueError("one\nERROR forged")
        except ValueError:
            log.exception("failed", stack_info=not json)
        if json:
            assert "ValueError: one\nERROR forged" in out.line()["exception"]
        else:
            first, *rest = out.text().splitlines()
            assert first.endswith("ERROR   failed")
            assert rest
            assert all(line.startswith("    ") for line in rest)


@pytest.mark.parametrize("evil", ["\n", "\r", "\x1b[2K", "\x85", "\u2028", "\u202e", "\x00"])
def test_untrusted_text_cannot_forge_a_line_nor_steer_a_terminal(evil: str) -> None:
    out = Log(json=False)
    log.warning("bad%sERROR forged", evil, extra={"detail": f"x{evil}y", f"k{evil}": 1})
    text = out.text()
    assert len(text.splitlines()) == 1
    assert evil not in text.removesuffix("\n")


def test_the_request_id_of_the_running_invocation_is_in_every_line() -> None:
    out = Log()
    token = current_invocation.set(Invocation("id-1", {}, 0.0, "arn"))
    log.info("from the handler")
    log.info("from elsewhere", extra={"request_id": "id-2"})
    current_invocation.reset(token)
    log.info("outside")
    assert [line.get("request_id") for line in out.lines()] == ["id-1", "id-2", None]


@pytest.mark.parametrize("json", [True, False])
@pytest.mark.parametrize(
    "extra", [{"x": Unshowable()}, {"x": "\ud800"}, {"x": 1 << 80}, {"x": {1: object()}}, {1: "x"}]
)
def test_odd_extras_cost_at_most_themselves(json: bool, extra: dict[Any, Any]) -> None:
    out = Log(json=json)
    log.info("still here", extra=extra)
    assert "still here" in out.text()


def test_an_endless_structure_is_shown_as_far_as_it_can_be() -> None:
    endless: list[Any] = []
    endless.append(endless)
    out = Log()
    log.info("still here", extra={"x": endless})
    assert out.line()["x"] == "[[...]]"


@pytest.mark.parametrize("json", [True, False])
def test_a_record_that_cannot_be_formatted_shows_its_bare_message(json: bool) -> None:
    out = Log(json=json)
    log.info("%d records", "ten")
    log.info(Unshowable())
    assert "%d records" in (text := out.text())
    assert "<Unshowable that cannot be shown>" in text


def test_an_extra_cannot_take_the_place_of_a_key_of_ours() -> None:
    out = Log()
    log.info("true", extra={"level": "forged", "time": "never", "logger": "forged"})
    line = out.line()
    assert (line["level"], line["logger"]) == ("info", "test")
    assert line["time"] != "never"


@pytest.mark.parametrize("json", [True, False])
def test_no_line_is_of_any_size(json: bool) -> None:
    out = Log(json=json)
    log.info("x" * 100_000)
    log.info("many", extra={f"k{i}": "y" * 1000 for i in range(200)})
    long, many = out.text().splitlines()
    assert "more characters)" in long
    assert len(long) < 10_000
    assert "many" in many
    assert len(many) < 1000


def test_the_base_formatter_has_no_format_of_its_own() -> None:
    with pytest.raises(NotImplementedError):
        log_format.SafeFormatter().line(logging.makeLogRecord({}))


# --- setup and the stream -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "seen"), [("info", 1), ("DEBUG", 2), (logging.ERROR, 0)])
def test_the_level_decides_what_is_written(level: str | int, seen: int) -> None:
    out = Log(level)
    log.debug("quiet")
    log.info("usual")
    assert len(out.lines()) == seen


def test_a_level_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no log level 'loud': one of debug, info"):
        logs.setup(io.StringIO(), "loud")


def test_debug_does_not_open_the_logs_that_hold_credentials() -> None:
    out = Log("debug")
    logging.getLogger("botocore.auth").debug("x-amz-security-token:secret")
    log.debug("ours")
    assert [line["message"] for line in out.lines()] == ["ours"]


def test_a_second_setup_replaces_the_first() -> None:
    first, second = Log(), Log()
    log.info("once")
    assert first._stream.getvalue() == ""
    assert second.line()["message"] == "once"


def test_shutdown_without_a_setup_does_nothing() -> None:
    logs.shutdown()


def test_warnings_of_the_interpreter_become_lines() -> None:
    out = Log()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old", UserWarning, stacklevel=1)
    assert "old" in out.line()["message"]


def read_all(descriptor: int) -> bytes:
    chunks = iter(lambda: os.read(descriptor, 1 << 16), b"")
    return b"".join(chunks)


def test_a_stuck_pipe_blocks_nobody_and_its_losses_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_WAITING", 1 << 16)
    monkeypatch.setattr(logs, "FLUSH_TIMEOUT", 0.01)
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        logs.setup(stream)
        for _ in range(200):
            log.info("x" * 8000)
        logs.shutdown()
    lines = [orjson.loads(line) for line in read_all(reader).splitlines()]
    os.close(reader)
    (report,) = [line for line in lines if "dropped" in line["message"]]
    dropped = int(report["message"].split()[0])
    assert report["level"] == "warning"
    assert dropped > 100
    assert dropped + len(lines) - 1 == 200


def test_a_non_blocking_pipe_loses_nothing() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(writer, "w") as stream:
        logs.setup(stream)
        for _ in range(100):
            log.info("x" * 8000)
        outlet = next(h for h in logging.getLogger().handlers if isinstance(h, logs.Outlet))
        with contextlib.ExitStack() as stack:
            stack.callback(logs.shutdown)
            received = b""
            while received.count(b"\n") < 100:
                received += os.read(reader, 1 << 16)
    os.close(reader)
    assert not outlet._thread.is_alive()


@pytest.mark.parametrize("text_only", [True, False])
def test_a_reader_that_is_gone_harms_nobody(text_only: bool) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    closed = io.StringIO()
    with os.fdopen(writer, "w") as stream:
        logs.setup(closed if text_only else stream, json=True)
        closed.close()
        log.info("into the void")
        logs.shutdown()


@pytest.mark.slow
def test_a_process_ends_in_spite_of_a_stuck_pipe() -> None:
    program = (
        "import logging; from poller.telemetry import logs; logs.setup(level='info')\n"
        "for _ in range(100): logging.getLogger('x').info('y' * 8000)\n"
    )
    started = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) as process:
        assert process.wait(timeout=20) == 0
    assert time.monotonic() - started < 15


# --- the observer -------------------------------------------------------------------------------------------------


def invoked(outcome: Outcome, failed: int = 0) -> Invoked:
    return Invoked("orders", "f", "id-1", records=10, failed=failed, outcome=outcome, duration=0.2)


def test_a_failed_invocation_says_what_failed_and_what_happens_next() -> None:
    out = Log()
    error = FunctionError("ValueError", "no such order", ('  File "h.py", line 1\n    raise\n',))
    LogObserver().invoked(invoked(Failed(error), failed=10))
    line = out.line()
    assert line["level"] == "warning"
    assert line["message"] == (
        "f failed: ValueError: no such order; its 10 records come back after the queue's visibility timeout"
    )
    assert (line["mapping"], line["function"], line["request_id"]) == ("orders", "f", "id-1")
    assert (line["error_type"], line["records"]) == ("ValueError", 10)
    assert line["stack_trace"] == list(error.stack_trace)


def test_a_person_sees_the_stack_trace_of_a_function_below_the_line() -> None:
    out = Log(json=False)
    error = FunctionError("E", "a\nb", ('  File "h.py", line 1\n    raise\n', "\x1b"))
    LogObserver().invoked(invoked(Failed(error), failed=10))
    first, *rest = out.text().splitlines()
    assert "f failed: E: a\\nb; its" in first
    assert rest == ['      File "h.py", line 1', "        raise", "    ", "    \\x1b"]


def test_a_timeout_is_called_one() -> None:
    out = Log()
    LogObserver().invoked(invoked(Failed(FunctionError("T", "3 s", timed_out=True)), failed=10))
    assert out.line()["message"].startswith("f timed out: T: 3 s")


def test_a_partial_failure_is_information() -> None:
    out = Log()
    LogObserver().invoked(invoked(PartlyFailed(frozenset("ab")), failed=2))
    line = out.line()
    assert (line["level"], line["request_id"]) == ("info", "id-1")
    assert line["message"].startswith("f did not finish 2 of 10 records")


def test_stale_receipts_are_a_warning_with_an_example() -> None:
    out = Log()
    LogObserver().stale_receipts(StaleReceipts("orders", 3, "message-1"))
    line = out.line()
    assert (line["level"], line["mapping"], line["message_id"]) == ("warning", "orders", "message-1")


def test_a_failed_mapping_is_an_error_and_any_other_state_is_information() -> None:
    out = Log()
    observer = LogObserver()
    observer.state_changed(StateChanged("orders", MappingState.RUNNING))
    observer.state_changed(StateChanged("orders", MappingState.FAILED, "the queue is missing"))
    running, failed = out.lines()
    assert (running["level"], running["message"]) == ("info", "orders is running")
    assert (failed["level"], failed["message"]) == ("error", "orders is failed: the queue is missing")


def test_the_same_trouble_is_said_once_a_minute_with_the_number_of_silent_ones() -> None:
    now = 0.0
    out = Log()
    observer = LogObserver(lambda: now)
    for now in (0.0, 1.0, 59.0, 60.0, 61.0, 120.0):
        observer.trouble(Trouble("orders", "no network", 2.0))
    lines = out.lines()
    first = "the source gives trouble: no network; next try in 2.0 s"
    assert [line["message"] for line in lines] == [
        first,
        f"{first} (and 2 times more since this was last said)",
        f"{first} (and 1 times more since this was last said)",
    ]
    assert {line["level"] for line in lines} == {"warning"}


def test_other_troubles_and_other_mappings_are_said_at_once() -> None:
    out = Log()
    observer = LogObserver(lambda: 0.0)
    for mapping, error in (("a", "x"), ("a", "y"), ("b", "x"), ("a", "x")):
        observer.trouble(Trouble(mapping, error, 1.0))
    assert len(out.lines()) == 3


def test_troubles_without_number_are_not_all_remembered() -> None:
    Log(logging.CRITICAL)
    observer = LogObserver(lambda: 0.0)
    for number in range(logs.MAX_KINDS + 50):
        observer.trouble(Trouble("a", str(number), 1.0))
    assert len(observer._recent._said) == logs.MAX_KINDS


def test_throttles_are_said_as_seldom_as_trouble() -> None:
    out = Log()
    observer = LogObserver(lambda: 0.0)
    observer.invoked(invoked(NotInvoked("no free slot")))
    observer.invoked(invoked(NotInvoked("no free slot")))
    assert out.line()["message"] == "f was not invoked: no free slot"


@pytest.mark.parametrize(
    "error",
    [
        "the canonical request is 'x-amz-security-token:SECRET'",
        "Authorization: SECRET",
        'aws_secret_access_key = "SECRET"',
    ],
)
def test_what_aws_quotes_of_a_request_is_not_logged(error: str) -> None:
    out = Log()
    observer = LogObserver()
    observer.trouble(Trouble("orders", error, 1.0))
    observer.state_changed(StateChanged("orders", MappingState.FAILED, error))
    observer.invoked(invoked(NotInvoked(error)))
    assert "SECRET" not in out.text()


def tell_everyday_facts(observer: LogObserver) -> None:
    observer.received(Received("orders", 10))
    observer.filtered_out(FilteredOut("orders", 1))
    observer.invoked(invoked(Succeeded()))
    observer.settled(Settled("orders", deleted=9))
    observer.api_request(ApiRequest("sqs", "ReceiveMessage", "ok", 0.1))


@pytest.mark.parametrize(("level", "seen"), [("info", 0), ("debug", 5)])
def test_everyday_facts_are_for_debugging_only(level: str, seen: int) -> None:
    out = Log(level)
    tell_everyday_facts(LogObserver())
    assert len(out.lines()) == seen
