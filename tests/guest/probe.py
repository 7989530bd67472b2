#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Boots schedulers that fail, with the probe loaded by our own init, on every kernel.

    tests/guest/probe.py                         8 kernels, two demos each; about 12 minutes
    tests/guest/probe.py --kernels 6.18,7.3      those; what CI runs
    tests/guest/probe.py --write                 also the table in docs/kernels.md

The guest is `capture`'s: /init is the `capture` program, which loads the probe and starts the
scheduler. When the scheduler has been thrown out, the guest says what it knows by itself: the
probe's variables through bpftool, and the scheduler's copy of the kernel's exit record. Then
QEMU takes a core. Meanwhile analyze has watched the latch in the running guest's memory.
Latch, state and counters in the report must be what the guest says, and the events' counts
must fit those of the kernel's own dump, which was written just afterwards.
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

from initramfs import APPLETS, BPF, MACHINE_LIBRARIES, build_kit, cpio, needed  # noqa: E402
from live import MEMORY, watched  # noqa: E402
from machine import EmulatorError, GuestError, Machine  # noqa: E402
from packages import KERNELS, LIBRARIES, SCHEDULER_LIBRARIES, TOOLS, Archive, PackageError, install_here  # noqa: E402

SERIES = ("6.16", "6.17", "6.18", "6.19", "7.0", "7.1", "7.2", "7.3")
# The watchdog's limit, and the kind of exit that must follow.
DEMOS = {"stall": (16000, 1026), "error": (20000, 1025), "lost": (16000, 1026), "fault": (20000, 1025)}
# No scheduler that makes a queue loads on Debian's 7.1 (packages.py).
WITHOUT_QUEUES = {"stall": "lost", "error": "fault"}
HZ = 250
COUNTERS = (
    "probe_count kprobe_returns meta_miss ringbuf_drops timeline_count timeline_drops pi_count pi_orphan_fexits "
    "pi_class_change_count pi_drops lock_contend_count lock_contend_drops preempt_disable_count "
    "preempt_enable_count trigger_count"
).split()

SCHEDULER = """#!/bin/sh
bpftool struct_ops register /demo.bpf.o /sys/fs/bpf/demo || exit 1
exec sleep 1000
"""
# Out of the scheduler's reach, so that it goes on whatever happens.
LOAD = """#!/bin/sh
[ -n "$under_rt" ] || under_rt=1 exec guestkit rt 50 /bin/sh /load.sh
echo -1 >/proc/sys/kernel/sched_rt_runtime_us
start() {{
	guestkit task "$@" &
}}
start pulse-0 pulse 1000 3000
start spin-0 spin
start pair pingpong
sleep 1
case {demo} in
stall | lost) start starve-0 spin; start starve-1 pulse 500 1000 ;;
*) start trip-0 pulse 100 500 ;;
esac
until [ "$(cat /sys/kernel/sched_ext/state)" = disabled ]; do
	usleep 100000
done
cat /proc/uptime >/tmp/uptime
dmesg >/tmp/dmesg
for map in probe_bp.bss {demo}_bp.bss.exi; do
	bpftool -j map dump name $map >/tmp/$map.json 2>&1
done
bpftool -j map show >/tmp/maps.json
bpftool -j map dump id $(bpftool map show | sed -n 's/^\\([0-9]*\\):.*name [^ ]*\\.bss\\.e.*/\\1/p' | head -n 1) >/tmp/exit.json 2>&1
guestkit send /tmp/probe_bp.bss.json probe
guestkit send /tmp/exit.json exit
guestkit send /tmp/maps.json maps
guestkit send /tmp/dmesg dmesg
guestkit send /tmp/uptime uptime
guestkit say "@DONE"
sleep 600
"""


