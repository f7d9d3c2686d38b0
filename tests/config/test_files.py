from __future__ import annotations

from pathlib import Path

import pytest

from poller.cli.check import importable
from poller.config import load, warnings

FILES = sorted(Path("config").glob("*.toml"))
#: What `poller demo` puts into the environment.
DEMO = {
    "POLLER_DEMO_LISTEN": "127.0.0.1:0",
    "POLLER_DEMO_ENDPOINT": "http://127.0.0.1:4566",
    "POLLER_DEMO_STATE": "poller.db",
    "POLLER_DEMO_TABLE_STREAM": "arn:aws:dynamodb:eu-west-1:000000000000:table/customers/stream/2026-01-31T12:00:00.000",
}


def test_the_files_of_the_manual_are_there() -> None:
    assert {"minimal.toml", "full.toml"} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_file_that_we_ship_is_valid_and_can_run(path: Path) -> None:
    config = load(path, environ=DEMO, now=2e9, importable=importable)
    assert config.mappings
    assert warnings(config) == ()


def test_the_manual_shows_every_key() -> None:
    from poller.config import Config

    schema = Config.model_json_schema()
    keys = {key for section in (schema, *schema["$defs"].values()) for key in section["properties"]}
    words = Path("config/full.toml").read_text().replace(".", " ").replace("[", " ").split()
    assert sorted(key for key in keys if not any(key in word for word in words)) == []


def test_the_manual_shows_every_source() -> None:
    config = load(Path("config/full.toml"), environ={}, now=2e9)
    assert {mapping.source for mapping in config.mappings} == {"sqs", "kinesis", "dynamodb"}
