#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""`capture run --backend kvm` where there is no hardware for it: in a guest of QEMU's software
emulation that has AMD's virtualisation, and in it the guest whose scheduler fails.

    tests/guest/nested.py                       what CI runs
    tests/guest/nested.py --case error,exits    some of the cases
    tests/guest/nested.py --exits 20            error exits that are counted
    tests/guest/nested.py --here                tiny guests and --backend auto on this machine's own /dev/kvm

The outer guest runs a Debian kernel with kvm-amd and busybox. What it is to do is a shell script,
and what comes of it, captures included, is a tar archive on a virtual disk.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tarfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import capture as single  # noqa: E402
from capture import (  # noqa: E402
    CAPTURE, FAILED, INCOMPLETE, Failed, Rig, arguments, check, manifest, names_the_stall, report, run_cases, whole,
)
from initramfs import LIBRARIES, MACHINE_LIBRARIES, SCHEDULER_LIBRARIES, TOOLS, cpio, needed  # noqa: E402
from packages import PackageError  # noqa: E402

# The outer guest: its kernel has its modules in the same package.
OUTER = "6.18"
MODULES = ("irqbypass", "kvm", "kvm-amd", "virtio_blk")
APPLETS = "sh cat cp date dmesg echo grep insmod ls mkdir mount rm sed seq sleep sync tail tar tee timeout wc".split()

INIT = """#!/bin/sh
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev; mount -t tmpfs -o size=80%% tmpfs /tmp
mkdir -p /tmp/out
for module in %(modules)s; do insmod /lib/$module.ko || echo "nested: no $module"; done
echo "nested: begins"
cd /tmp
sh /plan
echo "nested: ends"
dmesg > /tmp/out/dmesg
cd /tmp/out && tar cf /dev/vda . && sync
echo "nested: done"
echo o > /proc/sysrq-trigger
sleep 60
"""


