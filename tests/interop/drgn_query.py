#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Asks drgn what `analyze query` is asked.

    drgn_query.py CORE.elf [-o OUT.json]

Run it with a Python that has drgn 0.3.0. The output is a list of [expression, drgn's value]:
numbers, texts up to their first NUL, addresses as numbers, and null where this kernel has no such
member. compare_query.py asks `analyze` the same.
"""

import argparse
import json
import sys

import drgn
import drgn_lists
from drgn import sizeof
from drgn.helpers.linux.bpf import bpf_map_for_each
from drgn.helpers.linux.percpu import per_cpu
from drgn.helpers.linux.pid import find_task, for_each_task


# What a pointer that leads nowhere has.
FAULT = "fault"


def plain(obj):
    """The value of an object as JSON has it."""
    of = obj.type_
    while of.kind in (drgn.TypeKind.TYPEDEF,):
        of = of.type
    if of.kind == drgn.TypeKind.ARRAY:
        return obj.string_().decode("utf-8", "replace")
    if of.kind == drgn.TypeKind.STRUCT:  # atomic_t
        return int(obj.counter.value_())
    return int(obj.value_())


def questions(prog):
    rq = [per_cpu(prog["runqueues"], cpu) for cpu in range(2)]
    init = find_task(prog, 1)
    # A task on a queue, else the first one that there is.
    tasks = sorted(for_each_task(prog), key=lambda task: task.pid.value_())
    waiting = next((task for task in tasks if task.scx.dsq and task.pid.value_() > 1), tasks[-1])
    pid = waiting.pid.value_()
    root = prog["scx_root"]
    ask = {}

    def members(expression, obj, *paths):
        for path in paths:
            def value(path=path):
                at = obj
                for name in path.replace("]", "").replace("[", ".").split("."):
                    # drgn reads through a null pointer: QEMU's cores call physical memory virtual as well.
                    if at.type_.kind == drgn.TypeKind.POINTER and not at:
                        return FAULT
                    at = at[int(name)] if name.isdigit() else at.member_(name)
                return plain(at)
            ask[f"{expression}.{path}"] = value

    for cpu in range(2):
        members(f"rq({cpu})", rq[cpu], "scx.nr_running", "nr_running", "scx.flags", "curr.pid", "curr.comm", "cpu",
                "clock", "scx.local_dsq.nr", "scx.local_dsq.seq", "curr.scx.slice", "idle.comm", "idle.prio",
                "scx.runnable_list.next", "nr_switches")
    members("task(1)", init, "comm", "tgid", "scx.weight", "real_parent.pid", "signal.nr_threads", "cpus_ptr.bits[0]",
            "static_prio", "se.sum_exec_runtime", "mm.map_count", "__state", "sched_reset_on_fork", "exit_code",
            "sched_class", "start_time", "thread_pid.numbers[0].nr")
    members(f"task({pid})", waiting, "comm", "scx.dsq.id", "scx.dsq.nr", "scx.dsq.seq", "scx.runnable_at",
            "scx.dsq_vtime", "scx.flags", "scx.sticky_cpu", "nr_cpus_allowed", "on_rq", "nvcsw")
    members(f"((struct task_struct *){waiting.value_():#x})", waiting, "pid", "scx.weight")
    members(f"(struct task_struct *){waiting.value_():#x}", waiting, "tgid")
    members('symbol("init_task")', prog["init_task"], "comm", "pid", "prio")
    members('symbol("runqueues")[1]', rq[1], "nr_switches", "scx.ops_qseq")
    members('per_cpu("runqueues", 0)', rq[0], "cpu")
    members('symbol("init_uts_ns")', prog["init_uts_ns"], "name.release")
    if root:
        members("sched()", root, "ops.name", "ops.timeout_ms", "watchdog_timeout", "exit_kind", "ops.flags")
        members('symbol("scx_root")', root, "ops.name")
    first = next(iter(bpf_map_for_each(prog)))
    members(f"(struct bpf_map *){first.value_():#x}", first, "name", "max_entries", "id", "map_type", "value_size")
    ask['symbol("nr_cpu_ids")'] = lambda: plain(prog["nr_cpu_ids"])
    ask['symbol("jiffies_64")'] = lambda: plain(prog["jiffies_64"])
    # jiffies is the low part of jiffies_64, at the same address.
    ask['symbol("jiffies")'] = lambda: plain(prog["jiffies_64"])
    ask['*(unsigned long *)&symbol("page_offset_base")'] = lambda: plain(prog["page_offset_base"])
    ask['*(u32 *)&symbol("nr_node_ids")'] = lambda: plain(prog["nr_node_ids"])
    ask["&task(1).scx"] = lambda: init.scx.address_of_().value_()
    ask["&rq(1).scx.local_dsq"] = lambda: rq[1].scx.local_dsq.address_of_().value_()
    ask['sizeof("struct task_struct")'] = lambda: sizeof(prog.type("struct task_struct"))
    ask["(int)task(1).exit_code"] = lambda: plain(init.exit_code)
    ask["(s8)0xfff"] = lambda: -1
    ask[f"(u8)task({pid}).pid"] = lambda: pid & 0xFF
    ask["rq(0).curr.scx.dsq"] = lambda: rq[0].curr.scx.dsq.value_()
    ask[f'rq(task({pid}).thread_info.cpu).cpu'] = lambda: plain(waiting.thread_info.cpu)
    return ask


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("core")
    parser.add_argument("-o", "--output", default="-")
    args = parser.parse_args()
    drgn_lists.GLOBALS.setdefault("nr_node_ids", "unsigned int")
    prog, _, _ = drgn_lists.open_core(args.core, None)
    answers = []
    for expression, value in questions(prog).items():
        try:
            answers.append([expression, value()])
        except (LookupError, AttributeError):
            answers.append([expression, None])
        except drgn.FaultError:
            answers.append([expression, FAULT])
    with open(args.output, "w") if args.output != "-" else sys.stdout as out:
        json.dump(answers, out, indent=1)


if __name__ == "__main__":
    main()
