#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The tests that boot guests. Slow: about half a minute for each guest.

    tests/guest/suite.py                     everything
    tests/guest/suite.py --kernel 7.3        one kernel
    tests/guest/suite.py --case stall        one case; those with one fault each (`--case lock`) run
                                             only so, but for two of them
    tests/guest/suite.py --keep DIR          leave the cores in DIR
    tests/guest/suite.py --no-reports        the guests alone
    tests/guest/suite.py --attempts 2        a second guest where the first one failed

Guests are not deterministic: the emulator dies now and then while the kernel patches its
text, and a CPU that goes on while another writes the kernel's dump can do something that
no rule of the comparison foresees. A fault of ours fails in the second guest as well;
every failed attempt is printed.

It proves that the checked-in BPF objects are what their sources give, boots each
demo, and checks core and truth against each other without any of our own readers,
so that a fault in a reader cannot hide one in the guest. Then tests/interop/run.py
archives each core and compares its report with the truth and with other tools.
"""

import argparse
import json
import mmap
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

from machine import megabytes  # noqa: E402
from packages import PackageError, install_here  # noqa: E402

# case: (demo, more arguments of run.py)
CASES = {
    "stall": ("stall", []),
    "mid": ("stall", ["--stop", "mid"]),
    "late": ("stall", ["--stop", "late"]),
    "error": ("error", ["--cpu", "max"]),
    "healthy": ("healthy", []),
    "maps": ("maps", []),
    "vmcoreinfo": ("stall", ["--vmcoreinfo"]),
    "numa": ("stall", ["--numa", "2", "--cpus", "4"]),
}
# The guests of bpf/fail: the rule of the first finding on each, None for a healthy one.
FIRST_FINDING = {
    "affinity": "affinity",
    "arena": "arena-exhausted",
    "bypass": "bypass",
    "fifo": None,
    "hog": "real-time-hog",
    "idle": "idle-cpu-with-waiting-work",
    "lock": "lock-holder-off-cpu",
    "preempt": "preemption-off",
    "prio": "queue-outranked",
    "ring": "ringbuf-full",
    "slice": "cpu-hog",
    "slow": "slow-program",
    "stopped": "queue-outranked",
    "stranded": "stranded-on-local-queue",
    "stuck": "cpu-stuck",
    "vtime": "vtime-ahead",
}
CASES.update({demo: (demo, []) for demo in FIRST_FINDING})
ON_DEMAND = set(FIRST_FINDING) - {"arena", "stuck"}
KERNELS = ("6.18", "7.3")
# What one kernel proves for all is not repeated.
ONLY = {"mid": "7.3", "late": "7.3", "vmcoreinfo": "6.18", "numa": "7.3", "arena": "7.3", "stuck": "7.3"}
STARVED = {"starve-0", "starve-1", "starve-2", "starve-mt", "starve-mt.1", "starve-mt.2"}


class Failed(Exception):
    """A check that did not hold."""


def check(condition, text):
    if not condition:
        raise Failed(text)


def notes_and_loads(core):
    """The names of an ELF core's notes, and the bytes of RAM that it holds."""
    check(core[:4] == b"\x7fELF" and core[4] == 2, "the core is no ELF64 file")
    phoff, = struct.unpack_from("<Q", core, 32)
    size, count = struct.unpack_from("<HH", core, 54)
    names, loads = [], 0
    for index in range(count):
        kind, _, offset, _, _, filesz = struct.unpack_from("<IIQQQQ", core, phoff + index * size)
        if kind == 1:
            loads += filesz
        elif kind == 4:
            at, end = offset, offset + filesz
            while at + 12 <= end:
                name_size, desc_size, _ = struct.unpack_from("<III", core, at)
                names.append(bytes(core[at + 12 : at + 12 + name_size]).rstrip(b"\0").decode())
                at += 12 + (name_size + 3 & ~3) + (desc_size + 3 & ~3)
    return names, loads


def comms(stage):
    return {path.read_text().strip() for path in stage.glob("proc/*/task/*/comm")}


