"""What a valid file may still want to be told."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from poller.config.model import Config


def warnings(config: Config) -> tuple[str, ...]:
    """Return one line for each thing that is allowed and probably not meant."""
    return (*_filters(config), *_concurrency(config), *_circuits(config), *volatile_spools(config))


def _filters(config: Config) -> Iterator[str]:
    for mapping in config.mappings:
        if mapping.patterns:
            from poller.core.filters import compile_filters  # only for files that have filters

            compiled = compile_filters(mapping.patterns, mapping.source)
            yield from (f'mapping "{mapping.name}": {warning}' for warning in compiled.warnings)


def volatile_spools(config: Config) -> Iterator[str]:
    """Return one line for each mapping that spools what a restart must not lose where it would be lost."""
    if config.daemon.state == "memory:":
        for mapping in config.mappings:
            kept = " and ".join(["spooled"] * mapping.spools + ["parked"] * mapping.parks)
            if kept:
                yield (
                    f'mapping "{mapping.name}": what is {kept} ends with the process, as [daemon] state is memory:'
                )


def _concurrency(config: Config) -> Iterator[str]:
    wanted: dict[str, int] = defaultdict(int)
    for mapping in config.mappings:
        wanted[mapping.function] += mapping.concurrency or 0
    for name, function in config.functions.items():
        reserved = function.reserved_concurrent_executions
        if reserved is not None and wanted[name] > reserved:
            yield (
                f"functions.{name}: reserved_concurrent_executions is below the concurrency of its mappings,"
                f" {wanted[name]} in all, so it will throttle them"
            )


def _circuits(config: Config) -> Iterator[str]:
    for mapping in config.mappings:
        breaker, retries = mapping.circuit_breaker, mapping.maximum_retry_attempts
        # Of a queue, each message counts its own tries, which many batches share.
        if breaker and mapping.source != "sqs" and 0 <= retries < breaker.consecutive_failures:
            yield (
                f'mapping "{mapping.name}": circuit_breaker.consecutive_failures, {breaker.consecutive_failures}, is above'
                f" maximum_retry_attempts, {retries}, so a batch may be given up before the circuit opens"
            )
