"""References to the environment, and what no line may show of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poller.config import parse
from tests.config.writing import NOW, only_problem, problems, whole


def test_a_reference_stands_for_its_variable_in_every_string() -> None:
    text = whole(
        'batch_size = "${SIZE}"\ntags = { a = "x${A}y$${A}${EMPTY}$" }\n'
        'filter_criteria.filters = [{ pattern = { body = { id = ["${A}"] } } }]'
    )
    config = parse(text, where="f.toml", environ={"SIZE": "7", "A": "1", "EMPTY": ""}, now=NOW)
    (one,) = config.mappings
    assert (one.batch_size, one.tags, one.patterns) == (7, {"a": "x1y${A}$"}, ('{"body":{"id":["1"]}}',))


@pytest.mark.parametrize(
    ("value", "wants"),
    [
        ("${A}${NO_1}", "needs the environment variable NO_1, which is not set"),
        ("${", "must close ${NAME}; write $${ for the two characters themselves"),
        ("${1}", "must close ${NAME}; write $${ for the two characters themselves"),
    ],
)
def test_a_reference_that_leads_nowhere_has_its_line(value: str, wants: str) -> None:
    assert only_problem(whole(top=f'[aws]\nregion = "{value}"'), A="x") == f'aws.region = "{value}": {wants}'


@pytest.mark.parametrize(
    ("pattern", "shown"), [("'${P}'", '"${P}"'), ("{ body = [{ no = ['${P}'] }] }", "{…}")]
)
def test_a_bad_pattern_from_the_environment_is_refused_without_its_text(pattern: str, shown: str) -> None:
    found = only_problem(whole(f"filter_criteria.filters = [{{ pattern = {pattern} }}]"), P="hush!")
    assert found == (
        f'mappings[0] "m" filter_criteria.filters[0].pattern = {shown}:'
        " must be a filter pattern that Lambda accepts"
    )


STRINGS = """
daemon.state = "${S}"
daemon.listen = "${S}"
aws = { region = "${S}", endpoint_url = "${S}", role_arn = "${S}", wire = "${S}", ca_bundle = "${S}" }
functions.f = { runtime = "${S}", handler = "${S}", timeout = "${S}", environment = { AB = "${S}" } }
functions.g = { handler = "m:f", role_arn = "x${S}", environment = { AB = "a${S}" } }
functions.h = { handler = "m:f", environment = { AB = "b${S}", TZ = "${S}" } }
[[mappings]]
name = "${S}"
event_source_arn = "${S}"
function_name = "${S}"
batch_size = "${S}"
enabled = "${S}"
function_response_types = ["${S}"]
kms_key_arn = "${S}"
[[mappings]]
name = "m"
event_source_arn = "arn:aws:sqs:eu-west-1:123456789012:${S}"
function_name = "${S}"
filter_criteria.filters = [{ pattern = '{"${S}": "${S}"}' }, { pattern = { body = { a = "${S}" } } }]
[[mappings]]
name = "m"
event_source_arn = "arn:aws:sqs:eu-west-1:123456789012:${S}"
function_name = "${S}"
starting_position = "${S}"
tags = { a = ["${S}"] }
"""


@given(st.text("0123456789<>é-_/:\"'\n\x1b", min_size=8).filter(lambda text: text not in STRINGS))
def test_no_line_shows_what_the_environment_holds(secret: str) -> None:
    lines = problems(STRINGS, S=f"~{secret}")
    assert len(lines) > 20
    assert [line for line in lines if secret in line or len(line.splitlines()) != 1] == []


@pytest.mark.parametrize(
    "text",
    [
        whole('tags = { password = ["hush"] }'),
        whole('tags = { a = ["AKIAABCDEFGHIJKLhush"] }'.replace("hush", "HUSH")),
        whole(function='environment = { AB = ["hush"] }'),
        whole(top='[aws]\nsecret_access_key = "hush"'),
        whole(top='[aws]\nendpoint_url = "ftp://hush:hush@host"'),
        whole(top='[aws]\nendpoint_url = "ftp://host/?token=hush&a=1"'),
        whole(top='[functions."a b"]\nhandler = "m:f"\nenvironment = { AB = "hush" }'),
    ],
)
def test_no_line_shows_what_looks_secret(text: str) -> None:
    assert "hush" not in only_problem(text).lower()
