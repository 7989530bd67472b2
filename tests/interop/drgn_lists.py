#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What drgn reads of sched_ext in an ELF core, as JSON.

    drgn_lists.py CORE.elf [--vmlinux VMLINUX] [-o OUT.json]

Run it with a Python that has drgn 0.3.0. Types come from the BTF in the core, or with
--vmlinux from that file's DWARF. A core without a VMCOREINFO note is searched for the
note that the kernel keeps in its memory.

The output holds the values as the kernel has them; compare_drgn.py knows where a report
has the same.
"""

import argparse
import bisect
import functools
import json
import mmap
import re
import struct
import sys

import btf_types
import drgn
from drgn import FaultError, Object, Program, cast, container_of, sizeof
from drgn.helpers.linux.bpf import bpf_map_for_each
from drgn.helpers.linux.cgroup import cgroup_path, css_for_each_descendant_pre
from drgn.helpers.linux.cpumask import cpumask_to_cpulist, for_each_cpu, for_each_possible_cpu
from drgn.helpers.linux.irq import (
    for_each_irq_desc, irq_desc_action_names, irq_desc_chip_name, irq_desc_kstat_cpu,
)
from drgn.helpers.linux.idr import idr_for_each_entry
from drgn.helpers.linux.list import list_for_each, list_for_each_entry
from drgn.helpers.linux.percpu import per_cpu, per_cpu_ptr
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.nodemask import for_each_online_node
from drgn.helpers.linux.printk import get_printk_records
from drgn.helpers.linux.sched import task_cpu, task_state_to_char
from drgn.helpers.linux.timekeeping import ktime_get_coarse_boottime_ns, ktime_get_coarse_ns
from drgn.helpers.linux.timer import hrtimer_clock_base_for_each, timer_base_for_each, timer_base_names

ULONG = "unsigned long"
CHARS = "char *"


def array(of):
    return lambda prog: prog.array_type(prog.type(of))


def tk_core(prog):
    """The timekeeper up to 6.16; `struct tk_data` got its name in 6.13."""
    try:
        return prog.type("struct tk_data")
    except LookupError:
        seq = drgn.TypeMember(prog.type("seqcount_raw_spinlock_t"), "seq", 0)
        of = prog.type("struct timekeeper")
        return prog.struct_type(None, 8 + of.size, (seq, drgn.TypeMember(of, "timekeeper", 64)))


# C types of the globals that are asked for below, here or in drgn's own helpers.
GLOBALS = {
    "__cpu_online_mask": "struct cpumask",
    "__cpu_possible_mask": "struct cpumask",
    "__per_cpu_offset": lambda prog: prog.array_type(prog.type(ULONG), 8192),
    "bpf_kallsyms": "struct list_head",
    "cgrp_dfl_root": "struct cgroup_root",
    "clocksource_jiffies": "struct clocksource",
    "dl_sched_class": "struct sched_class",
    "ext_sched_class": "struct sched_class",
    "fair_sched_class": "struct sched_class",
    "idle_sched_class": "struct sched_class",
    "init_pid_ns": "struct pid_namespace",
    "init_task": "struct task_struct",
    "init_uts_ns": "struct uts_namespace",
    "jiffies_64": "u64",
    "linux_banner": array("char"),
    "map_idr": "struct idr",
    "nr_cpu_ids": "unsigned int",
    "node_data": lambda prog: prog.array_type(prog.pointer_type(prog.type("struct pglist_data")), 1024),
    "node_states": lambda prog: prog.array_type(prog.type("nodemask_t"), 6),
    "nr_node_ids": "unsigned int",
    "page_offset_base": ULONG,
    "phys_base": ULONG,
    "pgdir_shift": "unsigned int",
    "prb": "struct printk_ringbuffer *",
    "psi_system": "struct psi_group",
    "rt_sched_class": "struct sched_class",
    "saved_command_line": CHARS,
    "sched_schedstats": "struct static_key_false",
    "scx_aborting": "bool",
    "scx_bypass_depth": "int",
    "scx_enable_seq": "atomic_long_t",
    "scx_enable_state_var": "atomic_t",
    "scx_hotplug_seq": "atomic_long_t",
    "scx_nr_rejected": "atomic_long_t",
    "scx_root": "struct scx_sched *",
    "scx_sched_all": "struct list_head",
    "scx_slice_dfl": "u64",
    "scx_switching_all": "bool",
    "scx_tasks": "struct list_head",
    "scx_watchdog_timeout": ULONG,
    "scx_watchdog_timestamp": ULONG,
    "scx_watchdog_work": "struct delayed_work",
    "sparse_irqs": "struct maple_tree",
    "stop_sched_class": "struct sched_class",
    "timekeeper_data": lambda prog: prog.array_type(prog.type("struct tk_data"), 1),
    "tk_core": tk_core,
    "worker_pool_idr": "struct idr",
    "workqueues": "struct list_head",
    # fs/proc/array.c: R, S, D, T, t, X, Z, P, I
    "task_state_array": lambda prog: prog.array_type(prog.type("const char *"), 9),
}
CLASSES = ("stop", "dl", "rt", "fair", "ext", "idle")
ENUMS = (
    "scx_rq_flags", "scx_ent_flags", "scx_ops_flags", "scx_exit_flags", "scx_ent_dsq_flags",
    "scx_dsq_id_flags", "scx_exit_kind",
)


def vmcoreinfo_in_memory(path):
    """The kernel's VMCOREINFO text: the note in memory whose description has the symbols."""
    with open(path, "rb") as file:
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            at = data.find(b"OSRELEASE=")
            while at >= 0:
                text = data[at : at + 4096].split(b"\0")[0]
                if text.count(b"SYMBOL(") > 10 and b"\nKERNELOFFSET=" in text:
                    return text
                at = data.find(b"OSRELEASE=", at + 1)
    raise SystemExit(f"{path}: no VMCOREINFO in this core's memory")


