#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Boots a Debian kernel with a scheduler that fails on purpose, and takes the core.

    tests/guest/run.py --kernel 6.18 --demo stall --out DIR
    tests/guest/run.py --kernel 7.3 --demo error --cpu max --out DIR
    tests/guest/run.py --kernel 7.3 --demo lavd --out DIR
    tests/guest/run.py --list

DIR then holds
    core.elf     the guest's physical memory as QEMU's dump-guest-memory writes it
    truth/       what the guest's kernel said about itself, by stage:
                 boot (symbols), attach (bpftool after loading), stop (just before
                 the core), late (--stop late), after (kernel log, exit record)
    console.log  the kernel's messages
    recipe.json  all that is needed to make it again

--stop says when the guest is stopped and its memory taken:
    dump   the kernel has noticed the failure and written its own dump text, and has
           not touched any queue yet (stall, lost, error, fault; the default for them)
    mid    half-way to the watchdog's limit: the scheduler is alive
    late   the scheduler has been thrown out, scx_root is NULL
    now    at once after the truth was saved (healthy, twice, maps, none, real schedulers), or some
           seconds after the fault, of which the guest knows nothing (those of bpf/fail)

bpfland, lavd and p2dq are the schedulers of these names from crates.io (schedulers.py
builds them, which takes minutes the first time).

The moment is found with a hardware breakpoint through QEMU's debug stub, at an
address that the guest reports itself, so kernel address randomisation stays on.
Nothing but software emulation is used: no KVM, no network, no root once the
packages are there. One QEMU runs at a time and is always ended.
"""

import argparse
import bisect
import io
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from initramfs import build  # noqa: E402
from machine import EmulatorError, Gdb, GuestError, Machine, megabytes  # noqa: E402
from packages import KERNELS, Archive, PackageError, install_here  # noqa: E402
import schedulers  # noqa: E402

DEFAULT_APPEND = "init_on_free=1 tsc=reliable"
STOPS = {name: ("dump", "mid", "late") for name in ("stall", "lost", "error", "fault")}
STOPS.update({name: ("now",) for name in ("healthy", "twice", "maps", "none")})
STOPS.update({name: ("now",) for name in schedulers.SCHEDULERS})
# The schedulers of bpf/fail. Their guests end with the core.
FAILING = {
    "affinity": ("dump", "now"),
    "arena": ("dump", "now"),
    "bypass": ("now",),
    "fifo": ("now",),
    "hog": ("now",),
    "idle": ("now",),
    "lock": ("dump",),
    "preempt": ("now",),
    "prio": ("dump",),
    "ring": ("dump",),
    "slice": ("now",),
    "slow": ("now",),
    "stopped": ("dump",),
    "stranded": ("now",),
    "stuck": ("now",),
    "vtime": ("dump",),
}
STOPS.update(FAILING)
STOP_SYMBOL = {"dump": "scx_dump_state", "mid": "__x64_sys_sync", "late": "__x64_sys_sync", "now": "__x64_sys_sync"}


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "scx-postmortem"
    parser.add_argument("--kernel", default="6.18", help=f"one of {', '.join(KERNELS)} (default %(default)s)")
    parser.add_argument("--kernel-version", metavar="RELEASE", help="another release of that series, as 6.18.12+deb13")
    parser.add_argument("--demo", default="stall", choices=sorted(STOPS))
    parser.add_argument("--stop", choices=("dump", "mid", "late", "now"))
    parser.add_argument("--memory", default="512M")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--cpu", default="max,la57=off", help="QEMU's CPU model; `max` has five page-table levels")
    parser.add_argument("--numa", type=int, default=1, metavar="NODES")
    parser.add_argument("--vmcoreinfo", action="store_true", help="give the core a VMCOREINFO note")
    parser.add_argument("--append", default=DEFAULT_APPEND, help="kernel command line (default: %(default)s)")
    parser.add_argument("--early", type=float, metavar="SECONDS",
                        help="with --demo stall: early.elf, another core of the guest, so long after the starvation began")
    parser.add_argument("--settle", type=int, default=4, help="seconds of load before --stop now")
    parser.add_argument("--scheduler-args", default="", help="for a real scheduler, separated by commas")
    parser.add_argument("--lean", action="store_true",
                        help="delete the guest's files before the core, and end a real scheduler's program (its link is pinned)")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--cache", type=pathlib.Path, default=cache, help="unpacked packages (default %(default)s)")
    parser.add_argument("--timeout", type=int, help="seconds that one boot may take (300; 1200 with a real scheduler)")
    parser.add_argument("--attempts", type=int, default=4, help="boots to try when the emulator fails")
    parser.add_argument("--single", action="store_true", help="one emulation thread: slower, without its races")
    parser.add_argument("--list", action="store_true", help="print the kernels and leave")
    options = parser.parse_args()
    if options.list:
        for short, (release, version, package) in KERNELS.items():
            print(f"{short:6} {package}-{release}-cloud-amd64 {version}")
        sys.exit(0)
    if options.out is None:
        parser.error("--out is needed")
    options.stop = options.stop or STOPS[options.demo][0]
    if options.stop not in STOPS[options.demo]:
        parser.error(f"--demo {options.demo} can stop at: {', '.join(STOPS[options.demo])}")
    if options.scheduler_args and options.demo not in schedulers.SCHEDULERS:
        parser.error(f"--scheduler-args goes with {', '.join(schedulers.SCHEDULERS)}")
    if options.early and (options.demo, options.stop) != ("stall", "dump"):
        parser.error("--early goes with --demo stall --stop dump")
    if options.lean and options.demo != "maps" and options.demo not in schedulers.SCHEDULERS:
        parser.error(f"--lean goes with maps, {', '.join(schedulers.SCHEDULERS)}")
    if re.search(r"\s", options.scheduler_args):
        parser.error("--scheduler-args cannot hold white space")
    options.timeout = options.timeout or (1200 if options.demo in schedulers.SCHEDULERS else 300)
    megabytes(options.memory)
    return options


def find_symbol(table, name):
    """The address of a kernel function in the guest's own kallsyms text."""
    found = []
    for line in table.splitlines():
        fields = line.split()
        # A compiler's clone (name.isra.0, name.constprop.0) is the function that really runs.
        if len(fields) == 3 and (fields[2] == name or fields[2].startswith(name + ".")) and ".cold" not in fields[2]:
            found.append((int(fields[0], 16), fields[2]))
    if len(found) != 1:
        raise GuestError(f"the guest's kernel has {len(found)} symbols named {name}")
    return found[0]


