"""`python -m tests.bench`: runs the scenarios round by round and prints a table. See README.md."""

from __future__ import annotations

import argparse
import signal
import sys

from tests.bench import report
from tests.bench.processes import endpoint
from tests.bench.scenarios import SCENARIOS, Timing


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measured window")
    parser.add_argument("--warm-up", type=float, default=2.0, help="seconds before each window")
    parser.add_argument("--only", action="append", choices=[one.name for one in SCENARIOS], metavar="NAME")
    parser.add_argument(
        "--save",
        nargs="?",
        const="",
        metavar="PART",
        help="keep the report in tests/bench/results; PART names one that has not all scenarios",
    )
    return parser.parse_args()


def main() -> None:
    """Measure, print, and with --save keep."""
    asked = _arguments()
    # An exception, so that what was started is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    timing = Timing(asked.warm_up, asked.seconds)
    wanted = [one for one in SCENARIOS if not asked.only or one.name in asked.only]
    rounds: report.Rounds = {one.name: [] for one in wanted}
    with endpoint() as canned:
        for number in range(asked.rounds):
            for one in wanted:
                if one.once and number:
                    continue
                print(f"round {number + 1} of {asked.rounds}: {one.name}", file=sys.stderr)
                rounds[one.name].append(one.run(canned, timing))
    report.add_ratios(rounds)
    text = report.markdown(rounds, asked.seconds)
    print(text)
    if asked.save is not None:
        print(f"kept in {report.save(rounds, text, asked.seconds, asked.save).name}", file=sys.stderr)


if __name__ == "__main__":
    main()
