#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What the monitor costs the guest that it watches.

    tests/bench/monitor.py                 a guest of 7.3 with two busy vCPUs, twelve pairs of ten seconds
    tests/bench/monitor.py --pairs 20 --seconds 15

One guest under software emulation counts what it gets done, and writes that to its console four times a second. It is
attached to again and again, with the monitor and without by turns, so that whatever else this machine does falls on both.
The figure is the median over pairs of what was done with the monitor, per second, to what was done without. Beside it: the
CPU time that capture itself takes for each second. Exits 1 when the guest gets less than 98 % done.
"""

import argparse
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "guest"))

from capture import CAPTURE, Other, Rig, cpu_time  # noqa: E402
from packages import install_here  # noqa: E402

BAR = 0.98
# Attaching looks for the kernel in memory, which is not what is measured.
SETTLE = 4.0
TICKS = os.sysconf("SC_CLK_TCK")


def counts(console):
    """What the guest has told: [(work, its time in seconds)]."""
    lines = console.read_bytes().decode("utf-8", "replace").splitlines()
    words = [line.split() for line in lines if line.startswith("@count ")]
    return [(int(each[1]), int(each[2]) / 1e9) for each in words if len(each) == 3 and each[2].isdigit()]


def rate(other, seconds, *more):
    """Work for each second of a guest that is attached to; CPU seconds of capture for each second."""
    output = other.console.with_suffix(".core.zst")
    child = subprocess.Popen([str(CAPTURE), "attach", "--qmp", str(other.sockets[0]), "-o", str(output), *more],
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(SETTLE)
        before, at = cpu_time(child.pid), len(counts(other.console))
        time.sleep(seconds)
        used, told = cpu_time(child.pid) - before, counts(other.console)[at:]
        if child.poll() is not None:
            sys.exit(f"capture attach ended: {child.returncode}")
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait()
    (first, start), (last, end) = told[0], told[-1]
    return (last - first) / (end - start), used / TICKS / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", default="7.3")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path.home() / ".cache/scx-postmortem")
    options = parser.parse_args()
    install_here({"qemu-system-x86_64": "qemu-system-x86", "cc": "gcc"})
    ratios, shares = [], {True: [], False: []}
    with tempfile.TemporaryDirectory(prefix="scxpm-bench-") as name:
        rig = Rig(options.cache, pathlib.Path(name))
        with Other(rig, options.kernel, "guestkit count 2") as other:
            for pair in range(options.pairs):
                done = {}
                # Who goes first takes turns as well.
                for watched in (True, False) if pair % 2 else (False, True):
                    more = [] if watched else ["--no-monitor"]
                    done[watched], share = rate(other, options.seconds, *more)
                    shares[watched].append(share)
                ratios.append(done[True] / done[False])
    ratios.sort()
    median = statistics.median(ratios)
    print(f"done with the monitor / without   {median:.4f}   at least {BAR}   ({len(ratios)} pairs, {ratios[0]:.3f} to {ratios[-1]:.3f})")
    for watched, text in ((True, "with"), (False, "without")):
        print(f"CPU of capture, {text:<8}          {statistics.median(shares[watched]) * 100:.2f} % of one CPU")
    if median < BAR:
        sys.exit("the monitor costs more than it may")


if __name__ == "__main__":
    main()