def check_case(case, demo, out):
    recipe = json.loads((out / "recipe.json").read_text())
    truth = out / "truth"
    with open(out / "core.elf", "rb") as stream, mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ) as core:
        names, loads = notes_and_loads(core)
        check(names.count("CORE") == recipe["cpus"], f"{names.count('CORE')} register notes for {recipe['cpus']} CPUs")
        check(("VMCOREINFO" in names) == (case == "vmcoreinfo"), f"the core's notes are {names}")
        check(loads >= megabytes(recipe["memory"]) << 20, f"the core holds only {loads} bytes")
        if demo in FIRST_FINDING:
            return
        before = (truth / "stop" / "scx_state_at_end").read_text().strip()
        check(before == "enabled", f"the truth was saved too late: sched_ext was {before} at its end")
        if demo == "healthy":
            check_healthy(truth)
            return
        if demo == "maps":
            check_maps(truth)
            return
        record = json.loads((truth / "after" / "scx_exit.json").read_text())
        kernels_dump = (truth / "after" / "scx_dump.txt").read_bytes()
        # The dump text in the core is the one that the scheduler was given, or, before
        # the failure, is not there.
        found = core.find(kernels_dump) >= 0
        check(found == (case != "mid"), "the kernel's dump text is " + ("in the core already" if found else "not in the core"))
    if demo == "stall":
        check(record["kind"] == 1026, f"exit kind {record['kind']} is not that of a stall")
        check(STARVED <= comms(truth / "stop"), "not all of the starving tasks are there")
        parked = set(re.findall(r"^ [* ]R (\S+)\[\d+\].*\n(?:.*\n){1,3}?.* dsq_id=0xdead5\b", kernels_dump.decode(), re.M))
        check(parked == STARVED, f"on the parking queue are {sorted(parked)}")
        check(record["msg"].startswith("starve-"), f"the kernel's message is {record['msg']!r}")
    else:
        check(record["kind"] == 1025, f"exit kind {record['kind']} is not that of scx_bpf_error")
        check(re.match(r"tripped over pid \d+ after 20 enqueues on cpu \d+$", record["msg"]),
              f"the scheduler's message is {record['msg']!r}")


def check_healthy(truth):
    stop = truth / "stop"
    maps = {each["name"]: each for each in json.loads((stop / "bpftool" / "map_show.json").read_text())}
    kinds = {each["type"] for each in maps.values()}
    for kind in ("hash", "array", "percpu_array", "percpu_hash", "lru_hash", "task_storage", "ringbuf", "arena"):
        check(kind in kinds, f"the healthy scheduler has no map of type {kind}")
    still = json.loads((stop / "bpftool" / f"map_dump_{maps['still_hash']['id']}.json").read_text())
    values = {each["formatted"]["key"]: each["formatted"]["value"]["square"] for each in still}
    check(values == {i * 7919: i * i for i in range(40)}, "still_hash does not hold what init wrote")
    arena = (stop / f"arena_{maps['arena']['id']}.bin").read_bytes()
    check(len(arena) == 3 * 4096, f"{len(arena)} bytes of the arena were saved")
    # The arena's globals: nodes[64], nr_arena_hits, list_head. The list runs through all
    # nodes, last made first.
    at, seen = struct.unpack_from("<Q", arena, 0x208)[0], []
    while at and len(seen) < 100:
        index, _, _, magic, at_next = struct.unpack_from("<QQIIQ", arena, (at & 0xFFFFFFFF))
        check(magic == 0x5CEDCA5E, f"a node of the arena has magic {magic:#x}")
        seen.append(index)
        at = at_next
    check(seen == list(range(63, -1, -1)), f"the arena's list is {seen}")
    check((stop / f"taskmap_{maps['task_ctxs']['id']}.txt").stat().st_size > 0, "no task storage value was saved")


# What only newer kernels have; every other step of mapkit has to succeed everywhere.
MAY_BE_SKIPPED = ("rhash: ", "insn_array: ", "ring_over: ")
EVERYWHERE = (
    "array percpu_array hash lru_hash percpu_hash lru_percpu_hash array_of_maps hash_of_maps task_storage "
    "cgrp_storage inode_storage sk_storage cgroup_storage percpu_cgroup_storage struct_ops arena ringbuf "
    "user_ringbuf stack_trace prog_array perf_event_array cgroup_array queue stack bloom_filter lpm_trie "
    "devmap devmap_hash cpumap xskmap sockmap sockhash reuseport_sockarray"
).split()
# A look-up gives a list head as one that points to itself, wherever the copy of the value was.
SELF_POINTING = ("graph_array", ".bss.private")