def initramfs(archive, capture, demo):
    entries, libraries = {}, {}

    def add(path, data, mode=0o100755):
        parts = path.split("/")[:-1]
        for i in range(len(parts)):
            entries.setdefault("/".join(parts[: i + 1]), (0o040755, b""))
        entries[path] = (mode, data)

    tools = {package: archive.unpack(package, version)[0] for package, version in TOOLS.items()}
    for package in LIBRARIES + SCHEDULER_LIBRARIES:
        root, _ = archive.unpack(package)
        for path in (root / MACHINE_LIBRARIES).glob("*.so*"):
            libraries[path.name] = path
    add("bin/busybox", next(tools["busybox-static"].rglob("bin/busybox")).read_bytes())
    for applet in APPLETS:
        entries[f"bin/{applet}"] = (0o120777, b"busybox")
    bpftool = next(tools["bpftool"].rglob("sbin/bpftool"))
    add("bin/bpftool", bpftool.read_bytes())
    wanted, seen = needed(bpftool) + needed(capture), set()
    while wanted:
        name = wanted.pop()
        if name not in seen:
            seen.add(name)
            wanted += needed(libraries[name])
            add(f"lib/{name}", libraries[name].read_bytes())
    loader = "ld-linux-x86-64.so.2"
    add(f"lib64/{loader}", libraries[loader].read_bytes())
    add("bin/guestkit", build_kit(archive.cache, ["guestkit"]).read_bytes())
    for directory in "dev proc sys tmp run root".split():
        entries[directory] = (0o040755, b"")
    add("init", capture.read_bytes())
    add("demo.bpf.o", (BPF / "objects" / f"{demo}.bpf.o").read_bytes(), 0o100644)
    add("scheduler.sh", SCHEDULER.encode())
    add("load.sh", LOAD.format(demo=demo).encode())
    plan = {
        "scheduler": ["/bin/sh", "/scheduler.sh"],
        "pinned": False,
        "workloads": [["/bin/sh", "/load.sh"]],
        "probe": True,
    }
    add("scxpm/plan.json", json.dumps(plan).encode(), 0o100644)
    return cpio(entries)


def watch(program, kernel, initrd, cpus, where):
    """One guest: what it said, and the monitor's last word. The core is in `where`."""
    append = "console=ttyS0 panic=-1 tsc=reliable"
    machine = Machine(kernel["image"], initrd, append, MEMORY, cpus, "max,la57=off", 1, False,
                      where / "console.log", 300, cpus == 1)
    with watched(machine, program, where) as guest:
        probe = machine.wait_for("@probe")
        if not probe.startswith("@probe attached to "):
            raise GuestError(f"the probe was not loaded: {probe[1:]}")
        machine.wait_for("@attached")
        guest.start()
        machine.wait_for("@DONE")
        said = guest.finish()
        files = {name: content.decode("utf-8", "replace") for name, content in machine.host.files.items()}
    return probe.removeprefix("@probe attached to "), files, said


def variables(dump):
    """The variables in bpftool's dump of a section's map."""
    value = json.loads(dump)
    first = value[0].get("formatted", value[0])["value"]
    (section,) = first.values()
    return {name: item for variable in section for name, item in variable.items()}


