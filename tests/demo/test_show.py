import io

import pytest
from rich.console import Console

from poller.demo.show import Counters, Screen

COUNTERS = Counters("running", 120, 100, 2)
TOTALS = {"received": 90, "filtered": 5, "invoked": 80, "failed": 3, "deleted": 77, "released": 1}
STATUS = {
    "mappings": [
        {
            "name": "orders",
            "state": "running",
            "reason": "",
            "receivers": 4,
            "in_flight_records": 11,
            "totals": TOTALS,
        },
        {
            "name": "[odd]",
            "state": "paused",
            "reason": "by hand",
            "receivers": 0,
            "in_flight_records": 0,
            "totals": TOTALS,
        },
    ]
}


@pytest.fixture
def output():
    return io.StringIO()


def test_without_a_terminal_each_update_is_one_line(output):
    with Screen(Console(file=output, width=40)) as screen:
        screen.say("demo: [starting]")
        screen.show({}, COUNTERS)
        screen.show(STATUS, COUNTERS)

    assert output.getvalue().splitlines() == [
        "demo: [starting]",
        "running: sent 120, handled 100, dead-lettered 2 | daemon not ready",
        "running: sent 120, handled 100, dead-lettered 2 | orders running; [odd] paused (by hand)",
    ]


def test_on_a_terminal_a_table_shows_each_mapping(output):
    console = Console(file=output, width=120, force_terminal=True, color_system=None)
    with Screen(console) as screen:
        screen.show({}, COUNTERS)
        screen.show(STATUS, COUNTERS)

    shown = output.getvalue()
    assert "running: sent 120, handled 100, dead-lettered 2" in shown
    (orders,) = [line for line in shown.splitlines() if "orders" in line][-1:]
    assert [cell.strip() for cell in orders.split("│")[1:-1]] == [
        "orders",
        "running",
        "4",
        "11",
        "90",
        "5",
        "80",
        "3",
        "77",
    ]
    assert "[odd]" in shown
    assert "paused (by hand)" in shown
