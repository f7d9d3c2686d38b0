"""How commands find the daemon, and what they say of what answers instead of one, over real sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner, Result

from poller.cli import app, status
from poller.cli.control import DaemonError, NoDaemon, address, ask

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent


@contextmanager
def answering(body: bytes, code: int = 200) -> Iterator[str]:
    """A server that says `body` to whatever it is asked."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def written(folder: Path, text: str) -> Path:
    path = folder / "poller.toml"
    path.write_text(text, encoding="utf-8")
    return path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def test_a_proxy_of_the_environment_does_not_stand_before_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(b'{"answer": 7}') as url:
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        assert ask(url) == {"answer": 7}


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"message": "hello"}', b"\xff"])
def test_what_is_no_poller_is_told_from_one(body: bytes) -> None:
    with answering(body) as url, pytest.raises(DaemonError, match="is no poller") as caught:
        ask(f"{url}/status")
    # `poller seek` must not take the state file for free because of it.
    assert not isinstance(caught.value, NoDaemon)


@pytest.mark.parametrize("body", [b"Not Found", b'["no"]'])
def test_a_page_that_is_not_there_makes_the_address_questionable(body: bytes) -> None:
    with answering(body, 404) as url, pytest.raises(DaemonError, match=r"answered 404\. Is this the address"):
        ask(f"{url}/status")


def test_what_speaks_no_http_is_no_daemon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        with pytest.raises(NoDaemon, match="no daemon answers at"):
            ask(f"http://127.0.0.1:{server.getsockname()[1]}/status")
        thread.join()


def test_a_refusal_that_is_cut_off_is_still_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 100\r\n\r\n<html>")

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(DaemonError, match=r"answered 502\. Is this the address"):
            ask(f"http://127.0.0.1:{server.getsockname()[1]}/status")
        thread.join()


def test_an_address_that_no_url_can_hold_is_no_daemon() -> None:
    with pytest.raises(NoDaemon, match="no daemon answers at"):
        ask("http://127.0.0.1:port/status")


@pytest.mark.parametrize(
    "arguments", [("status",), ("pause", "a"), ("failures",), ("fleet",), ("replay", "--list")]
)
def test_an_address_without_its_scheme_is_wrong_usage(arguments: tuple[str, ...]) -> None:
    result = run(*arguments, "--url", "127.0.0.1:9464")
    assert result.exit_code == 2
    assert "must begin with http://" in result.stderr


@pytest.mark.parametrize("listen", ['""', '"127.0.0.1:0"', "9464", '"localhost"', '"127.0.0.1:99999"'])
@pytest.mark.parametrize(
    "arguments", [("status",), ("pause", "a"), ("failures",), ("fleet",), ("replay", "--list")]
)
def test_a_file_that_names_no_port_sends_to_url(
    arguments: tuple[str, ...], listen: str, tmp_path: Path
) -> None:
    config = written(tmp_path, f"[daemon]\nlisten = {listen}\n")
    result = run(*arguments, "-c", str(config))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"poller {arguments[0]}: {config} says listen = ")
    assert "give --url" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.fixture
def unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that belongs to the daemon's user; root, who may run the tests, could read any."""

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    path = written(tmp_path, "")
    monkeypatch.setattr("os.access", lambda *_, **__: False)
    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    return path


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_file_that_may_not_be_read_is_one_line(command: str, unreadable: Path) -> None:
    result = run(command, "-c", str(unreadable))
    assert (result.exit_code, result.stderr) == (2, f"{unreadable}: cannot be read: Permission denied\n")


def test_who_may_not_read_the_file_may_ask_the_daemon_all_the_same(unreadable: Path) -> None:
    with answering(b'{"mapping": "a", "done": true}') as url:
        result = run("pause", "a", "-c", str(unreadable), "--url", url)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "a: paused\n", "")


def test_the_environment_is_read_for_the_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = written(tmp_path, '[daemon]\nlisten = "127.0.0.1:946${POLLER_INSTANCE}"\n')
    monkeypatch.setenv("POLLER_INSTANCE", "3")
    assert address(config, None) == "http://127.0.0.1:9463"


def test_a_variable_of_the_port_that_is_not_set_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = written(tmp_path, '[daemon]\nlisten = "127.0.0.1:946${POLLER_INSTANCE}"\n')
    monkeypatch.delenv("POLLER_INSTANCE", raising=False)
    with pytest.raises(NoDaemon, match=r"variable POLLER_INSTANCE, which is not set.*--url"):
        address(config, None)


def test_a_byte_order_mark_hides_no_address(tmp_path: Path) -> None:
    config = written(tmp_path, '\ufeff[daemon]\nlisten = "127.0.0.1:9470"\n')
    assert address(config, None) == "http://127.0.0.1:9470"


def test_a_watch_without_a_terminal_prints_look_after_look(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([{"version": "one"}, {"version": "two"}])

    def look(page: str, name: str | None, console: object) -> str:
        try:
            return str(next(looks))
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(status, "_look", look)
    monkeypatch.setattr(status, "INTERVAL", 0.0)
    result = run("status", "--watch", "--url", "http://daemon")
    assert (result.exit_code, result.stdout) == (0, "{'version': 'one'}\n{'version': 'two'}\n")


@pytest.mark.parametrize("option", ["--stop", "--resume"])
def test_an_id_of_a_replay_is_no_path(option: str) -> None:
    asked: list[str] = []

    def refuse(url: str, **_: object) -> Any:
        asked.append(url)
        raise DaemonError("there is none")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("poller.cli.replay.ask", refuse)
        assert run("replay", option, "../a b", "--url", "http://daemon").exit_code == 1
    assert asked[0].startswith("http://daemon/replays/..%2Fa%20b")


@pytest.mark.slow
@pytest.mark.parametrize("words", [("schema",), ("check", "-c", "poller.toml")])
def test_a_full_disk_below_standard_output_is_one_line(words: tuple[str, ...], tmp_path: Path) -> None:
    written(
        tmp_path,
        '[functions.f]\nhandler = "json:loads"\n[[mappings]]\nname = "m"\nfunction_name = "f"\n'
        'event_source_arn = "arn:aws:sqs:eu-west-1:123456789012:orders"\n',
    )
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "poller", *words],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert (ended.returncode, ended.stderr) == (
        1,
        "poller: standard output cannot be written: No space left on device\n",
    )
