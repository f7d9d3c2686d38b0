from __future__ import annotations

import json
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest
import typer
from typer.testing import CliRunner, Result

from poller.cli.check import check_command, importable
from poller.cli.schema import schema_command

if TYPE_CHECKING:
    from pathlib import Path

APP = typer.Typer()
APP.command("check")(check_command)
APP.command("schema")(schema_command)

VALID = """
[functions.echo]
handler = "handlers.echo:handler"

[[mappings]]
name = "orders"
event_source_arn = "arn:aws:sqs:eu-west-1:123456789012:orders"
function_name = "echo"
"""
STREAM = """
[[mappings]]
name = "clicks"
event_source_arn = "arn:aws:kinesis:eu-west-1:123456789012:stream/clicks"
function_name = "echo"
starting_position = "LATEST"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "poller.toml"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(APP, list(arguments))


def check(path: Path, text: str) -> Result:
    path.write_text(text)
    return run("check", "-c", str(path))


def test_a_valid_file_is_summed_up_in_one_line(path: Path) -> None:
    result = check(path, VALID)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{path}: valid: 1 mapping, 1 function\n"


def test_the_file_is_poller_toml_here_unless_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = VALID.replace(
        "[functions.echo]", '[functions.two]\nhandler = "handlers.echo:handler"\n[functions.echo]'
    )
    path.write_text(second)
    (path.parent / "handlers").mkdir()
    (path.parent / "handlers/echo.py").touch()
    monkeypatch.chdir(path.parent)
    assert run("check").stdout == "poller.toml: valid: 1 mapping, 2 functions\n"


def test_a_warning_does_not_make_a_file_wrong(path: Path) -> None:
    result = check(path, VALID + "filter_criteria.filters = [{ pattern = { messageId = ['a'] } }]\n")
    assert result.exit_code == 0
    assert f'{path}: warning: mapping "orders": messageId: ' in result.stdout


def test_each_mistake_is_a_line_on_standard_error(path: Path) -> None:
    result = check(path, VALID + "batch_size = 0\nenabled = 3\n")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f'{path}:9: mappings[0] "orders" batch_size = 0: must be at least 1\n'
        f'{path}:10: mappings[0] "orders" enabled = 3: must be true or false\n'
    )


def test_a_file_with_a_shared_state_is_valid_without_looking_at_the_table(path: Path) -> None:
    result = check(path, '[daemon]\nstate = "dynamodb:leases"\n' + VALID + STREAM)
    assert result.stdout == f"{path}: valid: 2 mappings, 1 function\n"


def test_a_file_with_a_stream_is_valid(path: Path) -> None:
    result = check(path, VALID + STREAM)
    assert result.stdout == f"{path}: valid: 2 mappings, 1 function\n"


def test_a_handler_whose_module_is_missing_is_found_without_importing_any(path: Path) -> None:
    result = check(path, VALID.replace("handlers.echo", "handlers.no.such"))
    assert result.exit_code == 2
    assert result.stderr == (
        f'{path}:3: functions.echo.handler = "handlers.no.such:handler":'
        " names a module that is neither here nor on Python's path\n"
    )


def test_a_file_that_is_not_there_is_one_line(path: Path) -> None:
    result = run("check", "--config", str(path))
    assert (result.exit_code, result.stderr) == (2, f"{path}: there is no such file\n")


def test_certificates_for_aws_that_are_not_there_are_one_line(path: Path) -> None:
    result = check(path, VALID + '[aws]\nca_bundle = "none.pem"\n')
    assert result.exit_code == 2
    assert result.stderr == f"{path}: aws.ca_bundle: none.pem cannot be read: No such file or directory\n"


@pytest.mark.parametrize(
    ("module", "found"),
    [
        ("json", True),
        ("json.decoder", True),
        ("json.nothing", False),
        ("json.decoder.deeper", False),
        ("sys", True),
        ("no_module_of_this_name", False),
        ("no_module_of_this_name.inner", False),
        ("one.two.three", True),
        ("one.two.four", False),
        ("space.inner", True),
        ("space.deeper.still", True),
        ("space.deeper.nothing", False),
    ],
)
def test_modules_are_found_from_here_and_on_pythons_path(
    module: str, found: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one/two").mkdir(parents=True)
    (tmp_path / "space/deeper").mkdir(parents=True)
    modules = (
        "one/__init__.py",
        "one/two/__init__.py",
        "one/two/three.py",
        "space/inner.py",
        "space/deeper/still.py",
    )
    for name in modules:
        (tmp_path / name).write_text("raise AssertionError('imported')")
    monkeypatch.chdir(tmp_path)
    assert importable(module) is found
    assert "one" not in sys.modules


def test_a_module_without_a_spec_is_not_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    module = type(sys)("made_by_hand")
    monkeypatch.setitem(sys.modules, "made_by_hand", module)
    assert not importable("made_by_hand")


def test_the_schema_is_that_of_the_file() -> None:
    result = run("schema")
    schema = json.loads(result.stdout)
    assert result.exit_code == 0
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "poller.toml"
    assert set(schema["properties"]) == {"daemon", "aws", "functions", "mappings"}
    pattern = schema["$defs"]["Filter"]["properties"]["pattern"]
    assert [choice["type"] for choice in pattern["anyOf"]] == ["object", "string"]
    assert schema["$defs"]["Mapping"]["additionalProperties"] is False


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ('runtime = "command"\ncommand = ["./none"]', "command: fork/exec {folder}/none: no such file"),
        (
            'runtime = "command"\ncommand = ["./plain"]',
            "command: fork/exec {folder}/plain: it is not executable",
        ),
        (
            'runtime = "command"\ncommand = ["none"]\nenvironment = { PATH = "/bin" }',
            "command: fork/exec none: no such program in /bin",
        ),
        (
            'runtime = "python"\nhandler = "none:handler"',
            'handler = "none:handler": names a module that is neither in its working directory nor on Python\'s path',
        ),
        (
            'runtime = "python"\nhandler = "json:loads"\nenvironment = { AWS_LAMBDA_EXEC_WRAPPER = "./plain" }',
            "environment.AWS_LAMBDA_EXEC_WRAPPER: must name a program that can be run",
        ),
        (
            'runtime = "python"\nhandler = "json:loads"\nuser = "no-such-user"',
            "user: there is no user no-such-user",
        ),
        (
            'runtime = "python"\nhandler = "json:loads"\nworking_directory = "none"',
            "working_directory: there is no folder none",
        ),
        (
            'runtime = "python"\nhandler = "app:handler"\ncode = "none"',
            "code: there is no directory or zip file none",
        ),
        (
            'runtime = "python"\nhandler = "app:handler"\ncode = "plain"',
            "code: plain: it is neither a directory nor a zip file",
        ),
        (
            'runtime = "python"\nhandler = "app:handler"\ncode = "evil.zip"',
            "code: evil.zip: its entry '../app.py' leads out of it",
        ),
        (
            'runtime = "python"\nhandler = "none:handler"\ncode = "good.zip"',
            'handler = "none:handler": names a module that is neither in its code nor on Python\'s path',
        ),
    ],
)
def test_what_keeps_a_worker_from_starting_is_found(
    path: Path, monkeypatch: pytest.MonkeyPatch, keys: str, problem: str
) -> None:
    (path.parent / "plain").touch()
    for name, entry in ("evil.zip", "../app.py"), ("good.zip", "app.py"):
        with zipfile.ZipFile(path.parent / name, "w") as file:
            file.writestr(entry, "")
    monkeypatch.chdir(path.parent)
    result = check(path, VALID.replace('handler = "handlers.echo:handler"', keys))
    assert result.exit_code == 2
    assert result.stderr == f"{path}: functions.echo.{problem.format(folder=path.parent)}\n"


def test_a_function_that_can_start_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    (path.parent / "lib").mkdir()
    (path.parent / "lib" / "shop.py").touch()
    (path.parent / "bootstrap").touch(0o755)
    with zipfile.ZipFile(path.parent / "shop.zip", "w") as file:
        file.write(path.parent / "bootstrap", "bootstrap")
        file.writestr("inside/shop.py", "")
    for keys in (
        'runtime = "python"\nhandler = "shop:handler"\nenvironment = { PYTHONPATH = "lib" }',
        'runtime = "python"\nhandler = "shop:handler"\nworking_directory = "lib"',
        'runtime = "python"\nhandler = "json:loads"\nenvironment = { AWS_LAMBDA_EXEC_WRAPPER = "./bootstrap" }',
        'runtime = "python"\nhandler = "shop:handler"\ncode = "lib"',
        'runtime = "python"\nhandler = "inside.shop:handler"\ncode = "shop.zip"',
        'runtime = "command"\ncommand = ["./bootstrap"]\ncode = "shop.zip"',
        'runtime = "command"\ncommand = ["./bootstrap"]',
        'runtime = "command"\ncommand = ["sh"]',
    ):
        result = check(path, VALID.replace('handler = "handlers.echo:handler"', keys))
        assert (result.exit_code, result.stderr) == (0, "")
