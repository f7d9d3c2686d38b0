"""`poller filter`: try filter patterns on event records before they decide over real ones."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class SourceName(StrEnum):
    """What `--source` takes."""

    SQS = "sqs"
    KINESIS = "kinesis"
    DYNAMODB = "dynamodb"


def filter_command(
    source: Annotated[SourceName, typer.Option(help="Where the records come from.")],
    pattern: Annotated[
        list[str],
        typer.Option(
            metavar="JSON", help="A filter pattern; repeat it for more filters, of which one must match."
        ),
    ],
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse operators outside Lambda's own table, such as wildcard.")
    ] = False,
) -> None:
    """Read event records from standard input and say of each whether the patterns match it, and why.

    The records are JSON lines, or whole Lambda events on one line or several. Exit code 2 when a pattern is one
    that Lambda would refuse (nothing is read then) or when a line is not a record (the others are still judged).
    """
    from poller.core.filters import PatternError, compile_filters

    try:
        filters = compile_filters(pattern, source.value, strict=strict)
    except PatternError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    for warning in filters.warnings:
        typer.echo(f"warning: {warning}", err=True)
    failed = False
    for line, document in _documents(typer.get_binary_stream("stdin")):
        for record in _records(document):
            if isinstance(record, dict):
                matched, why = filters.explain(_delivered(record, source))
                typer.echo(f"{'match' if matched else 'no match'}: {why}")
                continue
            failed = True
            typer.echo(f"line {line}: {_complaint(record)}", err=True)
    if failed:
        raise typer.Exit(2)


# --- reading ------------------------------------------------------------------------------------------------


class _Bad(NamedTuple):
    """Stands for a document that could not be read."""

    problem: str


def _documents(lines: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """Yield each JSON document, or a `_Bad`, with the number of its first line.

    A document that breaks off at the end of a line goes on in the next ones. It is given up, and the next line read
    as a new one, when that line is an object by itself and could not stand where the document broke off.
    """
    start, pending = 0, b""
    for number, line in enumerate(lines, 1):
        if pending and _starts_anew(pending, line):
            yield start, _load(pending)[0]
            pending = b""
        if not pending:
            start = number
        pending += line
        if not pending.strip():
            pending = b""
            continue
        if start != number and not _may_end(pending, line):
            continue
        document, complete = _load(pending)
        if complete:
            yield start, document
            pending = b""
    if pending:
        yield start, _load(pending)[0]


def _load(text: bytes) -> tuple[Any, bool]:
    """Return the document, or a `_Bad` and whether more text could not mend it."""
    import orjson

    try:
        return orjson.loads(text), True
    except orjson.JSONDecodeError as error:
        # The parser stops at the end of the text just when the text breaks off.
        open_ended = text.lstrip()[:1] in (b"{", b"[") and error.pos >= len(
            text.decode(errors="replace").rstrip()
        )
        where = f" (column {error.colno})" if error.lineno == 1 else ""
        return _Bad(f"not JSON: {error.msg}{where}"), not open_ended


def _starts_anew(pending: bytes, line: bytes) -> bool:
    wants_value = pending.rstrip()[-1:] in (b"[", b"{", b",", b":")
    return not wants_value and line[:1] == b"{" and isinstance(_load(line)[0], dict)


def _may_end(pending: bytes, line: bytes) -> bool:
    """Tell whether a pretty-printed document may end here, to spare parsing it again after each line."""
    return _indent(line) <= _indent(pending)


def _indent(text: bytes) -> int:
    return len(text) - len(text.lstrip(b" \t"))


# --- records ------------------------------------------------------------------------------------------------


def _records(document: Any) -> Iterable[Any]:
    """Return the records of a document: one, the elements of an array, or the Records of a Lambda event."""
    if isinstance(document, dict) and isinstance(document.get("Records"), list):
        document = document["Records"]
    return document if isinstance(document, list) else (document,)


def _complaint(record: object) -> str:
    from poller.core.quoting import quote

    return (
        record.problem
        if isinstance(record, _Bad)
        else f"not a record but {quote(record)}; write a JSON object"
    )


def _delivered(record: dict[str, Any], source: SourceName) -> dict[str, Any]:
    """Return a record written by hand in the form in which Lambda delivers it."""
    if source is SourceName.KINESIS and "kinesis" not in record and "data" in record:
        record = {**record, "kinesis": {"data": record["data"]}}
    if source is SourceName.KINESIS and isinstance(record.get("kinesis"), dict):
        kinesis = record["kinesis"]
        return {**record, "kinesis": {**kinesis, "data": _base64(kinesis.get("data"))}}
    return record


def _base64(data: Any) -> Any:
    """Encode data that was given as JSON or as JSON text; leave what is base64 already."""
    import base64

    import orjson

    if isinstance(data, dict | list):
        return base64.b64encode(orjson.dumps(data)).decode()
    # Neither bracket is a letter of base64, so text that begins with one is not encoded yet.
    if isinstance(data, str) and data.lstrip()[:1] in ("{", "["):
        return base64.b64encode(data.encode()).decode()
    return data
