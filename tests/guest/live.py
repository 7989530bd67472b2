#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Samples a guest while it runs, and compares the last sample with a core taken at that moment.

    tests/guest/live.py                      6.18 with 2 CPUs and 7.3 with 4
    tests/guest/live.py --kernels 7.0 --cpus 8 --seconds 10

The guest's memory is a file that QEMU shares; analyze's monitor reads it beside the running
guest (analyze/examples/monitor.rs) while tasks starve. Then QEMU stops the guest, one more
sample is taken, and QEMU writes its own core: every value of that sample must be the one in
the report of the core, the queue that starves must have grown before everyone's eyes, and a
sample must have cost less than a millisecond.
"""

import argparse
import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

from initramfs import build  # noqa: E402
from machine import EmulatorError, GuestError, Machine, megabytes  # noqa: E402
from packages import KERNELS, Archive, PackageError, install_here  # noqa: E402

MEMORY = "512M"
# More would be of no use to someone who samples ten times a second.
MOST_US = 1000


def share_memory(machine, file):
    """The guest's memory as a file that others can read. Below 3 GB its offsets are addresses."""
    size = megabytes(MEMORY)
    machine.command += [
        "-object", f"memory-backend-file,id=shared,size={size}M,mem-path={file},share=on",
        "-machine", "memory-backend=shared",
    ]


