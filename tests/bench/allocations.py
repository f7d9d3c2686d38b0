"""How much a process asks of Python's allocators: `memray` sees every call, so not only what stays.

* *gross*: calls that allocate (a list that grows is one each time), whether by pymalloc or by the C library.
* *net*: blocks of Python's allocator that are there at the end and were not at the beginning, garbage collected both times.
  What is in hand moves it a little; a leak moves it by at least one a record.

To look makes everything several times slower, so it has a short window of its own behind the measured one.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from typing import TYPE_CHECKING

from memray import FileDestination, Tracker

if TYPE_CHECKING:
    from pathlib import Path


class Allocations:
    """Of this process, from now on until `end`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        gc.collect()
        self._before = sys.getallocatedblocks()
        self._tracker = Tracker(
            destination=FileDestination(file, overwrite=True), trace_python_allocators=True
        )
        self._tracker.__enter__()

    def end(self) -> int:
        """Count no longer; return the net."""
        self._tracker.__exit__(None, None, None)
        gc.collect()
        return sys.getallocatedblocks() - self._before


def gross(file: Path) -> int:
    """Calls that allocate in what an `Allocations` has written."""
    found = file.with_suffix(".json")
    command = [
        sys.executable,
        "-m",
        "memray",
        "stats",
        "--json",
        "--force",
        "--output",
        str(found),
        str(file),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return int(json.loads(found.read_text())["total_num_allocations"])