def take_core(machine, options, recipe):
    machine.wait_for("@READY")
    if options.demo in FAILING and options.stop == "now":
        machine.host.send("GO")
        seconds = float(machine.wait_for("@STOP").split()[1])
        time.sleep(seconds)
        machine.check()
        machine.qmp.ask("stop")
        machine.dump(options.out / "core.elf")
        recipe["breakpoints"] = [{"symbol": f"wherever it was after {seconds:g} s"}]
        unpack_truth([machine.host.files["truth.tgz"]], options.out / "truth")
        return
    table = machine.host.files["kallsyms_some"].decode()
    address, symbol = find_symbol(table, STOP_SYMBOL[options.stop])
    if options.early:
        take_early_core(machine, options, recipe)
    gdb = machine.attach_debugger()
    gdb.breakpoint(address)
    gdb.resume()
    if not options.early:
        machine.host.send("GO")
    registers = machine.wait_breakpoint(address)
    gdb.breakpoint(address, add=False)
    stops = [{"symbol": symbol, "address": f"{address:#x}"}]
    if options.stop == "dump":
        # On entry the dump text is not there yet; where the function returns to it is
        # complete, and no queue has been touched.
        back = gdb.read_u64(registers[Gdb.RSP])
        gdb.breakpoint(back)
        gdb.resume()
        machine.wait_breakpoint(back)
        gdb.breakpoint(back, add=False)
        stops.append({"symbol": f"return of {symbol}", "address": f"{back:#x}"})
    began = time.monotonic()
    machine.dump(options.out / "core.elf")
    recipe["dump_seconds"] = round(time.monotonic() - began, 2)
    recipe["breakpoints"] = stops
    if options.demo not in FAILING:
        gdb.resume()
        machine.wait_for("@END")
    parts = [machine.host.files[name] for name in ("truth.tgz", "after.tgz") if name in machine.host.files]
    unpack_truth(parts, options.out / "truth")
    save_exit_record(options.out / "truth")
    save_stacks(options.out / "truth")
    state = options.out / "truth/stop/scx_state_at_end"
    if options.demo in schedulers.SCHEDULERS and state.read_text().strip() != "enabled":
        raise EmulatorError("the scheduler's watchdog struck while the truth was being saved: this machine is too busy")


