"""Files with mistakes, and the lines that they are answered with."""

from __future__ import annotations

import pytest

from poller.config import parse
from poller.errors import ConfigError

NOW = 1_800_000_000.0
SQS = "arn:aws:sqs:eu-west-1:123456789012:orders"
KINESIS = "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks"
DYNAMODB = "arn:aws:dynamodb:eu-west-1:123456789012:table/t-1/stream/2026-01-31T12:00:00.000"


def problems(text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, where="f.toml", environ=environ, now=NOW)
    return list(caught.value.problems)


def whole(mapping: str = "", *, arn: str = SQS, function: str = "", top: str = "") -> str:
    return (
        f'{top}\n[functions.f]\nhandler = "m:f"\n{function}\n'
        f'[[mappings]]\nname = "m"\nevent_source_arn = "{arn}"\nfunction_name = "f"\n{mapping}\n'
    )


def only_problem(text: str, **environ: str) -> str:
    """The one problem of `text`, without its file and line, which are checked."""
    (line,) = problems(text, **environ)
    where, _, rest = line.partition(": ")
    assert where.startswith("f.toml:"), line
    return rest
