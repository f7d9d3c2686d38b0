"""What every runtime of Python handlers does as Lambda's own runtime client does it: load, marshal, report
errors."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import os
import sys
import traceback
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from poller.errors import FunctionInitError
from poller.model import FunctionError, Returned

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

#: 6 MB and 100 bytes, the number in Lambda's own message.
MAX_RESPONSE_BYTES = 6 * 1024 * 1024 + 100

_OWN_FRAMES = (
    os.path.dirname(__file__) + os.sep,
    os.path.join(os.path.dirname(os.__file__), "asyncio") + os.sep,
    "<frozen importlib",
    importlib.__file__,
)


# --- loading ------------------------------------------------------------------------------------------------


def load_handler(handler: str) -> Callable[[Any, Any], Any]:
    """Import `module:function`, or Lambda's `module.function` and `folder/module.function`.

    The current directory can be imported from. Raises `FunctionInitError` with Lambda's types and texts,
    whatever the module does while it is imported.
    """
    module_name, function_name = _split(handler)
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    function: Any = _import(module_name)
    for name in function_name.split("."):
        function = getattr(function, name, None)
    if not callable(function):
        message = f"Handler '{function_name}' missing on module '{module_name}'"
        raise FunctionInitError("Runtime.HandlerNotFound", message)
    found: Callable[[Any, Any], Any] = function
    return found


def _split(handler: str) -> tuple[str, str]:
    module, _, function = handler.rpartition(":" if ":" in handler else ".")
    if not module or not function:
        message = f"Bad handler '{handler}': it must be module:function or module.function"
        raise FunctionInitError("Runtime.MalformedHandlerName", message)
    return module, function


def _import(name: str) -> object:
    dotted = name.replace("/", ".")
    if dotted.split(".")[0] in sys.builtin_module_names:
        message = f"Cannot use built-in module {name} as a handler module"
        raise FunctionInitError("Runtime.BuiltInModuleConflict", message)
    try:
        return importlib.import_module(dotted)
    except ImportError as error:
        message = f"Unable to import module '{name}': {error}"
        raise FunctionInitError("Runtime.ImportModuleError", message) from error
    except SyntaxError as error:
        message = f"Syntax error in module '{name}': {error}"
        trace = f'  File "{error.filename}" Line {error.lineno}\n    {error.text}'
        raise FunctionInitError("Runtime.UserCodeSyntaxError", message, (trace,)) from error
    except SystemExit as error:
        raise FunctionInitError("Runtime.ExitError", f"Error: {_exit_reason(error)}") from error
    except BaseException as error:
        trace_lines = _stack_trace(error.__traceback__)
        raise FunctionInitError(type(error).__name__, _text_of(error), trace_lines) from error


# --- errors -------------------------------------------------------------------------------------------------


def error_of(error: BaseException, request_id: str) -> FunctionError:
    """Return Lambda's error object for what the handler raised, without the frames of poller itself."""
    if isinstance(error, SystemExit):
        return FunctionError("Runtime.ExitError", f"RequestId: {request_id} Error: {_exit_reason(error)}")
    return reported(type(error).__name__, _text_of(error), _stack_trace(error.__traceback__), request_id)


def reported(kind: str, message: str, trace: tuple[str, ...] = (), request_id: str = "") -> FunctionError:
    """Return an error with the members that Lambda's client writes of it; outside of an invocation the id is empty."""
    said = {"errorMessage": message, "errorType": kind, "requestId": request_id, "stackTrace": [*trace]}
    return FunctionError(kind, message, trace, said=said)


def _exit_reason(error: SystemExit) -> str:
    # What the process would have ended with: no code is 0, a text is printed and becomes 1.
    code = error.code if isinstance(error.code, int) else int(error.code is not None)
    if code & 0xFF:
        return f"Runtime exited with error: exit status {code & 0xFF}"
    return "Runtime exited without providing a reason"


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return f"<{type(error).__name__} has no readable message>"


def _stack_trace(trace: TracebackType | None) -> tuple[str, ...]:
    frames = list(traceback.extract_tb(trace))
    while frames and frames[0].filename.startswith(_OWN_FRAMES):
        del frames[0]
    # Without their columns, or newer Pythons mark below a line which part of it failed: Lambda's lines have no such marks.
    plain = [traceback.FrameSummary(one.filename, one.lineno, one.name, line=one.line) for one in frames]
    return tuple(traceback.format_list(plain))


# --- results ------------------------------------------------------------------------------------------------


def marshal(result: object, request_id: str) -> Returned | FunctionError:
    """Return the JSON value of what the handler returned, or Lambda's error when it has none or is too
    large."""
    if result is None:
        return Returned(None)
    try:
        text = _raw_text(result) if isinstance(result, bytes) else _encode(result)
        # Measured in bytes only where the count of characters leaves a doubt.
        if (
            len(text) * 4 > MAX_RESPONSE_BYTES
            and len(text.encode(errors="surrogatepass")) > MAX_RESPONSE_BYTES
        ):
            return too_large()
        return Returned(_parsed(text) if isinstance(result, bytes) else _decode(text))
    except Exception as error:
        return reported("Runtime.MarshalError", f"Unable to marshal response: {error}", request_id=request_id)
    finally:
        if inspect.iscoroutine(result):
            result.close()  # nobody will await it, and Python would complain later, far from here


def encode_result(result: object, request_id: str) -> bytes | FunctionError:
    """Return the JSON of what the handler returned: `marshal` for a handler whose reply travels to another process."""
    if result is None:
        return b"null"
    try:
        text = _raw_text(result) if isinstance(result, bytes) else _encode(result)
        data = text.encode(errors="surrogatepass")
        if len(data) > MAX_RESPONSE_BYTES:
            return too_large()
        return _encode(_parsed(text)).encode(errors="surrogatepass") if isinstance(result, bytes) else data
    except Exception as error:
        return reported("Runtime.MarshalError", f"Unable to marshal response: {error}", request_id=request_id)
    finally:
        if inspect.iscoroutine(result):
            result.close()


def too_large() -> FunctionError:
    """Return Lambda's error for a result of more than 6 MB."""
    message = f"Response payload size exceeded maximum allowed payload size ({MAX_RESPONSE_BYTES} bytes)."
    return FunctionError("Function.ResponseSizeTooLarge", message)


def _default(value: object) -> Any:
    if isinstance(value, Decimal):
        return math.nan if value.is_nan() else json.loads(str(value))
    if isinstance(value, bytes):
        return (
            value.decode()
        )  # inside a value bytes are text; only as the whole result do they pass as they are
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_encode = json.JSONEncoder(default=_default, ensure_ascii=False, separators=(",", ":")).encode
_decode = json.JSONDecoder().decode


def _raw_text(result: bytes) -> str:
    return result.decode("utf-8", "surrogateescape")


def _parsed(text: str) -> Any:
    # Lambda passes bytes on as the response's body. A body that is not JSON is a text here: no source accepts
    # it as a batch response, just as none accepts it there.
    try:
        return _decode(text)
    except ValueError:
        return text
