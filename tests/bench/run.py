#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Times scx-postmortem against what a person would otherwise run, on the same file, in one run.

    tests/bench/run.py CORE.elf [--large CORE4X.elf] [--busy CORE.elf] [--early CORE.elf] [--drgn PYTHON] [--runs N]

CORE.elf is a raw ELF core of about 512 MB (tests/guest/run.py makes one); --large is a core of
the same guest with four times the memory, --busy one with a real scheduler. --drgn is a Python with drgn installed and adds the
drgn row. Everything is measured in interleaved rounds; each figure is the median, so a busy
machine moves all of them together. Prints a table and the bars of the project's issue; exits 1
when a bar is missed.
"""
import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))


class Measure:
    """Wall and CPU seconds and peak RSS of one command, over several rounds."""

    def __init__(self, name, argv, stdout=subprocess.DEVNULL, env=None):
        self.name, self.argv, self.stdout, self.env = name, argv, stdout, env
        self.wall, self.cpu, self.rss = [], [], []

    def round(self):
        start = time.perf_counter()
        env = dict(os.environ, **self.env) if self.env else None
        out = open(self.stdout, "wb") if isinstance(self.stdout, str) else self.stdout
        child = subprocess.Popen(self.argv, stdout=out, stderr=subprocess.PIPE, env=env)
        error = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        self.wall.append(time.perf_counter() - start)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != 0:
            sys.exit(f"{' '.join(self.argv)}: exit {child.returncode}\n{error.decode()}")
        self.cpu.append(usage.ru_utime + usage.ru_stime)
        self.rss.append(usage.ru_maxrss / 1024)

    def row(self):
        med = statistics.median
        return (f"{self.name:<44} {med(self.wall) * 1e3:9.1f} {min(self.wall) * 1e3:9.1f}"
                f" {med(self.cpu) * 1e3:9.1f} {max(self.rss):7.0f}")


def rounds(measures, count):
    for measure in measures:  # Warm up: page cache and the dynamic loader.
        measure.round()
        measure.wall.clear(), measure.cpu.clear(), measure.rss.clear()
    for _ in range(count):
        for measure in measures:
            measure.round()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("core")
    parser.add_argument("--large")
    parser.add_argument("--busy", help="a core with a scheduler that has much BPF state, such as scx_lavd")
    parser.add_argument("--early", help="a core of the guest of CORE.elf, about 5 s older: the size of a dual capture")
    parser.add_argument("--drgn", help="a python with drgn")
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    if not shutil.which("zstd"):
        sys.exit("the zstd command is missing: apt-get install zstd")
    subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=ROOT, check=True)
    analyze = os.path.join(ROOT, "target/release/analyze")
    capture = os.path.join(ROOT, "target/release/capture")
    bars = []

    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(args.core))) as work:
        cap = os.path.join(work, "bench.core.zst")
        peer = os.path.join(work, "peer.zst")
        exported = os.path.join(work, "exported.elf")
        convert = Measure("capture convert (level 1)", [capture, "convert", args.core, "-o", cap, "--force"])
        convert1 = Measure("capture convert, one thread", convert.argv, env={"RAYON_NUM_THREADS": "1"})
        zstd1 = Measure("zstd -1 -T0", ["zstd", "-q", "-f", "-1", "-T0", args.core, "-o", peer])
        rounds([convert, convert1, zstd1], max(3, args.runs // 3))
        sizes = os.path.getsize(cap), os.path.getsize(peer)

        dual_size = None
        if args.early:
            older, both = os.path.join(work, "early.core.zst"), os.path.join(work, "dual.core.zst")
            for command in ([capture, "convert", args.early, "-o", older],
                            [capture, "convert", "--early", args.early, args.core, "-o", both]):
                subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
            dual_size = os.path.getsize(both) / (sizes[0] + os.path.getsize(older))

        info = Measure("analyze info", [analyze, "info", cap])
        full = Measure("analyze, full text report", [analyze, cap])
        json = Measure("analyze --format json", [analyze, cap, "--format", "json"])
        elf = Measure("analyze on the plain ELF", [analyze, args.core])
        pages = Measure("open + page walks + 2,500 kernel pages",
                        [os.path.join(ROOT, "target/release/examples/scattered"), cap])
        unzstd = Measure("zstd -d of the whole file", ["zstd", "-q", "-d", "-f", cap, "-o", exported])
        subprocess.run(["cargo", "build", "--release", "--quiet", "-p", "scx-postmortem-analyze",
                        "--example", "scattered"], cwd=ROOT, check=True)
        group = [info, full, json, elf, pages, unzstd]
        large = None
        if args.large:
            big = os.path.join(work, "large.core.zst")
            subprocess.run([capture, "convert", args.large, "-o", big], check=True, stderr=subprocess.DEVNULL)
            large = Measure("analyze, four times the memory", [analyze, big])
            group.append(large)
        busy = None
        if args.busy:
            packed = os.path.join(work, "busy.core.zst")
            subprocess.run([capture, "convert", args.busy, "-o", packed], check=True, stderr=subprocess.DEVNULL)
            busy = Measure("analyze --format json, much BPF state", [analyze, packed, "--format", "json"])
            group.append(busy)
        drgn = None
        if args.drgn:
            unzstd.round()
            lists = os.path.join(ROOT, "tests/interop/drgn_lists.py")
            drgn = Measure("drgn: run queues, DSQs, tasks", [args.drgn, lists, exported])
            group.append(drgn)
        rounds(group, args.runs)

        print(f"{'':<44} {'median':>9} {'best':>9} {'CPU':>9} {'RSS':>7}")
        print(f"{'':<44} {'ms':>9} {'ms':>9} {'ms':>9} {'MB':>7}")
        for measure in [convert, convert1, zstd1] + group:
            print(measure.row())
        med = statistics.median
        bars += [
            ("analyze info, ms", med(info.wall) * 1e3, 10),
            ("full report, ms", med(full.wall) * 1e3, 100),
            ("full report, peak RSS MB", max(full.rss), 100),
            ("2,500 pages / zstd -d", med(pages.wall) / med(unzstd.wall), 1 / 20),
            ("convert CPU / zstd -1 CPU", med(convert.cpu) / med(zstd1.cpu), 1.0),
            ("convert size / zstd -1 size", sizes[0] / sizes[1], 1.03),
            ("convert wall, 2 threads / 1", med(convert.wall) / med(convert1.wall), 0.75),
        ]
        if dual_size:
            bars.append(("dual capture / two single ones", dual_size, 0.60))
        if large:
            bars.append(("report with 4x memory / 1x", med(large.wall) / med(full.wall), 1.2))
        if busy:
            bars.append(("report with much BPF state, ms", med(busy.wall) * 1e3, 400))
            divided = subprocess.run([analyze, packed, "--timings", "--format", "json"], check=True,
                                     stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            print(f"\nhow that one divides:\n{divided.stderr}", end="")
        if drgn:
            bars.append(("full report / drgn lists", med(full.wall) / med(drgn.wall), 1 / 15))
    print()
    missed = False
    for name, value, bar in bars:
        ok = value <= bar
        missed |= not ok
        print(f"{name:<36} {value:8.3f}   at most {bar:8.3f}   {'ok' if ok else 'MISSED'}")
    print(f"\nload while measuring: {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