class Watched:
    """A guest whose memory the monitor (analyze/examples/monitor.rs) reads while it runs."""

    def __init__(self, machine, program, memory, where):
        self.machine, self.where = machine, where
        self.command = [program, memory, where / "timeline.json"]
        self.monitor = None

    def start(self):
        self.monitor = subprocess.Popen(self.command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def finish(self):
        """Stops the guest, has a last sample taken and then a core; the monitor's last word."""
        self.machine.qmp.ask("stop")
        said, _ = self.monitor.communicate("stop\n", timeout=60)
        if self.monitor.returncode:
            raise GuestError("the monitor failed; what it said is above")
        self.machine.dump(self.where / "core.elf")
        return json.loads(said)


@contextlib.contextmanager
def watched(machine, program, where):
    """Runs a guest with its memory shared; whatever happens, neither memory nor monitor is left."""
    memory = pathlib.Path(tempfile.mkstemp(prefix="scxpm-", dir="/dev/shm")[1])
    share_memory(machine, memory)
    guest = Watched(machine, program, memory, where)
    try:
        with machine:
            yield guest
    except GuestError:
        # With the emulator's fault on the console it is that, whatever we noticed first.
        machine.check()
        raise
    finally:
        memory.unlink()
        if guest.monitor and guest.monitor.poll() is None:
            guest.monitor.kill()
            guest.monitor.wait()


def watch(program, kernel, archive, cpus, seconds, where):
    """One guest: the monitor's last word, and the report of the core."""
    initrd, _ = build(archive, "stall")
    append = "console=ttyS0 panic=-1 demo=stall stop=now tsc=reliable"
    machine = Machine(kernel["image"], initrd, append, MEMORY, cpus, "max,la57=off", 1, False,
                      where / "console.log", 300, cpus == 1)
    with watched(machine, program, where) as guest:
        machine.wait_for("@READY")
        guest.start()
        machine.host.send("GO")
        time.sleep(seconds)
        machine.check()
        return guest.finish()


def report_of(analyze, core, out):
    subprocess.run([analyze, core, "--format", "json", "-o", out], check=True)
    return json.loads(out.read_text())


def differences(sample, report):
    """Each value of the sample that is not the report's."""
    own = report["postmortem"]
    wrong = []

    def same(what, theirs, ours):
        if theirs != ours:
            wrong.append(f"{what}: the sample has {theirs}, the report {ours}")

    same("uptime", sample["uptime_ns"], own["kernel"]["uptime_ns"])
    scheduler = own["scheduler"]
    if f'"{scheduler["ops_name"]}"' not in sample["attached"]:
        wrong.append(f"attached: {sample['attached']}, the report has {scheduler['ops_name']}")
    same("exit kind", sample["exit_kind"], scheduler["exit_kind"])
    queues = {}
    for dsq in own["dsqs"]:
        queues.setdefault(dsq["origin"], {})[int(dsq["id"], 16)] = dsq["nr"]
    for number, (cpu, theirs) in enumerate(zip(sample["cpus"], own["cpus"])):
        for name in ("nr_running", "scx_nr_running", "clock_ns"):
            same(f"{name} of CPU {number}", cpu[name], theirs[name])
        same(f"local DSQ of CPU {number}", cpu["local_dsq"], *queues[f"local cpu {number}"].values())
        counters = {c["name"]: {p["cpu"]: p["value"] for p in c.get("per_cpu", [])} for c in own["event_counters"]}
        same("the counters' names", sample["events"], list(counters))
        for name, value in zip(sample["events"], cpu["events"]):
            same(f"{name} of CPU {number}", value, counters[name].get(number, 0))
    user = [f"User({key}, {nr})" for key, nr in sorted(queues.get("user", {}).items())]
    same("user DSQs", [q for q in sample["queues"] if q.startswith("User")], user)
    waiting = [task for cpu in own["cpus"] for task in cpu.get("runnable", [])]
    ages = [task["runnable_age_ms"] for task in waiting if "runnable_age_ms" in task]
    same("waiting tasks", sample["waiting"]["tasks"], len(waiting))
    same("the longest wait", sample["waiting"]["oldest_ms"], max(ages))
    same("pressure", sample["psi"]["cpu_some"], own["psi"]["system"]["cpu"]["some"]["total_ns"])
    return wrong


def starved(timeline):
    """The depths of the queue that nobody serves, as they were sampled."""
    number = next(i for i, s in enumerate(timeline["series"]) if s == ["user_dsq", None, 0xDEAD5])
    depths, now = [], 0
    for row in timeline["rows"]:
        series = -1
        for skipped, change in zip(row[1::2], row[2::2]):
            series += skipped + 1
            if series == number and change is not None:
                now += change
        depths.append(now)
    return depths


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = pathlib.Path.home() / ".cache" / "scx-postmortem"
    parser.add_argument("--cache", type=pathlib.Path, default=default)
    parser.add_argument("--kernels", help="separated by commas")
    parser.add_argument("--cpus", type=int)
    parser.add_argument("--seconds", type=float, default=9, help="of load before the guest is stopped")
    parser.add_argument("--attempts", type=int, default=3, help="guests to try when the emulator fails")
    options = parser.parse_args()
    guests = [(short, options.cpus or 2) for short in (options.kernels or "").split(",") if short]
    guests = guests or [("6.18", options.cpus or 2), ("7.3", options.cpus or 4)]
    install_here({"qemu-system-x86_64": "qemu-system-x86", "cc": "gcc", "dpkg-deb": "dpkg"})
    archive = Archive(options.cache)
    subprocess.run(["cargo", "build", "--release", "-q", "-p", "scx-postmortem-analyze", "--example", "monitor",
                    "--bin", "analyze"], check=True, cwd=ROOT)
    target = json.loads(subprocess.run(["cargo", "metadata", "--format-version", "1", "--no-deps"], check=True,
                                       cwd=ROOT, stdout=subprocess.PIPE).stdout)["target_directory"]
    program = pathlib.Path(target) / "release/examples/monitor"
    failed = False
    for short, cpus in guests:
        if short not in KERNELS:
            raise PackageError(f"kernel {short} is not one of {', '.join(KERNELS)}")
        kernel = archive.kernel(short)
        with tempfile.TemporaryDirectory(prefix="scxpm-live-") as where:
            where = pathlib.Path(where)
            for attempt in range(options.attempts):
                try:
                    sample = watch(program, kernel, archive, cpus, options.seconds, where)
                    break
                except EmulatorError as error:
                    if attempt + 1 == options.attempts:
                        raise
                    print(f"{short}: {error}; trying again", file=sys.stderr)
            wrong = differences(sample, report_of(program.parent.parent / "analyze", where / "core.elf", where / "report.json"))
            depths = starved(json.loads((where / "timeline.json").read_text()))
        if depths[0] != 0 or max(depths) < 6:
            wrong.append(f"the depth of the starved queue went from {depths[0]} to {max(depths)}, expected 0 to 6 or more")
        if sample["median_us"] > MOST_US:
            wrong.append(f"a sample took {sample['median_us']} µs, expected at most {MOST_US}")
        wrong += [f"the monitor lacks {what}" for what in sample["missing"]]
        failed |= bool(wrong)
        for line in wrong:
            print(f"{short}: {line}")
        print(f"{kernel['release']}, {cpus} CPUs: {sample['samples']} samples, median {sample['median_us']} µs, "
              f"99th {sample['p99_us']} µs, most {sample['most_us']} µs, push {sample['push_us_each']} µs, "
              f"names resolved in {sample['resolve_us']} µs; note {sample['bytes']} bytes; torn: {sample['torn']}; "
              f"{'FAILED' if wrong else 'the last sample is the report'}")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (PackageError, GuestError) as error:
        print(f"live.py: {error}", file=sys.stderr)
        sys.exit(1)
