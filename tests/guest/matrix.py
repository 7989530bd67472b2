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
section of it has to be there, or be absent for the reason that UNAVAILABLE names for that
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

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

from packages import KERNELS, OF_SID, PackageError  # noqa: E402
from suite import STARVED, Failed, check  # noqa: E402

PAGE = ROOT / "docs/kernels.md"
BEGIN, END = "<!-- written by tests/guest/matrix.py -->", "<!-- end of what matrix.py writes -->"
# Debian's 6.12 has no sched_ext; 7.2 is there once.
MATRIX = tuple(short for short in KERNELS if short not in ("6.12", *OF_SID))
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

# A section by its path in the report, where `*` is any element of a list: there on every
# guest, or on those of one demo, unless UNAVAILABLE or SILENT says otherwise.
SECTIONS = {
    "vcpu_regs": None, "per_cpu_time": None, "per_node_numa": None, "cgroup_psi": None,
    "scx_sched_state": None, "rq_scx_states": None, "dsq_states": None, "task_enrichments": None,
    "event_counter_timeline": None, "maps": None, "active_obj_name": None, "active_map_kvas": None,
    "prog_runtime_stats": None,
    "postmortem.headline": None, "postmortem.findings": None, "postmortem.starved": "stall",
    "postmortem.kernel.release": None, "postmortem.kernel.build_id": None, "postmortem.kernel.hz": None,
    "postmortem.kernel.uptime_ns": None, "postmortem.kernel.jiffies": None, "postmortem.kernel.cmdline": None,
    "postmortem.kernel.sched_ext_state": None,
    "postmortem.scheduler.ops_name": None, "postmortem.scheduler.watchdog_timeout_ms": None,
    "postmortem.scheduler.callbacks": None, "postmortem.scheduler.bypass_depth": None,
    "postmortem.scheduler.aborting": None, "postmortem.scheduler.slice_dfl_ns": None,
    "postmortem.scheduler.level": None, "postmortem.scheduler.cgroup_path": None,
    "postmortem.exit_info.reason": None, "postmortem.exit_info.msg": None, "postmortem.exit_info.backtrace": None,
    "postmortem.exit_info.flags": None, "postmortem.exit_info.exit_cpu": None, "postmortem.exit_info.dump": None,
    "postmortem.exit_info.parsed_dump.cpus.*.tasks": None, "postmortem.dump_differences": None,
    "postmortem.event_counters": None, "postmortem.cpus.*.curr": None, "postmortem.cpus.*.runnable": None,
    "postmortem.cpus.*.ops_qseq": None, "postmortem.dsqs.*.tasks": None, "postmortem.tasks.*.stack": None,
    "postmortem.active": None, "postmortem.programs": None, "postmortem.links": None, "postmortem.maps": None,
    "postmortem.recovered_pointers": None,
    "postmortem.psi.system": None, "postmortem.psi.cgroups": None, "postmortem.psi.system.irq": None,
    "postmortem.irqs": None, "postmortem.schedstats.cpus": None,
    "postmortem.timers": None, "postmortem.workqueues.pools": None,
    "postmortem.workqueues.pools.*.busy.*.since_jiffies": "stall", "postmortem.workqueues.scx_watchdog": None,
    "postmortem.kernel_log": None,
}
# section of `unavailable`: (first and last kernel, reason, path in SECTIONS or None). Each of these
# has to be said on exactly these kernels, and nothing else.
PSI_IRQ = "enum psi_states has no member PSI_IRQ_FULL"
UNAVAILABLE = {
    "cgroup_psi": ("6.16", "7.3", PSI_IRQ, "cgroup_psi"),
    "psi.irq": ("6.16", "7.3", PSI_IRQ, "postmortem.psi.system.irq"),
    "schedstats": ("6.16", "7.3", "the static key sched_schedstats is off", None),
    "tasks.core_cookie": ("6.16", "7.3", "struct task_struct has no member core_cookie", None),
    "scx_sched_state.aborting": ("6.16", "6.18", "struct scx_sched has no member aborting", "postmortem.scheduler.aborting"),
    "scheduler.slice_dfl": ("6.16", "6.18", "struct scx_sched has no member slice_dfl", "postmortem.scheduler.slice_dfl_ns"),
    "scheduler.level": ("6.16", "7.0", "struct scx_sched has no member level", "postmortem.scheduler.level"),
    "scheduler.bypass_timestamp": ("6.16", "7.0", "struct scx_sched has no member bypass_timestamp", None),
    "scheduler.children": ("6.16", "7.0", "struct scx_sched has no member children", None),
    "scheduler.cgrp_path": ("6.16", "7.0", "struct scx_sched has no member cgrp_path", "postmortem.scheduler.cgroup_path"),
    "rq_scx_states.nr_immed": ("6.16", "7.0", "struct scx_rq has no member nr_immed", None),
    "exit_info.flags": ("6.16", "6.17", "struct scx_exit_info has no member flags", "postmortem.exit_info.flags"),
    "exit_info.exit_cpu": ("6.16", "7.1", "struct scx_exit_info has no member exit_cpu", "postmortem.exit_info.exit_cpu"),
    "rq_scx_states.ops_qseq": ("7.3", "7.3", "struct scx_rq has no member ops_qseq", "postmortem.cpus.*.ops_qseq"),
}
# Absent without a remark: what the kernel does not keep is not missed where the list has it optional.
SILENT = {"postmortem.workqueues.pools.*.busy.*.since_jiffies": ("6.16", "6.19", "struct worker has no member current_start")}
# What no rule of the findings tells yet: (demo, path) -> why.
OPEN = {}
# The log is longer than a report shows.
LIMITS = {"kernel_log"}


