"""Handlers for the suite of runtimes, imported by name as a user's are."""

import asyncio
import json
import socket
import sys


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
