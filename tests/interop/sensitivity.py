#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Would the comparisons notice? Changes a report and looks.

    sensitivity.py REPORT.json DRGN.json TRUTHDIR
    sensitivity.py REPORT.json - TRUTHDIR           changes the BPF maps only

Takes each kind of value in a report (`postmortem.tasks[].comm`), changes up to three
values of the kind, one at a time, and asks the comparisons. Typed values of maps count by
the member that holds them and by what they are (`maps[].entries[].value uint.bits`).
Prints the kinds that none notices, other than those that cannot be checked, and then
exits with 1.
"""

import json
import pathlib
import struct
import sys

import compare_drgn
import compare_maps
import compare_truth
from common import load_report

# Nothing outside our own code has these.
NOT_COMPARED = (
    "schema", "postmortem.version", "postmortem.analyzer", "postmortem.headline", "postmortem.input",
    "postmortem.provenance", "postmortem.unavailable", "postmortem.kernel.arch",
    # Made of the rest of the report; each rule has tests of its own, and evidence that is compared.
    "postmortem.findings", "postmortem.dump_differences", "postmortem.recovered_pointers",
    # The text that it is made of is compared; `dump_differences` compares it with the rest.
    "postmortem.exit_info.parsed_dump",
    # Empty without `nohz_full=`.
    "postmortem.kernel.cpus_nohz_full",
)
# Only with drgn's stacks, which need DWARF.
WITH_DWARF = ("postmortem.tasks[].stack", "task_enrichments[].lock_slowpath_match")
# Reasons of absence, and where things are in the kernel.
NOT_COMPARED_ENDS = ("_unavailable", "targets[].kva", "arena.kern_vm_start")

# What only a guest with notes of its own (truth/zoo) can tell of maps.
NOTED_ENDS = ("ptr.symbol", "array.len", "records[].data_hex", "records[].state", "frames[].symbol",
              "frames[].source", "callbacks[].source")

# `kind` of a rendered value.
VALUES = {"int", "uint", "bool", "char", "float", "enum", "struct", "array", "cpu_list", "ptr", "bytes", "truncated",
          "unsupported"}
MAPS = ("maps", "postmortem.maps")


def leaves(node, path=(), name="", value=None):
    """(path, kind, value) of each value. `value` is the kind of the outermost rendered value around it."""
    if isinstance(node, dict):
        if node.get("kind") in VALUES:
            value = value or name
            followed = " behind a pointer" if "deref" in path else ""
            name = f"{value}{followed} {node['kind']}"
        for key, part in node.items():
            yield from leaves(part, path + (key,), f"{name}.{key}".lstrip("."), value)
    elif isinstance(node, list):
        for i, part in enumerate(node):
            yield from leaves(part, path + (i,), f"{name}[]", value)
    else:
        yield path, name, node


def other(value):
    """Another value of the same type; far enough away for those with a tolerance."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1_000_000_007
    if isinstance(value, float):
        return value + 1.5
    if isinstance(value, str) and "+0x" in value:
        return f"x{value}"  # a symbol: its end is the size, which /proc/kallsyms has not
    if isinstance(value, str) and value.startswith("0x"):
        return hex(int(value, 16) ^ 0x8001)
    if isinstance(value, str):
        return value[:-1] + ("x" if value[-1:] != "x" else "y")
    return 0


def main():
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    report = load_report(sys.argv[1])
    only_maps = sys.argv[2] == "-"
    drgn = None if only_maps else json.loads(pathlib.Path(sys.argv[2]).read_text())
    truth = pathlib.Path(sys.argv[3])
    recipe = json.loads((truth.parent / "recipe.json").read_text())

    def noticed(maps):
        """Which comparison fails on the report, if any. One that breaks has noticed too."""
        ways = [("bpftool", lambda: compare_maps.Comparison(report, truth, recipe))] if maps else [
            ("drgn", lambda: compare_drgn.Comparison(report, drgn)),
            ("kernel", lambda: compare_truth.Comparison(report, truth, recipe)),
        ]
        out = []
        for name, compare in ways:
            try:
                if compare().run().problems:
                    out.append(name)
            except (KeyError, IndexError, TypeError, ValueError, AttributeError, struct.error):
                out.append(name)
        return out

    if noticed(True) or not only_maps and noticed(False):
        raise SystemExit("the report itself differs already; nothing can be learnt from changing it")
    kinds = {}
    for path, name, value in leaves(report):
        if not only_maps or name.startswith(MAPS):
            kinds.setdefault(name, []).append((path, value))
    missed, followed, by = [], [], {"drgn": 0, "kernel": 0, "bpftool": 0}
    for name, places in sorted(kinds.items()):
        if name.startswith(NOT_COMPARED) or name.endswith(NOT_COMPARED_ENDS):
            continue
        if name.startswith(WITH_DWARF) and not (drgn or {}).get("stacks"):
            continue
        if name.startswith(MAPS) and name.endswith(NOTED_ENDS) and not (truth / "zoo").is_dir():
            continue
        step = max(1, len(places) // 3)
        ways = set()
        for path, value in places[::step][:3]:
            node = report
            for part in path[:-1]:
                node = node[part]
            node[path[-1]] = other(value)
            ways.update(noticed(name.startswith(MAPS)))
            node[path[-1]] = value
            if name.startswith(MAPS) and ways:
                break  # there is but one comparison of these
        for way in ways:
            by[way] += 1
        if not ways and " behind a pointer " in name:
            followed.append(name)
        elif not ways:
            missed.append(name)
    if noticed(True):
        raise SystemExit("a comparison changed the report")
    print(f"{len(kinds)} kinds of values; changes are noticed by drgn's values in {by['drgn']}, "
          f"by the guest's own kernel in {by['kernel']}, by what bpftool read in {by['bpftool']}")
    if followed:
        print(f"  behind kernel pointers, which no look-up follows: {len(followed)} kinds")
    for name in missed:
        print(f"  NOT NOTICED: {name}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
