import io

import pytest
from rich.console import Console

from poller.demo.show import Counters, Screen, table_of

COUNTERS = Counters("running", 120, 100, 2)
TOTALS = {
    "received": 90,
    "filtered": 5,
    "invoked": 80,
    "failed": 3,
    "deleted": 77,
    "committed": 0,
    "released": 1,
}
STATUS = {
    "mappings": [
        {
            "name": "orders",
            "state": "running",
            "reason": "",
            "receivers": 4,
            "in_flight_records": 11,
            "totals": TOTALS,
            "shards": [],
        },
        {
            "name": "clicks",
            "state": "running",
            "reason": "",
            "receivers": 2,
            "in_flight_records": 7,
            "totals": TOTALS | {"deleted": 0, "committed": 60},
            "shards": [{"iterator_age": age} for age in (None, 0.2, 12.34)],
        },
        {
            "name": "[odd]",
            "state": "paused",
            "reason": "by hand",
            "receivers": 0,
            "in_flight_records": 0,
            "totals": TOTALS,
            "shards": [{"iterator_age": None}],
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
        "running: sent 120, handled 100, dead-lettered 2 | orders running; clicks running; [odd] paused (by hand)",
    ]


def test_on_a_terminal_a_table_shows_each_mapping(output):
    console = Console(file=output, width=120, force_terminal=True, color_system=None)
    with Screen(console) as screen:
        screen.show({}, COUNTERS)
        screen.show(STATUS, COUNTERS)

    shown = output.getvalue()
    assert "running: sent 120, handled 100, dead-lettered 2" in shown
    assert shown_row(shown, "mapping") == [
        "mapping",
        "state",
        "at",
        "work",
        "received",
        "filtered",
        "invoked",
        "failed",
        "done",
        "lag",
    ]
    assert shown_row(shown, "orders") == ["orders", "running", "11", "90", "5", "80", "3", "77"]
    assert shown_row(shown, "clicks") == ["clicks", "running", "7", "90", "5", "80", "3", "60", "12.3", "s"]
    assert shown_row(shown, "[odd]")[1:4] == ["paused", "(by", "hand)"]


def shown_row(shown, name):
    return [line for line in shown.splitlines() if line.startswith(name)][-1].split()


def test_the_table_has_room_in_eighty_columns(output):
    Console(file=output, width=80).print(table_of(STATUS["mappings"][:2]))
    assert shown_row(output.getvalue(), "clicks")[-2:] == ["12.3", "s"]
    assert "…" not in output.getvalue()
