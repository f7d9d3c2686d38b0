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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from poller.model import Invocation
from poller.ports import current_invocation
from poller.telemetry import log_format, logs
from tests.adapters.logbook import Log, restored

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger("test")
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def restored_loggers() -> Iterator[None]:
    with restored():
        yield


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
def test_a_record_that_cannot_be_formatted_shows_its_bare_message(
    json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Log(json=json)
    # pytest's own handlers raise for such a record.
    monkeypatch.setattr(logging.getLogger(), "handlers", logging.getLogger().handlers[-1:])
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
    reports = [line for line in lines if "dropped" in line["message"]]
    dropped = sum(int(report["message"].split()[0]) for report in reports)
    assert {report["level"] for report in reports} == {"warning"}
    assert dropped > 100
    assert dropped + len(lines) - len(reports) == 200


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
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE) as process:
        assert process.wait(timeout=20) == 0
    assert time.monotonic() - started < 15