def series(short):
    return tuple(int(part) for part in short.split("."))


def within(kernel, first, last):
    return series(first) <= series(kernel) <= series(last)


def values(node, path):
    """Every value at a path."""
    if not path:
        return [node]
    name, rest = path[0], path[1:]
    if name == "*":
        return [value for each in node or [] for value in values(each, rest)]
    return values(node[name], rest) if isinstance(node, dict) and name in node else []


def is_there(report, path):
    # A number 0 and a False are values; an empty list or text is not.
    return any(value not in (None, "", [], {}) for value in values(report, path.split(".")))


class Guest:
    """One row of the matrix."""

    def __init__(self, kernel, name, where):
        self.kernel, self.name = kernel, name
        demo, self.extra = GUESTS[name]
        self.demo = DEMOS.get(kernel, {}).get(demo, demo)
        self.stalls = demo == "stall"
        self.out = where / f"{name}-{kernel}"

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

    def lacks(self, path):
        """The reason for which this guest's report has no such section; None where it must."""
        absent = [(first, last, reason) for first, last, reason, where in UNAVAILABLE.values() if where == path]
        absent += [SILENT[path]] if path in SILENT else []
        absent += [(self.kernel, self.kernel, OPEN[self.demo, path])] if (self.demo, path) in OPEN else []
        return next((reason for first, last, reason in absent if within(self.kernel, first, last)), None)

    def judge(self):
        """Everything that is not as expected, as sentences; and the sections: path -> there or not."""
        wrong, seen = [], {}
        for path, demo in SECTIONS.items():
            if demo and (demo == "stall") != self.stalls:
                continue
            there, reason = is_there(self.report, path), self.lacks(path)
            seen[path] = there
            if there == (reason is not None):
                wrong.append(f"{path} is {'there' if there else 'missing'}; expected: {reason or 'it is there'}")
        said = {each["section"]: each["reason"] for each in self.own.get("unavailable", [])}
        for section, (first, last, reason, _) in UNAVAILABLE.items():
            if within(self.kernel, first, last) and reason not in said.get(section, ""):
                wrong.append(f"unavailable: {section} is not said, or not because of `{reason}`: {said.get(section)}")
            elif not within(self.kernel, first, last) and section in said:
                wrong.append(f"unavailable: {section}, which is no news of this kernel: {said[section]}")
        wrong += [f"unavailable: {each}: {said[each]}" for each in said if each not in UNAVAILABLE]
        wrong += [f"limit: {each}" for each in self.own.get("limits", []) if each["what"] not in LIMITS]
        wrong += [f"anomaly: {each}" for each in self.own.get("anomalies", [])]
        wrong += [f"warning: {each}" for each in self.own.get("warnings", [])]
        wrong += self.values()
        return wrong, seen

    def values(self):
        """What is known about this guest beforehand."""
        recipe, kernel = self.recipe, self.own["kernel"]
        dump = self.own.get("dump_differences", {})
        facts = {
            "release": (kernel["release"], recipe["kernel"]["release"]),
            "CPUs": (len(self.own["cpus"]), recipe["cpus"]),
            "nodes": (len(self.report["per_node_numa"]), recipe["numa_nodes"]),
            "registers": (sum(each is not None for each in self.report["vcpu_regs"]), recipe["cpus"]),
            "paging": (kernel["paging_levels"], 4 if "la57=off" in recipe["cpu"] else 5),
            "exit kind": (self.own["exit_info"]["kind"], 1026 if self.stalls else 1025),
            "starved": ({each["comm"] for each in self.own.get("starved", [])}, STARVED if self.stalls else set()),
            "differences from the kernel's dump": (dump.get("differences", []), []),
            # How many there are is up to how many tasks happen to be runnable: 70 to 190 were seen.
            "values compared with the kernel's dump": (dump.get("compared", 0) >= 40, True),
        }
        if "nokaslr" in recipe["append"]:
            facts["KASLR offset"] = (kernel["kaslr_offset"], "0x0")
        return [f"{name}: {ours}, expected {theirs}" for name, (ours, theirs) in facts.items() if ours != theirs]

    def interop(self):
        """tests/interop/run.py: its lines about the guest's own kernel, the maps and drgn."""
        done = subprocess.run([sys.executable, ROOT / "tests/interop/run.py", self.out, "--without", "crash"],
                              check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        check(done.returncode == 0, done.stdout.strip())
        said = {}
        for line in done.stdout.splitlines():
            match = re.match(r"   (\S.*?) +ok: (.*)", line)
            if match:
                said[match[1]] = match[2]
        return said


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def page(guests):
    """The block of docs/kernels.md."""
    notes, rows = [], []
    kernels = list(dict.fromkeys(guest.kernel for guest in guests))
    for path in SECTIONS:
        row = [f"`{path}`"]
        for kernel in kernels:
            cells = [guest.seen[path] for guest in guests if guest.kernel == kernel and path in guest.seen]
            reason = next(guest.lacks(path) for guest in guests if guest.kernel == kernel)
            if reason and reason not in notes:
                notes.append(reason)
            row.append("yes" if all(cells) else f"no ({notes.index(reason) + 1})")
        rows.append(row)
    whole = [row for row in rows if set(row[1:]) == {"yes"}]
    parts = [
        BEGIN + "\n\n",
        f"Seen by `tests/guest/matrix.py` on {len(guests)} guests. On every kernel: "
        + ", ".join(row[0] for row in whole) + ".\n\n",
        "Not on every kernel, with the reason that the report gives:\n\n",
        table(["section", *kernels], [row for row in rows if row not in whole]),
        "\n",
        "".join(f"{number}. {reason}\n" for number, reason in enumerate(notes, 1)),
        "\nGuests. The kernel's own dump is compared with the report by `analyze` itself (`dump_differences`): values, "
        "of which equal, counters that grew between dump and core, differences; tasks that had not moved, and that had.\n\n",
    ]
    header = ["kernel", "guest", "demo", "sections", "dump: values", "equal", "grown", "differences", "tasks", "moved"]
    interop = any(guest.said for guest in guests)
    header += ["guest's own kernel", "drgn"] if interop else []
    rows = []
    for guest in guests:
        dump = guest.own["dump_differences"]
        row = [guest.recipe["kernel"]["release"].split("+")[0], guest.name, guest.demo,
               f"{sum(guest.seen.values())} of {len(guest.seen)}", dump["compared"], dump["equal"], dump["grown"],
               len(dump.get("differences", [])), dump["tasks"], dump["moved"]]
        row += [guest.said.get("own kernel", ""), guest.said.get("drgn", "")] if interop else []
        rows.append(row)
    return "".join(parts) + table(header, rows) + "\n" + END


def write(block):
    text = PAGE.read_text()
    before, found, rest = text.partition(BEGIN)
    _, found_end, after = rest.partition(END)
    check(found and found_end, f"{PAGE} has no place for the table: {BEGIN} … {END}")
    PAGE.write_text(before + block + after)


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
    if options.analyze == ROOT / "target/release/analyze":
        subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=ROOT, check=True)
    guests, failed = [], 0
    with tempfile.TemporaryDirectory(prefix="scxpm-matrix-") as scratch:
        where = options.keep or pathlib.Path(scratch)
        for kernel in kernels:
            for name in names:
                if name not in EVERYWHERE and kernel not in VARIANTS_ON:
                    continue
                guest = Guest(kernel, name, where)
                try:
                    if options.reuse and (guest.out / "recipe.json").exists():
                        guest.load()
                    else:
                        guest.boot(options.attempts)
                    guest.analyze(options.analyze)
                    wrong, guest.seen = guest.judge()
                    check(not wrong, "\n        ".join(wrong))
                    guest.said = guest.interop() if options.interop else {}
                except (Failed, PackageError, OSError, ValueError, KeyError) as error:
                    print(f"FAILED  {name} on {kernel}: {error}", flush=True)
                    failed += 1
                    continue
                finally:
                    if not options.keep:
                        (guest.out / "core.elf").unlink(missing_ok=True)
                dump = guest.own["dump_differences"]
                print(f"ok      {name} on {kernel}: {sum(guest.seen.values())} of {len(guest.seen)} sections, "
                      f"{dump['compared']} values of the kernel's dump, 0 differences", flush=True)
                guests.append(guest)
    print(f"{len(guests)} guests as expected, {failed} not", flush=True)
    whole = set(kernels) == set(MATRIX) and set(names) == set(GUESTS)
    if not failed and not options.check:
        if whole:
            write(page(guests))
        else:
            print("docs/kernels.md is written only from all guests", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