def judge(demo, cpus, files, live, report):
    """What is wrong with what the report and the latch say; and what was compared."""
    own = report["postmortem"]
    truth = variables(files["probe"])
    limit, kind = DEMOS[demo]
    wrong = []

    def same(what, ours, theirs):
        if ours != theirs:
            wrong.append(f"{what}: we have {ours}, the guest {theirs}")

    same("the latch in the guest", truth["ktstr_err_exit_detected"], 1)
    same("the latch on live memory", live["latch"][-1:], ["triggered"])
    if live["latch"][0] != "not_triggered":
        wrong.append(f"the latch was {live['latch'][0]} at first")
    same("when it was set, live", live["latch_ns"], truth["ktstr_last_trigger_ts"])
    probe = own.get("probe") or {}
    exit = probe.get("exit") or {}
    same("latched", probe.get("latched"), True)
    same("exit kind in the guest", truth["ktstr_exit_kind_snap"], kind)
    same("exit kind", exit.get("exit_kind"), kind)
    same("the scheduler", int(exit.get("sched_kva", "0x0"), 16), live["scheduler"]["kva"])
    same("the scheduler's name", live["scheduler"]["name"], f"demo_{demo}")
    same("the watchdog's limit", exit.get("watchdog_timeout_jiffies"), limit * HZ // 1000)
    same("bypass depth", exit.get("bypass_depth"), truth["ktstr_exit_bypass_depth"])
    same("aborting", exit.get("aborting"), bool(truth["ktstr_exit_aborting"]))
    # Bypass begins when the scheduler is taken apart, which must not have begun.
    same("bypass depth in the guest", truth["ktstr_exit_bypass_depth"], 0)
    for name, variable in {"at_ns": "probe_exit_ns", "cpu": "probe_exit_cpu", "pid": "probe_exit_pid"}.items():
        same(name, exit.get(name), truth[variable])
    if not 0 <= exit.get("cpu", -1) < cpus:
        wrong.append(f"on CPU {exit.get('cpu')} of {cpus}")
    # The kernel's line comes when the scheduler is gone.
    line = re.search(r"\[ *([0-9.]+)\].*sched_ext: BPF scheduler \"demo_\w+\" disabled", files["dmesg"])
    before_ms = None
    if not line:
        wrong.append("the guest's log does not say that the scheduler was disabled")
    else:
        before_ms = float(line[1]) * 1000 - exit.get("at_ns", 0) / 1e6
        # Both clocks begin with the kernel, the log's a little earlier or later.
        if not -200 < before_ms < 20000:
            wrong.append(f"the latch was set {before_ms:.0f} ms before the kernel's last word")
    record = variables(files["exit"])["exit_record"]
    same("the kernel's exit record", record["kind"], kind)
    state = report.get("scx_sched_state") or {}
    same("source", state.get("source"), "bss_snapshot")
    same("scx_sched_state", (state.get("exit_kind"), state.get("sched_kva")), (kind, live["scheduler"]["kva"]))

    cells = truth["ktstr_pcpu_counters"]
    rows = [[cell["value"] for cell in row] for row in cells] if isinstance(cells[0], list) else \
        [[cell["value"] for cell in cells[i : i + 15]] for i in range(0, len(cells), 15)]
    ours = report.get("probe_counters") or {}
    same("the names of the counters", list(ours), COUNTERS)
    for slot, name in enumerate(COUNTERS):
        theirs = sum(row[slot] for row in rows)
        # Locks are fought for all the time, also after the guest's own look.
        if name in ("lock_contend_count", "pi_count", "pi_class_change_count"):
            if ours.get(name, -1) < theirs:
                wrong.append(f"{name}: we have {ours.get(name)}, the guest had {theirs} before")
        else:
            same(name, ours.get(name), theirs)
    same("trigger_count", ours.get("trigger_count"), 1)
    same("kprobe_returns", ours.get("kprobe_returns"), 1)

    stats = truth["ktstr_exit_event_stats"]
    same("the events' counts", {k: v for k, v in (exit.get("events") or {}).items() if k != "elapsed_ms"}, stats)
    dump = text(record["dump"])
    counted = {}
    for name, value in re.findall(r"^\s*SCX_EV_(\w+):\s*(-?\d+)", dump, re.M):
        name = {"REENQ_REPEAT": "REENQ_LOCAL_REPEAT"}.get(name, name).lower()
        if name in stats:
            counted[name] = int(value)
    if len(counted) < 9:
        wrong.append(f"the kernel's dump has {len(counted)} of the counters")
    grown = {}
    for name, value in counted.items():
        # The dump comes after the latch, while the CPUs go on.
        if not 0 <= value - stats[name] <= max(200, value // 2):
            wrong.append(f"{name}: {stats[name]} at the latch, {value} in the kernel's dump")
        grown[name] = value - stats[name]
    if not any(stats.values()):
        wrong.append("no event was counted")
    return wrong, before_ms, grown


def text(value):
    """A char array as bpftool prints it: a string, or a list of characters."""
    if isinstance(value, list):
        return "".join(chr(c) if isinstance(c, int) else c for c in value).split("\0")[0]
    return value.split("\0")[0]


def table(rows):
    lines = ["| kernel | demo | attached to | exit kind | latch before the kernel's last word | verdict |", "|---|---|---|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def write(rows):
    page = ROOT / "docs/kernels.md"
    begin, end = "<!-- probe.py begins -->", "<!-- probe.py ends -->"
    content = page.read_text()
    head, rest = content.split(begin)
    _, tail = rest.split(end)
    page.write_text(f"{head}{begin}\n{table(rows)}\n{end}{tail}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = pathlib.Path.home() / ".cache" / "scx-postmortem"
    parser.add_argument("--cache", type=pathlib.Path, default=default)
    parser.add_argument("--kernels", default=",".join(SERIES), help="separated by commas")
    parser.add_argument("--demos", default="stall,error", help="separated by commas")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--attempts", type=int, default=3, help="guests to try when the emulator fails")
    parser.add_argument("--keep", type=pathlib.Path, help="a directory for the cores")
    parser.add_argument("--write", action="store_true", help="write the table into docs/kernels.md")
    options = parser.parse_args()
    install_here({"qemu-system-x86_64": "qemu-system-x86", "cc": "gcc", "dpkg-deb": "dpkg"})
    archive = Archive(options.cache)
    for arguments in (["-p", "scx-postmortem-analyze", "--example", "monitor", "--bin", "analyze"],
                      ["-p", "scx-postmortem-capture", "--bin", "capture"]):
        subprocess.run(["cargo", "build", "-q", *arguments], check=True, cwd=ROOT)
    target = json.loads(subprocess.run(["cargo", "metadata", "--format-version", "1", "--no-deps"], check=True,
                                       cwd=ROOT, stdout=subprocess.PIPE).stdout)["target_directory"]
    programs = pathlib.Path(target) / "debug"
    # The debug information is of no use in a guest, and a hundred megabytes of it.
    with tempfile.TemporaryDirectory(prefix="scxpm-probe-") as scratch:
        capture = pathlib.Path(scratch) / "capture"
        subprocess.run(["strip", "-o", capture, programs / "capture"], check=True)
        rows, failed = [], False
        for short in options.kernels.split(","):
            if short not in KERNELS:
                raise PackageError(f"kernel {short} is not one of {', '.join(KERNELS)}")
            kernel = archive.kernel(short)
            for demo in options.demos.split(","):
                demo = WITHOUT_QUEUES.get(demo, demo) if short == "7.1" else demo
                where = (options.keep or pathlib.Path(scratch)) / f"{demo}-{short}"
                where.mkdir(parents=True, exist_ok=True)
                attached, before_ms, grown = "", None, {}
                try:
                    for attempt in range(options.attempts):
                        try:
                            attached, files, live = watch(programs / "examples/monitor", kernel,
                                                          initramfs(archive, capture, demo), options.cpus, where)
                            break
                        except EmulatorError as error:
                            if attempt + 1 == options.attempts:
                                raise
                            print(f"{short} {demo}: {error}; trying again", file=sys.stderr)
                    if options.keep:
                        (where / "files.json").write_text(json.dumps(files))
                        (where / "live.json").write_text(json.dumps(live))
                    subprocess.run([programs / "analyze", where / "core.elf", "--format", "json", "-o",
                                    where / "report.json"], check=True)
                    report = json.loads((where / "report.json").read_text())
                    wrong, before_ms, grown = judge(demo, options.cpus, files, live, report)
                except (GuestError, subprocess.CalledProcessError, TimeoutError) as error:
                    wrong = [str(error)]
                if not options.keep:
                    (where / "core.elf").unlink(missing_ok=True)
                failed |= bool(wrong)
                for line in wrong:
                    print(f"{short} {demo}: {line}")
                moved = {name: by for name, by in grown.items() if by}
                before = "" if before_ms is None else f"{before_ms:.0f} ms"
                rows.append((kernel["release"].split("+")[0], demo, attached, str(DEMOS[demo][1]), before,
                             "as the guest says" if not wrong else "FAILED"))
                cost = f", latch found in {live['latch_find_us']} µs, read in {live['latch_median_ns']} ns" if before else ""
                print(f"{kernel['release']} {demo}: {rows[-1][-1]}{cost}; counts from the latch to the dump: {moved}",
                      flush=True)
        print(table(rows))
        if options.write and not failed:
            write(rows)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (PackageError, GuestError) as error:
        print(f"probe.py: {error}", file=sys.stderr)
        sys.exit(1)