def take_early_core(machine, options, recipe):
    """A core of the guest some seconds after tasks began to starve; it runs on afterwards."""
    machine.host.send("GO")
    while "starvation starts" not in machine.console.read_text("utf-8", "replace"):
        machine.left()
        machine.check()
        time.sleep(0.2)
    time.sleep(options.early)
    machine.check()
    machine.qmp.ask("stop")
    machine.dump(options.out / "early.elf")
    machine.qmp.ask("cont")
    recipe["early_seconds"] = options.early


def unpack_truth(parts, directory):
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)

    def unpack(stream, below):
        for member in stream:
            path = pathlib.PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise GuestError(f"the guest sent a file named {member.name}")
            if path.parts[:1] == ("truth",):
                path = pathlib.PurePosixPath(*path.parts[1:])
            target = below / path
            if member.isdir():
                target.mkdir(parents=True, exist_ok=True)
            elif member.isfile():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(stream.extractfile(member).read())

    for part in parts:
        with tarfile.open(fileobj=io.BytesIO(part)) as stream:
            unpack(stream, directory)
    for snap in sorted(directory.rglob("snap.tar")):
        with tarfile.open(snap) as stream:
            unpack(stream, snap.parent)
        snap.unlink()


def save_exit_record(truth):
    """The kernel's dump text out of the scheduler's own copy of it, as a plain file."""
    for path in sorted((truth / "after" / "bpftool").glob("map_dump_*.json")):
        try:
            value = json.loads(path.read_text())[0]["formatted"]["value"]
            (record,) = [each["exit_record"] for each in value[".bss.exit"]]
        except (ValueError, LookupError, TypeError):
            continue
        if record["filled"]:
            (truth / "after" / "scx_dump.txt").write_text(text_of(record.pop("dump")))
            record["reason"], record["msg"] = text_of(record["reason"]), text_of(record["msg"])
            (truth / "after" / "scx_exit.json").write_text(json.dumps(record, indent=2) + "\n")


def save_stacks(truth):
    """The entries of stack trace maps with the kernel's names for their addresses, as zoo/stacks.txt."""
    if not (truth / "zoo" / "kallsyms").exists():
        return
    symbols = []
    for line in (truth / "zoo" / "kallsyms").read_text().splitlines():
        address, kind, name = line.split(None, 2)
        if kind in "tTwW":
            symbols.append((int(address, 16), name.replace("\t", " ")))
    symbols.sort(key=lambda each: each[0])
    starts = [address for address, _ in symbols]
    lines = []
    for path in sorted((truth / "stop" / "raw").iterdir()):
        header, *rows = path.read_text().splitlines()
        match = re.match(r"# id (\d+) name (\S+) type 7 .* flags (\S+) ", header)
        for row in rows if match else ():
            key, value = (bytes.fromhex(field) for field in row.split())
            lines.append(f"{match[2]}[{int.from_bytes(key, 'little')}]")
            if int(match[3], 16) & 1 << 5:  # status, build id, offset or address
                entries = struct.iter_unpack("<i20sQ", value)
                lines += [f"  {status} {build_id.hex()} {offset:#x}" for status, build_id, offset in entries if status]
                continue
            for address, in struct.iter_unpack("<Q", value):
                at = bisect.bisect_right(starts, address) - 1
                name = f" {symbols[at][1]}+{address - starts[at]:#x}" if address >> 63 and at >= 0 else ""
                if address:
                    lines.append(f"  {address:#x}{name}")
    (truth / "zoo" / "stacks.txt").write_text("\n".join(lines) + "\n")


