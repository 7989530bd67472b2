#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Compares a report's BPF maps with what bpftool and the guest's own programs read from them.

    compare_maps.py REPORT.json TRUTHDIR [--recipe RECIPE.json]
    compare_maps.py target/release/analyze TRUTHDIR --core CORE.elf

Header by header, key by key, value by value and CPU by CPU: the bytes, and independently of
them the typed values against what bpftool formatted. `stop` was read just before the core;
what the guest went on writing must have changed between `stop` and `after`, and a guest that
held still has no such excuse. What cannot be compared is listed with the reason. Exit 1 when
a value differs in a way that no rule explains.
"""

import argparse
import bisect
import functools
import json
import math
import os
import pathlib
import re
import struct

import map_types
from common import Tally, hexa, load_report
from map_types import Pairs

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
ARENA_WINDOW = 1 << 32
KINDS = {"int", "uint", "bool", "char", "float", "enum", "struct", "array", "cpu_list", "ptr", "bytes", "truncated",
         "unsupported"}
# BPF_F_ of include/uapi/linux/bpf.h, by bit.
FLAGS = (
    "NO_PREALLOC", "NO_COMMON_LRU", "NUMA_NODE", "RDONLY", "WRONLY", "STACK_BUILD_ID", "ZERO_SEED", "RDONLY_PROG",
    "WRONLY_PROG", "CLONE", "MMAPABLE", "PRESERVE_ELEMS", "INNER_MAP", "LINK", "PATH_FD", "VTYPE_BTF_OBJ_FD",
    "TOKEN_FD", "SEGV_ON_FAULT", "NO_USER_CONV", "RB_OVERWRITE",
)
PAGE = 4096
OPAQUE = "a look-up returns {} as zero (a list as empty); memory has it"
UNTYPED = "a look-up returns 0 for a kptr; memory has the pointer (no BTF saved to tell them by type)"
SWINGS = "written between the two saved states; it goes up and down, here to no more than twice what was seen"
MOVED = "written between the two saved states, which differ here"
CAME = "elements came and went while the scheduler ran"
STALE_BTF = "the map has no BTF: from 6.18 on map show repeats the id of the map before"
NOT_HELD = "the storage of a task that guestkit did not ask for: a thread, or one that came later"
EXITED = "the task has exited, and its storage is freed only later"
HEAD = "before 7.0 bpf(2) gives the list's head as the last key of a cgroup storage; its look-up fails"
DEFAULT = "the scheduler left it at 0, and the kernel's copy has SCX_EXIT_DUMP_DFL_LEN"
GONE = "the map was gone when the second state was saved; few of its values may differ"
FREED = "a slot was allocated after the first saved state and freed, which clears it, before the second"
PAYLOAD = "written between the saved arena and the core; most of its values are equal"
PAGES = "pages were allocated between the two saved states"
LEFT = "its element was written after the first saved state and taken out before the second"
TWICE = "its element was written between the two saved states, this member with the same value"
LOCKS = "before 7.0 the kernel still counts the lock counters that 6.16 dropped: 32 bytes a CPU"
NO_COUNT = "this kernel counts 0 for arenas; ours are the pages that exist"
COUNTED = "it counts elements that came or went since"
CAN_LOSE = ("hash", "lru_hash", "percpu_hash", "lru_percpu_hash")
PERF_CLOSED = "the kernel takes perf events out when the file is closed through which they were put in"


def read(path):
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def spaced(text):
    """A report's hex string as bytes."""
    return None if text is None else bytes.fromhex(text)


def from_list(words):
    return bytes(int(word, 16) for word in words)


# What the guest saved is read once, however many reports are compared with it (sensitivity.py).


@functools.cache
def types_of(path):
    return map_types.from_text(read(path))


@functools.cache
def symbols_of(path):
    """Addresses and names of a /proc/kallsyms, by address."""
    table = []
    for line in (read(path) or "").splitlines():
        value, _, name = line.split(None, 2)
        table.append((int(value, 16), name.split("\t")[0]))
    table.sort(key=lambda row: row[0])
    return [row[0] for row in table], [row[1] for row in table]


class Entry:
    """One element as the guest's kernel gave it: bytes (by CPU), bpftool's text, or an error."""

    def __init__(self, key, value=None, text_key=None, text=None, error=None, inner=None):
        self.key, self.value, self.text_key, self.text = key, value, text_key, text
        self.error, self.inner = error, inner


@functools.cache
def dump(path):
    """{key: Entry} of a map_dump_N.json, and whether bpftool's text was readable."""
    text = read(path)
    if text is None:
        return None, True
    whole = True
    try:
        rows = json.loads(text, object_pairs_hook=Pairs)
    except ValueError:
        # bpftool 7.5 stops in the middle of a value of a type that it does not know (floats).
        whole, rows = False, []
        for match in re.finditer(r'"key":(\[[^]]*\]),"value":(\[[^]]*\])', text):
            rows.append(Pairs([("key", json.loads(match[1])), ("value", json.loads(match[2]))]))
    if isinstance(rows, Pairs):
        return None, True
    out = {}
    for row in rows:
        row = dict(row)
        entry = Entry(from_list(row["key"]), inner=row.get("inner_map_id"))
        formatted = dict(row.get("formatted") or [])
        entry.text_key = formatted.get("key")
        if "values" in row:
            each = [dict(v) for v in row["values"]]
            entry.value = {v["cpu"]: from_list(v["value"]) for v in each}
            entry.text = {dict(v)["cpu"]: dict(v)["value"] for v in formatted.get("values") or []} or None
        elif isinstance(row["value"], Pairs):
            entry.error = dict(row["value"]).get("error")
        else:
            entry.value = from_list(row["value"])
            entry.text = formatted.get("value")
        out[entry.key] = entry
    return out, whole


