"""Handlers for the suite of runtimes, imported by name as a user's are."""

import asyncio
import json
import logging
import os
import resource
import signal
import socket
import sys
from contextlib import suppress


def double(event, context):
    return {"doubled": event["number"] * 2}


async def double_async(event, context):
    await asyncio.sleep(0)
    return {"doubled": event["number"] * 2}


def nothing(event, context):
    event.clear()


def fails(event, context):
    raise LookupError(f"no order {event['order']}")


async def fails_async(event, context):
    await asyncio.sleep(0)
    raise LookupError(f"no order {event['order']}")


def exits(event, context):
    sys.exit(event["code"])


def returns_rubbish(event, context):
    return {"when": object()}


def returns_characters(event, context):
    return "x" * event["count"]


def describes_context(event, context):
    print("a line of output that is not the reply")
    return {
        "function_name": context.function_name,
        "function_version": context.function_version,
        "memory_limit_in_mb": context.memory_limit_in_mb,
        "log_group_name": context.log_group_name,
        "log_stream_name": context.log_stream_name,
        "invoked_function_arn": context.invoked_function_arn,
        "aws_request_id": context.aws_request_id,
        "client_context": context.client_context,
        "tenant_id": context.tenant_id,
        "identity": [context.identity.cognito_identity_id, context.identity.cognito_identity_pool_id],
        "remaining": context.get_remaining_time_in_millis(),
    }


def hangs(event, context):
    """Says over a socket that it runs, then waits until the other side closes."""
    with socket.create_connection(("127.0.0.1", event["port"])) as line:
        line.sendall(b"running\n")
        line.recv(1)
    return json.loads("true")


async def hangs_async(event, context):
    reader, writer = await asyncio.open_connection("127.0.0.1", event["port"])
    writer.write(b"running\n")
    try:
        await reader.read(1)
    finally:
        writer.close()
    return True


def fails_at_length(event, context):
    raise LookupError("x" * event["count"])


def returns_zeros(event, context):
    return bytes(event["count"])


def returns_bytes(event, context):
    return event["text"].encode()


def dies_of(event, context):
    os.kill(os.getpid(), event["signal"])


def leaves(event, context):
    os._exit(event["code"])


def pid(event, context):
    return os.getpid()


def prints(event, context):
    print("to standard output")
    print("to standard error", file=sys.stderr)
    logging.getLogger("shop").warning("order %d is odd", 7)
    os.system("echo from a child")


def logs_in_its_own_format(event, context):
    """What is written for Lambda, whose handler of the root logger is there before the module is."""
    (handler,) = logging.getLogger().handlers
    handler.setFormatter(logging.Formatter('{"id": "%(aws_request_id)s", "text": "%(message)s"}'))
    logging.getLogger("shop").warning("order %d is odd", 7)


def prints_without_an_end(event, context):
    context.log(f"this is {context.aws_request_id}")


def dies_in_the_middle_of_a_line(event, context):
    print("order 7 is", end="")
    sys.stdout.buffer.write(b" odd")
    os.kill(os.getpid(), signal.SIGKILL)


def floods(event, context):
    line = b"x" * 99 + b"\n"
    for _ in range(event["lines"] // 100):
        os.write(1, line * 100)


def forks_and_waits(event, context):
    """Leaves a child that would live for ever, and says which."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pause()
    return child


def forks_and_returns_twice(event, context):
    return os.fork() != 0


def ignores_sigterm(event, context):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return hangs(event, context)


def describes_process(event, context):
    return {
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "nice": os.nice(0),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "uid": os.getuid(),
        "descriptors": sorted(map(int, os.listdir("/proc/self/fd"))),
    }


class Described:
    process = staticmethod(describes_process)


def trace(event, context):
    return os.environ.get("_X_AMZN_TRACE_ID")


def log_level(event, context):
    return logging.getLevelName(logging.getLogger().level)


def takes_memory(event, context):
    return len(bytearray(event["bytes"]))


def forks_and_hangs(event, context):
    os.fork()
    signal.pause()


def measures(event, context):
    return len(event["text"])


def breaks_the_line(event, context):
    """Writes where only the runtime may."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                os.write(int(name), event["garbage"].encode())


def closes_everything(event, context):
    os.closerange(3, 256)
    signal.pause()
