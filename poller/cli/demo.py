"""`poller demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from poller.errors import PollerError


def demo_command(
    seconds: Annotated[
        float | None,
        typer.Option(min=0, help="End after so many seconds. Default: on Ctrl-C.", show_default=False),
    ] = None,
) -> None:
    """Run poller against an AWS emulator of its own: orders flow through SQS, Kinesis and DynamoDB, none is lost."""
    # Only here: the other commands should not pay for the emulator's and the client's imports.
    import anyio

    from poller.demo.run import run_demo

    code = 1
    try:
        code = anyio.run(run_demo, seconds)
    except* PollerError as errors:
        typer.echo(f"demo: {_first(errors)}", err=True)
    raise typer.Exit(code)


def _first(errors: BaseExceptionGroup[PollerError]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