class Outer:
    """Files for the outer guest, and a run of it."""

    def __init__(self, rig, where):
        self.rig, self.where = rig, where
        self.entries = {}
        libraries = {}
        for package in (*LIBRARIES, *SCHEDULER_LIBRARIES):
            root, _ = rig.archive.unpack(package)
            for path in (root / MACHINE_LIBRARIES).glob("*.so*"):
                libraries[path.name] = path
        self.libraries = libraries
        kernel = rig.kernel(OUTER)
        for module in MODULES:
            self.add(f"lib/{module}.ko", rig.archive.module(kernel, module), 0o100644)
        root, _ = rig.archive.unpack("busybox-static", TOOLS["busybox-static"])
        self.add("bin/busybox", next(root.rglob("bin/busybox")).read_bytes())
        for applet in APPLETS:
            self.add(f"bin/{applet}", b"busybox", 0o120777)
        self.program("bin/capture", CAPTURE)
        for directory in ("dev", "proc", "sys", "tmp"):
            self.entries[directory] = (0o040755, b"")

    def add(self, path, data, mode=0o100755):
        parts = path.split("/")[:-1]
        for i in range(len(parts)):
            self.entries.setdefault("/".join(parts[: i + 1]), (0o040755, b""))
        self.entries[path] = (mode, data)

    def program(self, path, elf):
        slim = self.where / f"slim-{elf.name}"
        subprocess.run(["strip", "-o", str(slim), str(elf)], check=True)
        self.add(path, slim.read_bytes())
        wanted = needed(slim)
        while wanted:
            name = wanted.pop()
            if f"lib/{name}" in self.entries:
                continue
            if name not in self.libraries:
                raise PackageError(f"{elf.name} needs {name}, which none of the packages for it holds")
            wanted += needed(self.libraries[name])
            self.add(f"lib/{name}", self.libraries[name].read_bytes())
        loader = "ld-linux-x86-64.so.2"
        self.add(f"lib64/{loader}", self.libraries[loader].read_bytes())

    def inner(self, demo, kernel):
        """A guest for the outer guest to run; the arguments of `capture run`."""
        image = f"kernel-{kernel}"
        if image not in self.entries:
            self.add(image, self.rig.kernel(kernel)["image"].read_bytes(), 0o100644)
        initrd = f"{demo}-{kernel}.initrd"
        if initrd not in self.entries:
            path = self.where / initrd
            made = subprocess.run([str(CAPTURE), "initrd", *self.rig.guest(demo, kernel), "-o", str(path), "--force"],
                                  capture_output=True, text=True)
            check(made.returncode == 0, f"capture initrd: {made.stderr}")
            self.add(initrd, path.read_bytes(), 0o100644)
        return f"--kernel /{image} --initrd /{initrd}"

    def run(self, name, plan, timeout=900, memory="2G", thread="multi"):
        """Runs the plan; the directory with what came of it."""
        entries = dict(self.entries)
        entries["init"] = (0o100755, (INIT % {"modules": " ".join(MODULES)}).encode())
        entries["plan"] = (0o100755, plan.encode())
        initrd, disk, console = (self.where / f"outer-{name}.{what}" for what in ("initrd", "disk", "console"))
        initrd.write_bytes(cpio(entries))
        with open(disk, "wb") as file:
            file.truncate(4 << 30)
        command = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "pc",
            "-accel", f"tcg,thread={thread}", "-cpu", "max,la57=off,+svm,+npt", "-smp", "2", "-m", memory,
            "-kernel", str(self.rig.kernel(OUTER)["image"]), "-initrd", str(initrd),
            "-append", "console=ttyS0 panic=-1 tsc=reliable no_timer_check rdinit=/init quiet",
            "-drive", f"file={disk},if=virtio,format=raw,cache=unsafe", "-serial", f"file:{console}",
        ]
        try:
            subprocess.run(command, timeout=timeout, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            pass
        initrd.unlink()
        text = console.read_text("utf-8", "replace")
        if "nested: done" not in text:
            raise Failed(f"the outer guest did not come to its end: {text[-1500:]}")
        out = self.where / name
        shutil.rmtree(out, ignore_errors=True)
        with tarfile.open(disk) as archive:
            archive.extractall(out, filter="data")
        disk.unlink()
        return out


def told(out, name):
    """Exit code, standard output and standard error of a command of the plan."""
    return (int((out / f"{name}.code").read_text()), (out / f"{name}.out").read_text("utf-8", "replace"),
            (out / f"{name}.err").read_text("utf-8", "replace"))


def step(name, arguments, seconds=1500):
    """A line of a plan: one `capture run`. The outer guest's clock may run several times as fast as ours."""
    return (f"read before rest < /proc/uptime; timeout {seconds} capture run --backend kvm --show-console --memory 256M --timeout {seconds - 40} "
            f"-o out/{name}.core.zst {arguments} > out/{name}.out 2> out/{name}.err; echo $? > out/{name}.code; "
            f"read after rest < /proc/uptime; echo \"nested: {name} $before $after\"\n")


def captured(out, name, demo, code=FAILED):
    got, _, err = told(out, name)
    check(got == code, f"{name}: exit {got}: {err[-1500:]}")
    core = out / f"{name}.core.zst"
    whole(core)
    said = manifest(core)
    check(said["source"]["kind"] == "kvm", f"{said['source']}")
    return core, said


def case_demo(outer, demo, kernel):
    name = f"{demo}-{kernel}"
    out = outer.run(name, step(name, outer.inner(demo, kernel)))
    core, said = captured(out, name, demo)
    names_the_stall(report(core), demo)
    return f"trigger {said['trigger']['by']}, {said['source']['detail']}, {core.stat().st_size >> 20} MiB"


def case_dual(outer, kernel):
    name = f"dual-{kernel}"
    out = outer.run(name, step(name, f"--dual {outer.inner('stall', kernel)}"))
    core, said = captured(out, name, "stall")
    dual = report(core)
    check(dual["schema"] == "dual" and dual.get("early"), f"a {dual['schema']} report")
    names_the_stall(dual["late"])
    early = said["early"]["trigger"]
    age, half = early["max_age_jiffies"], early["threshold_jiffies"]
    check(half <= age < 2 * half, f"the early image is of age {age}, half of the limit is {half}")
    times = said["early"]["timings"]
    return f"early at {age} of {2 * half} jiffies, pause {times['pause_ns'] / 1e6:.0f} ms, trigger {said['trigger']['by']}"


def case_unparked(outer, kernel):
    name = "unparked"
    out = outer.run(name, step(name, f"--unparked 1 {outer.inner('stall', kernel)}"))
    _, said = captured(out, name, "stall", INCOMPLETE)
    check(any("1/2 vCPUs parked" in why for why in said["degraded"]), f"{said['degraded']}")
    return "; ".join(said["degraded"])


def case_exits(outer, kernel, count):
    """Error exits, and how many were caught before the kernel took the queues apart."""
    inner = outer.inner("error", kernel)
    names = [f"exit-{index}" for index in range(count)]
    out = outer.run("exits", "".join(step(name, f"--exclude free,user,cache {inner}") for name in names), timeout=300 * count)
    caught, times, by = 0, [], {}
    for name in names:
        code, _, err = told(out, name)
        if any(text in err for text in single.SPOILT):
            continue
        core, said = captured(out, name, "error")
        # The teardown begins by setting the exit kind to DONE and entering bypass.
        sched = report(core)["postmortem"]["scheduler"]
        caught += sched["exit_kind"] >= 1024 and not sched.get("bypass_depth")
        trigger = said["trigger"]
        by[trigger["by"]] = by.get(trigger["by"], 0) + 1
        times.append(trigger["freeze_ns"] / 1e6)
    check(caught == len(times) > count / 2, f"{caught} of {len(times)} were caught before the teardown")
    times.sort()
    return f"{caught} of {len(times)} before the teardown, by {by}; freeze {times[0]:.1f} to {times[-1]:.1f} ms"


def tests_program():
    """The program's own tests, built as `cargo test` does."""
    command = ["cargo", "test", "-p", "scx-postmortem-capture", "--bin", "capture", "--no-run", "--message-format=json"]
    built = subprocess.run(command, cwd=HERE.parent.parent, capture_output=True, text=True)
    check(built.returncode == 0, f"{' '.join(command)}: {built.stderr[-1500:]}")
    found = [json.loads(line).get("executable") for line in built.stdout.splitlines() if line.startswith("{")]
    return pathlib.Path(next(path for path in found if path))


TINY = "--ignored --test-threads 1 --nocapture machine::kvm"


def passed(text):
    """How many tests have passed; none may have failed."""
    results = [line for line in text.splitlines() if line.startswith("test result:")]
    check(results and results[-1].startswith("test result: ok. ") and " 0 passed" not in results[-1], text[-3000:])
    lines = [line.rsplit(" ... ", 1)[-1] for line in text.splitlines()]
    notes = [line for line in lines if line.startswith(("in-process", "noticed", "longest", "time can"))]
    return f"{results[-1].split('. ')[1].split(';')[0]}; {'; '.join(notes)}"


def case_tiny(outer):
    outer.program("bin/tests", tests_program())
    try:
        out = outer.run("tiny", f"tests {TINY} > out/tiny.out 2> out/tiny.err; echo $? > out/tiny.code\n", thread="single")
    finally:
        del outer.entries["bin/tests"]
    _, text, err = told(out, "tiny")
    return passed(text + err if "test result: ok" not in text else text)


def case_here(_):
    """Tiny guests on this machine's own KVM."""
    check(pathlib.Path("/dev/kvm").exists(), "this machine has no /dev/kvm, which --here needs")
    done = subprocess.run([str(tests_program()), *TINY.split()], capture_output=True, text=True)
    return passed(done.stdout if done.returncode == 0 else done.stdout + done.stderr)


def case_auto(outer):
    """A guest comes to its end whether this machine's KVM can run it or not, and it is said which."""
    command, output = outer.rig.command("error", "7.3", "auto", "--backend", "auto")
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    check(done.returncode == FAILED, f"exit {done.returncode}: {done.stderr}")
    said = manifest(output)
    names_the_stall(report(output), "error")
    why = [line for line in done.stderr.splitlines() if line.startswith("capture: not on KVM")]
    check(len(why) == (said["source"]["kind"] == "qemu"), f"on {said['source']['kind']}, and said {done.stderr!r}")
    return f"on {said['source']['kind']}: {why}"


def cases(options):
    if options.here:
        yield "here", case_here
        yield "auto", case_auto
        return
    yield "tiny", case_tiny
    yield "stall-6.18", lambda outer: case_demo(outer, "stall", "6.18")
    yield "error-7.3", lambda outer: case_demo(outer, "error", "7.3")
    yield "dual-7.3", lambda outer: case_dual(outer, "7.3")
    yield "unparked", lambda outer: case_unparked(outer, "7.3")
    yield "exits", lambda outer: case_exits(outer, "7.3", options.exits)


def main():
    parser = arguments(__doc__)
    parser.add_argument("--exits", type=int, default=5, help="error exits that are counted")
    parser.add_argument("--here", action="store_true", help="this machine's own KVM instead of a guest's")
    options = parser.parse_args()
    run_cases(options, "scxpm-nested-", lambda where: Outer(Rig(options.cache, where), where), cases(options),
              (Failed, PackageError, LookupError, OSError, tarfile.TarError), strip="binutils")


if __name__ == "__main__":
    main()
