"""`poller pause`, `poller resume`, and how commands find the daemon they talk to."""

from __future__ import annotations

import http.client
import json
import os
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import typer

from poller.cli.check import ConfigFile

DEFAULT_LISTEN = "127.0.0.1:9464"
#: Seconds.
TIMEOUT = 35.0
#: Keys that are named one by one.
FEW = 20
#: One of these is in each page that commands ask for.
_ANSWERS = frozenset({"answer", "done", "mappings"})
#: A daemon is on this machine or near: a proxy that the environment names for the rest of the world does not lead to it.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="POLLER_URL",
        help="Where the daemon listens. Default: what `listen` of the file says.",
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A mapping's name.")]


class DaemonError(Exception):
    """The daemon did not do what it was asked."""


class NoDaemon(DaemonError):
    """Nobody answers there."""


class WrongWish(DaemonError):
    """The daemon says that what it was asked for makes no sense."""


def pause_command(name: Name, config: ConfigFile = Path("poller.toml"), url: Url = None) -> None:
    """Stop receiving for one mapping; what is at work goes on."""
    _command(name, "pause", config, url)


def resume_command(
    name: Name,
    config: ConfigFile = Path("poller.toml"),
    url: Url = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY", help="Take up what is parked of this key, oldest first."),
    ] = None,
    all_keys: Annotated[bool, typer.Option("--all-keys", help="Take up all parked keys.")] = False,
) -> None:
    """Go on with a paused mapping, or try a failed one again now; or take up its parked keys. Exit 1 when a key still fails."""
    if key is not None and all_keys:
        typer.echo("poller resume: --key and --all-keys exclude each other", err=True)
        raise typer.Exit(2)
    if key is None and not all_keys:
        _command(name, "resume", config, url)
    else:
        _resume_keys(name, key, config, url)


def _command(name: str, verb: str, config: Path, url: str | None) -> None:
    _post(name, verb, config, url)
    typer.echo(f"{name}: {verb}d")


def _resume_keys(name: str, key: str | None, config: Path, url: str | None) -> None:
    from urllib.parse import quote

    query = "?all-keys" if key is None else f"?key={quote(key, safe='')}"
    resumed: list[dict[str, Any]] = _post(name, "resume", config, url, query)["answer"]
    if not resumed:
        typer.echo(f"{name}: no key is parked")
    free = [one for one in resumed if one["state"] == "free"]
    if len(free) > FEW:
        records = sum(one["records"] for one in free)
        typer.echo(f"{name}: {len(free):,} keys are free again, {records:,} records handled")
        resumed = [one for one in resumed if one["state"] != "free"]
    for one in resumed[:FEW]:
        typer.echo(f"{name}: {_of_key(name, one)}")
    if len(resumed) > FEW:
        typer.echo(f"{name}: and {len(resumed) - FEW:,} keys more that are not free")
    if any(one["state"] == "failing" for one in resumed):
        raise typer.Exit(1)


def _of_key(name: str, resumed: dict[str, Any]) -> str:
    key, records = json.dumps(resumed["key"], ensure_ascii=False), f"{resumed['records']:,} records handled"
    match resumed["state"]:
        case "free":
            return f"key {key} is free again, {records}"
        case "failing":
            return f"key {key} still fails, {records}: {resumed['error']}"
        case _:
            return f"key {key} is being taken up, {records} so far; poller status {name} shows how it goes on"


def _post(name: str, verb: str, config: Path, url: str | None, query: str = "") -> Any:
    from urllib.parse import quote

    try:
        return ask(f"{address(config, url)}/mappings/{quote(name, safe='')}/{verb}{query}", post=True)
    except DaemonError as error:
        typer.echo(f"poller {verb}: {error}", err=True)
        raise typer.Exit(1) from error


def address(config: Path, url: str | None) -> str:
    """The daemon's address: `url`, else what the file says; NoDaemon when that is no place to ask at. Only that one key is
    read, so that a file whose variables are set for the daemon alone will do."""
    if url:
        if not url.startswith(("http://", "https://")):
            raise typer.BadParameter("must begin with http:// or https://", param_hint="--url")
        return url.rstrip("/")
    listen = _listen(config)
    host, _, port = listen.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise NoDaemon(
            f'{config} says listen = "{listen}", where no daemon can be asked: give --url, with the port that its log names'
        )
    # A daemon that listens everywhere is reached at this machine's own address.
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    return f"http://{host}:{port}"


def _listen(config: Path) -> str:
    try:
        # As the loader reads it, byte order mark and all.
        raw = tomllib.loads(config.read_text(encoding="utf-8-sig"))
        listen: Any = raw.get("daemon", {}).get("listen", DEFAULT_LISTEN)
    except (OSError, ValueError, AttributeError, RecursionError):
        typer.echo(f"{config} cannot be read, so the daemon is looked for at {DEFAULT_LISTEN}", err=True)
        return DEFAULT_LISTEN
    return _expanded(listen) if "${" in str(listen) else str(listen)


def _expanded(listen: str) -> str:
    from poller.config.environment import expand

    mistakes: list[Any] = []
    expanded: str = expand(listen, os.environ, mistakes)
    for mistake in mistakes:
        raise NoDaemon(f"[daemon] listen = {listen} {mistake.wants}: set it, or give --url")
    return expanded


def ask(url: str, *, post: bool = False, body: dict[str, Any] | None = None) -> Any:
    """The JSON that the daemon answers; DaemonError says in one line why there is none."""
    request = urllib.request.Request(
        url,
        data=None if body is None else json.dumps(body).encode(),
        method="POST" if post else "GET",
        headers={"X-Poller": "1", "Content-Type": "application/json"},
    )
    try:
        with _DIRECT.open(request, timeout=TIMEOUT) as reply:
            said = reply.read()
    except urllib.error.HTTPError as error:
        raise (WrongWish if error.code == 400 else DaemonError)(_said(error)) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise NoDaemon(
            f"no daemon answers at {url}: {reason}. Is it running, and is this its address?"
        ) from error
    answer = _object(said)
    if not answer.keys() & _ANSWERS:
        raise DaemonError(f"what answers at {url} is no poller. Is this its address?")
    return answer


def _said(error: urllib.error.HTTPError) -> str:
    with error:
        try:
            said = _object(error.read())
        except (OSError, http.client.HTTPException):
            said = {}
    known = f" (there are: {', '.join(said['known'])})" if said.get("known") else ""
    return f"{said.get('error', f'{error.url} answered {error.code}. Is this the address of poller?')}{known}"


def _object(text: bytes) -> dict[str, Any]:
    """The JSON object that `text` is; an empty one when it is something else."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}
