"""`python -m tests.bench.scale`: cost against load, as tables and as a figure. See README.md."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from statistics import mean

from tests.bench import scale_report
from tests.bench.curves import CURVES, Curve, Point, Timing
from tests.bench.processes import endpoint


def _arguments() -> argparse.Namespace:
    usual = Timing()
    parser = argparse.ArgumentParser(prog="python -m tests.bench.scale")
    parser.add_argument("--only", action="append", choices=[one.name for one in CURVES], metavar="NAME")
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="of each window")
    parser.add_argument("--windows", type=int, default=usual.windows, help="of each point")
    parser.add_argument(
        "--save",
        nargs="?",
        const="scale",
        metavar="PART",
        help="keep the report in tests/bench/results, as DATE-scale or DATE-PART",
    )
    return parser.parse_args()


def main() -> None:
    """Measure, print, and with --save keep."""
    asked = _arguments()
    # An exception, so that what was started is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    timing = Timing(seconds=asked.seconds, windows=asked.windows)
    measured: dict[Curve, list[Point]] = {}
    busy: list[float] = []
    with endpoint() as canned:
        for curve in CURVES:
            if asked.only and curve.name not in asked.only:
                continue
            print(curve.name, file=sys.stderr)
            measured[curve] = []
            for point in curve.measure(canned, timing, curve.loads):
                print(f"  {point.x:,} {curve.load}: {point.cost:,.2f} {curve.unit}", file=sys.stderr)
                measured[curve].append(point)
                busy.append(os.getloadavg()[0])
    text = scale_report.markdown(measured, timing, mean(busy))
    print(text)
    if asked.save is not None:
        print(f"kept in {scale_report.save(measured, timing, text, asked.save).name}", file=sys.stderr)


if __name__ == "__main__":
    main()