def check_maps(truth):
    zoo, stop, after = truth / "zoo", truth / "stop", truth / "after"
    skipped = (zoo / "skipped.txt").read_text().splitlines() if (zoo / "skipped.txt").exists() else []
    for each in skipped:
        check(each.startswith(MAY_BE_SKIPPED), f"mapkit: {each}")
    for each in (zoo / "runs.txt").read_text().splitlines():
        want = 5 if each.startswith("tail_root") else 0
        check(f") = {want}" in each, f"a program of the zoo failed: {each}")
    maps = json.loads((stop / "bpftool" / "map_show.json").read_text())
    missing = sorted(set(EVERYWHERE) - {each["type"] for each in maps})
    check(not missing, f"there is no map of type {', '.join(missing)}")
    # Nothing may have changed between the truth and the core, so nothing has until after it.
    for each in maps:
        name = f"map_dump_{each['id']}.json"
        if (stop / "bpftool" / name).exists() and each["name"] not in SELF_POINTING:
            same = (stop / "bpftool" / name).read_bytes() == (after / "bpftool" / name).read_bytes()
            check(same, f"the map {each['name']} changed while the core was taken")
    ids = {each["name"]: each["id"] for each in maps}
    count = len((stop / "raw" / str(ids["hash_pre"])).read_text().splitlines()) - 1
    check(count == 40, f"hash_pre has {count} entries")
    pages = (stop / f"arena_pages_{ids['zoo_arena']}.bin").read_bytes()
    numbers = [struct.unpack_from("<Q", pages, at)[0] for at in range(0, len(pages), 4104)]
    check(numbers == [3, 17, 18, 600, 1023], f"the arena has pages {numbers}")
    rings = (zoo / "rings.txt").read_text()
    for word in ("ring record at 4064 length 37", " discarded data ", "ring_busy record at 96 length 100 busy"):
        check(word in rings, f"rings.txt has no `{word}`")
    stacks = (zoo / "stacks.txt").read_text()
    for word in ("_on_switch [bpf]", " __schedule+", " do_syscall_64+"):
        check(word in stacks, f"no stack has{word}")


def check_report(out):
    """Holds the report on a core against truth, drgn and other tools (tests/interop)."""
    # crash needs the kernel's debug package, hundreds of megabytes: on demand only.
    done = subprocess.run([sys.executable, ROOT / "tests/interop/run.py", out, "--without", "crash"],
                          check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout.rstrip(), flush=True)
    check(done.returncode == 0, "the report does not stand up to its checks, see above")


def check_finding(demo, out):
    """The first finding on a guest with one fault names that."""
    done = subprocess.run([ROOT / "target/release/analyze", out / "core.elf", "--format", "json"],
                          check=False, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    check(done.returncode in (0, 3), f"analyze: {done.stderr.strip()}")
    found = [each["rule"] for each in json.loads(done.stdout)["postmortem"].get("findings", [])]
    wanted = FIRST_FINDING[demo]
    check((found[0] if found else None) == wanted, f"the findings are {found}, the fault is {wanted}")


def check_objects():
    install_here({"clang-19": "clang-19", "llvm-strip-19": "llvm-19", "zstd": "zstd"})
    done = subprocess.run([ROOT / "bpf" / "build.sh", "--check"], check=False, stderr=subprocess.PIPE, text=True)
    check(done.returncode == 0, done.stderr.strip())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", action="append", help=f"default: {', '.join(KERNELS)}")
    parser.add_argument("--case", action="append", choices=sorted(CASES))
    parser.add_argument("--keep", type=pathlib.Path)
    parser.add_argument("--no-reports", action="store_true")
    parser.add_argument("--attempts", type=int, default=1)
    options = parser.parse_args()
    failures, passed = [], []
    if not options.no_reports:
        subprocess.run(["cargo", "build", "--release", "--quiet"], cwd=ROOT, check=True)

    def attempt(name, action, attempts=1):
        for left in range(attempts - 1, -1, -1):
            try:
                action()
                print(f"ok      {name}", flush=True)
                passed.append(name)
                return
            except (Failed, PackageError, OSError, ValueError, KeyError) as error:
                print(f"{'AGAIN ' if left else 'FAILED'}  {name}: {error}", flush=True)
        failures.append(name)

    attempt("bpf objects match their sources", check_objects)
    with tempfile.TemporaryDirectory(prefix="scxpm-suite-") as scratch:
        for kernel in options.kernel or KERNELS:
            for case in options.case or CASES:
                if not options.kernel and ONLY.get(case, kernel) != kernel:
                    continue
                if not options.case and case in ON_DEMAND:
                    continue
                demo, extra = CASES[case]
                out = (options.keep or pathlib.Path(scratch)) / f"{case}-{kernel}"

                def one(case=case, kernel=kernel, demo=demo, extra=extra, out=out):
                    done = subprocess.run(
                        [sys.executable, HERE / "run.py", "--kernel", kernel, "--demo", demo, "--memory", "256M",
                         "--out", out, *extra],
                        check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                    )
                    check(done.returncode == 0, done.stderr.strip())
                    check_case(case, demo, out)
                    if options.no_reports:
                        return
                    if demo in FIRST_FINDING:
                        check_finding(demo, out)
                    else:
                        check_report(out)

                attempt(f"{case} on {kernel}", one, options.attempts)
                if not options.keep:
                    (out / "core.elf").unlink(missing_ok=True)
    print(f"{len(passed)} passed, {len(failures)} failed", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
