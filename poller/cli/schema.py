"""`poller schema`: the JSON Schema of the config file, for editors."""

from __future__ import annotations

import json

import typer


def schema_command() -> None:
    """Print the JSON Schema (draft 2020-12) of the config file."""
    from poller.config import Config

    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
    typer.echo(json.dumps(schema | {"title": "poller.toml"}, indent=2, ensure_ascii=False))
