#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""How fast archives are gone through: `analyze golden check` and `analyze batch` over many captures.

    tests/bench/archive.py                        200 and 1,000 captures, with 1 and 2 jobs
    tests/bench/archive.py --counts 50 --jobs 1,2,4

The captures are copies of those in corpus/ (one in ten, 17 MB each) and of the reductions in tests/findings (0.2 MB each,
with the kernel's tables beside them). Every copy is a file of its own. Printed: captures per second and peak memory of each
run, best of --rounds. Then a batch is killed with SIGKILL in the middle, several times, and started again until it ends:
its results have to be those of the run that nobody killed, byte for byte, and no report may have been made twice.
Memory may not grow with the number of captures. Exit 1 when something is not as it should be.
"""

import argparse
import filecmp
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
ANALYZE = ROOT / "target/release/analyze"
# Peak memory with the most captures, at most, against that with the fewest.
MEMORY = 1.2
TABLES = ROOT / "tests/findings/kernel-7.3.tables.zst"


def measured(command):
    """Seconds and peak memory in bytes of a command."""
    begin = time.monotonic()
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        said = child.stderr.read().decode("utf-8", "replace")
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit {child.returncode}: {said[-400:]}")
    return time.monotonic() - begin, usage.ru_maxrss * 1024


def filled(where, count):
    """A folder with so many captures; returns their bytes."""
    large = sorted(ROOT.glob("corpus/*/guest.core.zst"))
    small = sorted(path for path in (ROOT / "tests/findings").glob("*.core.zst"))
    if not large or not small:
        raise SystemExit(f"no captures in {ROOT}/corpus or {ROOT}/tests/findings")
    total = 0
    for number in range(count):
        source = large[number // 10 % len(large)] if number % 10 == 0 else small[number % len(small)]
        name = source.parent.name if source.name == "guest.core.zst" else source.name.split(".")[0]
        copy = where / f"{number % 16:02}" / f"{number:04}-{name}.core.zst"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
        total += copy.stat().st_size
    return total


def batch(captures, results, jobs):
    return [ANALYZE, "batch", captures, "--out", results, "--kernel-tables", TABLES, "--jobs", jobs]


def killed(captures, results, whole):
    """Kills a batch again and again; says what came of it."""
    faults, kills, made = [], 0, {}
    while True:
        child = subprocess.Popen(list(map(str, batch(captures, results, 2))),
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            # Later and later, so that it ends at last.
            ended = child.wait(timeout=0.4 * (kills + 1))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
            kills += 1
        else:
            if ended:
                faults.append(f"the run behind {kills} kills ended with {ended}")
            break
        for done in results.glob("done/*.json"):
            facts = done.stat()
            # Its name appears once it is whole; another inode is another run's work.
            if made.setdefault(done.name, facts.st_ino) != facts.st_ino:
                faults.append(f"{done.name} was made twice")
    for done in results.glob("done/*.json"):
        if made.get(done.name, done.stat().st_ino) != done.stat().st_ino:
            faults.append(f"{done.name} was made twice")
    names = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    found = {path.relative_to(results) for path in results.rglob("*") if path.is_file()}
    faults += [f"{name}: there in one of the two results only" for name in sorted(names ^ found)]
    faults += [f"{name} differs" for name in sorted(names & found)
               if not filecmp.cmp(whole / name, results / name, shallow=False)]
    return kills, len(made), len(names), faults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--counts", type=numbers, default=[200, 1000])
    parser.add_argument("--jobs", type=numbers, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    subprocess.run(["cargo", "build", "--release", "--quiet", "-p", "scx-postmortem-analyze"], cwd=ROOT, check=True)
    faults, peaks = [], {}
    for count in options.counts:
        with tempfile.TemporaryDirectory(prefix="scxpm-archive-") as name:
            work = pathlib.Path(name)
            captures = work / "captures"
            total = filled(captures, count)
            print(f"{count} captures, {total / 1e6:.0f} MB")
            subprocess.run([str(ANALYZE), "golden", "bless", str(captures), "--kernel-tables", str(TABLES)],
                           check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for jobs in options.jobs:
                runs = [measured([ANALYZE, "golden", "check", captures, "--kernel-tables", TABLES, "--jobs", jobs])
                        for _ in range(options.rounds)]
                peaks["golden check", jobs, count] = told("golden check", count, jobs, runs)
                runs = []
                for number in range(options.rounds):
                    whole = work / f"whole-{jobs}-{number}"
                    runs.append(measured(batch(captures, whole, jobs)))
                peaks["batch", jobs, count] = told("batch", count, jobs, runs)
            if count == options.counts[0]:
                kills, before, files, found = killed(captures, work / "killed", whole)
                print(f"  killed {kills} times, the last time with {before} of {count} done; "
                      f"{files} files, {len(found)} not as without")
                faults += found
    few, many = min(options.counts), max(options.counts)
    for (what, jobs, count), peak in peaks.items():
        before = peaks[what, jobs, few]
        if count == many and peak > before * MEMORY:
            faults.append(f"{what}, {jobs} jobs: {peak / 1e6:.0f} MB for {many} captures, {before / 1e6:.0f} MB for {few}")
    for fault in faults:
        print(f"FAILED: {fault}")
    return 1 if faults else 0


def told(what, count, jobs, runs):
    seconds = min(run[0] for run in runs)
    peak = max(run[1] for run in runs)
    print(f"  {what:12} {jobs} jobs  {count / seconds:7.1f} captures/s  {peak / 1e6:6.0f} MB", flush=True)
    return peak


if __name__ == "__main__":
    sys.exit(main())
