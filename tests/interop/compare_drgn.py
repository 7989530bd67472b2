#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Compares a report with what drgn reads in the same core.

    compare_drgn.py REPORT.json DRGN.json
    compare_drgn.py target/release/analyze DRGN.json --core CORE.elf

Every value has to be equal: both looked at the same bytes. Exit 1 on any difference.
"""

import argparse
import json
import os
import re

from common import UNAVAILABLE, Tally, hexa, load_report, unavailable

POLICIES = {
    0: "SCHED_NORMAL", 1: "SCHED_FIFO", 2: "SCHED_RR", 3: "SCHED_BATCH", 5: "SCHED_IDLE",
    6: "SCHED_DEADLINE", 7: "SCHED_EXT",
}
# fs/proc/array.c
STATE_NAMES = {
    "R": "running", "S": "sleeping", "D": "disk sleep", "T": "stopped", "t": "tracing stop",
    "X": "dead", "Z": "zombie", "P": "parked", "I": "idle",
}
DSQ_INVALID = 1 << 63
U64 = (1 << 64) - 1


class Comparison:
    def __init__(self, report, drgn):
        self.report = report
        self.own = report.get("postmortem") or {}
        self.drgn = drgn
        self.tally = Tally()
        self.tasks = {t["kva"]: t for t in drgn["tasks"]}
        self.now = drgn["kernel"]["jiffies"]
        self.hz = drgn["kernel"]["hz"]
        self.queued_flag = drgn["enums"]["scx_ent_flags"].get("SCX_TASK_QUEUED", 1)
        self.reset_flag = drgn["enums"]["scx_ent_flags"].get("SCX_TASK_RESET_RUNNABLE_AT", 4)

    def fields(self, section, where, ours, theirs):
        """Each member of `theirs` is compared with ours of that name."""
        for name, value in theirs.items():
            self.tally.check(section, f"{where} {name}", ours.get(name), value)

    def paired(self, section, ours, theirs):
        """(our record, theirs) by key; a key on one side only is a difference."""
        for key in theirs:
            if key not in ours:
                self.tally.problem(section, f"{key}: drgn has it, the report has not")
        for key in ours:
            if key not in theirs:
                self.tally.problem(section, f"{key}: the report has it, drgn has not")
        return [(key, ours[key], theirs[key]) for key in theirs if key in ours]

    def flags(self, section, where, ours, enum, prefix, raw, mask=0):
        """Raw bits, and a name for each single bit and each number that the kernel's enum names."""
        if raw is None:
            self.tally.check(section, where, ours, None)
            return
        known = {n: v for n, v in self.drgn["enums"][enum].items() if n.startswith(prefix)}
        # Numbers in a range of bits, which has a mask and a shift (SCX_TASK_REENQ_REASON).
        ranges = [v for n, v in known.items()
                  if n.endswith("_MASK") and n.removesuffix("_MASK") + "_SHIFT" in known]
        names = {}
        for name, bits in sorted(known.items()):
            if bits <= 0 or bits in ranges or re.search(r"_(SHIFT|BITS)$|__", name):
                continue
            inside = next((r for r in ranges if bits & ~r == 0), None)
            if inside is None:
                named_here = bits & (bits - 1) == 0 and raw & bits & ~mask
            else:
                named_here = raw & ~mask & inside == bits
            if named_here:
                names.setdefault(bits, name[len(prefix):])
        self.tally.check(section, f"{where} raw", hexa((ours or {}).get("raw")), raw)
        named = (ours or {}).get("names", [])
        self.tally.check(section, f"{where} names", sorted(named), sorted(names.values()))

    def ms(self, jiffies):
        return jiffies * 1000 // self.hz

    def age(self, task):
        """(jiffies, ms) since the task became runnable, for one that waits.

        A task that was picked keeps its old time stamp until it is queued again, which
        SCX_TASK_RESET_RUNNABLE_AT announces; the kernel's watchdog looks at waiting tasks alone.
        """
        flags = task["scx"]["flags"]
        if not flags & self.queued_flag or flags & self.reset_flag or not task["scx"]["runnable_at"]:
            return None, None
        age = self.now - task["scx"]["runnable_at"] & U64
        age = 0 if age > U64 // 2 else age
        return age, self.ms(age)

    def run(self):
        self.kernel()
        self.vcpus()
        self.cpu_time()
        self.psi()
        self.numa()
        self.irqs()
        self.schedstats()
        self.timers()
        self.workqueues()
        self.kernel_log()
        self.task_records()
        self.run_queues()
        self.cpu_details()
        self.locks()
        self.stacks()
        if self.drgn["sched_ext"]:
            self.schedulers()
            self.dsqs()
            self.exit_info()
            self.events()
            self.starved()
        return self.tally

    def kernel(self):
        ours, theirs = self.clean(self.own.get("kernel") or {}), dict(self.drgn["kernel"])
        uptime, tick = theirs.pop("uptime_ns"), 1_000_000_000 // self.hz
        mine = ours.get("uptime_ns")
        if mine is not None or not unavailable(self.own, "kernel.uptime_ns"):
            self.tally.allow("kernel", "kernel uptime_ns", mine, uptime, "within two ticks of the kernel's clock",
                             mine is not None and abs(mine - uptime) <= 2 * tick)
        for name, value in theirs.items():
            absent = ours.get(name) is None and unavailable(self.own, "clock", f"kernel.{name}")
            self.tally.allow("kernel", f"kernel {name}", ours.get(name), value, UNAVAILABLE, absent)

    @staticmethod
    def clean(record):
        """Hex members as numbers."""
        return {
            name: int(v, 16) if isinstance(v, str) and re.fullmatch(r"0x[0-9a-f]+", v) else v
            for name, v in record.items()
        }

    def vcpus(self):
        ours = self.report.get("vcpu_regs") or []
        self.tally.check("vcpu_regs", "how many", len(ours), len(self.drgn["vcpus"]))
        for i, (mine, theirs) in enumerate(zip(ours, self.drgn["vcpus"])):
            mine = mine or {}
            for name in ("instruction_pointer", "stack_pointer"):
                self.tally.check("vcpu_regs", f"vcpu {i} {name}", mine.get(name), theirs[name])
            if "cr3" in theirs and mine.get("page_table_root") is not None:
                # The low bits of CR3 are a process-context id and flags.
                cr3 = theirs["cr3"] & 0x000F_FFFF_FFFF_F000
                root = mine["page_table_root"] & 0x000F_FFFF_FFFF_F000
                self.tally.check("vcpu_regs", f"vcpu {i} page_table_root", root, cr3)

    def cpu_time(self):
        ours = {row["cpu"]: row for row in self.report.get("per_cpu_time") or []}
        theirs = {row["cpu"]: row for row in self.drgn["cpu_time"]}
        for cpu, mine, row in self.paired("per_cpu_time", ours, theirs):
            for name, ns in row["times"].items():
                self.tally.check("per_cpu_time", f"cpu {cpu} {name}", mine[f"cpustat_{name}_ns"], ns)
            for i, (a, b) in enumerate(zip(mine["softirqs"] + [None] * 10, row["softirqs"])):
                self.tally.check("per_cpu_time", f"cpu {cpu} softirq {i}", a, b)
            self.tally.check("per_cpu_time", f"cpu {cpu} irqs_sum", mine["irqs_sum"], row["irqs_sum"])
            self.tally.check(
                "per_cpu_time", f"cpu {cpu} iowait_sleeptime",
                mine.get("iowait_sleeptime_ns"), row["iowait_sleeptime"],
            )

    def psi_group(self, where, ours, theirs):
        ours = ours or {}
        self.tally.check("psi", f"{where} updated_ns", ours.get("updated_ns"), theirs["updated_ns"])
        for name, (averages, total) in theirs["lines"].items():
            resource, kind = name.split()
            line = (ours.get("memory" if resource == "mem" else resource) or {}).get(kind)
            if (where, name) == ("system", "cpu full"):
                self.tally.check("psi", f"{where} {name}", line, None)
                continue
            line = line or {}
            # LOAD_INT and LOAD_FRAC
            shown = [f"{a >> 11}.{(a & 2047) * 100 >> 11:02d}" for a in averages]
            mine = [line.get(span) for span in ("avg10", "avg60", "avg300")]
            self.tally.check("psi", f"{where} {name} averages", mine, shown)
            self.tally.check("psi", f"{where} {name} total", line.get("total_ns"), total)

    def psi(self):
        ours, theirs = self.own.get("psi") or {}, self.drgn["psi"]
        if theirs is None:
            self.tally.check("psi", "absent", ours, {})
            return
        self.psi_group("system", ours.get("system"), theirs["system"])
        cgroups = {c["path"]: c for c in ours.get("cgroups") or []}
        self.tally.check("psi", "order", list(cgroups), list(theirs["cgroups"]))
        for path, mine, row in self.paired("psi", cgroups, theirs["cgroups"]):
            self.tally.check("psi", f"{path} kva", hexa(mine["cgroup_kva"]), row["cgroup_kva"])
            self.tally.check("psi", f"{path} serial_nr", mine.get("serial_nr"), row["serial_nr"])
            self.psi_group(path, mine.get("pressure"), row)

    def numa(self):
        rows = {str(r["node"]): r for r in self.report.get("per_node_numa") or []}
        for node, mine, row in self.paired("per_node_numa", rows, {str(k): v for k, v in self.drgn["numa"].items()}):
            self.fields("per_node_numa", f"node {node}", mine, {name.lower(): count for name, count in row.items()})

    def irqs(self):
        rows = {r["irq"]: r for r in self.own.get("irqs") or [] if r["irq"].isdigit()}
        for irq, mine, row in self.paired("irqs", rows, self.drgn["irqs"]):
            parts = {int(cpu): count for cpu, count in row["per_cpu"].items()}
            self.tally.check("irqs", f"{irq} per_cpu", {p["cpu"]: p["value"] for p in mine["per_cpu"]}, parts)
            self.tally.check("irqs", f"{irq} total", mine["total"], sum(parts.values()))
            self.tally.check("irqs", f"{irq} names", mine.get("names") or [], row["names"])
            self.tally.check("irqs", f"{irq} chip", mine.get("chip"), row["chip"])
            self.tally.check("irqs", f"{irq} hwirq", mine.get("hwirq"), row["hwirq"])

    def schedstats(self):
        ours, theirs = self.own.get("schedstats") or {}, self.drgn["schedstats"]
        self.tally.check("schedstats", "counting", ours.get("counting"), theirs["counting"])
        cpus = {str(c["cpu"]): c for c in ours.get("cpus") or []}
        for cpu, mine, row in self.paired("schedstats", cpus, {str(k): v for k, v in theirs["cpus"].items()}):
            self.fields("schedstats", f"cpu {cpu}", mine, row)

    def called(self, section, where, ours, names):
        """A function by one of its names; in memory that is no function's, it has none."""
        self.tally.check(section, f"{where} function", ours in names or (not names and (ours or "").startswith(("0x", "bpf_"))), True)

    @staticmethod
    def who(task):
        return task and [task["pid"], task["comm"], hexa(task["kva"])]

    def timers(self):
        section, tick = "timers", 1_000_000_000 // self.drgn["kernel"]["hz"]
        theirs = {row["kva"]: row for row in self.drgn["timers"]}
        # One whose function runs is on no list, and drgn does not see it.
        ours = {hexa(t["kva"]): t for t in self.own.get("timers") or [] if not t.get("running") or hexa(t["kva"]) in theirs}
        for kva, mine, row in self.paired(section, ours, theirs):
            where, check = f"{row['kind']} {kva:#x}", lambda name, a, b: self.tally.check(section, f"{where} {name}", a, b)
            for name in ("cpu", "kind", "base", "expires_ns", "expires_jiffies", "bpf_map_id"):
                check(name, mine.get(name), row.get(name))
            self.called(section, where, mine.get("function"), row["function"])
            check("wakes", self.who(mine.get("wakes")), row.get("wakes"))
            check("work", mine.get("work") in row["work"] if row.get("work") else mine.get("work"), True if row.get("work") else None)
            if row["kind"] == "hrtimer":
                left, late = row["left_ns"], 2 * tick
                check("left_ns", mine.get("left_ns"), left)
                check("overdue", bool(mine.get("overdue")), left < -late)
            else:
                check("left_ns", mine.get("left_ns"), row["left_jiffies"] * tick)
                late = 8 ** (row["slot"] // 64) + 2
                check("overdue", bool(mine.get("overdue")), row["left_jiffies"] < -late and row["base"] != "DEF")
        # The order: by CPU, queue and expiry, as both walk.
        queue = lambda row: (row["cpu"], row["kind"], row["base"])
        hrtimers = [hexa(t["kva"]) for t in self.own.get("timers") or [] if t["kind"] == "hrtimer" and hexa(t["kva"]) in theirs]
        self.tally.check(section, "order of hrtimers", hrtimers, [r["kva"] for r in self.drgn["timers"] if queue(r)[1] == "hrtimer"])

    def works(self, section, where, ours, theirs):
        shown = lambda works, address: [(address(w["kva"]), w.get("workqueue")) for w in works or []]
        self.tally.check(section, where, shown(ours, hexa), shown(theirs, int))
        for mine, row in zip(ours or [], theirs):
            self.called(section, f"{where} {row['kva']:#x}", mine.get("function"), row["function"])

    def workqueues(self):
        section, ours, theirs = "workqueues", self.own.get("workqueues") or {}, self.drgn["workqueues"]
        pools = {str(pool["id"]): pool for pool in ours.get("pools") or []}
        for number, mine, row in self.paired(section, pools, theirs["pools"]):
            where, check = f"pool {number}", lambda name, a, b: self.tally.check(section, f"pool {number} {name}", a, b)
            check("kva", hexa(mine["kva"]), row["kva"])
            check("cpu", mine.get("cpu", -1), row["cpu"])
            check("flags", hexa(mine["flags"]["raw"]), row["flags"])
            # enum worker_pool_flags; 6.9 put POOL_BH first.
            names = ("BH", "MANAGER_ACTIVE", "DISASSOCIATED", "BH_DRAINING")
            check("flag names", mine["flags"].get("names") or [], [n for bit, n in enumerate(names) if row["flags"] >> bit & 1])
            for name in ("nice", "nr_running", "nr_workers", "nr_idle", "progress_age_jiffies"):
                check(name, mine.get(name), row[name])
            check("progress_age_ms", mine.get("progress_age_ms"), self.ms(row["progress_age_jiffies"]))
            second = self.drgn["kernel"]["hz"]
            check("overdue", bool(mine.get("overdue")), bool(row["pending"]) and row["progress_age_jiffies"] >= second)
            for name in ("pending", "inactive"):
                self.works(section, f"{where} {name}", mine.get(name), row[name])
            check("busy", len(mine.get("busy") or []), len(row["busy"]))
            for worker, read in zip(mine.get("busy") or [], row["busy"]):
                check("task", self.who(worker.get("task")), read["task"])
                check("work", hexa(worker["work_kva"]), read["work_kva"])
                self.called(section, f"{where} worker", worker.get("function"), read["function"])
                check("workqueue", worker.get("workqueue"), read["workqueue"])
                check("since_jiffies", worker.get("since_jiffies"), read["since_jiffies"])
                since = read["since_jiffies"]
                check("running_ms", worker.get("running_ms"),
                      None if since is None else self.ms((self.now - since) & 0xFFFFFFFFFFFFFFFF))
                self.works(section, f"{where} scheduled", worker.get("scheduled"), read["scheduled"])
        mine, row = ours.get("scx_watchdog"), theirs["scx_watchdog"]
        self.tally.check(section, "scx_watchdog", mine is not None, row is not None)
        if mine and row:
            self.called(section, "scx_watchdog", mine.get("function"), row["function"])
            self.tally.check(section, "scx_watchdog kva", hexa(mine["kva"]), row["kva"])
            self.tally.check(section, "scx_watchdog pending", mine.get("pending"), row["pending"])
            runs_in = [worker["task"] for pool in theirs["pools"].values() for worker in pool["busy"]
                       if worker["work_kva"] == row["kva"]]
            self.tally.check(section, "scx_watchdog runs_in", self.who(mine.get("runs_in")), runs_in[0] if runs_in else None)
            self.tally.check(section, "scx_watchdog expires", mine.get("expires_jiffies"), row["expires_jiffies"])

    def kernel_log(self):
        ours, theirs = self.own.get("kernel_log") or [], self.drgn["kernel_log"]
        limits = {l["what"]: l for l in self.own.get("limits") or []}
        shown = limits.get("kernel_log", {}).get("limit", len(theirs))
        self.tally.check("kernel_log", "records", len(ours), min(shown, len(theirs)))
        if "kernel_log" in limits:
            self.tally.check("kernel_log", "actual", limits["kernel_log"].get("actual"), len(theirs))
        for mine, record in zip(ours[::-1], theirs[::-1]):
            where, record = f"record {record['seq']}", dict(record)
            text, read = mine.get("text") or "", record.pop("text")
            self.tally.allow("kernel_log", f"{where} text", text, read,
                             "a record that begins anew at the ring's start: drgn 0.3.0 takes the 8 bytes of its id for text",
                             len(text) > 8 and read.endswith(text[:-8]))
            self.fields("kernel_log", where, {"device": "", "comm": "", **mine}, record)

    def task_records(self):
        # A kernel without sched_ext has no task records of either kind.
        infos = self.own.get("tasks") or []
        enriched = self.report.get("task_enrichments") or []
        if not self.drgn["sched_ext"] and not infos and not enriched:
            return
        order = [hexa(t["kva"]) for t in infos]
        scx_order = self.drgn["scx_tasks_order"]
        self.tally.check("tasks", "order of scx_tasks", order[: len(scx_order)], scx_order)
        self.tally.check("tasks", "how often each", len(order), len(set(order)))
        for kva, mine, theirs in self.paired("tasks", dict(zip(order, infos)), self.tasks):
            self.task_info(f"{theirs['comm']}[{theirs['pid']}]", mine, theirs)
        # The format wants every record to have scx.weight: without sched_ext there is none, and
        # the report has to say so.
        absent = unavailable(self.own, "task_enrichments")
        self.tally.allow("task_enrichments", "how many", len(enriched), len(infos),
                         "none on a kernel without sched_ext", absent and not enriched and not self.drgn["sched_ext"])
        runnable = {kva for rq in self.drgn["run_queues"] for kva in rq.get("scx", {}).get("runnable", [])}
        for kva, mine in zip(order, enriched):
            if kva in self.tasks:
                theirs = self.tasks[kva]
                self.enrichment(f"{theirs['comm']}[{theirs['pid']}]", mine, theirs, kva in runnable)

    def enrichment(self, where, mine, task, runnable):
        section = "task_enrichments"
        names = (
            "pid", "tgid", "comm", "group_leader_pid", "real_parent_pid", "real_parent_comm", "prio",
            "static_prio", "normal_prio", "rt_priority", "sched_class", "core_cookie", "nvcsw", "nivcsw",
            "utime", "stime",
        )
        self.fields(section, where, mine, {name: task[name] for name in names})
        signal = task.get("signal") or {}
        for name in ("pgid", "sid", "nr_threads"):
            self.tally.check(section, f"{where} {name}", mine.get(name), signal.get(name))
        for name in ("nvcsw", "nivcsw", "utime", "stime"):
            self.tally.check(section, f"{where} signal_{name}", mine.get(f"signal_{name}"), signal.get(name))
        if "scx" in task:
            self.tally.check(section, f"{where} weight", mine["weight"], task["scx"]["weight"])
        boosted = runnable and task["sched_class"] != "ext"
        self.tally.check(section, f"{where} pi_boosted_out_of_scx", mine["pi_boosted_out_of_scx"], boosted)

    def task_info(self, where, mine, task):
        section = "tasks"
        names = (
            "pid", "tgid", "comm", "cpu", "state", "on_rq", "sum_exec_ns", "start_time_ns", "cpus_allowed", "nr_cpus_allowed",
            "migration_disabled", "cgroup",
        )
        self.fields(section, where, mine, {name: task[name] for name in names})
        self.tally.check(section, f"{where} boosted_by", hexa((mine.get("boosted_by") or {}).get("kva")), task["boosted_by"])
        self.tally.check(section, f"{where} state_name", mine.get("state_name"), STATE_NAMES[task["state"]])
        self.tally.check(section, f"{where} on_cpu", mine.get("on_cpu"), bool(task["on_cpu"]))
        self.tally.check(section, f"{where} policy", mine.get("policy"), POLICIES[task["policy"]])
        self.tally.check(section, f"{where} class", mine.get("class"), task["sched_class"])
        if "scx" not in task:
            return
        scx = task["scx"]
        state = scx["state"]
        state = state[len("SCX_TASK_"):] if isinstance(state, str) else None
        ddsp = scx["ddsp_dsq_id"]
        age, ms = self.age(task)
        self.fields(
            section, where, self.clean(mine),
            {
                "scx_state": state,
                "scx_weight": scx["weight"],
                "slice_ns": scx["slice"],
                "dsq_vtime": scx["dsq_vtime"],
                "dsq_id": scx["dsq_id"],
                "ddsp_dsq_id": None if ddsp == DSQ_INVALID else ddsp,
                "holding_cpu": scx["holding_cpu"],
                "sticky_cpu": scx["sticky_cpu"],
                "ops_state": str(scx["ops_state"]).removeprefix("SCX_OPSS_"),
                "ops_qseq": scx["ops_qseq"],
                "runnable_at_jiffies": scx["runnable_at"],
                "runnable_age_jiffies": age,
                "runnable_age_ms": ms,
            },
        )
        mask = self.drgn["enums"]["scx_ent_flags"]["SCX_TASK_STATE_MASK"]
        self.flags(section, f"{where} scx_flags", mine.get("scx_flags"), "scx_ent_flags", "SCX_TASK_",
                   scx["flags"], mask)

    def stacks(self):
        """Frame by frame; only DWARF can unwind for drgn."""
        section = "stacks"
        ours = {hexa(t["kva"]): t for t in self.own.get("tasks") or []}
        # At most one on each CPU.
        switched = 0
        for kva, theirs in (self.drgn.get("stacks") or {}).items():
            task = ours.get(int(kva))
            if task is None:
                continue
            where = f"{task['comm']}[{task['pid']}]"
            mine, end = task.get("stack") or [], task.get("stack_end")
            if end and end.startswith("it has exited"):
                # What drgn finds there are the remains of whoever had the stack's pages since.
                self.tally.check(section, f"{where} exited", task.get("state") in ("X", "Z"), True)
                continue
            if isinstance(theirs, str):
                self.tally.problem(section, f"{where}: drgn: {theirs}; ours: {len(mine)} frames, {end}")
                continue
            if end and end.startswith("it was being switched to or from"):
                # drgn takes the registers that were saved last, whoever's they are by now.
                switched += 1
                self.tally.allow(section, f"{where} frames", mine, theirs, "a task that is being switched has no registers",
                                 bool(task.get("on_cpu")) and switched <= len(self.own.get("cpus") or []))
                continue
            if end and " in user space at " in end:
                theirs = [[pc, names] for pc, names in theirs if pc >> 63]
            elif end and "the ORC tables cannot unwind from" in end and theirs[len(mine):] and theirs[len(mine)][0] >> 47 != 0x1ffff:
                # Entry code has no ORC data (UNWIND_HINT_UNDEFINED). drgn goes on by what looks like a frame pointer, and
                # comes to what is no address of the kernel.
                theirs = theirs[:len(mine)]
            elif end:
                self.tally.problem(section, f"{where}: ends early: {end}")
            self.tally.check(section, f"{where} frames", [hex(hexa(f["addr"])) for f in mine],
                             [hex(pc) for pc, _ in theirs])
            for frame, (pc, names) in zip(mine, theirs):
                name = (frame.get("symbol") or "").partition("+")[0]
                # drgn does not know where JITed code of BPF programs is.
                if names:
                    self.tally.check(section, f"{where} {pc:#x}", name in names, True)

    def run_queues(self):
        states = {r["cpu"]: r for r in self.report.get("rq_scx_states") or []}
        cpus = {c["cpu"]: c for c in self.own.get("cpus") or []}
        theirs = {r["cpu"]: r for r in self.drgn["run_queues"]}
        if not self.drgn["sched_ext"] and not cpus and not states:
            return
        for cpu, mine, rq in self.paired("cpus", cpus, theirs):
            self.cpu(cpu, mine, rq)
        if not self.drgn["sched_ext"]:
            return
        for cpu, mine, rq in self.paired("rq_scx_states", states, theirs):
            scx = rq["scx"]
            self.fields(
                "rq_scx_states", f"cpu {cpu}", mine,
                {
                    "nr_running": scx["nr_running"],
                    "flags": scx["flags"],
                    "cpu_released": bool(scx["cpu_released"]),
                    # Required by the format: 0 where the kernel keeps it per task.
                    "ops_qseq": scx["ops_qseq"] or 0,
                    "kick_sync": scx["kick_sync"],
                    "nr_immed": scx["nr_immed"],
                    "rq_clock": scx["clock"],
                    "curr_pid": rq["curr"]["pid"],
                    "curr_comm": rq["curr"]["comm"],
                    "runnable_task_kvas": scx["runnable"],
                },
            )

    def cpu(self, cpu, mine, rq):
        section, where = "cpus", f"cpu {cpu}"
        self.tally.check(section, f"{where} rq_kva", hexa(mine.get("rq_kva")), rq["rq_kva"])
        self.tally.check(section, f"{where} clock_ns", mine.get("clock_ns"), rq["clock"])
        self.fields(section, where, mine, {n: rq[n] for n in ("online", "idle", "nr_running")})
        curr = mine.get("curr") or {}
        for name in ("pid", "comm"):
            self.tally.check(section, f"{where} curr {name}", curr.get(name), rq["curr"][name])
        self.tally.check(section, f"{where} curr kva", hexa(curr.get("kva")), rq["curr"]["kva"])
        self.tally.check(section, f"{where} curr class", curr.get("class"), rq["curr_class"])
        self.tally.check(section, f"{where} curr policy", curr.get("policy"), POLICIES[rq["curr_policy"]])
        since = rq["curr_last_arrival"]
        running = rq["clock"] - since if since and rq["clock"] >= since else None
        self.tally.check(section, f"{where} curr running_ns", curr.get("running_ns"), running)
        if "scx" not in rq:
            return
        scx = rq["scx"]
        self.tally.check(section, f"{where} scx_nr_running", mine.get("scx_nr_running"), scx["nr_running"])
        self.flags(section, f"{where} scx_flags", mine.get("scx_flags"), "scx_rq_flags", "SCX_RQ_", scx["flags"])
        released = scx["cpu_released"]
        self.tally.check(section, f"{where} cpu_released", mine.get("cpu_released"),
                         None if released is None else bool(released))
        self.tally.check(section, f"{where} ops_qseq", mine.get("ops_qseq"), scx["ops_qseq"])
        runnable = mine.get("runnable") or []
        self.tally.check(section, f"{where} runnable", [hexa(t["kva"]) for t in runnable], scx["runnable"])
        for entry in runnable:
            task = self.tasks.get(hexa(entry["kva"]))
            if not task:
                self.tally.problem(section, f"{where} runnable {entry['comm']}: not a task in drgn")
                continue
            age, ms = self.age(task)
            self.fields(
                section, f"{where} runnable {task['comm']}[{task['pid']}]", self.clean(entry),
                {
                    "pid": task["pid"],
                    "comm": task["comm"],
                    "runnable_at_jiffies": task["scx"]["runnable_at"],
                    "runnable_age_jiffies": age,
                    "runnable_age_ms": ms,
                    "dsq_id": task["scx"]["dsq_id"],
                },
            )

    def cpu_details(self):
        section = "cpu details"
        own = self.own.get("cpus") or []
        if not self.drgn["sched_ext"] and not own:
            return
        newest = max(rq["clock"] for rq in self.drgn["run_queues"])
        clocks = {rq["cpu"]: rq for rq in self.drgn["run_queues"]}
        theirs = {c["cpu"]: c for c in self.drgn["cpu_details"]}
        for cpu, mine, row in self.paired(section, {c["cpu"]: c for c in own}, theirs):
            where, context = f"cpu {cpu}", self.clean(mine.get("context") or {})
            self.fields(section, where, context, row["context"])
            if cpu < len(self.drgn["vcpus"]):
                vcpu = self.drgn["vcpus"][cpu]
                self.tally.check(section, f"{where} mode", context.get("mode"), "user" if vcpu["user"] else "kernel")
                self.tally.check(section, f"{where} irqs_enabled", context.get("irqs_enabled"), vcpu["irqs"])
            for part in ("classes", "topology"):
                self.fields(section, f"{where} {part}", mine.get(part) or {}, row[part])
            age = max(self.now - row["tick"]["last_jiffies"], 0)
            tick = {**row["tick"], "age_jiffies": age, "age_ms": self.ms(age)}
            self.fields(section, f"{where} tick", mine.get("tick") or {}, tick)
            detector = row["soft_lockup"]
            age = max((clocks[cpu]["clock"] >> 30) - detector["touched"], 0) << 30
            watched = detector["on"] and detector["touched"]
            self.tally.check(section, f"{where} soft_lockup", mine.get("soft_lockup"),
                             {"age_ns": age, "period_ns": detector["period_ns"]} if watched else None)
            idle = clocks[cpu]["idle"]
            self.tally.check(section, f"{where} entry_ns", (mine.get("idle_state") or {}).get("entry_ns"),
                             row["entry_ns"] if idle else None)
            self.tally.check(section, f"{where} scx_idle", mine.get("scx_idle"), row["scx_idle"])
            servers = (mine.get("throttling") or {}).get("servers") or []
            self.tally.check(section, f"{where} servers", len(servers), len(row["servers"]))
            for server, drgn in zip(servers, row["servers"]):
                self.fields(section, f"{where} server", server, drgn)
            self.tally.check(section, f"{where} clock_behind_ns", mine.get("clock_behind_ns"),
                             newest - clocks[cpu]["clock"])
            curr = mine.get("curr") or {}
            self.tally.check(section, f"{where} exec_start_ns", curr.get("exec_start_ns"), row["exec_start_ns"])
            self.tally.check(section, f"{where} arrived_ns", curr.get("arrived_ns"),
                             clocks[cpu]["curr_last_arrival"] or None)
        masks, kernel = dict(self.drgn["cpu_masks"]), self.own.get("kernel") or {}
        isolated = masks.pop("isolated")
        self.fields(section, "kernel", kernel, masks)
        ours = [n for part in (kernel.get("cpus_isolated") or "").split(",") if part
                for n in range(int(part.partition("-")[0]), int(part.partition("-")[2] or part.partition("-")[0]) + 1)]
        self.tally.check(section, "cpus_isolated", ours, isolated)

    def locks(self):
        """Locks that tasks point to. What only a stack tells has no counterpart here, but its list of waiters is the lock's own."""
        section = "locks"
        ours = {hexa(lock["address"]): lock for lock in self.own.get("locks") or []}
        by = {hexa(t["waits_for"]["address"]): t["waits_for"]["found_by"] for t in self.own.get("tasks") or [] if t.get("waits_for")}
        theirs = {int(address): row for address, row in self.drgn["locks"].items()}
        ours = {address: lock for address, lock in ours.items() if by.get(address) != "stack" or address in theirs}
        for address, mine, row in self.paired(section, ours, theirs):
            kind = "rt_mutex" if mine["kind"] == "pi_futex" else mine["kind"]
            self.tally.check(section, f"{address:#x} kind", kind, row["kind"])
            self.tally.check(section, f"{address:#x} owner", hexa((mine.get("owner") or {}).get("kva")), row["owner"] or None)
            self.tally.check(section, f"{address:#x} waiters", [hexa(w["kva"]) for w in mine.get("waiters") or []],
                             row["waiters"])
            self.tally.check(section, f"{address:#x} readers", mine.get("readers"), row.get("readers") or None)

    def scheduler(self, mine, theirs):
        section, where = "schedulers", f"{theirs['ops_name']}"
        kinds = {v: n for n, v in self.drgn["enums"]["scx_exit_kind"].items()}
        self.fields(
            section, where, self.clean(mine),
            {
                **{n: theirs[n] for n in (
                    "sched_kva", "found_via", "ops_name", "switched_all", "bypass_depth", "exit_kind",
                    "watchdog_timeout_jiffies", "slice_dfl_ns", "nr_rejected", "enable_seq", "hotplug_seq",
                    "level", "cgroup_path",
                )},
                "exit_kind_name": kinds.get(theirs["exit_kind"]),
                "bypassed_ms": theirs["bypassed_ns"] // 1_000_000
                if theirs["bypassed_ns"] is not None and theirs["enable_state"] and (theirs["bypass_depth"] or 0) > 0 else None,
                "has_ops": theirs["has_ops"],
                "enable_state": theirs["enable_state"],
                "aborting": None if theirs["aborting"] is None else bool(theirs["aborting"]),
                "watchdog_timeout_ms": theirs["watchdog_timeout_jiffies"]
                and self.ms(theirs["watchdog_timeout_jiffies"]),
                "watchdog_timestamp_age_ms": self.ms(max(self.now - theirs["watchdog_timestamp"], 0))
                if theirs["watchdog_timestamp"] else None,
            },
        )
        self.flags(section, f"{where} ops_flags", mine.get("ops_flags"), "scx_ops_flags", "SCX_OPS_",
                   theirs["ops_flags"])

    def schedulers(self):
        ours = {hexa(s.get("sched_kva")): s for s in self.own.get("schedulers") or []}
        theirs = {s["sched_kva"]: s for s in self.drgn["schedulers"]}
        self.tally.check("schedulers", "order", list(ours), list(theirs))
        for _, mine, scheduler in self.paired("schedulers", ours, theirs):
            self.scheduler(mine, scheduler)
        subject = self.drgn["subject"]
        if subject is None:
            self.tally.check("schedulers", "scheduler", self.own.get("scheduler"), None)
            self.tally.check("scx_sched_state", "absent", self.report.get("scx_sched_state"), None)
            return
        if subject in theirs:
            self.scheduler(self.own.get("scheduler") or {}, theirs[subject])
        state = self.report.get("scx_sched_state") or {}
        scheduler = theirs[subject]
        self.fields(
            "scx_sched_state", "scx_sched_state", state,
            {
                "aborting": bool(scheduler["aborting"]),
                "bypass_depth": scheduler["bypass_depth"] or 0,
                "exit_kind": scheduler["exit_kind"],
                "watchdog_timeout": scheduler["watchdog_timeout_jiffies"],
                "source": "live" if self.drgn["attached"] else None,
                "sched_kva": subject,
            },
        )

    def dsqs(self):
        ours = {hexa(d["dsq_kva"]): d for d in self.own.get("dsqs") or []}
        theirs = {d["dsq_kva"]: d for d in self.drgn["dsqs"]}
        names = {v: n for n, v in self.drgn["enums"]["scx_dsq_id_flags"].items()}
        for kva, mine, dsq in self.paired("dsqs", ours, theirs):
            where = f"{dsq['origin']} {dsq['id']:#x}"
            name = names.get(dsq["id"], "built-in").removeprefix("SCX_DSQ_") if dsq["id"] >> 63 else "user"
            self.fields(
                "dsqs", where, self.clean(mine),
                {
                    "id": dsq["id"], "name": name, "origin": dsq["origin"], "sched_kva": dsq["owner"],
                    "nr": dsq["nr"], "seq": dsq["seq"],
                    "order": ("vtime" if dsq["by_vtime"] else "fifo") if dsq["tasks"] else None,
                },
            )
            queued = mine.get("tasks") or []
            self.tally.check("dsqs", f"{where} tasks", [hexa(t["task_kva"]) for t in queued], dsq["tasks"])
            self.tally.check("dsqs", f"{where} nr and list", len(queued), dsq["nr"])
            for index, entry in enumerate(queued):
                self.queued(where, index, entry)
        # The contract has no reject or rescue queues; its records have no address, so by place.
        known = [d for d in self.own.get("dsqs") or [] if not re.match("reject|rescue", d["origin"])]
        states = self.report.get("dsq_states") or []
        self.tally.check("dsq_states", "how many", len(states), len(known))
        for state, own in zip(states, known):
            dsq = theirs.get(hexa(own["dsq_kva"]))
            if dsq:
                self.fields(
                    "dsq_states", f"{dsq['origin']} {dsq['id']:#x}", state,
                    {"id": dsq["id"], "origin": dsq["origin"], "nr": dsq["nr"], "seq": dsq["seq"],
                     "task_kvas": dsq["tasks"]},
                )

    def queued(self, where, index, entry):
        task = self.tasks.get(hexa(entry["task_kva"]))
        if not task:
            self.tally.problem("dsqs", f"{where} {entry['comm']}: not a task in drgn")
            return
        age, ms = self.age(task)
        where = f"{where} {task['comm']}[{task['pid']}]"
        self.fields(
            "dsqs", where, entry,
            {
                "index": index, "pid": task["pid"], "comm": task["comm"], "dsq_vtime": task["scx"]["dsq_vtime"],
                "runnable_age_jiffies": age, "runnable_age_ms": ms, "slice_ns": task["scx"]["slice"],
                "cpus_allowed": task["cpus_allowed"],
            },
        )
        self.flags("dsqs", f"{where} dsq_flags", entry.get("dsq_flags"), "scx_ent_dsq_flags", "SCX_TASK_DSQ_",
                   task["scx"]["dsq_flags"])

    def exit_info(self):
        ours, theirs = self.own.get("exit_info"), self.drgn["exit_info"]
        scheds = {s["sched_kva"]: s for s in self.drgn["schedulers"]}
        subject = scheds.get(self.drgn["subject"])
        if theirs is None or (theirs["kind"] == 0 and subject["exit_kind"] == 0):
            self.tally.check("exit_info", "absent", ours, None)
            return
        ours = ours or {}
        kinds = {v: n for n, v in self.drgn["enums"]["scx_exit_kind"].items()}
        self.fields(
            "exit_info", "exit_info", ours,
            {n: theirs[n] for n in ("kind", "exit_code", "exit_cpu", "reason")}
            | {n: theirs[n] or None for n in ("dump",)}
            | {"kind_name": kinds.get(theirs["kind"])},
        )
        self.tally.check("exit_info", "msg", ours.get("msg") or None, theirs["msg"] or None)
        self.flags("exit_info", "flags", ours.get("flags"), "scx_exit_flags", "SCX_EFLAG_", theirs["flags"])
        frames = ours.get("backtrace") or []
        self.tally.check("exit_info", "backtrace", [hexa(f["addr"]) for f in frames],
                         [f["addr"] for f in theirs["backtrace"]])
        for mine, frame in zip(frames, theirs["backtrace"]):
            name, _, offset = (mine.get("symbol") or "").partition("+")
            offset = int(offset.split("/")[0], 16) if offset else None
            self.tally.check("exit_info", f"frame {mine['addr']} {name}", offset, frame["symbols"].get(name))

    def events(self):
        ours = {e["name"]: e for e in self.own.get("event_counters") or []}
        for name, mine, theirs in self.paired("event_counters", ours, self.drgn["events"]):
            self.tally.check("event_counters", name, mine["value"], theirs["value"])
            per_cpu = {str(c["cpu"]): c["value"] for c in mine.get("per_cpu") or []}
            self.tally.check("event_counters", f"{name} per CPU", per_cpu, theirs["per_cpu"])
        if not self.drgn["events"]:
            return
        timeline = self.report.get("event_counter_timeline") or [{}]
        sample = timeline[-1]
        uptime_ms, mine = self.drgn["kernel"]["uptime_ns"] // 1_000_000, sample.get("elapsed_ms")
        self.tally.allow("event_counter_timeline", "elapsed_ms", mine, uptime_ms, "within two ticks of the kernel's clock",
                         mine is not None and abs(mine - uptime_ms) <= 2000 // self.hz)
        for name, value in sample.items():
            if name == "elapsed_ms":
                continue
            kernel = f"SCX_EV_{name.upper()}"
            if kernel not in self.drgn["events"] and name == "reenq_local_repeat":
                kernel = "SCX_EV_REENQ_REPEAT"  # its name since 7.3
            theirs = self.drgn["events"].get(kernel, {"value": 0})["value"]
            self.tally.check("event_counter_timeline", name, value, theirs)

    def starved(self):
        """Recomputed: runnable for half of the limit or longer, the longest first, of equals the one in the kernel's message."""
        message = (self.drgn["exit_info"] or {}).get("msg") or ""
        scheds = {s["sched_kva"]: s for s in self.drgn["schedulers"]}
        subject = scheds.get(self.drgn["subject"])
        expected = []
        if subject and subject["watchdog_timeout_jiffies"]:
            half = max(subject["watchdog_timeout_jiffies"] // 2, 1)
            for rq in self.drgn["run_queues"]:
                for kva in rq["scx"]["runnable"]:
                    age, ms = self.age(self.tasks[kva])
                    if age is not None and age >= half:
                        pid = self.tasks[kva]["pid"]
                        named = message.startswith(f"{self.tasks[kva]['comm']}[{pid}] ")
                        expected.append((-age, not named, pid, kva, rq["cpu"], ms))
        expected.sort()
        places = {}
        for dsq in self.drgn["dsqs"]:
            for position, kva in enumerate(dsq["tasks"]):
                places[kva] = (dsq, position)
        ours = self.own.get("starved") or []
        self.tally.check("starved", "how many", len(ours), len(expected))
        for mine, (age, _, pid, kva, cpu, ms) in zip(ours, expected):
            dsq, position = places.get(kva, (None, None))
            self.fields(
                "starved", f"{self.tasks[kva]['comm']}[{pid}]", self.clean(mine),
                {
                    "pid": pid, "comm": self.tasks[kva]["comm"], "kva": kva, "cpu": cpu,
                    "runnable_age_jiffies": -age, "runnable_age_ms": ms,
                    "dsq_id": dsq and dsq["id"], "dsq_origin": dsq and dsq["origin"],
                    "dsq_kva": dsq and dsq["dsq_kva"], "dsq_position": position,
                },
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", help="a report's JSON, or with --core an `analyze` binary")
    parser.add_argument("drgn", help="the output of drgn_lists.py")
    parser.add_argument("--core", help="the file that the binary reads")
    args = parser.parse_args()
    with open(args.drgn, encoding="utf-8") as file:
        drgn = json.load(file)
    tally = Comparison(load_report(args.report, args.core), drgn).run()
    name = os.path.basename(args.core or args.report)
    return tally.print(name, f"drgn ({drgn['types']} types)")


if __name__ == "__main__":
    raise SystemExit(main())
