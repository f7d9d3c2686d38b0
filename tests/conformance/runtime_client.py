"""A small client of the Runtime API, so that the suite's handlers run over `command`: what a runtime for a new language is."""

import http.client
import json
import os
import sys

sys.path.insert(0, os.environ["LAMBDA_TASK_ROOT"])

from poller.errors import FunctionInitError
from poller.model import FunctionError, Invocation
from poller.runtimes._python import encode_result, error_of, load_handler
from poller.runtimes.context import FunctionIdentity, LambdaContext

BASE = "/2018-06-01/runtime/"


def call(api, method, path, body=None, headers=None):
    api.request(method, BASE + path, body, headers or {})
    answer = api.getresponse()
    return answer.headers, answer.read()


def error_body(error):
    shape = {
        "errorType": error.error_type,
        "errorMessage": error.error_message,
        "stackTrace": [line for line in error.stack_trace if __file__ not in line and "asyncio" not in line],
    }
    return json.dumps(shape).encode()


def run(handler, identity, event, request_id, headers):
    deadline = int(headers["Lambda-Runtime-Deadline-Ms"]) / 1000
    invocation = Invocation(request_id, None, deadline, headers["Lambda-Runtime-Invoked-Function-Arn"])
    try:
        result = handler(event, LambdaContext(identity, invocation))
        if hasattr(result, "__await__"):
            import asyncio

            result = asyncio.run(result)
        return encode_result(result, request_id)
    except SystemExit:
        raise
    except BaseException as error:
        return error_of(error, request_id)


def main():
    api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    try:
        handler = load_handler(os.environ["_HANDLER"])
    except FunctionInitError as error:
        failure = FunctionError(error.error_type, str(error), error.stack_trace)
        call(api, "POST", "init/error", error_body(failure))
        sys.exit(1)
    identity = FunctionIdentity(
        os.environ["AWS_LAMBDA_FUNCTION_NAME"],
        "",
        int(os.environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"]),
        log_stream_name=os.environ["AWS_LAMBDA_LOG_STREAM_NAME"],
    )
    own = os.getpid()
    while True:
        headers, event = call(api, "GET", "invocation/next")
        request_id = headers["Lambda-Runtime-Aws-Request-Id"]
        reply = run(handler, identity, json.loads(event), request_id, headers)
        if os.getpid() != own:
            os._exit(0)
        sys.stdout.flush()
        if isinstance(reply, FunctionError):
            call(api, "POST", f"invocation/{request_id}/error", error_body(reply))
        else:
            call(api, "POST", f"invocation/{request_id}/response", reply)


main()
