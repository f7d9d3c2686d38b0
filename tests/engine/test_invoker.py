"""One invocation: what is asked of the function, and what its reply means."""

from __future__ import annotations

import anyio

from poller.engine.invoker import Call, FunctionPlan, Invoker
from poller.engine.slots import Places, Slots
from poller.model import Failed, FunctionError, Invoked, NotInvoked, Refused, Returned, Succeeded
from tests.engine.fakes import EPOCH, Function, Recorder, virtual, world

PLAN = FunctionPlan("ship", "arn:aws:lambda:eu-west-1:123456789012:function:ship", 3.0)
TOO_LARGE = Failed(FunctionError("StateTooLarge", "the state is over 1 MB"))


@virtual
async def test_the_judge_of_a_call_has_the_last_word_on_its_reply():
    observer, heard = Recorder(), []

    def judge(reply, outcome):
        heard.append((reply, outcome))
        return TOO_LARGE

    function = Function(Returned({"state": {}}))
    invoker = Invoker(PLAN, function, Slots(Places(1), None), observer, world())
    outcome = await invoker.invoke(Call("clicks", "kinesis", False, event={"Records": []}, judge=judge))
    assert outcome is TOO_LARGE
    assert heard == [(Returned({"state": {}}), Succeeded())]
    assert [fact.outcome for fact in observer.of(Invoked)] == [TOO_LARGE]


@virtual
async def test_an_unchanged_batch_keeps_its_request_id():
    function = Function()
    invoker = Invoker(PLAN, function, Slots(Places(1), None), Recorder(), world())
    await invoker.invoke(Call("clicks", "kinesis", False, event={"Records": []}, request_id="r-of-before"))
    await invoker.invoke(Call("clicks", "kinesis", False, event={"Records": []}))
    assert [call.invocation.request_id for call in function.calls] == ["r-of-before", "r-1"]


@virtual
async def test_a_cold_start_is_no_part_of_the_time_limit_nor_of_the_duration():
    observer, function = Recorder(), Function()
    function.cold_start = 8.0
    invoker = Invoker(PLAN, function, Slots(Places(1), None), observer, world())
    assert await invoker.invoke(Call("clicks", "kinesis", False, event={"Records": []})) == Succeeded()
    (call,) = function.calls
    assert call.invocation.deadline == EPOCH + 8 + PLAN.timeout
    assert [fact.duration for fact in observer.of(Invoked)] == [0.0]


@virtual
async def test_a_function_that_does_not_start_has_failed_and_one_without_room_was_not_invoked():
    function = Function()
    invoker = Invoker(PLAN, function, Slots(Places(1), None), Recorder(), world())
    call = Call("clicks", "kinesis", False, event={"Records": []})
    function.unready = FunctionError("Runtime.ImportModuleError", "no module named orders")
    assert await invoker.invoke(call) == Failed(function.unready)
    function.unready = Refused("no room")
    assert await invoker.invoke(call) == NotInvoked("no room")
    assert function.calls == []


async def _three_hours(_):
    await anyio.sleep(3 * 3600)
    return Returned(None)


@virtual
async def test_a_function_that_runs_for_too_long_is_cancelled_and_has_timed_out():
    function = Function(handler=_three_hours)
    invoker = Invoker(PLAN, function, Slots(Places(1), None), observer := Recorder(), world())
    outcome = await invoker.invoke(Call("clicks", "kinesis", False, event={"Records": []}))
    text = "RequestId: r-1 Error: Task timed out after 3.00 seconds"
    assert outcome == Failed(FunctionError("Sandbox.Timedout", text, timed_out=True))
    assert function.cancelled == 1
    assert [fact.duration for fact in observer.of(Invoked)] == [3.0]


@virtual
async def test_a_runtime_that_keeps_the_time_is_left_to_do_so():
    function = Function(handler=_three_hours)
    function.keeps_time = True
    invoker = Invoker(PLAN, function, Slots(Places(1), None), Recorder(), world())
    assert await invoker.invoke(Call("clicks", "kinesis", False, event={"Records": []})) == Succeeded()
    assert function.cancelled == 0
