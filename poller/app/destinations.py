"""Where what became of a mapping's batches goes: from the names in its config to what takes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from poller.app import functions, spooling
from poller.config.arn import destination_function, parse_arn
from poller.config.remote import split_function_arn
from poller.core.failure import mapping_id
from poller.destinations.eventbridge import EventBridgeDestination
from poller.destinations.function import LambdaDestination, OwnFunctionDestination
from poller.destinations.s3 import S3Destination
from poller.destinations.sns import SnsDestination
from poller.destinations.sqs import SqsDestination
from poller.engine.delivery import Route
from poller.engine.invoker import Call, FunctionPlan, Invoker
from poller.errors import PollerError
from poller.model import NotInvoked

if TYPE_CHECKING:
    from collections.abc import Callable

    from poller.app.functions import Loaded
    from poller.aws.session import AwsSession
    from poller.config import Mapping
    from poller.engine.invoker import World
    from poller.engine.spooler import Spooler
    from poller.model import Outcome
    from poller.ports import Destination, Observer

#: Seconds that a delivery waits, in turn with all others, for a place of the function that takes it.
PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Outside:
    """What destinations are made of."""

    loaded: dict[str, Loaded]
    """The functions of this daemon that are in use, by name."""
    session: AwsSession
    observer: Observer
    world: World


@dataclass(frozen=True, slots=True)
class Ends:
    """The destinations of one mapping."""

    on_failure: Route | None = None
    on_success: Route | None = None


def ends(mapping: Mapping, outside: Outside, spooler: Spooler | None) -> Ends:
    """The destinations that `mapping` names, and where goes what they do not take."""
    return Ends(
        **{
            key: Route(_destination(text, mapping, outside), spooling.overflow(mapping, text, spooler))
            for key, text in mapping.destinations.items()
        }
    )


def functions_of(mapping: Mapping, loaded: dict[str, Loaded]) -> tuple[Loaded, ...]:
    """The functions of this daemon that `mapping` sends to."""
    names = map(destination_function, mapping.destinations.values())
    return tuple(loaded[name] for name in names if name in loaded)


def former(
    text: str, mapping: Mapping, outside: Outside, present: Callable[[], dict[str, Loaded]]
) -> Destination:
    """The destination that `mapping` names or has named so; raises PollerError when there is none any more.

    Its function may be another mapping's by now, and so it is looked for among those that are `present`.
    """
    outside = replace(outside, loaded=present())
    if text == destination_function(text) and text not in outside.loaded:
        raise PollerError(f"function {text} is in use no more: name it in a destination_config again")
    return _destination(text, mapping, outside)


def _destination(text: str, mapping: Mapping, outside: Outside) -> Destination:
    name = destination_function(text)
    if name is not None:
        return _function(name, text, mapping, outside)
    arn = parse_arn(text)
    api = outside.session.cold(arn.service, arn.region or mapping.region)
    match arn.service:
        case "sqs":
            return SqsDestination(arn.resource, arn.account, api)
        case "sns":
            return SnsDestination(text, api)
        case "s3":
            return S3Destination(arn.resource, mapping_id(mapping.name, mapping.event_source_arn), api)
        case _:
            return EventBridgeDestination(text, api)


def _function(name: str, text: str, mapping: Mapping, outside: Outside) -> Destination:
    function = outside.loaded.get(name)
    arn = text if function is None else functions.arn(mapping, function.config, text)
    if function is None or function.config.runtime == "lambda":
        whole, qualifier = split_function_arn(arn)
        return LambdaDestination(whole, qualifier, outside.session.cold("lambda", parse_arn(whole).region))
    plan = FunctionPlan(name, arn, function.config.timeout)
    invoker = Invoker(plan, function.runtime, function.slots, outside.observer, outside.world)
    return OwnFunctionDestination(name, partial(_invoke, invoker, Call(mapping.name, mapping.source, False)))


async def _invoke(invoker: Invoker, call: Call, event: dict[str, Any]) -> Outcome:
    """Run a function as soon as it has room, within the same limits as what mappings ask of it."""
    slots = invoker.slots
    if not slots.total:
        return NotInvoked("its reserved_concurrent_executions is 0, so it is never invoked")
    # Not for ever: whoever delivers says what it waits for, and a stop or a reload waits for this.
    with anyio.move_on_after(PATIENCE) as waiting:
        await slots.acquire()
    if waiting.cancelled_caught:
        return NotInvoked(f"no place of its {slots.total} came free within {PATIENCE:g} s")
    try:
        return await invoker.invoke(call.of((), event))
    finally:
        slots.release()