def elf_notes(path):
    """(name, type, description) of each note of an ELF64 core."""
    with open(path, "rb") as file:
        head = file.read(64)
        if head[:5] != b"\x7fELF\x02" or len(head) < 64:
            raise SystemExit(f"{path}: not an ELF64 core; `zstd -d` makes one of a capture")
        (phoff,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        file.seek(phoff)
        table = file.read(size * count)
        for i in range(count):
            kind, _, offset, _, _, length, _, _ = struct.unpack_from("<IIQQQQQQ", table, i * size)
            if kind != 4:  # PT_NOTE
                continue
            file.seek(offset)
            data, at = file.read(length), 0
            while at + 12 <= len(data):
                names, descs, of = struct.unpack_from("<III", data, at)
                at += 12
                name = data[at : at + names].rstrip(b"\0").decode()
                at += (names + 3) & ~3
                yield name, of, data[at : at + descs]
                at += (descs + 3) & ~3


def open_core(path, vmlinux):
    notes = list(elf_notes(path))
    if any(name == "VMCOREINFO" for name, _, _ in notes):
        prog, source = Program(), "note"
    else:
        prog, source = Program(vmcoreinfo=vmcoreinfo_in_memory(path)), "memory"
    prog.set_core_dump(path)
    if vmlinux:
        prog.load_debug_info([vmlinux])
        prog["init_task"]  # an error here is clearer than one in a helper
        return prog, notes, source
    from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

    symbols = load_vmlinux_kallsyms(prog)
    start, stop = (symbols(prog, name, None, True)[0].address for name in ("__start_BTF", "__stop_BTF"))
    btf_types.install(prog, prog.read(start, stop - start), GLOBALS)
    return prog, notes, source


def has(obj, member):
    try:
        obj.member_(member)
    except LookupError:
        return False
    return True


def value(obj, path):
    """An integer by member path; None when this kernel has no such member."""
    try:
        for name in path.split("."):
            obj = obj.member_(name)
    except LookupError:
        return None
    of = obj.type_
    while of.kind == drgn.TypeKind.TYPEDEF:
        of = of.type
    if of.kind == drgn.TypeKind.STRUCT:  # atomic_t
        obj = obj.counter
    return int(obj.value_())


def text(chars):
    return chars.string_().decode("utf-8", "replace")


class Reader:
    def __init__(self, prog, notes):
        self.prog = prog
        self.notes = notes
        self.cpus = list(for_each_possible_cpu(prog))
        self.enums = {name: self.enum(name) for name in ENUMS}
        self.classes = {}
        for name in CLASSES:
            symbol = self.symbol(f"{name}_sched_class")
            if symbol:
                self.classes[symbol] = name
        self.ext = self.symbol("scx_tasks") is not None

    def symbol(self, name):
        try:
            return self.prog.symbol(name).address
        except LookupError:
            return None

    def global_(self, name):
        try:
            return self.prog[name]
        except LookupError:
            return None

    def enum(self, name):
        try:
            return {e.name: e.value for e in self.prog.type(f"enum {name}").enumerators}
        except LookupError:
            return {}

    def kernel(self):
        prog = self.prog
        tick_ns = prog["clocksource_jiffies"].mult.value_() >> prog["clocksource_jiffies"].shift.value_()
        return {
            "release": text(prog["init_uts_ns"].name.release),
            "build_id": re.search(r"^BUILD-ID=(.*)", text(prog["VMCOREINFO"]), re.M)[1],
            "version_banner": prog.read_c_string(self.symbol("linux_banner")).decode().rstrip("\n"),
            "hz": round(1e9 / tick_ns),
            "jiffies": prog["jiffies_64"].value_(),
            "uptime_ns": ktime_get_coarse_boottime_ns(prog).value_(),
            "nr_cpus": len(self.cpus),
            "cpus_possible": cpumask_to_cpulist(prog["__cpu_possible_mask"]),
            "cpus_online": cpumask_to_cpulist(prog["__cpu_online_mask"]),
            "paging_levels": {39: 4, 48: 5}[prog["pgdir_shift"].value_()],
            "kaslr_offset": self.symbol("_text") - 0xFFFFFFFF81000000,
            "phys_base": struct.unpack("<q", prog.read(self.symbol("phys_base"), 8))[0],
            "page_offset_base": prog["page_offset_base"].value_(),
            "cmdline": text(prog["saved_command_line"]),
            "sched_ext_state": self.enable_state() if self.ext else None,
        }

    def enable_state(self):
        number = self.prog["scx_enable_state_var"].counter.value_()
        names = [name for name, v in self.enum("scx_enable_state").items() if v == number]
        return names[0].removeprefix("SCX_").lower() if names else str(number)

    def vcpus(self):
        """Registers from the notes: NT_PRSTATUS has the user's view, QEMU's note has CR3."""
        status = [d for name, of, d in self.notes if name == "CORE" and of == 1]
        qemu = [d for name, _, d in self.notes if name == "QEMU"]
        out = []
        for i, desc in enumerate(status):
            # struct elf_prstatus: 112 bytes, then user_regs_struct; rip is its 17th register.
            rip, = struct.unpack_from("<Q", desc, 112 + 16 * 8)
            rsp, = struct.unpack_from("<Q", desc, 112 + 19 * 8)
            cs, = struct.unpack_from("<Q", desc, 112 + 17 * 8)
            flags, = struct.unpack_from("<Q", desc, 112 + 18 * 8)
            entry = {"instruction_pointer": rip, "stack_pointer": rsp, "user": cs & 3 == 3, "irqs": bool(flags & 0x200)}
            if i < len(qemu):
                # QEMUCPUState: version, size, 18 registers, 10 segments of 24 bytes, cr[5].
                entry["cr3"], = struct.unpack_from("<Q", qemu[i], 8 + 18 * 8 + 10 * 24 + 3 * 8)
            out.append(entry)
        return out

    # Schedulers

    def root(self):
        root = self.global_("scx_root")
        return root if root is not None and root.value_() else None

    def schedulers(self):
        """(how, struct scx_sched *), the attached root first."""
        if not self.ext:
            return []
        found = []
        root = self.root()
        if root is not None:
            found.append(("scx_root", root))
        if self.symbol("scx_sched_all"):
            for sched in list_for_each_entry("struct scx_sched", self.prog["scx_sched_all"].address_of_(), "all"):
                found.append(("scx_sched_all", sched))
        for map_ in bpf_map_for_each(self.prog):
            if map_.map_type.format_(type_name=False) != "BPF_MAP_TYPE_STRUCT_OPS":
                continue
            st_map = cast("struct bpf_struct_ops_map *", map_)
            ops = self.ops_of(st_map)
            if ops is not None and ops.priv.value_():
                found.append(("struct_ops map", cast("struct scx_sched *", ops.priv)))
        unique, seen = [], set()
        for how, sched in found:
            if sched.value_() not in seen:
                seen.add(sched.value_())
                unique.append((how, sched))
        return unique

    def ops_of(self, st_map):
        """The ops in a struct_ops map, by the name of the type in the kernel's BTF."""
        name = text(st_map.st_ops_desc.st_ops.name)
        if name not in ("sched_ext_ops", "sched_ext_ops_cid"):
            return None
        return cast(f"struct {name} *", st_map.kvalue.data.address_of_())[0]

    def moved(self, how, sched, member, name):
        """A value that older kernels keep in a global, which is that of the attached scheduler."""
        inside = value(sched, member)
        if inside is not None or how == "struct_ops map":
            return inside
        outside = self.global_(name)
        return None if outside is None else int(outside.value_())

    def scheduler(self, how, sched):
        ops = sched.ops
        callbacks = []
        for member in ops.type_.members:
            of = member.type
            if of.kind == drgn.TypeKind.POINTER and self.is_function(of.type) and ops.member_(member.name).value_():
                callbacks.append(member.name)
        out = {
            "sched_kva": sched.value_(),
            "found_via": how,
            "ops_name": text(ops.name),
            "ops_flags": ops.flags.value_(),
            "has_ops": callbacks,
            "enable_state": self.enable_state(),
            "switched_all": bool(self.prog["scx_switching_all"].value_()),
            "bypass_depth": self.moved(how, sched, "bypass_depth", "scx_bypass_depth"),
            "aborting": self.moved(how, sched, "aborting", "scx_aborting"),
            "exit_kind": value(sched, "exit_kind"),
            "bypassed_ns": max(ktime_get_coarse_ns(self.prog).value_() - sched.bypass_timestamp.value_(), 0)
            if has(sched, "bypass_timestamp") else None,
            "watchdog_timeout_jiffies": self.moved(how, sched, "watchdog_timeout", "scx_watchdog_timeout"),
            "watchdog_timestamp": self.prog["scx_watchdog_timestamp"].value_(),
            "slice_dfl_ns": self.moved(how, sched, "slice_dfl", "scx_slice_dfl"),
            "level": value(sched, "level"),
            "cgroup_path": text(sched.cgrp_path) if has(sched, "cgrp_path") and sched.cgrp_path else None,
        }
        if how == "struct_ops map":
            # Of an ejected scheduler nothing that the kernel has once for all.
            out.update(enable_state=None, switched_all=None, watchdog_timestamp=0)
        for name in ("nr_rejected", "enable_seq", "hotplug_seq"):
            out[name] = self.prog[f"scx_{name}"].counter.value_()
        return out

    def is_function(self, of):
        while of.kind == drgn.TypeKind.TYPEDEF:
            of = of.type
        return of.kind == drgn.TypeKind.FUNCTION

    def exit_info(self, sched):
        info = sched.exit_info
        out = {"kind": value(info, "kind"), "exit_code": value(info, "exit_code"), "flags": value(info, "flags"),
               "exit_cpu": value(info, "exit_cpu")}
        for name in ("reason", "msg", "dump"):
            chars = info.member_(name)
            out[name] = text(chars) if chars.value_() else None
        frames = []
        for i in range(min(info.bt_len.value_(), 64)):
            addr = info.bt[i].value_()
            try:
                near = {s.name: addr - s.address for s in self.prog.symbols(addr)}
            except LookupError:
                near = {}
            for name, start, end in self.bpf_symbols():
                if start <= addr < end:
                    near[name] = addr - start
            frames.append({"addr": addr, "symbols": near})
        out["backtrace"] = frames
        return out

    def bpf_symbols(self):
        """(name, start, end) of the code that BPF has made."""
        head = self.prog["bpf_kallsyms"].address_of_()
        for symbol in list_for_each_entry("struct bpf_ksym", head, "lnode"):
            yield text(symbol.name), symbol.start.value_(), symbol.end.value_()

    def events(self, sched):
        counters = {}
        for cpu in self.cpus:
            if has(sched, "pcpu"):
                stats = per_cpu_ptr(sched.pcpu, cpu).event_stats
            else:
                stats = per_cpu_ptr(sched.event_stats_cpu, cpu)[0]
            for member in stats.type_.members:
                entry = counters.setdefault(member.name, {"value": 0, "per_cpu": {}})
                count = stats.member_(member.name).value_()
                entry["value"] += count
                if count:
                    entry["per_cpu"][str(cpu)] = count
        return counters

    # Run queues and queues

    def rq(self, cpu):
        return per_cpu(self.prog["runqueues"], cpu)

    def run_queues(self):
        out = []
        online = self.prog["__cpu_online_mask"]
        online = {int(c) for c in self.list_to_cpus(cpumask_to_cpulist(online))}
        for cpu in self.cpus:
            rq = self.rq(cpu)
            curr = rq.curr
            arrived = value(curr, "sched_info.last_arrival")
            entry = {
                "cpu": cpu,
                "rq_kva": rq.address_,
                "online": cpu in online,
                "curr": self.named(curr),
                "curr_class": self.classes.get(curr.sched_class.value_()),
                "curr_policy": curr.policy.value_(),
                "curr_last_arrival": arrived,
                "idle": curr.value_() == rq.idle.value_(),
                "nr_running": rq.nr_running.value_(),
                "clock": rq.clock.value_(),
            }
            if self.ext:
                scx = rq.scx
                runnable = list_for_each_entry(
                    "struct task_struct", scx.runnable_list.address_of_(), "scx.runnable_node"
                )
                entry["scx"] = {
                    "nr_running": value(scx, "nr_running"),
                    "flags": value(scx, "flags"),
                    "cpu_released": value(scx, "cpu_released"),
                    "ops_qseq": value(scx, "ops_qseq"),
                    "kick_sync": value(scx, "kick_sync" if has(scx, "kick_sync") else "pnt_seq"),
                    "nr_immed": value(scx, "nr_immed"),
                    "clock": value(scx, "clock"),
                    "runnable": [t.value_() for t in runnable],
                }
            out.append(entry)
        return out

    # CPUs

    def of_cpu(self, name, of, cpu):
        """A per-CPU variable; BTF has no types for them here."""
        return per_cpu(Object(self.prog, of, address=self.symbol(name)), cpu)

    def of_global(self, name):
        """A number of eight bytes."""
        return Object(self.prog, ULONG, address=self.symbol(name)).value_()

    def mask(self, var):
        """A cpumask_var_t: an array of one mask, or a pointer to one."""
        return cpumask_to_cpulist(var[0])

    def cpu_details(self):
        prog, out = self.prog, []
        counts_irqs_off = self.symbol("local_interrupt_disable_state") is not None
        release = tuple(int(n) for n in re.match(r"(\d+)\.(\d+)", text(prog["init_uts_ns"].name.release)).groups())
        # TIF_NEED_RESCHED of arch/x86 until 6.17, of asm-generic/thread_info_tif.h since.
        resched = 3 if release < (6, 18) else 4
        idle = {}
        for bit in ("cpu", "smt") if self.ext and self.key("scx_builtin_idle_enabled") else ():
            if self.key("scx_builtin_idle_per_node"):
                of = prog.pointer_type(prog.pointer_type(prog.type("struct scx_idle_cpus")))
                masks = Object(prog, prog.pointer_type(of), value=self.symbol("scx_idle_node_masks"))[0]
                masks = [masks[n][0] for n in range(prog["nr_node_ids"].value_()) if masks[n].value_()]
            else:
                masks = [Object(prog, "struct scx_idle_cpus", address=self.symbol("scx_idle_global_masks"))]
            idle[bit] = {c for m in masks for c in self.list_to_cpus(self.mask(m.member_(bit)))}
        for cpu in self.cpus:
            rq = self.rq(cpu)
            wide = counts_irqs_off  # both came in 7.3
            count = self.of_cpu("__preempt_count", "unsigned long" if wide else "unsigned int", cpu).value_()
            hardirq = 24 if counts_irqs_off else 16
            flags = rq.curr.thread_info.flags.value_()
            tick = self.of_cpu("tick_cpu_sched", "struct tick_sched", cpu)
            servers = []
            for name in ("fair", "ext"):
                if has(rq, f"{name}_server"):
                    server = rq.member_(f"{name}_server")
                    active = bool(server.dl_server_active)
                    servers.append({
                        "class": name, "active": active,
                        "throttled": bool(server.dl_throttled) if active else None,
                        "deferred": bool(server.dl_defer_armed) if active else None,
                        "running": bool(server.dl_defer_running) if active else None,
                        "runtime_ns": server.dl_runtime.value_(), "period_ns": server.dl_period.value_(),
                    })
            package = self.of_cpu("cpu_info", "struct cpuinfo_x86", cpu).topo.pkg_id.value_()
            core = self.mask(self.of_cpu("cpu_sibling_map", "cpumask_var_t", cpu))
            out.append({
                "cpu": cpu,
                "context": {
                    "preempt_count": count,
                    "preempt_disabled": count & 0xFF,
                    "in_softirq": bool(count >> 8 & 1),
                    "bh_disabled": count >> 9 & 0x7F,
                    "hardirq_disabled": count >> 16 & 0xFF if counts_irqs_off else None,
                    "hardirqs": count >> hardirq & 15,
                    "nmis": count >> hardirq + 4 & 15,
                    "preempt_need_resched": not count >> (63 if wide else 31),
                    "need_resched": bool(flags >> resched & 1),
                    "need_resched_lazy": bool(flags >> resched + 1 & 1),
                },
                "classes": {
                    "dl": rq.dl.dl_nr_running.value_(), "rt": rq.rt.rt_nr_running.value_(),
                    "fair": value(rq, "cfs.h_nr_queued" if has(rq.cfs, "h_nr_queued") else "cfs.h_nr_running"),
                    "ext": rq.scx.nr_running.value_() if self.ext else None,
                },
                "tick": {"stopped": bool(tick.flags & 2), "last_jiffies": tick.last_tick_jiffies.value_()},
                "soft_lockup": {
                    "on": self.of_global("watchdog_enabled") >> 1 & 1
                    and cpu in for_each_cpu(Object(prog, "struct cpumask", address=self.symbol("watchdog_allowed_mask"))),
                    "touched": self.of_cpu("watchdog_touch_ts", ULONG, cpu).value_(),
                    "period_ns": self.of_global("sample_period"),
                },
                "entry_ns": tick.idle_entrytime.value_() if tick.flags & 1 else None,
                "topology": {
                    "node": self.of_cpu("numa_node", "int", cpu).value_(),
                    "core": core,
                    "llc": self.mask(self.of_cpu("cpu_llc_shared_map", "cpumask_var_t", cpu)),
                    "package": package if core else None,
                },
                "scx_idle": {bit: cpu in cpus for bit, cpus in idle.items()} or None,
                "servers": servers,
                "exec_start_ns": rq.curr.se.exec_start.value_(),
            })
        return out

    def key(self, name):
        """Whether a static key is on."""
        at = self.symbol(name)
        return at is not None and Object(self.prog, "struct static_key_false", address=at).key.enabled.counter.value_() > 0

    def cpu_masks(self):
        """Isolated CPUs, by the numbers of this kernel's enum hk_type."""
        of = lambda name: cpumask_to_cpulist(Object(self.prog, "struct cpumask", address=self.symbol(name)))
        out = {"cpus_present": of("__cpu_present_mask"), "cpus_active": of("__cpu_active_mask")}
        housekeeping = Object(self.prog, "struct housekeeping", address=self.symbol("housekeeping"))
        kind = self.enum("hk_type")["HK_TYPE_DOMAIN"]
        kept = set(self.cpus)
        if housekeeping.flags.value_() >> kind & 1:
            mask = housekeeping.cpumasks[kind]
            # An array of masks in older kernels, of pointers in newer ones.
            kept = set(self.list_to_cpus(cpumask_to_cpulist(mask[0])))
        out["isolated"] = sorted(set(self.cpus) - kept)
        return out

    # Locks

    def lock_waiters(self, lock, of):
        """Tasks in a lock's list: since 7.1 a ring of waiters without a head."""
        if has(lock, "first_waiter"):
            first = lock.first_waiter
            if not first.value_():
                return []
            head = first.list.address_of_()
            return [first.task.value_()] + [w.task.value_() for w in list_for_each_entry(of, head, "list")]
        return [w.task.value_() for w in list_for_each_entry(of, lock.wait_list.address_of_(), "list")]

    def rt_waiters(self, node):
        if not node.value_():
            return []
        waiter = container_of(node, "struct rt_mutex_waiter", "tree.entry")
        return self.rt_waiters(node.rb_left) + [waiter.task.value_()] + self.rt_waiters(node.rb_right)

    def locks(self, tasks):
        """Every lock that a task points to, by address; what only stacks tell is not here."""
        found, prog = {}, self.prog
        for task in tasks:
            word = value(task, "blocker") or 0
            kind = ("mutex", "semaphore", "rwsem", "rwsem")[word & 3] if word else None
            address = word & ~3
            if has(task, "blocked_on") and task.blocked_on.value_():
                kind, address = "mutex", task.blocked_on.value_()
            if kind == "mutex":
                lock = Object(prog, "struct mutex", address=address)
                owner = lock.owner.counter.value_() & ~7 & (1 << 64) - 1
                row = {"owner": owner, "waiters": self.lock_waiters(lock, "struct mutex_waiter")}
            elif kind == "rwsem":
                lock = Object(prog, "struct rw_semaphore", address=address)
                count = lock.count.counter.value_() & (1 << 63) - 1
                owner = lock.owner.counter.value_() & ~3 & (1 << 64) - 1
                row = {"owner": owner if count & 1 else 0, "waiters": self.lock_waiters(lock, "struct rwsem_waiter"),
                       "readers": None if count & 1 else count >> 8}
            elif kind == "semaphore":
                lock = Object(prog, "struct semaphore", address=address)
                row = {"owner": 0, "waiters": self.lock_waiters(lock, "struct semaphore_waiter")}
            elif has(task, "pi_blocked_on") and task.pi_blocked_on.value_():
                lock = task.pi_blocked_on.lock
                address, kind = lock.value_(), "rt_mutex"
                row = {"owner": lock.owner.value_() & ~1,
                       "waiters": self.rt_waiters(lock.waiters.rb_root.rb_node)}
            else:
                continue
            if task.value_() in row["waiters"]:
                found[address] = {"kind": kind, **row}
        return found

    @staticmethod
    def list_to_cpus(cpulist):
        for part in filter(None, cpulist.split(",")):
            first, _, last = part.partition("-")
            yield from range(int(first), int(last or first) + 1)

    def dsqs(self, scheds):
        """(origin, struct scx_dispatch_q, owner) of every queue."""
        found = []
        for cpu in self.cpus:
            scx = self.rq(cpu).scx
            found.append((f"local cpu {cpu}", scx.local_dsq, None))
            if has(scx, "bypass_dsq"):
                found.append((f"bypass cpu {cpu}", scx.bypass_dsq, None))
            if has(scx, "reject_dsq"):
                found.append((f"reject cpu {cpu}", scx.reject_dsq, None))
            if has(scx, "rescue"):
                found.append((f"rescue cpu {cpu}", scx.rescue.dsq, None))
        for _, sched in scheds:
            owner = sched.value_()
            if has(sched, "pcpu") and has(per_cpu_ptr(sched.pcpu, 0), "bypass_dsq"):
                for cpu in self.cpus:
                    found.append((f"bypass cpu {cpu}", per_cpu_ptr(sched.pcpu, cpu).bypass_dsq, owner))
            for node in range(self.prog["nr_node_ids"].value_()):
                if has(sched, "pnode"):
                    queue = sched.pnode[node]
                    queue = queue.global_dsq if queue.value_() else None
                else:
                    queue = sched.global_dsqs[node]
                    queue = queue[0] if queue.value_() else None
                if queue is not None:
                    found.append((f"global node {node}", queue, owner))
            for node in self.rhashtable(sched.dsq_hash):
                found.append(("user", container_of(node, "struct scx_dispatch_q", "hash_node")[0], owner))
        return found

    def rhashtable(self, table):
        """struct rhash_head * of each entry, include/linux/rhashtable.h."""
        buckets = table.tbl
        while buckets.value_():
            if buckets.nest.value_():
                raise NotImplementedError("a nested bucket table")
            base = buckets.buckets.address_of_().value_()
            for i in range(buckets.size.value_()):
                at = self.prog.read_u64(base + 8 * i) & ~1
                # A chain ends in the address of its bucket with bit 0 set.
                while at and not at & 1:
                    node = Object(self.prog, "struct rhash_head *", at)
                    yield node
                    at = node.next.value_()
            buckets = buckets.future_tbl

    def dsq(self, origin, queue, owner):
        tasks = []
        cursor = self.prog.constant("SCX_DSQ_LNODE_ITER_CURSOR").value_()
        for node in list_for_each(queue.list.address_of_()):
            link = container_of(node, "struct scx_dsq_list_node", "node")
            if link.flags.value_() & cursor:
                continue
            task = container_of(node, "struct task_struct", "scx.dsq_list.node")
            tasks.append(task.value_())
        return {
            "origin": origin,
            "dsq_kva": queue.address_,
            "owner": owner,
            "id": queue.id.value_(),
            "nr": queue.nr.value_(),
            "seq": queue.seq.value_(),
            "by_vtime": bool(queue.priq.rb_node.value_()),
            "tasks": tasks,
        }

    # Tasks

    def named(self, task):
        return {"kva": task.value_(), "pid": task.pid.value_(), "comm": text(task.comm)}

    def all_tasks(self):
        """struct task_struct *: scx_tasks in its order, then whoever else has a pid or a CPU."""
        seen, scx_order, others = set(), [], []
        if self.ext:
            cursor = self.enums["scx_ent_flags"]["SCX_TASK_CURSOR"]
            head = self.prog["scx_tasks"].address_of_()
            for task in list_for_each_entry("struct task_struct", head, "scx.tasks_node"):
                if task.scx.flags.value_() & cursor:
                    continue
                seen.add(task.value_())
                scx_order.append(task)
        # The first CPU's idle task is in neither list, and in the report when its CPU is idle.
        for task in (*for_each_task(self.prog), *(self.rq(cpu).curr for cpu in self.cpus)):
            if task.value_() not in seen:
                seen.add(task.value_())
                others.append(task)
        return scx_order, others

    @staticmethod
    def number(pid):
        """A struct pid's number; a task that was reaped has lost its own (__unhash_process()).

        The check is needed: QEMU's cores map physical memory at address 0 upwards, so that
        drgn reads something through a null pointer instead of failing.
        """
        return pid.numbers[0].nr.value_() if pid.value_() else None

    def task(self, task):
        signal = task.signal
        pids = self.enum("pid_type")
        out = self.named(task)
        out.update(
            tgid=task.tgid.value_(),
            group_leader_pid=task.group_leader.pid.value_(),
            real_parent_pid=task.real_parent.pid.value_(),
            real_parent_comm=text(task.real_parent.comm),
            prio=task.prio.value_(),
            static_prio=task.static_prio.value_(),
            normal_prio=task.normal_prio.value_(),
            rt_priority=task.rt_priority.value_(),
            policy=task.policy.value_(),
            sched_class=self.classes.get(task.sched_class.value_()),
            core_cookie=value(task, "core_cookie"),
            nvcsw=task.nvcsw.value_(),
            nivcsw=task.nivcsw.value_(),
            utime=task.utime.value_(),
            stime=task.stime.value_(),
            cpu=task_cpu(task),
            state=task_state_to_char(task),
            on_rq=value(task, "on_rq"),
            sum_exec_ns=value(task, "se.sum_exec_runtime"),
            start_time_ns=value(task, "start_time"),
            on_cpu=value(task, "on_cpu"),
            cpus_allowed=cpumask_to_cpulist(task.cpus_ptr[0]),
            nr_cpus_allowed=task.nr_cpus_allowed.value_(),
            migration_disabled=value(task, "migration_disabled"),
            cgroup=cgroup_path(task.cgroups.dfl_cgrp).decode(),
            boosted_by=(task.pi_top_task.value_() or None) if has(task, "pi_top_task") else None,
        )
        if signal.value_():
            try:
                out["signal"] = {
                    "pgid": self.number(signal.pids[pids["PIDTYPE_PGID"]]),
                    "sid": self.number(signal.pids[pids["PIDTYPE_SID"]]),
                    "nr_threads": signal.nr_threads.value_(),
                    "nvcsw": signal.nvcsw.value_(),
                    "nivcsw": signal.nivcsw.value_(),
                    "utime": signal.utime.value_(),
                    "stime": signal.stime.value_(),
                }
            except FaultError:
                pass
        if self.ext:
            scx = task.scx
            shift = self.prog.constant("SCX_OPSS_QSEQ_SHIFT").value_()
            opss = scx.ops_state.counter.value_() & (1 << 64) - 1
            names = {v: n for n, v in self.enum("scx_ops_state").items() if "QSEQ" not in n and "MASK" not in n}
            out["scx"] = {
                "weight": scx.weight.value_(),
                "flags": scx.flags.value_(),
                "state": self.scx_state(scx.flags.value_()),
                "slice": scx.slice.value_(),
                "dsq_vtime": scx.dsq_vtime.value_(),
                "dsq_flags": scx.dsq_flags.value_(),
                "dsq": scx.dsq.value_(),
                "dsq_id": scx.dsq.id.value_() if scx.dsq.value_() else None,
                "ddsp_dsq_id": scx.ddsp_dsq_id.value_(),
                "holding_cpu": scx.holding_cpu.value_(),
                "sticky_cpu": scx.sticky_cpu.value_(),
                "ops_state": names.get(opss & (1 << shift) - 1, opss & (1 << shift) - 1),
                "ops_qseq": opss >> shift,
                "runnable_at": scx.runnable_at.value_(),
            }
        return out

    def scx_state(self, flags):
        """The name of the task's state, as each kernel's enums spell it."""
        mask = self.enums["scx_ent_flags"]["SCX_TASK_STATE_MASK"]
        old = self.enum("scx_task_state")
        if old:
            shift = self.enums["scx_ent_flags"]["SCX_TASK_STATE_SHIFT"]
            found = [n for n, v in old.items() if v == (flags & mask) >> shift and n != "SCX_TASK_NR_STATES"]
        else:
            states = ("NONE", "INIT_BEGIN", "INIT", "READY", "ENABLED", "DEAD")
            ent = self.enums["scx_ent_flags"]
            found = [f"SCX_TASK_{s}" for s in states if ent.get(f"SCX_TASK_{s}") == flags & mask]
        return found[0] if found else (flags & mask)

    # CPU time

    def cpu_time(self):
        out = []
        usage = self.enum("cpu_usage_stat")
        for cpu in self.cpus:
            times = per_cpu(self.prog["kernel_cpustat"], cpu).cpustat
            stat = per_cpu(self.prog["kstat"], cpu)
            tick = per_cpu(self.prog["tick_cpu_sched"], cpu)
            out.append(
                {
                    "cpu": cpu,
                    "times": {
                        name: times[usage[f"CPUTIME_{name.upper()}"]].value_()
                        for name in ("user", "nice", "system", "softirq", "irq", "idle", "iowait", "steal")
                    },
                    "softirqs": [n.value_() for n in stat.softirqs],
                    "irqs_sum": stat.irqs_sum.value_(),
                    "iowait_sleeptime": value(tick, "iowait_sleeptime"),
                }
            )
        return out

    # Stacks

    @functools.cached_property
    def labels(self):
        """(address, name) of symbols without a size, ascending: labels of assembler code."""
        return sorted((s.address, s.name) for s in self.prog.symbols() if s.size == 0 and s.address >> 63)

    def names_at(self, pc):
        """The names of the function, or of the label in it, that `pc` is behind."""
        covering = self.prog.symbols(pc)
        start = max((s.address for s in covering), default=pc)
        at = bisect.bisect_right(self.labels, (pc, "\uffff"))
        nearest = self.labels[at - 1][0] if at else 0
        labels = [name for address, name in self.labels if address == nearest] if nearest > start else []
        return sorted({s.name for s in covering}.union(labels))

    def stack(self, task):
        """[[pc, [names that the function goes by]]] from the innermost frame to user space."""
        out = []
        try:
            trace = self.prog.stack_trace(task)
        except (ValueError, FaultError, LookupError) as error:
            return str(error)
        for frame in trace:
            if frame.is_inline:
                continue
            try:
                pc = frame.pc
            except LookupError:
                break
            if not pc >> 63:
                break
            # A return address may be behind the end of the function that made the call.
            out.append([pc, self.names_at(pc if frame.interrupted else pc - 1)])
        return out

    # What the kernel counts and says by itself

    def psi_group(self, group):
        """avg_last_update, and of each resource and kind (three averages, total in ns)."""
        states, flat = self.enum("psi_states"), lambda array: list(numbers(array))
        avg, total, lines = flat(group.avg), flat(group.total), {}
        for name, state in states.items():
            match = re.fullmatch(r"PSI_(\w+)_(SOME|FULL)", name)
            if match:
                # PSI_AVGS is the first of the aggregators.
                lines[f"{match[1]} {match[2]}".lower()] = [avg[3 * state : 3 * state + 3], total[state]]
        return {"updated_ns": group.avg_last_update.value_(), "lines": lines}

    def psi(self):
        if not self.symbol("psi_system"):
            return None
        root = self.prog["cgrp_dfl_root"].cgrp
        cgroups = {}
        for css in css_for_each_descendant_pre(root.self.address_of_()):
            cgroup = container_of(css, "struct cgroup", "self")
            # CSS_ONLINE: not removed; the root has psi_system.
            if css.flags.value_() & 2 and cgroup.value_() != root.address_:
                cgroups[cgroup_path(cgroup).decode()] = {
                    "cgroup_kva": cgroup.value_(), "serial_nr": css.serial_nr.value_(), **self.psi_group(cgroup.psi),
                }
        return {"system": self.psi_group(self.prog["psi_system"]), "cgroups": cgroups}

    def numa(self):
        items = {name: i for name, i in self.enum("numa_stat_item").items() if not name.startswith("NR_")}
        nodes = {}
        for node in for_each_online_node(self.prog):
            sums = dict.fromkeys(items, 0)
            for zone in self.prog["node_data"][node].node_zones:
                for name, i in items.items():
                    sums[name] += zone.vm_numa_event[i].counter.value_()
                    if zone.present_pages.value_():
                        for cpu in self.cpus:
                            sums[name] += per_cpu_ptr(zone.per_cpu_zonestats, cpu).vm_numa_event[i].value_()
            nodes[node] = sums
        return nodes

    def irqs(self):
        rows = {}
        for irq, desc in for_each_irq_desc(self.prog):
            counts = {cpu: irq_desc_kstat_cpu(desc, cpu) for cpu in self.cpus} if desc.kstat_irqs else {}
            if any(counts.values()):
                chip = irq_desc_chip_name(desc)
                rows[str(irq)] = {
                    "names": [name.decode() for name in irq_desc_action_names(desc)],
                    "chip": chip and chip.decode(),
                    "hwirq": desc.irq_data.hwirq.value_() if desc.irq_data.domain else None,
                    "per_cpu": {cpu: count for cpu, count in counts.items() if count},
                }
        return rows

    def schedstats(self):
        names = {
            "yld_count": "yld_count", "sched_count": "sched_count", "sched_goidle": "sched_goidle",
            "ttwu_count": "ttwu_count", "ttwu_local": "ttwu_local", "rq_cpu_time": "rq_cpu_time_ns",
            "rq_sched_info.run_delay": "run_delay_ns", "rq_sched_info.pcount": "pcount",
        }
        key = self.global_("sched_schedstats")
        return {
            "counting": bool(key.key.enabled.counter.value_()) if key is not None else None,
            "cpus": {
                cpu: {ours: value(per_cpu(self.prog["runqueues"], cpu), path) for path, ours in names.items()}
                for cpu in for_each_cpu(self.prog["__cpu_online_mask"])
            },
        }

    def function(self, at):
        """What a function's address can be called; several symbols can be there."""
        return sorted({symbol.name for symbol in self.prog.symbols(at) if symbol.address == at})

    def task_of(self, task):
        return [task.pid.value_(), text(task.comm), task.value_()] if task else None

    def timers(self):
        rows, now = [], ktime_get_coarse_ns(self.prog).value_()
        jiffies = self.prog["jiffies_64"].value_()
        clocks = {e.value: e.name[len("HRTIMER_BASE_"):] for e in self.prog.type("enum hrtimer_base_type").enumerators}
        wheels = [name[len("BASE_"):] for name in timer_base_names(self.prog)]
        for cpu in self.cpus:
            for index, clock in enumerate(per_cpu(self.prog["hrtimer_bases"], cpu).clock_base):
                for timer in hrtimer_clock_base_for_each(clock.address_of_()):
                    called = self.function(timer.function.value_())
                    row = {"cpu": cpu, "kind": "hrtimer", "base": clocks[index], "kva": timer.value_(), "function": called,
                           "expires_ns": timer.node.expires.value_(),
                           "left_ns": timer.node.expires.value_() - clock.offset.value_() - now}
                    if "hrtimer_wakeup" in called:
                        row["wakes"] = self.task_of(container_of(timer, "struct hrtimer_sleeper", "timer").task)
                    if "bpf_timer_cb" in called:
                        row["bpf_map_id"] = container_of(timer, "struct bpf_hrtimer", "timer").cb.map.id.value_()
                    rows.append(row)
            for name, base in zip(wheels, per_cpu(self.prog["timer_bases"], cpu)):
                for timer in timer_base_for_each(base.address_of_()):
                    called = self.function(timer.function.value_())
                    row = {"cpu": cpu, "kind": "wheel", "base": name, "kva": timer.value_(), "function": called,
                           "expires_jiffies": timer.expires.value_(), "left_jiffies": timer.expires.value_() - jiffies,
                           # Which list it is on, the timer itself knows (timer_get_idx()).
                           "slot": timer.flags.value_() >> 22}
                    if "delayed_work_timer_fn" in called:
                        row["work"] = self.function(container_of(timer, "struct delayed_work", "timer").work.func.value_())
                    if "process_timeout" in called:
                        row["wakes"] = self.task_of(container_of(timer, "struct process_timer", "timer").task)
                    rows.append(row)
        return rows

    def work(self, work):
        data, queue = work.data.counter.value_(), None
        if data & 4:  # WORK_STRUCT_PWQ; the address stands above the 8 bits of flags and colour
            queue = text(Object(self.prog, "struct pool_workqueue *", data & 0xFFFFFFFFFFFFFF00).wq.name)
        return {"kva": work.value_(), "function": self.function(work.func.value_()), "workqueue": queue}

    def works(self, head):
        return [self.work(work) for work in list_for_each_entry("struct work_struct", head.address_of_(), "entry")]

    def workqueues(self):
        jiffies, pools = self.prog["jiffies_64"].value_(), {}
        for number, pointer in idr_for_each_entry(self.prog["worker_pool_idr"].address_of_(), "struct worker_pool"):
            pool = pointer
            progress = pool.last_progress_ts if has(pool, "last_progress_ts") else pool.watchdog_ts
            busy = []
            for worker in list_for_each_entry("struct worker", pool.workers.address_of_(), "node"):
                if worker.current_work:
                    busy.append({
                        "task": self.task_of(worker.task), "work_kva": worker.current_work.value_(),
                        "function": self.function(worker.current_func.value_()),
                        "workqueue": text(worker.current_pwq.wq.name),
                        "since_jiffies": value(worker, "current_start") if has(worker, "current_start") else None,
                        "scheduled": self.works(worker.scheduled),
                    })
            pools[number] = {
                "kva": pool.value_(), "cpu": pool.cpu.value_(), "nice": pool.attrs.nice.value_(),
                "flags": pool.flags.value_(), "nr_running": pool.nr_running.value_(), "nr_workers": pool.nr_workers.value_(),
                "nr_idle": pool.nr_idle.value_(), "progress_age_jiffies": jiffies - progress.value_(),
                "busy": busy, "pending": self.works(pool.worklist), "inactive": [],
            }
        by_address = {pool["kva"]: pool for pool in pools.values()}
        for queue in list_for_each_entry("struct workqueue_struct", self.prog["workqueues"].address_of_(), "list"):
            for pwq in list_for_each_entry("struct pool_workqueue", queue.pwqs.address_of_(), "pwqs_node"):
                by_address[pwq.pool.value_()]["inactive"] += self.works(pwq.inactive_works)
        watchdog = self.global_("scx_watchdog_work")
        return {
            "pools": pools,
            "scx_watchdog": None if watchdog is None else {
                "kva": watchdog.address_, "function": self.function(watchdog.work.func.value_()),
                "pending": bool(watchdog.work.data.counter.value_() & 1),
                "expires_jiffies": watchdog.timer.expires.value_() if watchdog.timer.entry.pprev else None,
            },
        }

    def kernel_log(self):
        ring, comms = self.prog["prb"].desc_ring, {}
        if has(ring.infos, "comm"):
            infos = (ring.infos[i] for i in range(1 << ring.count_bits.value_()))
            # One that was never used has number 0 and no name.
            comms = {info.seq.value_(): text(info.comm) for info in infos if info.comm[0].value_()}
        return [
            {
                "comm": comms.get(r.seq, ""),
                "seq": r.seq, "ts_ns": r.timestamp, "level": r.level, "facility": r.facility,
                "caller": f"C{r.caller_cpu}" if r.caller_tid is None else f"T{r.caller_tid}",
                "text": r.text.decode("utf-8", "replace"),
                "device": " ".join(value.decode() for value in r.context.values()),
            }
            for r in get_printk_records(self.prog)
        ]


def numbers(array):
    """The integers of an array, or of arrays in it: BTF has them flattened, DWARF has not."""
    for element in array:
        if element.type_.kind == drgn.TypeKind.ARRAY:
            yield from numbers(element)
        else:
            yield element.value_()


def read(path, vmlinux=None):
    prog, notes, source = open_core(path, vmlinux)
    reader = Reader(prog, notes)
    scheds = reader.schedulers()
    attached = reader.root() is not None if reader.ext else False
    # A report is about the attached root, else the scheduler that was thrown out last.
    subject = (scheds[0] if attached else scheds[-1])[1] if scheds else None
    scx_order, others = reader.all_tasks()
    # drgn unwinds by DWARF; it does not know the ORC format of 7.1 and later.
    stacks = {t.value_(): reader.stack(t) for t in scx_order + others} if vmlinux else {}
    return {
        "drgn": drgn.__version__ if hasattr(drgn, "__version__") else "?",
        "types": "dwarf" if vmlinux else "btf",
        "vmcoreinfo": source,
        "sched_ext": reader.ext,
        "attached": attached,
        "enums": reader.enums,
        "kernel": reader.kernel(),
        "vcpus": reader.vcpus(),
        "schedulers": [reader.scheduler(*s) for s in scheds],
        "subject": subject.value_() if subject is not None else None,
        "exit_info": reader.exit_info(subject) if subject is not None else None,
        "events": reader.events(subject) if subject is not None else {},
        "run_queues": reader.run_queues(),
        "cpu_details": reader.cpu_details(),
        "cpu_masks": reader.cpu_masks(),
        "locks": reader.locks(scx_order + others),
        "dsqs": [reader.dsq(*d) for d in reader.dsqs(scheds)] if reader.ext else [],
        "scx_tasks_order": [t.value_() for t in scx_order],
        "tasks": [reader.task(t) for t in scx_order + others],
        "cpu_time": reader.cpu_time(),
        "psi": reader.psi(),
        "numa": reader.numa(),
        "irqs": reader.irqs(),
        "schedstats": reader.schedstats(),
        "timers": reader.timers(),
        "workqueues": reader.workqueues(),
        "kernel_log": reader.kernel_log(),
        **({"stacks": stacks} if stacks else {}),
    }


def main():
    parser = argparse.ArgumentParser(description="List what drgn reads of sched_ext in a core, as JSON.")
    parser.add_argument("core")
    parser.add_argument("--vmlinux", help="take types from this file's DWARF, not from the core's BTF")
    parser.add_argument("-o", "--output", help="write here instead of standard output")
    args = parser.parse_args()
    out = open(args.output, "w", encoding="utf-8") if args.output else sys.stdout
    json.dump(read(args.core, args.vmlinux), out, indent=1)
    out.write("\n")


if __name__ == "__main__":
    main()