def text_of(value):
    # bpftool prints a char array as a string only when all of it is printable.
    if isinstance(value, str):
        return value
    data = bytes(ord(each) if isinstance(each, str) else each & 0xFF for each in value)
    return data.split(b"\0")[0].decode("utf-8", "replace")


def guest_seconds(console):
    stamps = re.findall(r"^\[ *(\d+\.\d+)\].*scx-postmortem: (.*)$", console, re.M)
    return {what.strip(): float(stamp) for stamp, what in stamps}


def main():
    options = arguments()
    install_here({"qemu-system-x86_64": "qemu-system-x86", "cc": "gcc", "dpkg-deb": "dpkg"})
    archive = Archive(options.cache)
    kernel = archive.kernel(options.kernel, options.kernel_version)
    modules = [("qemu_fw_cfg", archive.module(kernel, "qemu_fw_cfg"))] if options.vmcoreinfo else []
    scheduler, made = None, None
    append = f"console=ttyS0 panic=-1 demo={options.demo} stop={options.stop} settle={options.settle} {options.append}"
    if options.demo in schedulers.SCHEDULERS:
        made = schedulers.build(archive, options.demo)
        scheduler = {"name": made["crate"], "binary": made["binary"], "config": archive.config(kernel),
                     "release": kernel["release"]}
        # The arena's truth is found through addresses in /proc/vmallocinfo; and while all else
        # is held still (bpf/guest/init), RCU has to go on.
        append += f" scheduler={made['crate']} no_hash_pointers rcutree.kthread_prio=60"
        if options.scheduler_args:
            append += f" scheduler_args={options.scheduler_args}"
    if options.lean:
        append += " lean=1"
    initrd, versions = build(archive, options.demo, modules, scheduler)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in ("core.elf", "recipe.json"):
        (options.out / name).unlink(missing_ok=True)
    recipe = {
        "kernel": {name: str(kernel[name]) for name in ("release", "package", "version")},
        "demo": options.demo,
        "stop": options.stop,
        "append": append,
        "memory": options.memory,
        "cpus": options.cpus,
        "cpu": options.cpu,
        "numa_nodes": options.numa,
        "vmcoreinfo_device": options.vmcoreinfo,
        "guest_packages": versions,
        **({"scheduler": {"crate": made["crate"], "version": made["version"], "build": made["build"]}} if made else {}),
        "qemu": subprocess.run(
            ["qemu-system-x86_64", "--version"], check=True, stdout=subprocess.PIPE, text=True
        ).stdout.splitlines()[0],
    }
    for attempt in range(1, options.attempts + 1):
        machine = Machine(
            kernel["image"], initrd, append, options.memory, options.cpus, options.cpu, options.numa,
            options.vmcoreinfo, options.out / "console.log", options.timeout,
            options.single or options.cpus == 1,
        )
        began = time.monotonic()
        try:
            with machine:
                take_core(machine, options, recipe)
            break
        except EmulatorError as error:
            if attempt == options.attempts:
                raise
            print(f"attempt {attempt}: {error}; trying again", file=sys.stderr)
        except ConnectionError as error:
            raise GuestError(f"QEMU went away: {error}") from error
    recipe["attempts"] = attempt
    recipe["host_seconds"] = round(time.monotonic() - began, 1)
    recipe["guest_seconds"] = guest_seconds((options.out / "console.log").read_text("utf-8", "replace"))
    (options.out / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")
    print(f"{options.out}: {recipe['kernel']['release']} {options.demo}, stopped at "
          f"{recipe['breakpoints'][-1]['symbol']}, {recipe['host_seconds']} s")


if __name__ == "__main__":
    try:
        main()
    except (PackageError, GuestError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        sys.exit(1)
