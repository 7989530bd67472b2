#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What the monitor costs the guest that it watches.

    tests/bench/monitor.py                 a guest of 7.3 with two busy vCPUs, a hundred pairs of two seconds
    tests/bench/monitor.py --pairs 200 --seconds 3

One guest under software emulation counts what it gets done, and writes that to its console four times a second. One capture
is attached to it all the time and is stopped (SIGSTOP) and continued by turns: a stopped one samples nothing and costs
nothing. The windows are short and next to each other, so that what else this machine does falls on both. The figure is the
median over pairs of what was done for each second with the monitor to what was done without; the interval beside it is the
bootstrap's for 95 %. Also: the CPU time that capture takes for each second. Exits 1 when the median is below 98 %.
"""

import argparse
import os
import pathlib
import random
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
SETTLE = 8.0
# What follows a turn is not measured: the counts that are on their way, and samples that a stopped capture owes.
TURN = 0.4
TICKS = os.sysconf("SC_CLK_TCK")


def counts(console):
    """What the guest has told: [(work, its time in seconds)]."""
    lines = console.read_bytes().decode("utf-8", "replace").splitlines()
    words = [line.split() for line in lines if line.startswith("@count ")]
    return [(int(each[1]), int(each[2]) / 1e9) for each in words if len(each) == 3 and each[2].isdigit()]


def rate(other, seconds):
    """Work for each second of the guest, in a window of some `seconds`."""
    time.sleep(TURN)
    at = len(counts(other.console))
    time.sleep(seconds)
    told = counts(other.console)[at:]
    (first, start), (last, end) = told[0], told[-1]
    return (last - first) / (end - start)


def interval(ratios, rounds=4000):
    """The bootstrap's 95 % for the median; the same each time for the same ratios."""
    dice = random.Random(1)
    medians = sorted(statistics.median(dice.choices(ratios, k=len(ratios))) for _ in range(rounds))
    return medians[rounds // 40], medians[-rounds // 40 - 1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", default="7.3")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path.home() / ".cache/scx-postmortem")
    options = parser.parse_args()
    install_here({"qemu-system-x86_64": "qemu-system-x86", "cc": "gcc"})
    ratios = []
    with tempfile.TemporaryDirectory(prefix="scxpm-bench-") as name:
        rig = Rig(options.cache, pathlib.Path(name))
        with Other(rig, options.kernel, "guestkit count 2") as other:
            child = subprocess.Popen([str(CAPTURE), "attach", "--qmp", str(other.sockets[0]), "-o", str(rig.where / "a.core.zst")],
                                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                time.sleep(SETTLE)
                used, awake = cpu_time(child.pid), 0.0
                for pair in range(options.pairs):
                    done = {}
                    # Who goes first takes turns as well.
                    for watched in (True, False) if pair % 2 else (False, True):
                        child.send_signal(signal.SIGCONT if watched else signal.SIGSTOP)
                        began = time.monotonic()
                        done[watched] = rate(other, options.seconds)
                        awake += (time.monotonic() - began) * watched
                        if child.poll() is not None:
                            sys.exit(f"capture attach ended: {child.returncode}")
                    ratios.append(done[True] / done[False])
                used = cpu_time(child.pid) - used
            finally:
                child.send_signal(signal.SIGCONT)
                child.send_signal(signal.SIGTERM)
                child.wait()
    median, (low, high) = statistics.median(ratios), interval(ratios)
    print(f"done with the monitor / without   {median:.4f}   at least {BAR}   (95 %: {low:.4f} to {high:.4f}; "
          f"{len(ratios)} pairs, {min(ratios):.3f} to {max(ratios):.3f})")
    print(f"CPU of capture                    {used / TICKS / awake * 100:.2f} % of one CPU")
    if median < BAR:
        sys.exit("the monitor costs more than it may")


if __name__ == "__main__":
    main()
