#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The support matrix: every kernel of packages.py with sched_ext, and what a report has on it.

    tests/guest/matrix.py                           all guests; writes the table into docs/kernels.md
    tests/guest/matrix.py --check                   all guests; writes nothing
    tests/guest/matrix.py --check --kernels 6.18,7.3
    tests/guest/matrix.py --check --guests stall,1cpu
    tests/guest/matrix.py --interop                 also each report against the guest's truth and drgn
    tests/guest/matrix.py --keep DIR                leaves cores and reports in DIR
    tests/guest/matrix.py --keep DIR --reuse        boots only what is not in DIR yet

Each guest is booted under QEMU's software emulation, fails on purpose, and is stopped where
its kernel has written its own dump. `analyze` then makes a report of the core, and every
section of it has to be there, or be absent for the reason that EXPECTED names for that
kernel. A section that is missing, one that is there against expectation, a reason that
nobody expected, an anomaly: each is a failure (exit 1), and then nothing is written.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

from packages import KERNELS, PackageError  # noqa: E402
from suite import STARVED, Failed, check  # noqa: E402

PAGE = ROOT / "docs/kernels.md"
BEGIN, END = "<!-- written by tests/guest/matrix.py -->", "<!-- end of what matrix.py writes -->"
# Debian's 6.12 has no sched_ext.
MATRIX = tuple(short for short in KERNELS if short != "6.12")
# No scheduler that creates a queue loads on Debian's 7.1 builds.
DEMOS = {"7.1": {"stall": "lost", "error": "fault"}}
# guest: (demo, more arguments of run.py); the first two on every kernel, the others on two.
GUESTS = {
    "stall": ("stall", []),
    "error": ("error", []),
    "nokaslr": ("stall", ["--append", "init_on_free=1 tsc=reliable nokaslr"]),
    "5level": ("stall", ["--cpu", "max"]),
    "1cpu": ("stall", ["--cpus", "1"]),
    "8cpus": ("stall", ["--cpus", "8"]),
    "2nodes": ("stall", ["--cpus", "4", "--numa", "2"]),
}
EVERYWHERE = ("stall", "error")
VARIANTS_ON = ("6.18", "7.3")


class Guest:
    """One row of the matrix."""

    def __init__(self, kernel, name, where):
        self.kernel, self.name = kernel, name
        demo, self.extra = GUESTS[name]
        self.demo = DEMOS.get(kernel, {}).get(demo, demo)
        self.stalls = demo == "stall"
        self.out = where / f"{name}-{kernel}"
        self.series = tuple(int(part) for part in kernel.split("."))

    def boot(self, attempts):
        command = [sys.executable, HERE / "run.py", "--kernel", self.kernel, "--demo", self.demo, "--memory", "256M",
                   "--out", self.out, *self.extra]
        for left in range(attempts - 1, -1, -1):
            done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if done.returncode == 0:
                break
            check(left, done.stderr.strip())
        self.load()

    def load(self):
        self.recipe = json.loads((self.out / "recipe.json").read_text())

    def analyze(self, program):
        done = subprocess.run([program, self.out / "core.elf", "--format", "json"], check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        check(done.returncode == 0, f"analyze: exit {done.returncode}: {done.stderr.decode('utf-8', 'replace').strip()}")
        (self.out / "report.json").write_bytes(done.stdout)
        self.report = json.loads(done.stdout)
        self.own = self.report["postmortem"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", default=",".join(MATRIX), help="default: %(default)s")
    parser.add_argument("--guests", default=",".join(GUESTS), help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--interop", action="store_true", help="also run tests/interop/run.py on each guest")
    parser.add_argument("--keep", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--reuse", action="store_true", help="take what is in --keep DIR already")
    parser.add_argument("--attempts", type=int, default=2, help="guests to boot where one fails (default %(default)s)")
    parser.add_argument("--analyze", type=pathlib.Path, default=ROOT / "target/release/analyze")
    options = parser.parse_args()
    kernels, names = options.kernels.split(","), options.guests.split(",")
    for unknown in (set(kernels) - set(MATRIX)) | (set(names) - set(GUESTS)):
        parser.error(f"no kernel and no guest is named {unknown}")
    if options.reuse and not options.keep:
        parser.error("--reuse needs --keep")
    with tempfile.TemporaryDirectory(prefix="scxpm-matrix-") as scratch:
        where = options.keep or pathlib.Path(scratch)
        for kernel in kernels:
            for name in names:
                if name in EVERYWHERE or kernel in VARIANTS_ON:
                    guest = Guest(kernel, name, where)
                    began = time.monotonic()
                    if options.reuse and (guest.out / "recipe.json").exists():
                        guest.load()
                    else:
                        guest.boot(options.attempts)
                    print(guest.out, time.monotonic() - began, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
