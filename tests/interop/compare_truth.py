#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Compares a report with what the guest's own kernel said.

    compare_truth.py REPORT.json TRUTHDIR [--recipe RECIPE.json]
    compare_truth.py target/release/analyze TRUTHDIR --core CORE.elf

TRUTHDIR holds stages of saved /proc, /sys, bpftool and kernel dump text (tests/guest/README.md).
The recipe defaults to recipe.json beside TRUTHDIR. A value that was saved at another
moment than the core may differ only as its rule says; the rules are printed with the
count of values that needed them. Exit 1 when a value differs in another way.
"""

import argparse
import json
import os
import pathlib
import re

from common import UNAVAILABLE, Tally, hexa, load_report, unavailable

USER_HZ = 100
# kernel/sched/core.c: sched_prio_to_weight, nice -20 to 19
WEIGHTS = (
    88761, 71755, 56483, 46273, 36291, 29154, 23254, 18705, 14949, 11916, 9548, 7620, 6100, 4904, 3906,
    3121, 2501, 1991, 1586, 1277, 1024, 820, 655, 526, 423, 335, 272, 215, 172, 137, 110, 87, 70, 56, 45,
    36, 29, 23, 18, 15,
)
SOFTIRQS = ("HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU")
POLICIES = {0: "SCHED_NORMAL", 1: "SCHED_FIFO", 2: "SCHED_RR", 3: "SCHED_BATCH", 5: "SCHED_IDLE",
            6: "SCHED_DEADLINE", 7: "SCHED_EXT"}
TIMES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
# States of a task by number, include/linux/sched/ext.h; in 7.1 two were added and renumbered.
STATES_OLD = ("NONE", "INIT", "READY", "ENABLED")
STATES_NEW = ("NONE", "INIT_BEGIN", "INIT", "READY", "ENABLED", "DEAD")
LEVELS = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")
# Counters of a domain in /proc/schedstat, version 17 (kernel/sched/stats.c).
DOMAIN_COUNTERS = [
    f"{name}[{idle}]" for idle in ("__CPU_NOT_IDLE", "CPU_IDLE", "CPU_NEWLY_IDLE")
    for name in ("lb_count", "lb_balanced", "lb_failed", "lb_imbalance_load", "lb_imbalance_util", "lb_imbalance_task",
                 "lb_imbalance_misfit", "lb_gained", "lb_hot_gained", "lb_nobusyq", "lb_nobusyg")
] + [
    "alb_count", "alb_failed", "alb_pushed", "sbe_count", "sbe_balanced", "sbe_pushed", "sbf_count", "sbf_balanced",
    "sbf_pushed", "ttwu_wake_remote", "ttwu_move_affine", "ttwu_move_balance",
]
OPS_STATES = ("NONE", "QUEUEING", "QUEUED", "DISPATCHING")
# Between the kernel's line about a task and the core: the rest of the dump is written, then
# the emulator stops the guest. 0 to 10 jiffies on an idle host, 100 on a busy one; but then all
# of a core's tasks are late together.
MAX_AGE_JIFFIES = 1000
MAX_SPREAD_JIFFIES = 50

MOVED = "ran or was queued again after the kernel wrote its line: younger than in the dump, or off the list"
LATER = f"the core is later than the kernel's line, by the same number of jiffies for all tasks (+-{MAX_SPREAD_JIFFIES})"
GROWN = "a counter between its values before and after the core"
AVERAGED = "the kernel averaged again after the saved state and before the core"


def text(path):
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def kernel_series(release):
    match = re.match(r"(\d+)\.(\d+)", release or "")
    return (int(match[1]), int(match[2])) if match else (0, 0)


# The kernel's own dump, kernel/sched/ext.c: scx_dump_state()

CPU_LINE = re.compile(
    r"CPU (\d+) *: nr_run=(\d+) flags=0x([0-9a-f]+) cpu_rel=(\d+)"
    r"(?: ops_qseq=(\d+))?(?: (?:pnt_seq|ksync)=(\d+))?"
)
CURR_LINE = re.compile(r" +curr=(.*)\[(-?\d+)\] class=(\S+)$")
TASK_LINE = re.compile(r" (.)(.) (.*)\[(\d+)\](?: \S+)? ([+-]\d+)ms$")
TASK_DETAIL = (
    re.compile(r"scx_state/flags=(\d+)/0x([0-9a-f]+) dsq_flags=0x([0-9a-f]+) ops_state/qseq=(\d+)/(\d+)"),
    re.compile(r"sticky/holding_cpu=(-?\d+)/(-?\d+) dsq_id=(\S+)"),
    re.compile(r"dsq_vtime=(\d+) slice=(\d+) weight=(\d+)"),
    re.compile(r"cpus=([0-9a-f,]+)(?: no_mig=(\d+))?"),
)
EVENT_LINE = re.compile(r" +(SCX_EV_\w+): +(-?\d+)$")


def parse_dump(dump):
    """{backtrace, cpus: {cpu: {..., tasks: [...]}}, events, ends: the text was cut off}"""
    out = {"backtrace": [], "cpus": {}, "events": {}, "cut": "Event counters" not in dump}
    lines = dump.split("\n")
    in_backtrace, cpu, task = False, None, None
    for line in lines:
        if line == "Backtrace:":
            in_backtrace = True
        elif in_backtrace and line.startswith("  "):
            out["backtrace"].append(line.strip())
        elif match := CPU_LINE.match(line):
            in_backtrace = False
            number, nr, flags, released, qseq, ksync = match.groups()
            cpu = out["cpus"][int(number)] = {
                "nr_running": int(nr), "flags": int(flags, 16), "cpu_released": bool(int(released)),
                "ops_qseq": qseq and int(qseq), "kick_sync": ksync and int(ksync), "tasks": [],
            }
            task = None
        elif cpu is not None and (match := CURR_LINE.match(line)):
            cpu["curr"] = (match[1], int(match[2]), match[3])
        elif cpu is not None and (match := TASK_LINE.match(line)):
            # No limit on comm's spelling: the last `[pid] …ms` of the line counts.
            task = {"current": match[1] == "*", "state": match[2], "comm": match[3], "pid": int(match[4]),
                    "age_ms": -int(match[5])}
            cpu["tasks"].append(task)
        elif task is not None and line.startswith("      "):
            if match := TASK_DETAIL[0].search(line):
                task.update(scx_state=int(match[1]), scx_flags=int(match[2], 16), dsq_flags=int(match[3], 16),
                            ops_state=int(match[4]), ops_qseq=int(match[5]))
            elif match := TASK_DETAIL[1].search(line):
                task.update(sticky_cpu=int(match[1]), holding_cpu=int(match[2]),
                            dsq_id=None if match[3] == "(n/a)" else int(match[3], 16))
            elif match := TASK_DETAIL[2].search(line):
                task.update(dsq_vtime=int(match[1]), slice=int(match[2]), weight=int(match[3]))
            elif match := TASK_DETAIL[3].search(line):
                task.update(cpus=int(match[1].replace(",", ""), 16), no_mig=match[2] and int(match[2]))
        elif match := EVENT_LINE.match(line):
            cpu, task = None, None
            out["events"][match[1]] = int(match[2])
    return out


def mask_of(cpulist):
    mask = 0
    for part in filter(None, (cpulist or "").split(",")):
        first, _, last = part.partition("-")
        for cpu in range(int(first), int(last or first) + 1):
            mask |= 1 << cpu
    return mask


# Stages of the truth


class Stage:
    def __init__(self, path):
        self.path = path
        self.stat = self._stat()
        self.tasks = self._tasks()

    def read(self, name):
        return text(self.path / name)

    def _stat(self):
        cpus = {}
        for line in (self.read("proc/stat") or "").splitlines():
            if match := re.match(r"cpu(\d+) (.*)", line):
                cpus[int(match[1])] = dict(zip(TIMES, map(int, match[2].split())))
        return cpus

    def table(self, name):
        """Rows `LABEL: count per CPU …` of /proc/softirqs and /proc/interrupts."""
        lines = (self.read(name) or "").splitlines()
        if not lines:
            return {}
        columns = len(lines[0].split())
        rows = {}
        for line in lines[1:]:
            label, _, rest = line.partition(":")
            counts = rest.split()[:columns]
            if len(counts) == columns and all(c.isdigit() for c in counts):
                rows[label.strip()] = list(map(int, counts))
        return rows

    def _tasks(self):
        """Threads by id, from /proc/PID/task/TID."""
        found = {}
        for path in (self.path / "proc").glob("[0-9]*/task/[0-9]*"):
            stat, status = text(path / "stat"), text(path / "status")
            if not stat or not status:
                continue
            match = re.match(r"(\d+) \((.*)\) (.*)", stat, re.DOTALL)
            if not match:
                continue
            fields = match[3].split()
            lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
            value = lambda name: lines.get(name, "").strip()
            sched = text(path / "sched") or ""
            ext = re.search(r"^ext\.enabled\s*:\s*(\d+)", sched, re.M)
            found[int(match[1])] = {
                "name": match[2],
                "state": fields[0], "ppid": int(fields[1]), "pgid": int(fields[2]), "sid": int(fields[3]),
                "utime": int(fields[11]), "stime": int(fields[12]),
                "prio": int(fields[15]), "nice": int(fields[16]), "nr_threads": int(fields[17]),
                "start": int(fields[19]), "cpu": int(fields[36]),
                "rt_priority": int(fields[37]), "policy": int(fields[38]),
                "state_in_status": (value("State")[:1], value("State")[3:-1]),
                "tgid": int(value("Tgid") or 0),
                "comm": value("Name"),
                "cpus_allowed": value("Cpus_allowed_list"),
                "nvcsw": int(value("voluntary_ctxt_switches") or 0),
                "nivcsw": int(value("nonvoluntary_ctxt_switches") or 0),
                "ext": ext and int(ext[1]),
                "wchan": (text(path / "wchan") or "").strip(),
                "cgroup": next((line[3:] for line in (text(path / "cgroup") or "").splitlines()
                                if line.startswith("0::")), None),
            }
        return found

    def uptime(self):
        value = self.read("proc/uptime")
        return float(value.split()[0]) if value else None

    def uptime_of_mark(self, stage):
        """Seconds at which the guest began to save this stage, from its kernel log."""
        match = re.search(rf"\[ *(\d+\.\d+)\] scx-postmortem: saving {stage}\b", self.read("dmesg") or "")
        return float(match[1]) if match else None

    def events(self):
        for path in sorted((self.path / "sys/kernel/sched_ext").glob("*/events")):
            pairs = [line.split() for line in text(path).splitlines()]
            return {name: int(count) for name, count in pairs}
        return {}

    def bpftool(self, name):
        """What `bpftool -j` printed; None where it was not asked."""
        value = self.read(f"bpftool/{name}.json")
        return json.loads(value) if value and value.strip() else None

    def sched_ext(self, name):
        value = self.read(f"sys/kernel/sched_ext/{name}")
        return value.strip() if value is not None else None


class Comparison:
    def __init__(self, report, truth, recipe):
        self.report = report
        self.own = report.get("postmortem") or {}
        self.truth = truth
        self.recipe = recipe
        self.tally = Tally()
        stages = {p.name: Stage(p) for p in truth.iterdir() if (p / "proc").is_dir()}
        # The last that was saved before the core, and the one after it.
        self.before = stages.get("late") or stages.get("stop")
        self.after = stages.get("after")
        if not self.before or not self.after:
            raise SystemExit(f"{truth}: no stages `stop` and `after` with a proc directory")
        self.tasks = {}
        for info in self.own.get("tasks") or []:
            self.tasks.setdefault(info["pid"], info)
        self.series = kernel_series((self.own.get("kernel") or {}).get("release"))
        self.at_dump = recipe.get("stop") == "dump"
        # The core was taken while the scheduler still ran: what came after is not in it.
        self.before_failure = recipe.get("stop") in ("mid", "now")
        self.ages = []

    def late(self, jiffies):
        """Whether the core can be that much later than the kernel's line on a task."""
        self.ages.append(jiffies)
        return 0 <= jiffies <= MAX_AGE_JIFFIES and jiffies - self.ages[0] in range(-MAX_SPREAD_JIFFIES, MAX_SPREAD_JIFFIES + 1)

    def run(self):
        self.kernel()
        self.exit_record()
        if self.own.get("scheduler"):
            self.scheduler()
            self.events()
        if self.at_dump:
            self.state_in_dump()
            self.starved()
        self.task_list()
        self.cpu_masks()
        self.locks()
        self.cpu_time()
        self.pressure()
        self.numa()
        self.interrupts()
        self.schedstats()
        self.timers()
        self.kernel_log()
        self.programs()
        self.links()
        self.callbacks()
        return self.tally

    def within(self, section, where, low, ours, high, rule=GROWN):
        """low <= ours <= high; equal ends count as equal."""
        if low == high:
            self.tally.check(section, where, ours, low)
        else:
            ok = ours is not None and low <= ours <= high
            self.tally.allow(section, where, ours, f"{low} to {high}", rule, ok)

    # Timers

    def timers(self):
        """hrtimers that /proc/timer_list shows before the core and after it, with the same function and moment, were
        set in between as well. Those that a CPU always has are there: its tick and its watchdog, unless it sleeps,
        or stands in a timer's function, which is then on no list."""
        def listed(stage):
            found, cpu, clock, function = [], None, None, None
            for line in (stage.read("proc/timer_list") or "").splitlines():
                if match := re.match(r"cpu: (\d+)", line):
                    cpu = int(match[1])
                elif match := re.match(r" clock (\d+):", line):
                    clock = int(match[1])
                elif match := re.match(r" #\d+: <[0-9a-f]+>, (\S+), ", line):
                    function = match[1]
                elif match := re.match(r" # expires at \d+-(\d+) nsecs", line):
                    found.append((cpu, clock, function, int(match[1])))
            return found

        section = "timers"
        before, after = listed(self.before), listed(self.after)
        if not before or not after:
            return
        names = ("MONOTONIC", "REALTIME", "BOOTTIME", "TAI", "MONOTONIC_SOFT", "REALTIME_SOFT", "BOOTTIME_SOFT", "TAI_SOFT")
        ours = {(t["cpu"], names.index(t["base"]), t.get("function"), t.get("expires_ns"))
                for t in self.own.get("timers") or [] if t["kind"] == "hrtimer"}
        for timer in sorted(set(before) & set(after)):
            # A sleeping CPU's tick is set far ahead, and anew whenever it wakes and falls asleep again.
            if timer[2] == "tick_nohz_handler":
                continue
            self.tally.check(section, f"cpu {timer[0]} {timer[2]} at {timer[3]}", timer in ours, True)
        idle = {cpu["cpu"] for cpu in self.own.get("cpus") or [] if cpu.get("idle")}
        idle |= {t["cpu"] for t in self.own.get("timers") or [] if t.get("running") and not t.get("function")}
        on = lambda rows, function: sorted(t[0] for t in rows if t[2] == function and t[0] not in idle)
        for function in ("tick_nohz_handler", "watchdog_timer_fn"):
            here = sorted({t[0] for t in before if t[2] == function} - idle)
            self.tally.check(section, f"CPUs with {function}", on(ours, function), here)

    # The guest's kernel

    def kernel(self):
        kernel, section = self.own.get("kernel") or {}, "kernel"
        check = lambda name, ours, theirs: self.tally.check(section, name, ours, theirs)
        check("cmdline", kernel.get("cmdline"), (self.before.read("proc/cmdline") or "").strip("\n"))
        check("version_banner", kernel.get("version_banner"), (self.before.read("proc/version") or "").strip("\n"))
        check("nr_cpus", kernel.get("nr_cpus"), len(self.before.stat))
        if "kernel" in self.recipe:
            check("release", kernel.get("release"), self.recipe["kernel"]["release"])
        if "cpus" in self.recipe:
            check("cpus_online", mask_of(kernel.get("cpus_online")), (1 << self.recipe["cpus"]) - 1)
        if "cpu" in self.recipe:
            levels = 5 if self.recipe["cpu"].startswith("max") and "la57=off" not in self.recipe["cpu"] else 4
            check("paging_levels", kernel.get("paging_levels"), levels)
        symbols = dict(
            (name, int(at, 16))
            for at, _, name in (line.split()[:3] for line in (text(self.truth / "boot/kallsyms_some") or "").splitlines())
        )
        if "_text" in symbols:
            offset = symbols["_text"] - 0xFFFFFFFF81000000
            check("kaslr_offset", hexa(kernel.get("kaslr_offset")), offset)
            code = re.search(r"([0-9a-f]+)-[0-9a-f]+ : Kernel code", text(self.truth / "boot/iomem") or "")
            if code:
                check("phys_base", kernel.get("phys_base"), int(code[1], 16) - offset - 0x1000000)
        low, high = self.before.uptime(), self.after.uptime()
        low = self.before.uptime_of_mark(self.before.path.name) or low
        high = self.after.uptime() or high
        up = kernel.get("uptime_ns")
        if up is None and unavailable(self.own, "kernel.uptime_ns"):
            self.tally.allow(section, "uptime", None, high, UNAVAILABLE, True)
        elif low is not None:
            self.within(section, "uptime", low, up / 1e9 if up is not None else None, high,
                        "the core was taken between the two saved states")
        jiffies = [
            [int(n) for n in re.findall(r"^jiffies: (\d+)", stage.read("proc/timer_list") or "", re.M)]
            for stage in (self.before, self.after)
        ]
        if all(jiffies):
            self.within(section, "jiffies", min(jiffies[0]), kernel.get("jiffies"), max(jiffies[1]),
                        "the core was taken between the two saved states")
            # HZ by the kernel's own two clocks.
            ticks = max(jiffies[1]) - max(jiffies[0])
            seconds = self.after.uptime() - self.before.uptime()
            if seconds > 2:
                hz = min((100, 250, 300, 1000), key=lambda hz: abs(hz - ticks / seconds))
                self.tally.allow(section, "hz", kernel.get("hz"), hz, UNAVAILABLE,
                                 kernel.get("hz") is None and unavailable(self.own, "clock"))

    # The scheduler

    def exit_record(self):
        section = "exit_info"
        ours = self.own.get("exit_info")
        record = text(self.truth / "after/scx_exit.json")
        if record is None or self.before_failure:
            self.tally.check(section, "absent", ours, None)
            return
        ours, record = ours or {}, json.loads(record)
        for name in ("kind", "exit_code", "reason", "msg"):
            self.tally.check(section, name, ours.get(name), record[name])
        theirs = (text(self.truth / "after/scx_dump.txt") or "").split("\0")[0]
        self.tally.check(section, "dump", ours.get("dump"), theirs)
        parsed = parse_dump(theirs)
        frames = ours.get("backtrace") or []
        self.tally.check(section, "backtrace length", len(frames), len(parsed["backtrace"]))
        for i, (mine, line) in enumerate(zip(frames, parsed["backtrace"])):
            self.tally.check(section, f"frame {i}", mine.get("symbol"), line)
        log = self.after.read("dmesg") or ""
        said = re.search(r'sched_ext: BPF scheduler "(.*)" disabled \((.*)\)', log)
        if said:
            name = (self.own.get("scheduler") or {}).get("ops_name")
            self.tally.check(section, "kernel log: name", name, said[1])
            self.tally.check(section, "kernel log: reason", ours.get("reason"), said[2])

    def scheduler(self):
        section, ours = "scheduler", self.own["scheduler"]
        stop = self.before
        name = stop.sched_ext("root/ops")
        if name is not None:
            self.tally.check(section, "ops_name", ours.get("ops_name"), name)
        for member in ("nr_rejected", "enable_seq", "hotplug_seq"):
            low, high = stop.sched_ext(member), self.after.sched_ext(member)
            if low is not None and high is not None:
                self.within(section, member, int(low), ours.get(member), int(high))
        if ours.get("found_via") == "struct_ops map":
            # It was ejected: what the kernel has once for all is no longer about it.
            for member in ("switched_all", "enable_state"):
                self.tally.check(section, f"{member} of an ejected scheduler", ours.get(member), None)
            self.tally.check(section, "ejected", self.after.sched_ext("state"), "disabled")
            return
        switched = stop.sched_ext("switch_all")
        if switched is not None:
            self.tally.check(section, "switched_all", ours.get("switched_all"), bool(int(switched)))
        states = [stop.sched_ext("state"), self.after.sched_ext("state")]
        self.tally.allow(section, "enable_state", ours.get("enable_state"), states[0],
                         "the state of the scheduler once it was ejected", ours.get("enable_state") == states[1])

    def events(self):
        section = "event_counters"
        ours = {e["name"]: e["value"] for e in self.own.get("event_counters") or []}
        low, high = self.before.events(), self.after.events()
        stop = self.truth / "stop"
        if not low and stop.is_dir():
            low = Stage(stop).events()
        dump = text(self.truth / "after/scx_dump.txt")
        dumped = parse_dump(dump)["events"] if dump else {}
        self.tally.check(section, "names", list(ours), list(low))
        for name, count in low.items():
            mine = ours.get(name)
            top = high.get(name)
            rule = "a counter since its value before the core"
            ok = mine is not None and mine >= count and (top is None or mine <= top)
            self.tally.allow(section, f"{name} and sysfs", mine, count, rule, ok)
            if name in dumped and not self.before_failure:
                rule = "a counter since the kernel's dump"
                self.tally.allow(section, f"{name} and dump", mine, dumped[name], rule,
                                 mine is not None and mine >= dumped[name])

    # Queues and tasks against the kernel's dump in the same memory

    def state_in_dump(self):
        dump = (self.own.get("exit_info") or {}).get("dump")
        if not dump:
            self.tally.problem("dump", "the core was taken at the end of the kernel's dump, but there is none")
            return
        self.dump = parse_dump(dump)
        self.hz = (self.own.get("kernel") or {}).get("hz") or 250
        # In a cut dump the last task may be half a task.
        cpus = {c["cpu"]: c for c in self.own.get("cpus") or []}
        self.place = {}
        for number, mine in cpus.items():
            for task in mine.get("runnable") or []:
                self.place[task["pid"]] = number
        idle = 0
        for number, theirs in self.dump["cpus"].items():
            self.dumped_cpu(number, cpus.get(number) or {}, theirs)
        for number, mine in cpus.items():
            if number not in self.dump["cpus"] and not self.dump["cut"]:
                # scx_dump_state() leaves out idle CPUs.
                idle += 1
                self.tally.allow("dump cpus", f"cpu {number}", mine.get("idle"), True,
                                 "a CPU that the dump leaves out as idle has work by now", True)

    def dumped_cpu(self, number, mine, theirs):
        section, where = "dump cpus", f"cpu {number}"
        since = "the CPU ran on after the kernel's line about it"
        exit_cpu = self.dumping_cpu()
        curr = mine.get("curr") or {}
        here = number == exit_cpu
        comm, pid, of = theirs["curr"]
        same_curr = curr.get("pid") == pid
        self.tally.allow(section, f"{where} curr", (curr.get("comm"), curr.get("pid")), (comm, pid), since, not here)
        if same_curr:
            self.tally.check(section, f"{where} curr class", f"{curr.get('class')}_sched_class", of)
        state = next((s for s in self.report.get("rq_scx_states") or [] if s["cpu"] == number), {})
        # The running task counts and is not on the list, except while it is being put back there.
        present = {t["pid"] for t in mine.get("runnable") or []}
        present |= {curr.get("pid")} if curr.get("class") == "ext" else set()
        self.tally.allow(section, f"{where} nr_running", state.get("nr_running"), theirs["nr_running"],
                         "tasks came or went after the kernel's line", state.get("nr_running") == len(present))
        flags = state.get("flags", 0)
        self.tally.allow(section, f"{where} flags", flags, theirs["flags"],
                         "bits that come and go: CLK_VALID, BAL_*, IN_WAKEUP, IN_BALANCE or IN_DISPATCH",
                         (flags ^ theirs["flags"]) & ~(0x30000 | 0x20 | 0x04 | 0x08 | 0x40) == 0)
        self.tally.check(section, f"{where} cpu_released", state.get("cpu_released"), theirs["cpu_released"])
        for name in ("ops_qseq", "kick_sync"):
            if theirs[name] is not None:
                ours = state.get(name)
                self.tally.allow(section, f"{where} {name}", ours, theirs[name], "a sequence number grows",
                                 ours is not None and ours >= theirs[name])
        for task in theirs["tasks"]:
            self.dumped_task(number, task)
        # Those that the dump does not have came later: they are younger than its last line.
        pids = {t["pid"] for t in theirs["tasks"]}
        for task in mine.get("runnable") or []:
            if task["pid"] not in pids:
                known = {t["pid"]: t for c in self.dump["cpus"].values() for t in c["tasks"]}
                age = task.get("runnable_age_ms") or 0
                late = min(self.ages, default=0) + MAX_SPREAD_JIFFIES
                limit = late * 1000 // self.hz
                self.tally.allow("dump tasks", f"{where} {task['comm']}[{task['pid']}] not in dump", True, False,
                                 "became runnable here after the kernel's line",
                                 self.dump["cut"] or age <= limit or task["pid"] in known)
        order = [t["pid"] for t in theirs["tasks"] if not t["current"]]
        stayed = [t["pid"] for t in mine.get("runnable") or [] if t["pid"] in set(order)]
        still = [pid for pid in order if pid in set(stayed)]
        young = {t["pid"] for t in theirs["tasks"] if self.moved(t)}
        self.tally.check("dump cpus", f"{where} order of the runnable list",
                         [p for p in stayed if p not in young], [p for p in still if p not in young])

    def dumping_cpu(self):
        """The CPU in scx_dump_state(): it has not run anything else since."""
        for number, cpu in self.dump["cpus"].items():
            if any(t["current"] for t in cpu["tasks"]):
                comm, pid, _ = cpu["curr"]
                info = self.tasks.get(pid) or {}
                exit_cpu = (self.own.get("exit_info") or {}).get("exit_cpu")
                if exit_cpu == number and info.get("on_cpu"):
                    return number
        return None

    def age_since(self, theirs):
        """Jiffies between the kernel's line and the core, by the task's age; None when not comparable.

        The dump has an age for the running task too, by the runnable_at of its last wait.
        """
        info = self.tasks.get(theirs["pid"])
        if not info or (info.get("runnable_age_jiffies") is None and not info.get("on_cpu")):
            return None
        age = (self.own["kernel"]["jiffies"] - info["runnable_at_jiffies"]) % (1 << 64)
        return age - theirs["age_ms"] * self.hz // 1000

    def moved(self, theirs):
        since = self.age_since(theirs)
        return since is None or since < 0

    def dumped_task(self, cpu, theirs):
        section, where = "dump tasks", f"{theirs['comm']}[{theirs['pid']}]"
        info = self.tasks.get(theirs["pid"])
        parked = theirs["comm"].startswith("starve-")
        if info is None:
            self.tally.allow(section, f"{where} exists", False, True, "exited after the kernel's line",
                             not parked and theirs["current"])
            return
        self.tally.check(section, f"{where} comm", info["comm"], theirs["comm"])
        if self.moved(theirs):
            self.tally.allow(section, f"{where} unchanged", False, True, MOVED, not parked)
            return
        since = self.age_since(theirs)
        self.tally.allow(section, f"{where} age", since, 0, LATER, self.late(since))
        running = theirs["current"] or info.get("on_cpu")
        if not theirs["current"]:
            at = self.place.get(theirs["pid"])
            self.tally.allow(section, f"{where} cpu", at, cpu, "a waiting task was moved to or taken by a CPU",
                             not parked and (running or at is not None))
        states = STATES_NEW if self.series >= (7, 1) else STATES_OLD
        mask = 0x700 if self.series >= (7, 1) else 0x300
        flags = hexa((info.get("scx_flags") or {}).get("raw")) or 0
        exact = {
            "scx_state": (info.get("scx_state"), states[theirs["scx_state"]]),
            "weight": (info.get("scx_weight"), theirs["weight"]),
            "dsq_vtime": (info.get("dsq_vtime"), theirs["dsq_vtime"]),
            "sticky_cpu": (info.get("sticky_cpu"), theirs["sticky_cpu"]),
            "cpus_allowed": (mask_of(info.get("cpus_allowed")), theirs["cpus"]),
        }
        for name, (mine, value) in exact.items():
            self.tally.check(section, f"{where} {name}", mine, value)
        # A task that runs, or was taken from its queue since, changes these.
        loose = {
            "state": (info.get("state"), theirs["state"]),
            "scx_flags": (flags & ~mask, theirs["scx_flags"]),
            "ops_state": (info.get("ops_state"), OPS_STATES[theirs["ops_state"]]),
            "ops_qseq": (info.get("ops_qseq"), theirs["ops_qseq"]),
            "holding_cpu": (info.get("holding_cpu"), theirs["holding_cpu"]),
            "dsq_id": (hexa(info.get("dsq_id")), theirs["dsq_id"]),
            "slice": (info.get("slice_ns"), theirs["slice"]),
        }
        if theirs["no_mig"] is not None:
            loose["migration_disabled"] = (info.get("migration_disabled"), theirs["no_mig"])
        # unlink_dsq_and_lock_src_rq(): a CPU about to move a task notes itself in holding_cpu first.
        held = info.get("holding_cpu") not in (-1, None)
        taken = running or held or hexa(info.get("dsq_id")) != theirs["dsq_id"]
        for name, (mine, value) in loose.items():
            self.tally.allow(section, f"{where} {name}", mine, value,
                             "the task runs, or left its queue after the kernel's line", taken and not parked)

    def starved(self):
        """The tasks that the report names, against the kernel's words about them."""
        section = "starved"
        if not self.own.get("exit_info", {}).get("dump"):
            return
        timeout = (self.own.get("scheduler") or {}).get("watchdog_timeout_ms") or 0
        theirs = {
            (t["pid"], t["comm"]): (t, cpu)
            for cpu, c in self.dump["cpus"].items() for t in c["tasks"]
            if not t["current"] and t["age_ms"] >= timeout / 2
        }
        ours = {(t["pid"], t["comm"]): t for t in self.own.get("starved") or []}
        if not self.dump["cut"]:
            self.tally.check(section, "who", sorted(ours), sorted(theirs))
        for key, (line, cpu) in theirs.items():
            mine = ours.get(key)
            if not mine:
                continue
            where = f"{key[1]}[{key[0]}]"
            self.tally.check(section, f"{where} dsq_id", hexa(mine.get("dsq_id")), line["dsq_id"])
            self.tally.check(section, f"{where} cpu", mine.get("cpu"), cpu)
            since = mine["runnable_age_jiffies"] - line["age_ms"] * self.hz // 1000
            self.tally.allow(section, f"{where} age", since, 0, LATER, self.late(since))
        said = re.match(r"(.*)\[(\d+)\] failed to run for (\d+)\.(\d+)s", self.own["exit_info"].get("msg") or "")
        if said:
            mine = ours.get((int(said[2]), said[1]))
            self.tally.check(section, "the task in the message", mine is not None, True)
            if mine:
                age = int(said[3]) * 1000 + int(said[4])
                since = (mine["runnable_age_ms"] - age) * self.hz // 1000
                self.tally.allow(section, "age in the message", since, 0, LATER, 0 <= since <= MAX_AGE_JIFFIES)

    # /proc

    def task_list(self):
        section = "tasks and /proc"
        enriched = {}
        for info, record in zip(self.own.get("tasks") or [], self.report.get("task_enrichments") or []):
            enriched[info["pid"]] = record
        before, after = self.before.tasks, self.after.tasks
        both = {pid for pid in before if pid in after and before[pid]["start"] == after[pid]["start"]}
        for pid in sorted(both):
            info = self.tasks.get(pid)
            if info is None:
                self.tally.problem(section, f"{before[pid]['name']}[{pid}] lives before and after, not in the report")
                continue
            self.task(section, info, enriched.get(pid), before[pid], after[pid])
        for pid, info in self.tasks.items():
            if pid in both:
                continue
            where = f"{info['comm']}[{pid}] is in the report only"
            if pid == 0:
                rule, ok = "a CPU's idle task is not in /proc", info["comm"].startswith("swapper/")
            elif pid in before or pid in after:
                rule, ok = "it was in one of the two saved states", True
            elif info.get("state") in ("X", "Z"):
                rule, ok = "it had exited and was yet to be freed", True
            else:
                rule, ok = "it began after the one state and ended before the other", pid > min(before)
                ok = ok and pid > max(p for p in before)
            self.tally.allow(section, where, True, False, rule, ok)

    def task(self, section, info, record, before, after):
        where = f"{info['comm']}[{info['pid']}]"

        def steady(name, mine, key, convert=lambda v: v):
            """A value that rarely changes: as it was before, or as it is after."""
            old, new = convert(before[key]), convert(after[key])
            self.tally.allow(section, f"{where} {name}", mine, old, "as in the state saved after the core", mine == new)

        # /proc shows a kernel thread's whole name, and a worker's work.
        long = before["comm"].startswith(info["comm"]) and len(before["comm"]) > len(info["comm"])
        kernel = info["pid"] == 2 or before["ppid"] == 2
        self.tally.allow(section, f"{where} comm", info["comm"], before["comm"],
                         "a kernel thread's name, which /proc writes in full", kernel and long)
        steady("tgid", info["tgid"], "tgid")
        if info.get("migration_disabled"):
            # The kernel then lets the task run on its CPU only, and /proc shows the user's choice.
            self.tally.allow(section, f"{where} cpus_allowed", info.get("cpus_allowed"), before["cpus_allowed"],
                             "its own CPU alone while migration is disabled",
                             info.get("cpus_allowed") == str(info.get("cpu")))
        else:
            steady("cpus_allowed", info.get("cpus_allowed"), "cpus_allowed")
        steady("policy", info.get("policy"), "policy", lambda v: POLICIES.get(v, str(v)))
        if before["ext"] is not None and info.get("class") is not None:
            # /proc/PID/sched: the task's class is ext.
            steady("class", info["class"] == "ext", "ext", bool)
        rule = "scheduled in between"
        self.tally.allow(section, f"{where} cpu", info.get("cpu"), before["cpu"], rule, True)
        pairs = dict((before["state_in_status"], after["state_in_status"]))
        if info.get("state") in pairs:
            self.tally.check(section, f"{where} state_name", info.get("state_name"), pairs[info["state"]])
        self.tally.allow(section, f"{where} state", info.get("state"), before["state"], rule,
                         info.get("state") in set("RSDI") | {after["state"]})
        if before["cgroup"] is not None and info.get("cgroup") is not None:
            steady("cgroup", info["cgroup"], "cgroup")
        if record is None:
            return
        # One that has not been switched since sleeps where it slept.
        still = all(before[n] == record[n] for n in ("nvcsw", "nivcsw"))
        if still and before["wchan"] and before["state"] in "SDI" and info.get("state") in ("S", "D", "I"):
            self.tally.check(section, f"{where} wchan", info.get("wchan") or "0", before["wchan"])
        steady("real_parent_pid", record.get("real_parent_pid"), "ppid")
        steady("pgid", record.get("pgid"), "pgid")
        steady("sid", record.get("sid"), "sid")
        steady("nr_threads", record.get("nr_threads"), "nr_threads")
        steady("rt_priority", record["rt_priority"], "rt_priority")
        steady("prio", record["prio"] - 100, "prio")
        steady("static_prio", record["static_prio"] - 120, "nice")
        if record["sched_class"] == "ext" and info.get("policy") in ("SCHED_NORMAL", "SCHED_BATCH", "SCHED_EXT"):
            expected = lambda nice: min(max((WEIGHTS[nice + 20] * 100 + 512) // 1024, 1), 10000)
            steady("weight", record["weight"], "nice", expected)
        for name in ("nvcsw", "nivcsw"):
            self.within(section, f"{where} {name}", before[name], record[name], after[name])
        # /proc scales utime and stime so that their sum is the precise runtime; the report has the
        # raw tick counts. Only their order of magnitude can be compared: see docs/interop.md.

    def locks(self):
        """Who waits for what and who has it, as `guestkit locks` arranged it."""
        section = "locks and roles"
        roles = text(self.before.path.parent / "locks" / "roles.txt")
        if roles is None:
            return
        # name, thread id, address of a futex
        roles = {name: (int(tid), int(word, 16)) for name, tid, word in map(str.split, roles.splitlines())}
        tasks = {t["pid"]: t for t in self.own.get("tasks") or []}
        locks = {lock["address"]: lock for lock in self.own.get("locks") or []}
        for name, kind, owner in (
            ("lock-mutex-1", "mutex", "lock-holder"), ("lock-mutex-2", "mutex", "lock-holder"),
            ("lock-rwsem", "rwsem", "lock-holder"), ("lock-futex", "futex", None),
            ("lock-pi", "pi_futex", "lock-pi-owner"),
        ):
            tid, word = roles[name]
            waits = tasks.get(tid, {}).get("waits_for") or {}
            lock = locks.get(waits.get("address")) or {}
            self.tally.check(section, f"{name} kind", waits.get("kind"), kind)
            self.tally.check(section, f"{name} owner", (lock.get("owner") or {}).get("pid"), owner and roles[owner][0])
            self.tally.check(section, f"{name} word", int(lock.get("user_address") or "0", 16), word)
            waiters = [w["pid"] for w in lock.get("waiters") or []]
            self.tally.check(section, f"{name} is among the waiters", tid in waiters, True)
        boosted = tasks.get(roles["lock-pi-owner"][0], {}).get("boosted_by") or {}
        self.tally.check(section, "lock-pi-owner boosted_by", boosted.get("pid"), roles["lock-pi"][0])

    def cpu_masks(self):
        """Masks and topology in /sys; guests made before these were saved have none."""
        section, top = "CPUs and /sys", "sys/devices/system/cpu"
        kernel = self.own.get("kernel") or {}
        for name in ("online", "possible", "present", "isolated", "nohz_full"):
            theirs = self.before.read(f"{top}/{name}")
            if theirs is not None:
                # Without nohz_full= there is no mask to print.
                theirs = theirs.strip().replace("(null)", "")
                self.tally.check(section, name, kernel.get(f"cpus_{name}"), theirs)
        for cpu in self.own.get("cpus") or []:
            number, topology = cpu["cpu"], cpu.get("topology") or {}
            files = {"core": "topology/thread_siblings_list", "package": "topology/physical_package_id"}
            for index in range(4):
                if (self.before.read(f"{top}/cpu{number}/cache/index{index}/level") or "").strip() == "3":
                    files["llc"] = f"cache/index{index}/shared_cpu_list"
            for name, file in files.items():
                theirs = self.before.read(f"{top}/cpu{number}/{file}")
                if theirs is not None:
                    self.tally.check(section, f"cpu {number} {name}", str(topology.get(name)), theirs.strip())

    def cpu_time(self):
        section = "per_cpu_time"
        softirqs = [s.table("proc/softirqs") for s in (self.before, self.after)]
        interrupts = [s.table("proc/interrupts") for s in (self.before, self.after)]
        # irqs_sum counts the interrupts of devices: the numbered rows of /proc/interrupts, and
        # those that nobody handles any more, which only /proc/stat has, summed over the CPUs.
        devices = [
            [sum(c[i] for label, c in rows.items() if label.isdigit()) for i in range(len(self.before.stat))]
            for rows in interrupts
        ]
        totals = [
            sum(map(int, re.search(r"^intr \d+(.*)", s.read("proc/stat") or "intr 0", re.M)[1].split()))
            for s in (self.before, self.after)
        ]
        rows = {row["cpu"]: row for row in self.report.get("per_cpu_time") or []}
        self.tally.check(section, "CPUs", sorted(rows), sorted(self.before.stat))
        for column, cpu in enumerate(sorted(self.before.stat)):
            row = rows.get(cpu)
            if not row:
                continue
            for name in TIMES:
                low, high = self.before.stat[cpu][name], self.after.stat[cpu][name]
                ours = row[f"cpustat_{name}_ns"] * USER_HZ // 1_000_000_000
                where = f"cpu {cpu} {name}"
                if name in ("idle", "iowait") and self.series < (7, 2):
                    # get_idle_time(), fs/proc/stat.c
                    self.tally.allow(section, where, ours, low,
                                     "before 7.2 /proc has tick_sched's count of idle time, the report cpustat's",
                                     ours <= self.after.uptime() * USER_HZ)
                else:
                    self.within(section, where, low, ours, high, "a time between its values before and after the core")
            for i, label in enumerate(SOFTIRQS):
                if all(label in table for table in softirqs):
                    self.within(section, f"cpu {cpu} softirq {label}", softirqs[0][label][column],
                                row["softirqs"][i], softirqs[1][label][column])
            unlisted = totals[0] - sum(devices[0])
            self.within(section, f"cpu {cpu} irqs_sum", devices[0][column], row["irqs_sum"],
                        devices[1][column] + unlisted,
                        "a counter, and with interrupts that no driver handles any more")
        self.within(section, "irqs_sum of all CPUs", totals[0], sum(r["irqs_sum"] for r in rows.values()), totals[1])

    # What the kernel counts and says by itself

    def pressure(self):
        section, psi = "psi", self.own.get("psi") or {}
        for resource in ("cpu", "memory", "io"):
            self.pressure_file(section, f"system {resource}", psi.get("system"), resource, f"proc/pressure/{resource}")
        # Guests of older recipes did not save those of cgroups.
        top = self.before.path / "sys/fs/cgroup"
        if not top.is_dir():
            return
        theirs = {"/" + str(path.parent.relative_to(top)) for path in top.rglob("cpu.pressure")} - {"/."}
        ours = {row["path"]: row for row in psi.get("cgroups") or []}
        self.tally.check(section, "cgroups", sorted(ours), sorted(theirs))
        for path in sorted(set(ours) & theirs):
            for resource in ("cpu", "memory", "io"):
                self.pressure_file(section, f"{path} {resource}", ours[path].get("pressure"), resource,
                                   f"sys/fs/cgroup{path}/{resource}.pressure")

    def pressure_file(self, section, where, group, resource, name):
        low, high = (self.pressure_lines(stage.read(name)) for stage in (self.before, self.after))
        # psi uses the clock of the kernel log.
        saved = self.before.uptime_of_mark(self.before.path.name)
        again = saved is not None and (group or {}).get("updated_ns", 0) / 1e9 > saved
        for kind, (averages, total) in low.items():
            if where == "system cpu" and kind == "full":
                self.tally.check(section, f"{where} {kind}", (group or {}).get(resource, {}).get(kind), None)
                continue
            line = ((group or {}).get(resource) or {}).get(kind) or {}
            ours = [line.get(span) for span in ("avg10", "avg60", "avg300")]
            self.tally.allow(section, f"{where} {kind} averages", ours, averages, AVERAGED, again)
            end = high[kind][1] if kind in high else float("inf")
            self.within(section, f"{where} {kind} total", total, line.get("total_ns", -1000) // 1000, end)

    @staticmethod
    def pressure_lines(content):
        lines = {}
        for line in (content or "").splitlines():
            kind, *pairs = line.split()
            values = dict(pair.split("=") for pair in pairs)
            lines[kind] = [values[span] for span in ("avg10", "avg60", "avg300")], int(values["total"])
        return lines

    def numa(self):
        section = "per_node_numa"
        names = {"numa_hit": "numa_hit", "numa_miss": "numa_miss", "numa_foreign": "numa_foreign",
                 "interleave_hit": "numa_interleave_hit", "local_node": "numa_local", "other_node": "numa_other"}
        rows = {row["node"]: row for row in self.report.get("per_node_numa") or []}
        nodes = sorted(int(p.name[4:]) for p in (self.before.path / "sys/devices/system/node").glob("node[0-9]*"))
        self.tally.check(section, "nodes", sorted(rows), nodes)
        for node in sorted(set(rows) & set(nodes)):
            low, high = (
                dict(line.split() for line in (s.read(f"sys/devices/system/node/node{node}/numastat") or "").splitlines())
                for s in (self.before, self.after)
            )
            for theirs, ours in names.items():
                self.within(section, f"node {node} {ours}", int(low[theirs]), rows[node].get(ours),
                            int(high.get(theirs, 1 << 64)))

    def interrupts(self):
        section = "irqs"
        low, high = self.before.table("proc/interrupts"), self.after.table("proc/interrupts")
        rows = {row["irq"]: row for row in self.own.get("irqs") or []}
        text_of = lambda label: re.search(rf"^ *{label}:(.*)", self.before.read("proc/interrupts"), re.M)[1]
        unlisted = 0
        for label, row in rows.items():
            if label not in low:
                # free_irq(): only /proc/stat counts it still.
                self.tally.check(section, f"{label} has no handler", row.get("names"), None)
                unlisted += row["total"]
                continue
            for name in (row.get("names") or []) + [row[k] for k in ("chip",) if k in row]:
                self.tally.check(section, f"{label} {name}", name in text_of(label), True)
            if "hwirq" in row:
                self.tally.check(section, f"{label} hwirq", str(row["hwirq"]),
                                 re.search(r" (\d+)-\w+ ", text_of(label))[1])
            self.tally.check(section, f"{label} total", row["total"], sum(p["value"] for p in row["per_cpu"]))
        for label, counts in low.items():
            parts = {part["cpu"]: part["value"] for part in rows.get(label, {}).get("per_cpu", [])}
            for column, cpu in enumerate(sorted(self.before.stat)):
                self.within(section, f"{label} cpu {cpu}", counts[column], parts.get(cpu, 0),
                            high[label][column] if label in high else float("inf"))
        bounds = []
        for stage, table in ((self.before, low), (self.after, high)):
            numbers = re.search(r"^intr \d+(.*)", stage.read("proc/stat") or "intr 0", re.M)[1].split()
            bounds.append(sum(int(n) for i, n in enumerate(numbers) if str(i) not in table))
        self.within(section, "those without a handler", bounds[0], unlisted, max(bounds))

    def schedstats(self):
        section, stats = "schedstats", self.own.get("schedstats") or {}
        names = ("yld_count", None, "sched_count", "sched_goidle", "ttwu_count", "ttwu_local", "rq_cpu_time_ns",
                 "run_delay_ns", "pcount")
        lines = [[line.split() for line in (s.read("proc/schedstat") or "").splitlines()] for s in (self.before, self.after)]
        if not lines[0]:
            return
        of_cpus = [{int(l[0][3:]): list(map(int, l[1:10])) for l in each if re.match(r"cpu\d", l[0])} for each in lines]
        rows = {row["cpu"]: row for row in stats.get("cpus") or []}
        self.tally.check(section, "CPUs", sorted(rows), sorted(of_cpus[0]))
        for cpu in sorted(set(rows) & set(of_cpus[0])):
            for i, name in enumerate(names):
                if name:
                    high = of_cpus[1][cpu][i] if cpu in of_cpus[1] else float("inf")
                    self.within(section, f"cpu {cpu} {name}", of_cpus[0][cpu][i], rows[cpu].get(name), high)
            # domainN NAME MASK …; no name before version 17, and the counters in another order.
            named = lines[0][0] == ["version", "17"]
            start = next(i for i, l in enumerate(lines[0]) if l[0] == f"cpu{cpu}")
            theirs = []
            for line, later in zip(lines[0][start + 1:], lines[1][start + 1:]):
                if not line[0].startswith("domain"):
                    break
                line, later = (line[1:], later[1:]) if named else ([None] + line[1:], [None] + later[1:])
                theirs.append((line[0], int(line[1].replace(",", ""), 16), line[2:], later[2:]))
            ours = rows[cpu].get("domains") or []
            self.tally.check(section, f"cpu {cpu} domains", [(d.get("name") if named else None, mask_of(d.get("span"))) for d in ours],
                             [(name, span) for name, span, _, _ in theirs])
            for mine, (name, _, low, high) in zip(ours, theirs):
                counters = {c["name"]: c["value"] for c in mine.get("counters") or []}
                if not named or len(low) != len(DOMAIN_COUNTERS):
                    continue
                self.tally.check(section, f"cpu {cpu} {name} counters", sorted(set(counters) - set(DOMAIN_COUNTERS)), [])
                for counter, before, after in zip(DOMAIN_COUNTERS, map(int, low), map(int, high)):
                    self.within(section, f"cpu {cpu} {name} {counter}", before, counters.get(counter, 0), after)

    def kernel_log(self):
        section = "kernel_log"
        ours = [
            f"[{r['ts_ns'] // 10**9:5d}.{r['ts_ns'] // 1000 % 10**6:06d}] {line}"
            for r in self.own.get("kernel_log") or [] for line in r["text"].split("\n")
        ]
        before, after = ((s.read("dmesg") or "").rstrip("\n").split("\n") for s in (self.before, self.after))
        if ours and ours[0] not in after and after[0] in ours:
            # Lines with stamps do not all fit the buffer that dmesg(1) has for the ring's text.
            ours = ours[ours.index(after[0]):]
        if not ours or ours[0] not in after:
            self.tally.problem(section, f"the first line is not in the guest's dmesg: {ours[:1]}")
            return
        rest = after[after.index(ours[0]):]
        # Nothing that dmesg had before the core may be missing, nothing come that it never had.
        last = len(ours) >= len(before) - before.index(ours[0]) if ours[0] in before else False
        self.tally.check(section, "reaches the line before the core", last, True)
        for i, line in enumerate(ours):
            self.tally.check(section, f"line {i}", line, rest[i] if i < len(rest) else None)
        for r in self.own["kernel_log"]:
            self.tally.check(section, f"record {r['seq']} level", r["level_name"], LEVELS[r["level"]])
        # /dev/kmsg: PRIORITY,SEQ,MICROSECONDS,FLAGS;TEXT, then lines with the device
        if not self.after.read("kmsg"):
            return
        # The oldest may be gone by then.
        kmsg = (self.before.read("kmsg") or "") + self.after.read("kmsg")
        theirs = {}
        for record in re.findall(r"^(\d+),(\d+),(\d+),[^;]*;(.*)\n((?: .*\n)*)", kmsg, re.M):
            priority, seq, stamp, _, more = record
            theirs[int(seq)] = (int(priority) & 7, int(priority) >> 3, int(stamp),
                                " ".join(re.findall(r"^ (?:SUBSYSTEM|DEVICE)=(.*)", more, re.M)))
        for r in self.own.get("kernel_log") or []:
            ours = (r["level"], r["facility"], r["ts_ns"] // 1000, r.get("device", ""))
            self.tally.check(section, f"record {r['seq']}", ours, theirs.get(r["seq"]))

    # BPF, as bpftool lists it

    def pairs(self, section, ours, name):
        """(ours, before, after) of the objects that were there before; others must have a reason."""
        before, after = self.before.bpftool(name), self.after.bpftool(name)
        if before is None:
            return
        theirs = {entry["id"]: entry for entry in before}
        later = {entry["id"]: entry for entry in after or []}
        mine = {entry["id"]: entry for entry in ours}
        self.tally.check(section, "order", list(mine), sorted(mine))
        for number in sorted(set(mine) | set(theirs)):
            self.tally.allow(section, f"{number} is there", number in mine, number in theirs,
                             "loaded or unloaded after the state before the core",
                             (number in later) == (number in mine))
            if number in mine and number in theirs:
                yield mine[number], theirs[number], later.get(number)

    def programs(self):
        section = "programs"
        boot = re.search(r"^btime (\d+)", self.before.read("proc/stat") or "", re.M)
        stats = {row["name"]: row for row in self.report.get("prog_runtime_stats") or []}
        for mine, theirs, later in self.pairs(section, self.own.get("programs") or [], "prog_show"):
            where = f"{theirs['id']}"
            exact = {
                "type": (mine["type"], theirs["type"]),
                "name": (mine["name"], theirs["name"]),
                "kernel_name": (mine["kernel_name"], theirs["name"][:15]),
                "tag": (mine.get("tag"), theirs["tag"]),
                "gpl_compatible": (mine.get("gpl_compatible"), theirs["gpl_compatible"]),
                "uid": (mine.get("uid"), theirs["uid"]),
                "xlated_bytes": (mine.get("xlated_bytes"), theirs["bytes_xlated"]),
                "jited": (mine.get("jited"), theirs["jited"]),
                "jited_bytes": (mine.get("jited_bytes"), theirs.get("bytes_jited")),
                "memory_bytes": (mine.get("memory_bytes"), theirs["bytes_memlock"]),
                "btf_id": (mine.get("btf_id"), theirs.get("btf_id")),
                "maps": ([m["id"] for m in mine.get("maps") or []], theirs.get("map_ids", [])),
                "error": (mine.get("error"), None),
            }
            for name, (ours, value) in exact.items():
                self.tally.check(section, f"{where} {name}", ours, value)
            if boot:
                loaded = int(boot[1]) + (mine.get("loaded_ns") or 0) // 1_000_000_000
                self.tally.allow(section, f"{where} loaded_at", loaded, theirs["loaded_at"],
                                 "bpftool rounds the time of day to seconds",
                                 abs(loaded - theirs["loaded_at"]) <= 1)
            counts = mine.get("stats") or {}
            for name, key in (("runs", "run_cnt"), ("time_ns", "run_time_ns"), ("misses", "recursion_misses")):
                low, high = theirs.get(key, 0), (later or {}).get(key, 0)
                ours = counts.get(name)
                if later:
                    self.within(section, f"{where} {name}", low, ours, high)
                else:
                    self.tally.allow(section, f"{where} {name}", ours, low, "a counter since its value before the core",
                                     ours is not None and ours >= low)
                parts = sum(c[name] for c in counts.get("per_cpu") or [])
                self.tally.check(section, f"{where} {name} of all CPUs", parts, ours)
            if theirs["type"] == "struct_ops":
                row = stats.get(mine["kernel_name"]) or {}
                summed = [row.get(k) for k in ("cnt", "nsecs", "misses")]
                self.tally.check(section, f"{where} prog_runtime_stats", summed,
                                 [counts.get(k) for k in ("runs", "time_ns", "misses")])
                self.tally.check(section, f"{where} ops", (mine.get("hook") or {}).get("ops"), "sched_ext_ops")
        self.tally.check(section, "prog_runtime_stats", len(self.report.get("prog_runtime_stats") or []),
                         sum(p["type"] == "struct_ops" for p in self.own.get("programs") or []))

    def links(self):
        section = "links"
        hooks = {p["id"]: p.get("hook") for p in self.own.get("programs") or []}
        for mine, theirs, _ in self.pairs(section, self.own.get("links") or [], "link_show"):
            where = f"{theirs['id']}"
            self.tally.check(section, f"{where} type", mine["type"], theirs["type"])
            self.tally.check(section, f"{where} program", (mine.get("program") or {}).get("id", 0), theirs["prog_id"])
            self.tally.check(section, f"{where} map", (mine.get("map") or {}).get("id"), theirs.get("map_id"))
            if "attach_type" in theirs:
                self.tally.check(section, f"{where} attach_type", mine.get("attach_type"), theirs["attach_type"])
            if "target_btf_id" in theirs:
                hook = hooks.get(theirs["prog_id"]) or {}
                self.tally.check(section, f"{where} target_btf_id", hook.get("btf_type_id"), theirs["target_btf_id"])
                self.tally.check(section, f"{where} target", mine.get("target"), f"function {hook.get('name')}")
            if "tp_name" in theirs:
                self.tally.check(section, f"{where} tp_name", mine.get("target"), f"tracepoint {theirs['tp_name']}")
            if "cgroup_id" in theirs:
                self.tally.check(section, f"{where} cgroup", (mine.get("target") or "")[:8], "cgroup /")
            self.tally.check(section, f"{where} error", mine.get("error"), None)

    def callbacks(self):
        """Which program implements which callback, by bpftool's dump of the struct_ops map."""
        section = "callbacks"
        said = text(self.truth / "attach/bpftool/struct_ops_dump.json")
        dumped = json.loads(said) if said and said.strip() else []
        maps = [entry["bpf_map_info"] for entry in dumped if "bpf_map_info" in entry]
        values = [v for entry in dumped for k, v in entry.items() if k.startswith("bpf_struct_ops_")]
        active = self.own.get("active") or {}
        if len(maps) != 1 or len(values) != 1:
            return
        self.tally.check(section, "map", (active.get("struct_ops_map") or {}).get("id"), maps[0]["id"])
        theirs = {}
        for member, value in values[0]["data"].items():
            if isinstance(value, str) and (match := re.search(r" (\S+)/prog_id:(\d+)$", value)):
                theirs[member] = (match[1], int(match[2]))
        scheduler = self.own.get("scheduler") or {}
        of_map = next((m for m in self.own.get("maps") or [] if m["id"] == maps[0]["id"]), {})
        for name, found in (("active", active), ("scheduler", scheduler), ("map", of_map)):
            ours = {c["member"]: (c["prog"]["name"], c["prog"]["id"]) for c in found.get("callbacks") or []}
            for member in sorted(set(ours) | set(theirs)):
                self.tally.check(section, f"{name} {member}", ours.get(member), theirs.get(member))
        hooks = {p["hook"]["name"]: (p["name"], p["id"]) for p in self.own.get("programs") or []
                 if ((p.get("hook") or {}).get("map") or {}).get("id") == maps[0]["id"]}
        self.tally.check(section, "hooks of the programs", hooks, theirs)
        shown = self.before.bpftool("map_show") or []
        its = {number for _, number in theirs.values()}
        programs = self.before.bpftool("prog_show") or []
        used = {i for p in programs if p["id"] in its for i in p.get("map_ids", [])}
        self.tally.check(section, "maps", [m["id"] for m in active.get("maps") or []],
                         sorted(m["id"] for m in shown if m["id"] in used))
        self.tally.check(section, "active_map_kvas", self.report.get("active_map_kvas"),
                         [hexa(m["kva"]) for m in active.get("maps") or []])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", help="a report's JSON, or with --core an `analyze` binary")
    parser.add_argument("truth", type=pathlib.Path)
    parser.add_argument("--core", help="the file that the binary reads")
    parser.add_argument("--recipe", type=pathlib.Path)
    args = parser.parse_args()
    recipe = text(args.recipe or args.truth.parent / "recipe.json")
    comparison = Comparison(load_report(args.report, args.core), args.truth, json.loads(recipe) if recipe else {})
    tally = comparison.run()
    result = tally.print(os.path.basename(args.core or args.report), "the guest's own kernel")
    if comparison.ages:
        ages = comparison.ages
        print(f"  jiffies between the kernel's line on a task and the core: {min(ages)} to {max(ages)}")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