class Truth:
    """What one stage of the guest saved about its maps."""

    def __init__(self, path):
        self.path = path
        self.tool = path / "bpftool"
        self.show = {m["id"]: m for m in self.json("map_show.json") or []}
        self.programs = self.json("prog_show.json") or []

    def json(self, name):
        text = read(self.tool / name)
        try:
            return json.loads(text) if text else None
        except ValueError:
            return None

    def dump(self, number):
        return dump(self.tool / f"map_dump_{number}.json")

    def storage(self, number):
        """{thread: bytes} of a task storage."""
        raw = read(self.path / "raw" / str(number))
        if raw is not None:
            return {int(t): bytes.fromhex(v) for t, v in re.findall(r"^tid:(\d+) ([0-9a-f]+)$", raw, re.M)}
        text = read(self.path / f"taskmap_{number}.txt")
        if text is None:
            return None
        return {int(t): bytes.fromhex(v) for t, v in re.findall(r"^(\d+) ([0-9a-f]+)$", text, re.M)}

    def ids(self, number):
        """(BTF, key type, value type) as the kernel told mapkit; None where it was not asked."""
        match = re.search(r"^# id .* btf (\d+) key type (\d+) value type (\d+)$",
                          read(self.path / "raw" / str(number)) or "", re.M)
        return tuple(map(int, match.groups())) if match else None

    def arena(self, number):
        """{low 32 bits of a page's address: bytes}, and whether these are all of its pages."""
        pages, whole = {}, False
        path = self.path / f"arena_pages_{number}.bin"
        if path.is_file():
            data, whole = path.read_bytes(), True
            for at in range(0, len(data) - PAGE - 7, PAGE + 8):
                (page,) = struct.unpack_from("<Q", data, at)
                pages[page * PAGE & ARENA_WINDOW - 1] = data[at + 8:at + 8 + PAGE]
        path = self.path / f"arena_{number}.bin"
        listed = read(self.path / f"arena_{number}.pages")
        if path.is_file():
            data = path.read_bytes()
            where = [int(line.split()[0], 16) for line in (listed or "").splitlines() if line.strip()]
            whole = whole or listed is not None
            for i in range(len(data) // PAGE):
                at = where[i] if i < len(where) else i * PAGE
                pages[at & ARENA_WINDOW - 1] = data[i * PAGE:(i + 1) * PAGE]
        return (pages or None), whole

    def comm(self, pid):
        for status in self.path.glob(f"proc/*/task/{pid}/status"):
            if match := re.search(r"^Name:\t(.*)$", read(status) or "", re.M):
                return match[1]
        return None


class Comparison:
    def __init__(self, report, truth, recipe):
        self.tally = Tally()
        self.own = {m["id"]: m for m in (report.get("postmortem") or {}).get("maps") or []}
        self.shared = {m.get("map_kva"): m for m in report.get("maps") or []}
        tasks = (report.get("postmortem") or {}).get("tasks") or []
        self.tasks = {t["pid"]: t for t in tasks}
        self.cpus = len((report.get("postmortem") or {}).get("cpus") or [])
        self.before = Truth(truth / ("late" if (truth / "late" / "bpftool").is_dir() else "stop"))
        self.after = Truth(truth / "after")
        self.attach = Truth(truth / "attach")
        self.zoo = truth / "zoo"
        release = (recipe.get("kernel") or {}).get("release") or ""
        self.series = tuple(map(int, re.findall(r"\d+", release)[:2]))
        self.possible = recipe.get("cpus") or self.cpus
        phases = recipe.get("guest_seconds") or {}
        self.still = "quiet" in phases
        self.types = {}
        for path in sorted(truth.glob("**/btf_*.txt")):
            if match := re.fullmatch(r"btf_(\d+)\.txt", path.name):
                self.types[int(match[1])] = types_of(path)
        self.demo_types(recipe)
        self.arenas = {n: self.before.arena(n)[0] for n, m in self.before.show.items() if m["type"] == "arena"}
        self.skipped = []
        self.counts = {"maps": 0, "entries": 0, "by type": {}}
        self.notes = {name: (read(self.zoo / name) or "").splitlines()
                      for name in ("owners.txt", "queues.txt", "rings.txt", "slots.txt", "stacks.txt")}

    def demo_types(self, recipe):
        """A demo's types are in its object, where the guest saved none."""
        path = ROOT / "bpf" / "objects" / f"{recipe.get('demo')}.bpf.o"
        ids = {m.get("btf_id") for m in self.before.show.values()} - {None}
        if len(ids) == 1 and not self.types and path.is_file():
            self.types[ids.pop()] = map_types.from_object(path)

    def run(self):
        section = "map list"
        show = self.before.show
        for number, theirs in show.items():
            if number not in self.own:
                self.tally.problem(section, f"map {number} ({theirs.get('name')}) is not in the report")
        for number, ours in self.own.items():
            if number not in show:
                moved = number in self.after.show and not self.still
                self.tally.allow(section, f"map {number} ({ours['name']})", "in the report", "not in map show",
                                 CAME, moved)
        last_btf = None
        for number, theirs in show.items():
            ours = self.own.get(number)
            if ours is None:
                continue
            self.header(number, ours, theirs, last_btf)
            last_btf = theirs.get("btf_id", last_btf)
            self.counts["maps"] += 1
            self.contents(number, ours, theirs)
        return self.tally

    # Headers

    def header(self, number, ours, theirs, last_btf):
        section = "headers"
        shared = self.shared.get(hexa(ours["kva"])) or {}
        where = f"map {number} {theirs.get('name')}"
        check = lambda what, a, b: self.tally.check(section, f"{where} {what}", a, b)
        check("name", ours["name"], theirs.get("name", ""))
        if isinstance(theirs["type"], int):
            check("type", ours["map_type"], theirs["type"])
        else:
            check("type", ours.get("type_name"), theirs["type"])
        check("in `maps`", bool(shared), True)
        for member, key in (("key_size", "bytes_key"), ("value_size", "bytes_value"),
                            ("max_entries", "max_entries")):
            check(member, ours.get(member), theirs[key])
        check("flags", hexa((ours.get("flags") or {}).get("raw")), theirs["flags"])
        check("flags' names", (ours.get("flags") or {}).get("names", []),
              [name for bit, name in enumerate(FLAGS) if theirs["flags"] >> bit & 1])
        check("error in `maps`", shared.get("error"), ours.get("error"))
        if ours.get("error") and ours.get("type_name") != "bloom_filter":
            self.skip(number, ours, f"the report says: {ours['error']}")
        check("frozen", ours.get("frozen", False), bool(theirs["frozen"]))
        for member in ("name", "map_type", "value_size", "max_entries"):
            check(f"{member} in `maps`", shared.get(member), ours.get(member))
        ids = self.before.ids(number)
        if ids:
            check("btf_id", ours.get("btf_id"), ids[0] or None)
        else:
            self.tally.allow(section, f"{where} btf_id", ours.get("btf_id"), theirs.get("btf_id"), STALE_BTF,
                             ours.get("btf_id") is None and theirs.get("btf_id") == last_btf)
        users = sorted(p["id"] for p in self.before.programs if number in p.get("map_ids", []))
        check("progs", sorted(p["id"] for p in ours.get("progs", [])), users)
        names = {p["id"]: p.get("name", "") for p in self.before.programs}
        for each in ours.get("progs", []):
            if each["id"] in names:
                check(f"program {each['id']}", each["name"], program_name(each["name"], names[each["id"]]))
        self.memory(number, ours, theirs)
        types = self.types.get(ours.get("btf_id"))
        if types:
            key, value = ids[1:] if ids else types.of_map(ours["name"])
            for member, number in (("key_type", key), ("value_type", value)):
                # The report names the struct; a typedef keeps its name.
                if number and types.types[number].name and types.types[number].kind != "VAR":
                    named = (ours.get(member) or "").split(" ")[-1]
                    check(member, named, types.types[number].name.split(" ")[-1])

    def memory(self, number, ours, theirs):
        where = f"map {number} {ours['name']} memory"
        mine, said = ours.get("memory_bytes"), theirs["bytes_memlock"]
        if mine is None:
            self.skip(number, ours, "memory_bytes: not in the report")
            return
        if mine == said:
            self.tally.check("memory", where, mine, said)
        elif ours["map_type"] == 33 and said == 0:
            self.tally.allow("memory", where, mine, said, NO_COUNT,
                             self.series < (7, 3) and mine == PAGE * (ours.get("entries") or 0))
        elif ours["map_type"] in (1, 5, 9, 10, 13) and said - mine == 32 * self.cpus:
            self.tally.allow("memory", where, mine, said, LOCKS, self.series < (7, 0))
        else:
            later = (self.after.show.get(number) or {}).get("bytes_memlock")
            self.tally.allow("memory", where, mine, said, COUNTED,
                             not self.still and later is not None and min(said, later) <= mine <= max(said, later))

    def skip(self, number, ours, reason):
        self.skipped.append(f"map {number} {ours['name']} ({ours.get('type_name') or ours['map_type']}): {reason}")

    # Contents

    def contents(self, number, ours, theirs):
        shared = self.shared.get(hexa(ours["kva"])) or {}
        kind = ours.get("type_name") or str(ours["map_type"])
        at = Map(self, number, ours, shared, kind)
        before = self.tally.compared["entries"] + self.tally.compared["bytes"] + self.tally.compared["typed"]
        method = {
            "array": at.array, "percpu_array": at.percpu_array, "insn_array": at.instructions,
            "hash": at.table, "lru_hash": at.table, "rhash": at.table, "lpm_trie": at.table,
            "cgroup_storage": at.table,
            "percpu_hash": at.percpu_table, "lru_percpu_hash": at.percpu_table,
            "percpu_cgroup_storage": at.percpu_table,
            "hash_of_maps": at.slots, "array_of_maps": at.slots, "prog_array": at.slots,
            "cgroup_array": at.slots, "perf_event_array": at.slots, "devmap": at.slots,
            "devmap_hash": at.slots, "cpumap": at.slots, "xskmap": at.slots, "sockmap": at.slots,
            "sockhash": at.slots, "reuseport_sockarray": at.slots,
            "task_storage": at.task_storage, "cgrp_storage": at.storage, "inode_storage": at.storage,
            "sk_storage": at.storage, "queue": at.queue, "stack": at.queue, "bloom_filter": at.bloom,
            "stack_trace": at.stacks, "ringbuf": at.ring, "user_ringbuf": at.ring,
            "arena": at.arena, "struct_ops": at.struct_ops,
        }.get(kind)
        if method is None:
            self.skip(number, ours, "no comparison for this type")
            return
        method()
        if at.unchecked > max(8, at.equal // 4):
            self.tally.problem("typed", f"{at.where}: {at.unchecked} values differ and cannot be checked, "
                                        f"{at.equal} are equal")
        row = self.counts["by type"].setdefault(kind, [0, 0])
        row[0] += 1
        row[1] += at.entries
        self.counts["entries"] += at.entries
        after = self.tally.compared["entries"] + self.tally.compared["bytes"] + self.tally.compared["typed"]
        if after == before and not at.entries:
            at.nothing()

    def symbol(self, address):
        """`name+0xoff` by the guest's own /proc/kallsyms."""
        values, names = symbols_of(self.zoo / "kallsyms")
        index = bisect.bisect_right(values, address)
        if not index:
            return set()
        start = values[index - 1]
        first = bisect.bisect_left(values, start)
        size = values[index] - start if index < len(values) else 0
        return {f"{name}+{address - start:#x}/{size:#x}" for name in names[first:index]}

    def named(self, tally, where, address, symbol):
        """A symbol against the guest's kallsyms; the size of a BPF program's is not in there."""
        theirs = self.symbol(address)
        if not theirs:
            return
        if symbol.startswith("bpf_"):
            symbol = symbol.split("/")[0]
            theirs = {each.split("/")[0] for each in theirs}
        tally.check("pointers", f"{where} symbol", symbol, symbol if symbol in theirs else sorted(theirs))

    def lines(self, program):
        """`file:line` of a program's instructions that begin one, in order; as bpftool had them."""
        text = read(self.zoo / f"xlated_{program}.json")
        try:
            rows = json.loads(text) if text else []
        except ValueError:
            return []
        return [f"{os.path.basename(row['file'])}:{row['line_num']}" for row in rows if "line_num" in row]

    def arena_bytes(self, address, size):
        """What the guest saved at an address in an arena; None for other addresses."""
        for number, pages in self.arenas.items():
            ours = self.own.get(number) or {}
            window = (self.shared.get(hexa(ours.get("kva"))) or {}).get("arena")
            inside = window and any(base <= address < base + ARENA_WINDOW
                                    for base in (window["user_vm_start"], window["kern_vm_start"]))
            out, at = b"", address & ARENA_WINDOW - 1
            while inside and pages and len(out) < size:
                page = pages.get(at & ~(PAGE - 1))
                if page is None:
                    return None
                part = page[at % PAGE:at % PAGE + size - len(out)]
                out, at = out + part, at + len(part)
            if out:
                return out
        return None


class Map:
    """One map's contents, ours and theirs."""

    def __init__(self, comparison, number, ours, shared, kind):
        self.all = comparison
        self.tally = comparison.tally
        self.number, self.ours, self.shared, self.kind = number, ours, shared, kind
        self.name = ours["name"]
        self.where = f"map {number} {ours['name']}"
        self.theirs, whole = comparison.before.dump(number)
        self.later, _ = comparison.after.dump(number)
        if not whole:
            comparison.skip(number, ours, "bpftool's text: it ends at the first float; compared with the bytes instead")
        self.types = comparison.types.get(ours.get("btf_id"))
        self.key_type = self.value_type = 0
        if self.types:
            ids = comparison.before.ids(number)
            self.key_type, self.value_type = ids[1:] if ids else self.types.of_map(self.name)
            if self.value_type and self.types.size(self.value_type) not in (0, ours["value_size"]):
                self.value_type = 0
        self.entries = 0
        self.untyped_pointers = set()
        self.element_moved = self.element_left = False
        self.equal = self.unchecked = 0
        # Only one value by itself: nothing of what the kernel hides, nothing that it points to.
        self.alone = False

    def nothing(self):
        if self.theirs is None:
            self.all.skip(self.number, self.ours, "the guest saved nothing of it")

    def no_truth(self):
        if self.theirs is None:
            self.all.skip(self.number, self.ours, "contents: the guest saved nothing of it")
            return True
        return False

    def count(self, found):
        """The number of elements that the header names."""
        self.tally.check("entries", f"{self.where} entries", self.ours.get("entries"), found)

    # Pairing of keys

    def pair(self, ours, theirs, later):
        """[(key, ours, theirs, later)] of both; keys that only one has are judged."""
        out = []
        for key in [k for k, e in theirs.items() if e.error and e.value is None and k not in ours]:
            # bpftool could not look up what it had been given as a key.
            storage = self.kind in ("cgroup_storage", "percpu_cgroup_storage")
            self.tally.allow("entries", f"{self.where} [{key.hex()}]", None, theirs[key].error,
                             HEAD if storage else CAME, self.all.series < (7, 0) if storage else not self.all.still)
            theirs = {k: e for k, e in theirs.items() if k != key}
        changed = not self.all.still and later is not None and (
            set(later) != set(theirs) or any(later[k].value != theirs[k].value for k in theirs if k in later)
        )
        for key in theirs:
            if key in ours:
                self.tally.check("entries", f"{self.where} [{key.hex()}]", True, True)
                out.append((key, ours[key], theirs[key], (later or {}).get(key)))
            else:
                self.tally.allow("entries", f"{self.where} [{key.hex()}]", None, "an element", CAME, changed)
        for key in ours:
            if key not in theirs:
                self.tally.allow("entries", f"{self.where} [{key.hex()}]", "an element", None, CAME, changed)
        self.entries += len(ours)
        self.count(len(ours))
        return out

    # Values

    def value(self, where, hexes, rendered, data, text, later=None, later_text=None):
        """One value: its bytes, where the report has them, and its typed form."""
        self.untyped_pointers = set()
        later = later if isinstance(later, bytes) else None
        # Sections hold variables that have nothing to do with each other.
        self.element_moved = later is not None and later != data and not self.name.count(".")
        self.element_left = later is None and self.later is not None and self.kind in CAN_LOSE
        if rendered is not None:
            if text is None and self.value_type:
                text = self.types.text(self.value_type, data)
                later_text = self.types.text(self.value_type, later) if later else None
            if rendered.get("kind") not in KINDS:
                self.tally.problem("typed", f"{where}: {rendered.get('kind')} is no kind of value")
            elif rendered["kind"] == "bytes" and text is None:
                self.untyped(where, rendered, data, later)
            elif text is None:
                self.all.skip(self.number, self.ours, "typed values: neither bpftool's text nor types were saved")
            else:
                self.typed(where, rendered, text, later_text, self.value_type, data)
        elif text is not None:
            self.tally.problem("typed", f"{where}: bpftool has a typed value, the report none")
        if hexes is not None:
            self.bytes(where, spaced(hexes), data, later)
            self.agree(where, spaced(hexes), rendered)

    def agree(self, where, data, rendered):
        """The report's typed value is what its own bytes mean: without any rule, whatever moved."""
        if rendered is None or not self.value_type or len(data) != self.types.size(self.value_type):
            return
        alone = Map(self.all, self.number, self.ours, self.shared, self.kind)
        alone.tally, alone.later, alone.alone = Tally(), {}, True
        alone.typed(where, rendered, self.types.text(self.value_type, data), None, self.value_type, data)
        self.tally.check("own bytes", where, alone.tally.problems[:1], [])

    def untyped(self, where, rendered, data, later):
        hexes = rendered["hex"]
        if self.name.endswith(".rodata.str1.1"):
            theirs = "".join(chr(b) if 0x20 <= b <= 0x7E else f"\\x{b:02x}" for b in data)
            self.tally.check("bytes", where, hexes, theirs)
        else:
            self.bytes(where, spaced(hexes), data, later)

    def bytes(self, where, ours, theirs, later):
        if ours == theirs or ours is None or len(ours) != len(theirs):
            self.tally.check("bytes", where, ours and ours.hex(), theirs.hex())
            return
        left = {i for i in range(len(ours)) if ours[i] != theirs[i]}
        rule = MOVED
        if self.value_type:
            for start, end, name in self.types.special(self.value_type):
                span = set(range(start, end))
                if left & span and looked_up(name, theirs[start:end]):
                    left -= span
                    rule = OPAQUE.format(name)
        else:
            for at in range(0, len(ours) - 7, 8):
                word = int.from_bytes(ours[at:at + 8], "little")
                if word in self.untyped_pointers and not any(theirs[at:at + 8]):
                    left -= set(range(at, at + 8))
                    rule = UNTYPED
        moved = later is not None and later != theirs
        if left and not self.all.still and (self.later is None or self.element_left or moved):
            left, rule = set(), GONE if self.later is None else LEFT if self.element_left else MOVED
        self.tally.allow("bytes", where, ours.hex(), theirs.hex(), rule, not left)

    def leaf(self, where, ours, theirs, later):
        """A number, name or text; `later` is what the second look-up gave."""
        if same(ours, theirs):
            self.tally.check("typed", where, True, True)
            self.equal += 1
            return
        still = self.all.still
        if later is not None and not same(later, theirs):
            rule, fits = between(ours, theirs, later)
            self.tally.allow("typed", where, ours, theirs, rule, fits and not still)
        elif self.later is None:
            self.unchecked += 1
            self.tally.allow("typed", where, ours, theirs, GONE, not still)
        elif self.element_left:
            self.tally.allow("typed", where, ours, theirs, LEFT, not still)
        else:
            fits = self.element_moved and between(ours, theirs, theirs)[1]
            self.tally.allow("typed", where, ours, theirs, TWICE, fits and not still)

    def typed(self, where, ours, theirs, later, number=0, data=None, tags=frozenset()):
        """A rendered value against bpftool's text; `number` is its type, where types were saved."""
        at = None
        if number:
            at, more = self.types.strip(number)
            tags = more
        if ours["kind"] == "ptr" and (ours.get("cast_annotation") or "").startswith("cast"):
            # An integer that the programs use as a pointer: the number is what the types know.
            self.followed(where, ours, None)
            value, signed = ours["value"], at is not None and at.kind == "INT" and at.signed
            ours = {"kind": "int" if signed else "uint", "bits": 64,
                    "value": value - (1 << 64) if signed and value >> 63 else value}
        kind = ours["kind"]
        if at is not None and at.kind == "DATASEC" or is_section(theirs):
            return self.section(where, ours, theirs, later, at, data)
        special = self.special_name(ours, at)
        if special:
            return self.special(where, ours, theirs, special)
        if at is not None:
            self.shape(where, ours, at)
        if kind in ("int", "uint"):
            self.leaf(where, ours["value"], number_of(theirs, ours), number_of(later, ours))
        elif kind == "char":
            self.leaf(where, ours["value"], character(theirs), character(later))
        elif kind == "bool":
            self.leaf(where, ours["value"], theirs, later)
        elif kind == "float":
            self.leaf(where, ours["value"], theirs, later)
        elif kind == "enum":
            self.enum(where, ours, theirs, later)
        elif kind == "ptr":
            self.pointer(where, ours, theirs, later, at, tags)
        elif kind == "bytes" and isinstance(theirs, str):
            self.leaf(where, int.from_bytes(spaced(ours["hex"]), "little"), int(theirs, 16),
                      int(later, 16) if isinstance(later, str) else None)
        elif kind == "array":
            self.array_of(where, ours, theirs, later, at, data)
        elif kind == "struct":
            self.struct(where, ours, theirs, later, at, data)
        elif kind == "cpu_list":
            count = self.all.possible
            self.leaf(where, ours["cpus"], cpus_of(theirs, count), cpus_of(later, count))
        elif kind == "unsupported" and isinstance(theirs, float) and not math.isfinite(theirs):
            said = "NaN" if math.isnan(theirs) else str(theirs)
            self.tally.check("typed", where, ours["reason"], f"the float {said} has no JSON number")
        else:
            self.tally.problem("typed", f"{where}: ours is {kind}, theirs {theirs!r:.80}")

    def shape(self, where, ours, at):
        """What a rendered value says of its type."""
        kind, check = ours["kind"], lambda what, a, b: self.tally.check("types", f"{where} {what}", a, b)
        if at.kind == "INT":
            named = {"BOOL": "bool", "CHAR": "char"}.get(at.encoding, "int" if at.signed else "uint")
            check("kind", kind, "bytes" if at.size == 16 else named)
        if kind in ("int", "uint", "enum", "float") and "of" not in ours:
            check("bits", ours["bits"], ours.get("width") or at.size * 8)
        if kind == "enum":
            check("signed", ours["is_signed"], at.signed)
        if kind == "struct":
            check("type", ours["type_name"] or "", at.name)
        if kind == "array":
            check("len", ours["len"], at.count)

    def special_name(self, ours, at):
        if at is not None:
            return at.name if at.kind == "STRUCT" and at.name in map_types.FIELDS else None
        if ours["kind"] == "struct" and ours["type_name"] in map_types.FIELDS:
            return ours["type_name"]
        return None

    def special(self, where, ours, theirs, name):
        self.tally.check("types", f"{where} type", ours.get("type_name"), name)
        if self.alone:
            return
        words = flatten(theirs)
        held = flatten_rendered(ours)
        ok = looked_up(name, b"".join(struct.pack("<Q", w & (1 << 64) - 1) for w in words))
        self.tally.allow("typed", where, held, words, OPAQUE.format(name), ok)

    def enum(self, where, ours, theirs, later):
        def numbered(value):
            return value if value is None or isinstance(value, str) else value & (1 << ours["bits"]) - 1
        mine = ours["variant"] if ours["variant"] is not None else ours["value"]
        self.leaf(where, numbered(mine), numbered(theirs), numbered(later))
        if ours["variant"] is not None and self.value_type:
            for (kind, _), number in self.types.by_name.items():
                at = self.types.types[number]
                for name, value in at.names if kind in ("ENUM", "ENUM64") else ():
                    if name == ours["variant"]:
                        mask = (1 << ours["bits"]) - 1
                        self.tally.check("types", f"{where} {name}", ours["value"] & mask, value & mask)

    def pointer(self, where, ours, theirs, later, at, tags):
        address = ours["value"]
        marked = at is not None and at.kind == "PTR" and self.types.strip(at.target)[1] & map_types.POINTER_TAGS
        if marked and theirs == 0:
            self.tally.allow("typed", where, address, theirs, OPAQUE.format(min(marked)), True)
        elif at is None and theirs == 0 and address and not self.types:
            self.untyped_pointers.add(address)
            self.tally.allow("typed", where, address, theirs, UNTYPED, address >> 47 == (1 << 17) - 1)
        else:
            self.leaf(where, address, theirs, later)
        if not self.alone:
            self.followed(where, ours, at)

    def followed(self, where, ours, at):
        """What a pointer leads to: into an arena, by what the guest saved of it; a function, by its symbols."""
        address = ours["value"]
        if ours.get("symbol"):
            self.all.named(self.tally, where, address, ours["symbol"])
        target = ours.get("deref")
        if target and target.get("type_name") == "task_struct":
            members = {m["name"]: m["value"] for m in target["members"]}
            text = bytes(e["value"] for e in members["comm"]["elements"]) if "comm" in members else b""
            task = self.all.tasks.get((members.get("pid") or {}).get("value")) or {}
            self.tally.check("pointers", f"{where} task", (address, text.rstrip(b"\0").decode("latin-1")),
                             (hexa(task.get("kva")), task.get("comm")))
        if not target or at is None or at.kind != "PTR":
            return
        size = self.types.size(at.target)
        data = self.all.arena_bytes(address, size) if size else None
        if data is None:
            return
        later = None
        self.typed(f"{where}->", target, self.types.text(at.target, data), later, at.target, data)

    def array_of(self, where, ours, theirs, later, at, data):
        elements = ours["elements"]
        if isinstance(theirs, str):
            text = bytes(e.get("value", 0) & 0xFF for e in elements)
            text = text[:text.find(0)] if 0 in text else text
            if later is not None and not isinstance(later, str):
                later = repr(later)
            self.leaf(where, text.decode("latin-1"), theirs, later)
            element = self.types.strip(at.target)[0] if at is not None else None
            for i, each in enumerate(elements if element is not None else []):
                self.shape(f"{where}[{i}]", each, element)
            if data is not None and at is not None:
                whole = bytes(e.get("value", 0) & 0xFF for e in elements)
                self.leaf(f"{where} to its end", whole.hex(), data[:len(whole)].hex(), None if later is None else "")
            return
        if not isinstance(theirs, list):
            self.tally.problem("typed", f"{where}: ours is an array, theirs {theirs!r:.80}")
            return
        shown = len(elements)
        self.tally.check("typed", f"{where} length", ours["len"], len(theirs))
        if shown < len(theirs):
            limit = 4096
            self.tally.allow("typed", f"{where} elements", shown, len(theirs),
                             "the report shows the first 4096 elements of an array", shown == limit)
        each = self.types.size(at.target) if at is not None else 0
        for i, element in enumerate(elements[:len(theirs)]):
            after = later[i] if isinstance(later, list) and i < len(later) else None
            part = data[i * each:(i + 1) * each] if data is not None and each else None
            self.typed(f"{where}[{i}]", element, theirs[i], after, at.target if at is not None else 0, part)

    def members(self, at, base=0):
        """A struct's members by name; those of anonymous ones are its own."""
        for member in at.members:
            inner, _ = self.types.strip(member.type_id)
            if not member.name and inner is not None and inner.kind in ("STRUCT", "UNION"):
                yield from self.members(inner, base + member.bit)
            else:
                yield member.name, member, base + member.bit

    def struct(self, where, ours, theirs, later, at, data):
        mine = [(m["name"], m["value"]) for m in ours["members"]]
        said = flat(theirs)
        after = dict(flat(later)) if isinstance(later, Pairs) else {}
        if [n for n, _ in mine] != [n for n, _ in said]:
            self.tally.problem("typed", f"{where}: members {[n for n, _ in mine]}, theirs {[n for n, _ in said]}")
            return
        types = list(self.members(at)) if at is not None else []
        for i, ((name, value), (_, text)) in enumerate(zip(mine, said)):
            number, part = 0, None
            if i < len(types) and types[i][0] == name:
                member, bit = types[i][1], types[i][2]
                number = member.type_id
                part = data[bit // 8:] if data is not None else None
                if member.bits and value["kind"] in ("int", "uint", "enum"):
                    value = dict(value, width=member.bits)
            self.typed(f"{where}.{name}", value, text, after.get(name), number, part)

    def section(self, where, ours, theirs, later, at, data):
        """A data section: bpftool has a list of objects of one variable each."""
        theirs, later = section_of(theirs), section_of(later)
        if ours["kind"] != "struct" or theirs is None:
            self.tally.problem("typed", f"{where}: ours is {ours['kind']}, theirs a section")
            return
        name, variables = theirs
        self.tally.check("typed", f"{where} section", ours["type_name"], name)
        mine = [(m["name"], m["value"]) for m in ours["members"]]
        self.tally.check("typed", f"{where} variables", [n for n, _ in mine], [n for n, _ in variables])
        after = dict(later[1]) if later else {}
        by_name = {self.types.types[m.type_id].name: m for m in at.members} if at is not None else {}
        for (name, value), (_, text) in zip(mine, variables):
            member = by_name.get(name)
            placed = member and data is not None and self.types.linked
            part = data[member.bit // 8:] if placed else None
            number = member.type_id if member else 0
            self.typed(f"{where} {name}", value, text, after.get(name), number, part)

    # Families

    def array(self):
        if self.no_truth():
            return
        if self.ours["max_entries"] <= 1:
            ours = {0: self.shared.get("value")}
            self.tally.check("entries", f"{self.where} array_entries", "array_entries" in self.shared, False)
        else:
            ours = {e["key"]: e.get("value") for e in self.shared.get("array_entries", [])}
            self.tally.check("entries", f"{self.where} value", "value" in self.shared, False)
        theirs = {int.from_bytes(k, "little"): e for k, e in self.theirs.items()}
        self.tally.check("entries", f"{self.where} keys", sorted(ours), sorted(theirs))
        self.entries += len(ours)
        self.count(len(theirs))
        for key, entry in theirs.items():
            after = self.later and self.later.get(entry.key)
            where = f"{self.where} [{key}]"
            if ours.get(key) is None:
                self.tally.problem("typed", f"{where}: not in the report")
                continue
            self.value(where, None, ours[key], entry.value, entry.text, after and after.value, after and after.text)

    def percpu_array(self):
        if self.no_truth():
            return
        ours = {e["key"]: e["per_cpu"] for e in self.shared.get("percpu_entries", [])}
        theirs = {int.from_bytes(k, "little"): e for k, e in self.theirs.items()}
        self.tally.check("entries", f"{self.where} keys", sorted(ours), sorted(theirs))
        self.entries += len(ours)
        self.count(len(theirs))
        for key, entry in theirs.items():
            self.each_cpu(f"{self.where} [{key}]", ours.get(key), entry, self.later and self.later.get(entry.key))

    def each_cpu(self, where, ours, entry, after):
        present = [cpu for cpu, value in enumerate(ours or []) if value is not None]
        self.tally.check("entries", f"{where} CPUs", present, sorted(entry.value))
        for cpu, data in entry.value.items():
            if cpu in present:
                # bpftool rounds values of per-CPU maps up to 8 bytes when it reads, not when it prints.
                self.value(f"{where} cpu {cpu}", None, ours[cpu], data, entry.text and entry.text.get(cpu),
                           after and after.value.get(cpu), after and after.text and after.text.get(cpu))

    def key(self, where, ours, entry):
        if entry.text_key is not None:
            if ours is None:
                self.tally.problem("typed", f"{where}: bpftool has a typed key, the report none")
            else:
                self.typed(f"{where} key", ours, entry.text_key, None, self.key_type, entry.key)

    def table(self):
        if self.no_truth():
            return
        ours = {spaced(e["key_hex"]): e for e in self.shared.get("entries", [])}
        self.tally.check("entries", f"{self.where} distinct keys", len(ours), len(self.shared.get("entries", [])))
        for key, mine, entry, after in self.pair(ours, self.theirs, self.later):
            where = f"{self.where} [{key.hex()}]"
            self.key(where, mine.get("key"), entry)
            self.value(where, mine["value_hex"], mine.get("value"), entry.value, entry.text,
                       after and after.value, after and after.text)
            self.payload(where, mine)

    def payload(self, where, entry):
        """An arena allocation that the value points to: its bytes are in the arena that the guest saved,
        at the pointer or, behind the allocator's header, up to 64 bytes later."""
        payload = entry.get("payload")
        if payload is None:
            return
        number = self.types and self.types.by_name.get(("STRUCT", payload.get("type_name")))
        found = []
        for word, in struct.iter_unpack("<Q", spaced(entry["value_hex"])[: self.ours["value_size"] // 8 * 8]):
            for header in range(0, 72, 8):
                size = self.types.size(number) if number else 0
                data = self.all.arena_bytes(word + header, size) if size else None
                if data and len(data) == size:
                    trial = Map(self.all, self.number, self.ours, self.shared, self.kind)
                    trial.tally, trial.later = Tally(), {}
                    trial.typed(f"{where} payload", payload, self.types.text(number, data), None, number, data)
                    found.append((len(trial.tally.problems), trial.tally))
        if not found:
            self.all.skip(self.number, self.ours, "payloads: neither types nor the arena were saved")
            return
        wrong, best = min(found, key=lambda row: row[0])
        compared = sum(best.compared.values())
        if wrong == 0:
            self.tally.compared["payloads"] += compared
        else:
            self.tally.allow("payloads", f"{where} payload", best.problems[:3], f"{compared} values", PAYLOAD,
                             not self.all.still and wrong * 8 <= compared)
            self.tally.compared["payloads"] += compared - 1

    def percpu_table(self):
        if self.no_truth():
            return
        ours = {spaced(e["key_hex"]): e for e in self.shared.get("percpu_hash_entries", [])}
        for key, mine, entry, after in self.pair(ours, self.theirs, self.later):
            where = f"{self.where} [{key.hex()}]"
            self.key(where, mine.get("key"), entry)
            self.each_cpu(where, mine["per_cpu"], entry, after)

    def instructions(self):
        """struct bpf_insn_array_value: bytes only, bpftool has no types for it."""
        if self.no_truth():
            return
        ours = {e["key"]: e.get("value") for e in self.shared.get("array_entries", [])}
        self.entries += len(ours)
        self.count(len(self.theirs))
        for key, entry in self.theirs.items():
            slot = int.from_bytes(key, "little")
            mine = ours.get(slot)
            words = {m["name"]: m["value"].get("value") for m in (mine or {}).get("members", [])}
            theirs = dict(zip(("orig_off", "xlated_off", "jitted_off"), struct.unpack_from("<III", entry.value)))
            self.tally.check("bytes", f"{self.where} [{slot}]",
                             {k: words.get(k) for k in theirs}, theirs)

    def slots(self):
        """Maps of maps, programs, devices, CPUs and sockets: which slots, and what is in them."""
        targets = {}
        hashed = self.kind in ("devmap_hash", "sockhash", "hash_of_maps")
        for each in self.ours.get("targets", []):
            key = spaced(each["key"]) if hashed else int(each["key"]).to_bytes(4, "little")
            targets[key] = each
            self.tally.check("entries", f"{self.where} {each['key']} error", each.get("error"), None)
        self.entries += len(targets)
        self.count(len(targets))
        array = self.shared.get("fd_array")
        if array is not None:
            self.tally.check("entries", f"{self.where} populated", array["populated"], len(targets))
            if not hashed:
                self.tally.check("entries", f"{self.where} indices", array.get("indices", []),
                                 sorted(int.from_bytes(k, "little") for k in targets))
                self.tally.check("entries", f"{self.where} scanned", array["scanned"], self.ours["max_entries"])
        noted = self.noted_slots()
        if self.kind in ("perf_event_array", "cgroup_array", "xskmap"):
            if not noted and self.theirs is not None and not targets:
                self.all.skip(self.number, self.ours, "contents: no look-up shows them, and nothing noted them")
            theirs = noted
        elif self.no_truth():
            return
        else:
            theirs = {k: e for k, e in self.theirs.items() if e.value is not None}
        self.tally.allow("entries", f"{self.where} keys", sorted(k.hex() for k in targets),
                         sorted(k.hex() for k in theirs), PERF_CLOSED,
                         self.kind == "perf_event_array" and not targets)
        for key, mine in targets.items():
            where = f"{self.where} [{key.hex()}]"
            entry = (self.theirs or {}).get(key)
            if entry is not None and entry.value is not None:
                self.slot(where, mine, entry)
            if key in noted:
                self.noted_slot(where, mine, noted[key])
        if self.kind == "hash_of_maps":
            for each in self.shared.get("entries", []):
                entry = (self.theirs or {}).get(spaced(each["key_hex"]))
                if entry:
                    where = f"{self.where} [{entry.key.hex()}]"
                    self.bytes(where, spaced(each["value_hex"]), entry.value, None)
                    self.tally.check("typed", where, (each.get("value") or {}).get("value"), entry.inner)

    def slot(self, where, mine, entry):
        number = int.from_bytes(entry.value[:4], "little")
        check = lambda what, a, b: self.tally.check("slots", f"{where} {what}", a, b)
        if self.kind in ("hash_of_maps", "array_of_maps"):
            check("kind", mine["kind"], "map")
            check("map", mine.get("id"), entry.inner)
            check("address", mine["kva"], self.all.own.get(entry.inner, {}).get("kva"))
            check("name", mine.get("name"), self.all.before.show.get(entry.inner, {}).get("name"))
        elif self.kind == "prog_array":
            check("kind", mine["kind"], "prog")
            check("program", mine.get("id"), number)
            names = {p["id"]: p.get("name") for p in self.all.before.programs}
            check("name", mine.get("name"), program_name(mine.get("name"), names.get(number)))
        elif self.kind in ("devmap", "devmap_hash"):
            check("kind", mine["kind"], "net_device")
            check("ifindex", mine.get("id"), number)
        elif self.kind == "cpumap":
            check("kind", mine["kind"], "cpu")
            check("cpu", mine.get("id"), int.from_bytes(entry.key, "little"))
            check("queue", mine.get("name"), f"queue of {number}")
        else:
            check("kind", mine["kind"], "sock")
            check("cookie", mine.get("id"), int.from_bytes(entry.value[:8], "little"))

    def noted_slots(self):
        out = {}
        for line in self.all.notes["slots.txt"]:
            if match := re.match(rf"{re.escape(self.name)}\[(\d+)\] = (.*)", line):
                out[int(match[1]).to_bytes(max(self.ours["key_size"], 4), "little")] = match[2]
        return out

    def noted_slot(self, where, mine, text):
        check = lambda what, a, b: self.tally.check("slots", f"{where} {what}", a, b)
        name = mine.get("name") or ""
        if match := re.match(r"software event BPF_OUTPUT of cpu (\d+)", text):
            check("kind", mine["kind"], "perf_event")
            check("event", name, f"type 1 config 0xa cpu {match[1]}")
        elif match := re.match(r"cgroup (\S+)", text):
            check("kind", mine["kind"], "cgroup")
            check("path", name, match[1])
            inode = [m[1] for line in self.all.notes["owners.txt"]
                     if (m := re.match(rf"cgroup {re.escape(match[1])} inode (\d+)", line))]
            check("id", mine.get("id"), int(inode[0]) if inode else None)
        elif match := re.match(r"device (\S+), ifindex (\d+)", text):
            check("device", (name, mine.get("id")), (match[1], int(match[2])))
        elif match := re.match(r"cpu (\d+), queue of (\d+)", text):
            check("queue", (mine.get("id"), name), (int(match[1]), f"queue of {match[2]}"))
        elif match := re.match(r"program (\S+)", text):
            check("program", name, program_name(name, match[1]))
        elif text.startswith("AF_XDP socket"):
            check("kind", mine["kind"], "xsk")
            check("family", name.split(" ")[0], "AF_XDP")
        elif match := re.match(r"(tcp|udp) (.*)socket inode (\d+) cookie (\d+)", text):
            check("cookie", mine.get("id"), int(match[4]))
            # include/net/tcp_states.h: an unconnected UDP socket has CLOSE, a connected one ESTABLISHED.
            state = name.split(" ")[-1]
            check("state", state in ("1", "7") if match[1] == "udp" else state == "1", True)
            check("family", name.split(" ")[0], "AF_INET")
        else:
            self.all.skip(self.number, self.ours, f"what was noted of {where}: {text}")

    # Local storage

    def owners(self):
        owners, entries = self.ours.get("owners", []), self.shared.get("entries", [])
        self.tally.check("entries", f"{self.where} owners", len(owners), len(entries))
        self.entries += len(entries)
        self.count(len(entries))
        for owner, entry in zip(owners, entries):
            where = f"{self.where} of {owner.get('kind')} {owner.get('id')}"
            self.tally.check("entries", f"{where} owner's address", hexa(owner["kva"]),
                             int.from_bytes(spaced(entry["key_hex"]), "little"))
            key = entry.get("key") or {}
            self.tally.check("entries", f"{where} key", (key.get("kind"), key.get("value")),
                             ("ptr", hexa(owner["kva"])))
            self.payload(where, entry)
            yield owner, entry, where

    def task_storage(self):
        theirs, later = self.all.before.storage(self.number), self.all.after.storage(self.number) or {}
        self.later = later or None
        if theirs is None:
            self.all.skip(self.number, self.ours, "contents: a look-up needs a pidfd, and the guest made none")
            return
        found = set()
        for owner, entry, where in self.owners():
            pid = owner.get("id")
            self.tally.check("slots", f"{where} kind", owner["kind"], "task")
            task = self.all.tasks.get(pid)
            found.add(pid)
            if task is None:
                self.tally.allow("slots", f"{where} task", owner.get("name"), None, EXITED, not self.all.still)
            else:
                self.tally.check("slots", f"{where} comm", owner.get("name"), task.get("comm"))
                self.tally.check("slots", f"{where} task", hexa(owner["kva"]), hexa(task.get("kva")))
            if pid not in theirs:
                self.tally.allow("entries", where, "an element", None, NOT_HELD,
                                 (task and task.get("tgid") != pid) or not self.all.still)
                continue
            self.tally.check("entries", where, True, True)
            self.value(where, entry["value_hex"], entry.get("value"), theirs[pid], None, later.get(pid))
        for pid in set(theirs) - found:
            self.tally.allow("entries", f"{self.where} of task {pid}", None, "an element", CAME,
                             not self.all.still and pid not in later)

    def storage(self):
        """Of cgroups, inodes and sockets: mapkit wrote down what it put in."""
        names = {"cgrp_storage": "cgroup", "inode_storage": "inode", "sk_storage": "sock"}
        theirs = {}
        for line in self.all.notes["owners.txt"]:
            if match := re.match(rf"{re.escape(self.name)} (.*?)\s*inode (\d+) value ([0-9a-f]+)$", line):
                theirs[int(match[2])] = (match[1], bytes.fromhex(match[3]))
        if not theirs:
            self.all.skip(self.number, self.ours, "contents: no look-up lists them, and nothing noted them")
            return
        left = dict(theirs)
        for owner, entry, where in self.owners():
            self.tally.check("slots", f"{where} kind", owner["kind"], names[self.kind])
            data = spaced(entry["value_hex"])
            if self.kind == "sk_storage":
                # By value: the report has a cookie where the guest noted an inode.
                at = next((k for k, (_, v) in left.items() if v == data), None)
            else:
                at = owner.get("id")
            if at not in left:
                self.tally.problem("entries", f"{where}: the guest put in nothing like it")
                continue
            label, value = left.pop(at)
            self.tally.check("entries", where, True, True)
            self.value(where, entry["value_hex"], entry.get("value"), value, None)
            name = owner.get("name") or ""
            if self.kind == "inode_storage":
                self.tally.check("slots", f"{where} file", name, f"tmpfs {label.rsplit('/', 1)[-1]}")
            elif self.kind == "cgrp_storage":
                path = [m[1] for line in self.all.notes["owners.txt"]
                        if (m := re.match(rf"cgroup (\S+) inode {at}$", line))]
                self.tally.check("slots", f"{where} path", name, path[0] if path else None)
            else:
                listens = name.split(" ")[-1] == "10"
                self.tally.check("slots", f"{where} family", name.split(" ")[0], "AF_INET")
                self.tally.check("slots", f"{where} listens", listens, "listener" in label)
        for key, (label, _) in left.items():
            self.tally.problem("entries", f"{self.where}: {label} {key} is not in the report")

    # Rings, stacks, filters, pages

    def queue(self):
        theirs = [bytes.fromhex(m[1]) for line in self.all.notes["queues.txt"]
                  if (m := re.match(rf"{re.escape(self.name)}, next to pop first: ([0-9a-f]+)$", line))]
        if not theirs:
            self.all.skip(self.number, self.ours, "contents: a peek shows one element, and nothing noted the others")
            return
        ours = self.shared.get("array_entries", [])
        self.entries += len(ours)
        self.count(len(theirs))
        self.tally.check("entries", f"{self.where} keys", [e["key"] for e in ours], list(range(len(theirs))))
        for entry, data in zip(ours, theirs):
            self.value(f"{self.where} [{entry['key']}]", None, entry.get("value"), data, None)

    def bloom(self):
        self.all.skip(self.number, self.ours, "elements: no one can list them")
        bloom = self.ours.get("bloom") or {}
        hashes = bloom.get("hash_functions") or 0
        # kernel/bpf/bloom_filter.c: n * k / ln 2, rounded up to a power of two; 5 hashes by default.
        wanted = max(self.ours["max_entries"] * hashes // 5 * 7, 1)
        self.tally.check("slots", f"{self.where} bits", bloom.get("bits"), max(64, 1 << (wanted - 1).bit_length()))
        held = len([l for l in self.all.notes["queues.txt"] if l.startswith(f"{self.name} holds ")])
        if held:
            fits = hashes <= bloom.get("bits_set", 0) <= held * hashes
            self.tally.check("slots", f"{self.where} bits set by {held} elements", fits, True)

    def stacks(self):
        if self.no_truth():
            return
        ours = {e["bucket_id"]: e for e in (self.shared.get("stack_trace") or {}).get("entries", [])}
        named = {s["bucket_id"]: s for s in self.ours.get("stacks", [])}
        theirs = {int.from_bytes(k, "little"): e for k, e in self.theirs.items()}
        changed = not self.all.still and self.later is not None and set(self.later) != set(self.theirs)
        self.tally.allow("entries", f"{self.where} ids", sorted(ours), sorted(theirs), CAME, changed)
        self.entries += len(ours)
        self.count(len(ours))
        self.tally.check("entries", f"{self.where} named", sorted(named), sorted(ours))
        builds = hexa(self.ours["flags"]["raw"]) & 32
        width = 32 if builds else 8
        buckets = (self.shared.get("stack_trace") or {}).get("n_buckets")
        self.tally.check("headers", f"{self.where} buckets", buckets,
                         1 << (self.ours["max_entries"] - 1).bit_length())
        noted = self.noted_stacks()
        for bucket, entry in theirs.items():
            mine = ours.get(bucket)
            if mine is None:
                continue
            where = f"{self.where} [{bucket}]"
            data = spaced(mine["data_hex"])
            self.tally.check("slots", f"{where} frames", mine["nr"], len(data) // width)
            self.tally.check("bytes", where, data.hex() + "0" * 2 * (len(entry.value) - len(data)), entry.value.hex())
            frames = named.get(bucket) or {}
            if builds:
                said = []
                for at in range(0, len(data), 32):
                    status, offset = struct.unpack_from("<I", data, at)[0], struct.unpack_from("<Q", data, at + 24)[0]
                    build = entry.value[at + 4:at + 24].hex()
                    said.append(f"{build}+{offset:#x}" if status == 1 else f"{offset:#x}")
                self.tally.check("slots", f"{where} build ids", frames.get("user_frames"), said)
                continue
            pcs = [p for p, in struct.iter_unpack("<Q", entry.value[: len(data)])]
            self.tally.check("slots", f"{where} pcs", mine.get("pcs", []), pcs)
            self.tally.check("slots", f"{where} addresses", [hexa(f["addr"]) for f in frames.get("frames", [])], pcs)
            for frame, line in zip(frames.get("frames", []), noted.get(bucket, [])):
                # `bpf_prog_TAG_name [bpf]+0x68` or `name+0x8`: what the guest's kallsyms said.
                theirs_name = line.replace(" [bpf]", "") or None
                mine_name = frame.get("symbol")
                self.tally.check("pointers", f"{where} {frame['addr']}",
                                 mine_name and mine_name.split("/")[0], theirs_name)
                program = re.match(r"bpf_prog_[0-9a-f]{16}_(\w+)\+", mine_name or "")
                lines = self.all.lines(program[1]) if program else []
                if lines and "source" in frame:
                    self.tally.check("pointers", f"{where} {frame['addr']} source is one of the program's",
                                     frame["source"] if frame["source"] in lines else None, frame["source"])
                if mine_name:
                    self.all.named(self.tally, f"{where} {frame['addr']}", hexa(frame["addr"]), mine_name)

    def noted_stacks(self):
        out, at = {}, None
        for line in self.all.notes["stacks.txt"]:
            if match := re.match(r"(\w+)\[(\d+)\]$", line):
                at = out.setdefault(int(match[2]), []) if match[1] == self.name else None
            elif at is not None and (match := re.match(r"  0x[0-9a-f]+ ?(.*)$", line)):
                at.append(match[1])
        return out

    def ring(self):
        mine = self.shared.get("ringbuf") or {}
        self.tally.check("headers", f"{self.where} capacity", mine.get("capacity"), self.ours["max_entries"])
        records = self.ours.get("records", [])
        self.entries += len(records)
        head = theirs = None
        rows = []
        for line in self.all.notes["rings.txt"]:
            if match := re.match(rf"{re.escape(self.name)} record at (\d+) length (\d+) (\w+) data"
                                 r" ([0-9a-f]*)$", line):
                state = {"ready": "committed"}.get(match[3], match[3])
                rows.append((int(match[1]), int(match[2]), state, match[4]))
            elif match := re.match(rf"{re.escape(self.name)} consumer_pos (\d+) producer_pos (\d+)"
                                   r"(?: pending_pos (\d+) overwrite_pos (\d+))? size (\d+)", line):
                head = match
            elif match := re.match(rf"{re.escape(self.name)}: .*records of 16 bytes \(u64 number", line):
                theirs = line
            elif match := re.match(rf"{re.escape(self.name)} record", line):
                self.tally.problem("slots", f"{self.where}: a note that is not understood: {line:.80}")
        self.tally.check("slots", f"{self.where} pending_bytes", mine.get("pending_bytes"),
                         mine.get("producer_pos", 0) - mine.get("consumer_pos", 0))
        if head:
            self.tally.check("slots", f"{self.where} consumer_pos", mine.get("consumer_pos"), int(head[1]))
            self.tally.check("slots", f"{self.where} producer_pos", mine.get("producer_pos"), int(head[2]))
            if self.kind == "ringbuf":
                # It moves on when a record is reserved: past all that are finished by then.
                busy = [r[0] for r in rows if r[2] == "busy"]
                pending = int(head[3]) if head[3] else (busy or [r[0] for r in rows][-1:] or [0])[0]
                self.tally.check("slots", f"{self.where} pending_pos", mine.get("pending_pos"), pending)
        if rows:
            ours = [(r["position"], r["len"], r["state"], spaced(r["data_hex"]).hex()) for r in records]
            self.count(len(rows))
            self.tally.check("entries", f"{self.where} records", len(ours), len(rows))
            for a, b in zip(ours, rows):
                self.tally.check("bytes", f"{self.where} record at {b[0]}", a, b)
        elif theirs:
            self.overwritten(mine, records, head)
        else:
            self.all.skip(self.number, self.ours, "records: the guest read none (nothing consumes them)")
            self.consistent(mine, records)

    def overwritten(self, mine, records, head):
        """Records of 16 bytes with consecutive numbers, the last that fit."""
        ours = [struct.unpack("<QQ", spaced(r["data_hex"])) for r in records]
        end = mine.get("producer_pos", 0) // 24
        first = int(head[4]) // 24 if head and head[4] else end - mine.get("capacity", 0) // 24
        self.tally.check("bytes", f"{self.where} records", ours, [(n, 0xBE0) for n in range(first, end)])
        self.tally.check("slots", f"{self.where} positions", [r["position"] for r in records],
                         [24 * n for n in range(first, end)])
        self.count(end - first)

    def consistent(self, mine, records):
        """Without truth: the records must fill the ring from the consumer to the producer."""
        at = mine.get("consumer_pos")
        busy = [r["position"] for r in records if r["state"] == "busy"]
        # A reservation that finds no room moves it, too.
        places = busy[:1] or [r["position"] for r in records][-1:] + [mine.get("producer_pos")]
        pending = mine.get("pending_pos")
        fits = pending in places if records else pending is not None and pending <= mine.get("producer_pos", 0)
        self.tally.check("slots", f"{self.where} pending_pos", fits, True)
        for record in records:
            self.tally.check("slots", f"{self.where} record position", record["position"], at)
            at = record["position"] + (8 + record["len"] + 7) // 8 * 8
        if records:
            self.tally.check("slots", f"{self.where} end of records", at, mine.get("producer_pos"))

    def arena(self):
        pages, whole = self.all.before.arena(self.number)
        later, _ = self.all.after.arena(self.number)
        snapshot = self.shared.get("arena") or {}
        self.tally.check("headers", f"{self.where} declared_pages", snapshot.get("declared_pages"),
                         self.ours["max_entries"])
        ours = {p["user_addr"] & ARENA_WINDOW - 1: bytes(p["bytes"]) for p in snapshot.get("pages", [])}
        self.entries += len(ours)
        self.count(len(ours))
        base = snapshot.get("user_vm_start", 0)
        for page in snapshot.get("pages", []):
            inside = base <= page["user_addr"] < base + self.ours["max_entries"] * PAGE
            self.tally.check("entries", f"{self.where} page {page['user_addr']:#x}", inside, True)
        if pages is None:
            self.all.skip(self.number, self.ours, "pages: the guest saved none")
            return
        listed = [int(line.split()[0], 16) for line in
                  (read(self.all.before.path / f"arena_{self.number}.pages") or "").splitlines() if line.strip()]
        if whole:
            grown = not self.all.still and set(pages) <= set(ours) and set(ours) <= set(later or ours)
            self.tally.allow("entries", f"{self.where} pages", sorted(ours), sorted(pages), PAGES, grown)
        where = read(self.all.before.path / f"arena_{self.number}.pages") or ""
        for user, kernel in re.findall(r"^([0-9a-f]+) ([0-9a-f]{16}) ", where, re.M)[:1]:
            self.tally.check("headers", f"{self.where} kern_vm_start", snapshot.get("kern_vm_start"),
                             int(kernel, 16) - (int(user, 16) & ARENA_WINDOW - 1))
        if listed:
            mine = sorted(p["user_addr"] for p in snapshot.get("pages", [])
                          if p["user_addr"] & ARENA_WINDOW - 1 in pages)
            self.tally.check("entries", f"{self.where} addresses", mine, sorted(listed))
        for at, data in sorted(pages.items()):
            where = f"{self.where} page {at:#x}"
            if at not in ours:
                self.tally.problem("bytes", f"{where}: not in the report")
                continue
            self.page(where, ours[at], data, (later or {}).get(at))

    def page(self, where, ours, theirs, later):
        if ours == theirs:
            self.tally.check("bytes", where, True, True)
            return
        # Word by word: one that differs must differ between the two saved states, too, or another
        # of the same object, that is within 32 bytes, must.
        moved = [i for i in range(0, PAGE, 8) if later is not None and later[i:i + 8] != theirs[i:i + 8]]
        odd = [i for i in range(0, PAGE, 8)
               if ours[i:i + 8] != theirs[i:i + 8] and not any(abs(i - j) <= 32 for j in moved)]
        rule = MOVED
        if odd and later is not None and not any(any(theirs[i:i + 8] + later[i:i + 8]) for i in odd):
            odd, rule = [], FREED
        if later is None and len(odd) <= 32:
            odd, rule = [], GONE
        same_words = sum(ours[i:i + 8] == theirs[i:i + 8] for i in range(0, PAGE, 8))
        self.tally.allow("bytes", where, f"{same_words} words equal, {odd[:4]} not", "512 words", rule,
                         not odd and not self.all.still)

    def struct_ops(self):
        rows, value = self.all.attach.json("struct_ops_dump.json") or [], None
        # A map's information and its value are objects of their own, in turn.
        for i, row in enumerate(rows):
            if row.get("bpf_map_info", {}).get("id") == self.number and i + 1 < len(rows):
                value = next(iter(rows[i + 1].values()))
        if not value:
            self.all.skip(self.number, self.ours, "contents: the guest did not dump its struct_ops")
            return
        self.entries += 1
        self.tally.check("slots", f"{self.where} state", self.ours.get("struct_ops_state"),
                         value["common"]["state"].replace("BPF_STRUCT_OPS_STATE_", ""))
        theirs = []
        ours = {m["name"]: m["value"] for m in (self.shared.get("value") or {}).get("members", [])}
        self.tally.check("typed", f"{self.where} members", list(ours), list(value["data"]))
        for name, text in value["data"].items():
            mine = ours.get(name) or {"kind": "nothing"}
            if isinstance(text, str) and (match := re.search(r" (?:(\w+)/prog_id:(\d+)|0)$", text)) \
                    and mine["kind"] == "ptr":
                if match[1]:
                    theirs.append((name, int(match[2]), match[1]))
                set_ = mine["value"] != 0
                self.tally.check("typed", f"{self.where} {name}", set_, bool(match[1]))
                if mine.get("symbol"):
                    self.all.named(self.tally, f"{self.where} {name}", mine["value"], mine["symbol"])
            elif mine["kind"] == "ptr" and isinstance(text, (int, str)):
                self.all.skip(self.number, self.ours, f"{name}: the kernel's own pointer")
            elif name == "exit_dump_len" and text == 0:
                self.tally.allow("typed", f"{self.where} {name}", mine.get("value"), 0, DEFAULT,
                                 mine.get("value") == 32768)
            else:
                self.typed(f"{self.where} {name}", mine, text, None)
        callbacks = [(c["member"], c["prog"]["id"], c["prog"]["name"]) for c in self.ours.get("callbacks", [])]
        names = {p["id"]: p.get("name") for p in self.all.before.programs}
        theirs = [(member, number, names.get(number, name)) for member, number, name in theirs]
        for mine, said in zip(callbacks, theirs):
            said = (*said[:2], program_name(mine[2], said[2]))
            self.tally.check("slots", f"{self.where} {said[0]}", mine, said)
        for each in self.ours.get("callbacks", []):
            lines = self.all.lines(each["prog"]["name"])
            if lines and "source" in each:
                self.tally.check("slots", f"{self.where} {each['member']} source", each["source"], lines[0])
        self.tally.check("slots", f"{self.where} callbacks", len(callbacks), len(theirs))


def looked_up(name, data):
    """What a look-up gives for a special field (kernel: bpf_obj_init_field)."""
    if not any(data):
        return True
    if name == "bpf_refcount":
        return int.from_bytes(data[:4], "little") == 1
    words = [w for w, in struct.iter_unpack("<Q", data[: len(data) // 8 * 8])]
    if name == "bpf_list_head":
        # An empty list in the copy.
        return len(words) == 2 and words[0] == words[1] and words[0] >> 47 == (1 << 17) - 1
    return False


def program_name(ours, theirs):
    """The kernel keeps 15 characters of a name; bpftool takes longer ones from the BTF."""
    return ours if ours and len(ours) == 15 and (theirs or "").startswith(ours) else theirs


def same(a, b):
    if isinstance(b, float) and isinstance(a, (int, float)):
        return struct.pack("<d", a) == struct.pack("<d", b)
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def between(ours, before, after):
    """The rule for a value that changed between the saved states, and whether it fits."""
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in (ours, before, after)):
        return MOVED, True
    low, high = sorted((before, after))
    if low <= ours <= high:
        return MOVED, True
    return SWINGS, abs(ours) <= 2 * max(abs(low), abs(high)) + 1000


def number_of(text, ours):
    """A number as bpftool prints it; bit fields are unsigned hexadecimal text, characters letters."""
    if isinstance(text, str) and text.startswith("0x"):
        value = int(text, 16)
        bits = ours["bits"]
        return value - (1 << bits) if ours["kind"] == "int" and value >> bits - 1 & 1 else value
    if isinstance(text, str) and len(text) == 1:
        return ord(text)
    return text


def character(text):
    return ord(text) if isinstance(text, str) and len(text) == 1 else text


def is_section(text):
    return isinstance(text, Pairs) and len(text) == 1 and text[0][0].startswith((".", "?")) \
        and isinstance(text[0][1], list)


def section_of(text):
    if not isinstance(text, Pairs) or not text:
        return None
    name, rows = text[0]
    return name, [pair for row in rows for pair in row]


def flat(pairs):
    """Members, with those of anonymous structs in their place."""
    out = []
    for name, value in pairs if isinstance(pairs, Pairs) else []:
        out.extend(flat(value) if name == "" and isinstance(value, Pairs) else [(name, value)])
    return out


def flatten(text):
    if isinstance(text, Pairs):
        return [w for _, value in text for w in flatten(value)]
    if isinstance(text, list):
        return [w for value in text for w in flatten(value)]
    return [text] if isinstance(text, int) else [0]


def flatten_rendered(value):
    kind = value["kind"]
    if kind == "struct":
        return [w for m in value["members"] for w in flatten_rendered(m["value"])]
    if kind == "array":
        return [w for e in value["elements"] for w in flatten_rendered(e)]
    return [value.get("value")]


def cpus_of(text, count):
    """The CPUs in a mask, as a range list; a mask's type is longer than what was allocated."""
    if text is None:
        return None
    words = [w & (1 << 64) - 1 for w in flatten(text)]
    cpus = [64 * i + bit for i, word in enumerate(words) for bit in range(64)
            if word >> bit & 1 and 64 * i + bit < count]
    ranges = []
    for cpu in cpus:
        if ranges and ranges[-1][1] == cpu - 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", help="a report's JSON, or with --core an `analyze` binary")
    parser.add_argument("truth", type=pathlib.Path)
    parser.add_argument("--core", help="the file that the binary reads")
    parser.add_argument("--recipe", type=pathlib.Path)
    args = parser.parse_args()
    recipe = read(args.recipe or args.truth.parent / "recipe.json")
    comparison = Comparison(load_report(args.report, args.core), args.truth, json.loads(recipe) if recipe else {})
    tally = comparison.run()
    result = tally.print(os.path.basename(args.core or args.report), "bpftool and the guest's own notes")
    for line in sorted(set(comparison.skipped)):
        print(f"  not compared: {line}")
    for kind, (maps, entries) in sorted(comparison.counts["by type"].items()):
        print(f"  {kind}: {maps} maps, {entries} entries")
    print(f"  {comparison.counts['maps']} maps, {comparison.counts['entries']} entries")
    return result


if __name__ == "__main__":
    raise SystemExit(main())
