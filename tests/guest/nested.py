#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""`capture run --backend kvm` where there is no hardware for it: in a guest of QEMU's software
emulation that has AMD's virtualisation, and in it the guest whose scheduler fails.

    tests/guest/nested.py                       all cases
    tests/guest/nested.py --case error,exits    some of the cases
    tests/guest/nested.py --exits 20            error exits that are counted
    tests/guest/nested.py --short               tiny guests, stall, error and dual, all in one outer guest, six minutes
    tests/guest/nested.py --here                tiny guests and --backend auto on this machine's own /dev/kvm

The outer guest runs a Debian kernel with kvm-amd and busybox. What it is to do is a shell script,
and what comes of it, captures included, is a tar archive on a virtual disk.
"""

import json
import pathlib
import re
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
from initramfs import LIBRARIES, MACHINE_LIBRARIES, SCHEDULER_LIBRARIES, TOOLS, build_kit, cpio, needed  # noqa: E402
from packages import PackageError  # noqa: E402

# The outer guest: its kernel has its modules in the same package.
OUTER = "6.18"
MODULES = ("irqbypass", "kvm", "kvm-amd", "virtio_blk")
APPLETS = "sh cat cp date dmesg echo grep insmod ls mkdir mkfifo mount rm sed seq sleep sync tail tar tee timeout wc".split()
# Keeps this kernel from patching its text again and again; see kvmhold.c.
HOLD = "kvmhold"

INIT = """#!/bin/sh
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev; mount -t tmpfs -o size=80%% tmpfs /tmp
mkdir -p /tmp/out
for module in %(modules)s; do insmod /lib/$module.ko || echo "nested: no $module"; done
kvmhold > /tmp/held 2>&1 &
until grep -q . /tmp/held; do sleep 1; done; cat /tmp/held
echo 1 > /sys/devices/system/cpu/cpu1/online
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

# The init of an inner guest that is no scheduler's: `task` comes from the kernel's command line.
INNER = """#!/bin/sh
export PATH=/bin
echo "inner: up"
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs devtmpfs /dev
case "$task" in
ticks)
    for each in 1 2; do while :; do :; done & done
    work=0
    while :; do
        for each in 1 2 3 4 5 6 7 8 9 10; do work=$((work + 1)); done
        read up rest < /proc/uptime; echo "tick $up $work" > /dev/ttyS1
    done ;;
facts)
    echo "inner: loader $(cat /proc/sys/kernel/bootloader_type)"
    echo "inner: cpus $(grep -c ^processor /proc/cpuinfo) online $(cat /sys/devices/system/cpu/online)"
    grep MemTotal /proc/meminfo
    for node in /sys/devices/system/node/node[0-9]*; do
        echo "inner: ${node##*/} cpus $(cat $node/cpulist) distance $(cat $node/distance)"
        grep MemTotal $node/meminfo
    done
    cat /sys/devices/system/cpu/cpu*/topology/physical_package_id | while read package; do echo "inner: package $package"; done
    dmesg | grep -E "WARNING|BUG|llc-sibling"
    echo "inner: ends"
    echo o > /proc/sysrq-trigger ;;
esac
sleep 3600
"""
INNER_APPLETS = "sh cat dmesg echo grep mount sleep".split()


# The second CPU comes when the kernel's text is as it stays, and the first one alone has patched it.
APPEND = "console=ttyS0 panic=-1 tsc=reliable no_timer_check rdinit=/init quiet maxcpus=1 noreplace-smp"


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
        self.busybox = self.entries["bin/busybox"][1]
        self.program("bin/capture", CAPTURE)
        self.add(f"bin/{HOLD}", build_kit(rig.archive.cache, (HOLD,)).read_bytes())
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

    def image(self, kernel):
        """The path in the outer guest of a kernel to boot there."""
        image = f"kernel-{kernel}"
        if image not in self.entries:
            self.add(image, self.rig.kernel(kernel)["image"].read_bytes(), 0o100644)
        return f"/{image}"

    def bare(self):
        """The path in the outer guest of an initramfs with [`INNER`] and little else."""
        entries = {"init": (0o100755, INNER.encode()), "bin": (0o040755, b""), "bin/busybox": (0o100755, self.busybox)}
        for applet in INNER_APPLETS:
            entries[f"bin/{applet}"] = (0o120777, b"busybox")
        for directory in ("dev", "proc", "sys"):
            entries[directory] = (0o040755, b"")
        self.add("bare.initrd", cpio(entries), 0o100644)
        return "/bare.initrd"

    def inner(self, demo, kernel):
        """A guest for the outer guest to run; the arguments of `capture run`."""
        image = self.image(kernel)
        initrd = f"{demo}-{kernel}.initrd"
        if initrd not in self.entries:
            path = self.where / initrd
            made = subprocess.run([str(CAPTURE), "initrd", *self.rig.guest(demo, kernel), "-o", str(path), "--force"],
                                  capture_output=True, text=True)
            check(made.returncode == 0, f"capture initrd: {made.stderr}")
            self.add(initrd, path.read_bytes(), 0o100644)
        return f"--kernel {image} --initrd /{initrd}"

    def add_tests(self):
        if "bin/tests" not in self.entries:
            self.program("bin/tests", tests_program())

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
            "-append", APPEND,
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


# Error exits in one outer guest: should that one be spoilt, these are lost and no more.
BATCH = 5


def case_exits(outer, kernel, count):
    """Error exits, and how many were caught before the kernel took the queues apart."""
    inner = outer.inner("error", kernel)
    caught, times, by, spoilt, missed = 0, [], {}, 0, []
    for batch in range(2 * count // BATCH):
        names = [f"exit-{batch}-{index}" for index in range(min(BATCH, count - len(times) - len(missed)))]
        if not names:
            break
        try:
            out = outer.run("exits", "".join(step(name, f"--exclude free,user,cache {inner}") for name in names), timeout=300 * BATCH)
        except Failed:
            spoilt += len(names)
            continue
        for name in names:
            code, _, err = told(out, name)
            core = out / f"{name}.core.zst"
            # A kernel that the emulator made to fail by itself.
            if any(text in err for text in single.SPOILT) or (core.exists() and manifest(core)["trigger"]["kind"] != "scx_exit"):
                spoilt += 1
                continue
            if code != FAILED:
                # The guest had ended before anybody looked: that counts.
                missed.append(f"exit {code}: {told(out, name)[1].strip()[-300:]}")
                continue
            core, said = captured(out, name, "error")
            # The teardown begins by setting the exit kind to DONE and entering bypass.
            sched = report(core)["postmortem"]["scheduler"]
            caught += sched["exit_kind"] >= 1024 and not sched.get("bypass_depth")
            trigger = said["trigger"]
            by[trigger["by"]] = by.get(trigger["by"], 0) + 1
            times.append(trigger["freeze_ns"] / 1e6)
        print(f"        {caught} of {len(times) + len(missed)} by now, {spoilt} spoilt by the emulator", flush=True)
    all_told = len(times) + len(missed)
    # Polling is all that is left here, see docs/capturing.md: most of them, not all, is the promise.
    check(all_told == count and 4 * caught >= 3 * count, f"{caught} of {all_told} were caught before the teardown, {spoilt} spoilt: {missed}")
    times.sort()
    median = times[len(times) // 2]
    return (f"{caught} of {count} before the teardown, by {by}; freeze {times[0]:.1f} to {times[-1]:.1f} ms, median {median:.1f}; "
            f"{spoilt} more were spoilt by the emulator" + (f"; not caught: {missed}" if missed else ""))


def tests_program():
    """The program's own tests, built as `cargo test` does."""
    command = ["cargo", "test", "-p", "scx-postmortem-capture", "--bin", "capture", "--no-run", "--message-format=json"]
    built = subprocess.run(command, cwd=HERE.parent.parent, capture_output=True, text=True)
    check(built.returncode == 0, f"{' '.join(command)}: {built.stderr[-1500:]}")
    found = [json.loads(line).get("executable") for line in built.stdout.splitlines() if line.startswith("{")]
    return pathlib.Path(next(path for path in found if path))


TINY = "--ignored --test-threads 1 --nocapture machine::kvm::tests"


def passed(text):
    """How many tests have passed; none may have failed."""
    results = [line for line in text.splitlines() if line.startswith("test result:")]
    check(results and results[-1].startswith("test result: ok. ") and " 0 passed" not in results[-1], text[-3000:])
    lines = [line.rsplit(" ... ", 1)[-1] for line in text.splitlines()]
    notes = [line for line in lines if line.startswith(("in-process", "noticed", "longest", "time can", "registers", "vectors"))]
    return f"{results[-1].split('. ')[1].split(';')[0]}; {'; '.join(notes)}"


def tests(name, which, environment=""):
    """A line of a plan: the program's own tests."""
    return f"{environment} tests {which} > out/{name}.out 2> out/{name}.err; echo $? > out/{name}.code\n"


def tested(out, name):
    _, text, err = told(out, name)
    return passed(text if "test result: ok" in text else text + err)


def case_tiny(outer):
    outer.add_tests()
    return tested(outer.run("tiny", tests("tiny", TINY)), "tiny")


def case_cycles(outer, kernel):
    """A guest under load that is frozen a hundred times: its clock and its work go on."""
    outer.add_tests()
    where = f"SCX_POSTMORTEM_KERNEL={outer.image(kernel)} SCX_POSTMORTEM_INITRD={outer.bare()}"
    which = "--ignored --nocapture machine::kvm::booted::a_guest_under_load"
    out = outer.run("cycles", tests("cycles", which, where))
    tested(out, "cycles")
    text = told(out, "cycles")[1]
    return next(line for line in text.splitlines() if "cycles: " in line).split("cycles: ", 1)[1]


def facts(out, name):
    """What an inner guest has said of its machine: CPUs, kB of memory, nodes, packages, complaints."""
    code, _, err = told(out, name)
    lines = [line.strip() for line in err.splitlines()]
    check(code == 0 and "inner: ends" in lines, f"{name}: exit {code}: {err[-1500:]}")
    memory = [int(line.split()[-2]) for line in lines if "MemTotal:" in line]
    nodes = [line.split()[2:] for line in lines if line.startswith("inner: node")]
    nodes = [(words[1], " ".join(words[3:])) for words in nodes]
    packages = sorted({line.split()[-1] for line in lines if line.startswith("inner: package")})
    loader = next(line.split()[2] for line in lines if line.startswith("inner: loader"))
    cpus = next(line.split()[2] for line in lines if line.startswith("inner: cpus"))
    bad = [line for line in lines if any(word in line for word in ("WARNING", "BUG", "llc-sibling"))]
    check(not bad, f"{name}: {bad}")
    return {"cpus": int(cpus), "loader": loader, "memory": memory[0], "of_nodes": memory[1:], "nodes": nodes, "packages": packages}


def fact_step(name, arguments, kernel, initrd, backend="--backend kvm"):
    return (f"timeout 900 capture run {backend} --show-console --timeout 860 --append task=facts -o out/{name}.core.zst "
            f"--kernel {kernel} --initrd {initrd} {arguments} > out/{name}.out 2> out/{name}.err; echo $? > out/{name}.code\n")


def case_large(outer, kernel):
    """More CPUs than two, more memory than fits below the hole, and NUMA nodes."""
    kernel, initrd = outer.image(kernel), outer.bare()
    plan = fact_step("large", "--cpus 8 --memory 5G --numa 2", kernel, initrd)
    plan += fact_step("odd", "--cpus 3 --memory 300M --numa 2", kernel, initrd)
    for name, arguments in (("many", "--cpus 65"), ("small", "--memory 100M"), ("huge", "--memory 65G"), ("nodes", "--numa 3")):
        plan += fact_step(name, arguments, kernel, initrd)
    out = outer.run("large", plan, timeout=1500)
    large, odd = facts(out, "large"), facts(out, "odd")
    check(large["cpus"] == 8 and large["nodes"] == [("0-3", "10 20"), ("4-7", "20 10")], f"{large}")
    # The kernel keeps some for itself.
    check(4.7 * 2**20 < large["memory"] < 5 * 2**20, f"{large}")
    check(all(2.2 * 2**20 < kb < 2.5 * 2**20 for kb in large["of_nodes"]), f"{large}")
    check(large["packages"] == ["0", "1"], f"{large}")
    check(odd["cpus"] == 3 and odd["nodes"] == [("0", "10 20"), ("1-2", "20 10")], f"{odd}")
    for name, code, text in (("many", 5, "--cpus"), ("small", 5, "128 MiB"), ("huge", 5, "64 GiB"), ("nodes", 2, "--numa")):
        got, _, err = told(out, name)
        check(got == code and text in err, f"{name}: exit {got}: {err}")
    return f"8 CPUs, {large['memory'] >> 10} MiB in nodes of {[kb >> 10 for kb in large['of_nodes']]}; 3 CPUs in two nodes; four refusals"


def vmlinux(image, where):
    """The kernel that is packed in a bzImage."""
    data = image.read_bytes()
    for magic, command in ((b"\x28\xb5\x2f\xfd", ["zstd", "-dcq"]), (b"\xfd7zXZ\0", ["xz", "-dc"]), (b"\x1f\x8b\x08", ["gzip", "-dc"]),
                           (b"\x02\x21\x4c\x18", ["lz4", "-dc"])):
        at = data.find(magic)
        while at >= 0:
            # There is more behind it, about which the program complains.
            elf = subprocess.run(command, input=data[at:], capture_output=True).stdout
            if elf[:4] == b"\x7fELF":
                path = where / "kernel.elf"
                path.write_bytes(elf)
                return path
            at = data.find(magic, at + 1)
    raise Failed(f"{image} has no kernel that can be unpacked")


def case_vmlinux(outer, kernel):
    """A vmlinux, by PVH and, without its note, in long mode."""
    path = vmlinux(outer.rig.kernel(kernel)["image"], outer.where)
    initrd = outer.bare()
    elf = path.read_bytes()
    # The note's type, XEN_ELFNOTE_PHYS32_ENTRY, becomes one that nobody looks for.
    plain, count = re.subn(rb"(\x04\0\0\0[\x04\x08]\0\0\0)\x12(\0\0\0Xen\0)", lambda note: note[1] + b"\x99" + note[2], elf)
    check(count == 1, f"the vmlinux has {count} notes of PVH")
    names = {"pvh": elf, "long": plain}
    plan = ""
    for name, elf in names.items():
        outer.add(f"vmlinux-{name}", elf, 0o100644)
        plan += fact_step(name, "--memory 256M", f"/vmlinux-{name}", initrd)
    try:
        out = outer.run("vmlinux", plan)
    finally:
        for name in names:
            del outer.entries[f"vmlinux-{name}"]
    said = {name: facts(out, name) for name in names}
    check(all(each["cpus"] == 2 for each in said.values()), f"{said}")
    # 0xb0 is what the kernel makes of PVH, 0xff what we call ourselves (Documentation/arch/x86/boot.rst, type_of_loader).
    loaders = [said["pvh"]["loader"], said["long"]["loader"]]
    check(loaders == ["176", "255"], f"loaders {loaders}")
    return f"{len(names['pvh']) >> 20} MiB, to its init by PVH and in long mode"


def case_short(outer):
    """What CI runs, in one outer guest."""
    outer.add_tests()
    demos = {"stall-6.18": ("stall", "6.18", ""), "error-7.3": ("error", "7.3", ""), "dual-7.3": ("stall", "7.3", "--dual ")}
    plan = tests("tiny", f"{TINY} --skip two_hundred")
    for name, (demo, kernel, more) in demos.items():
        plan += step(name, more + outer.inner(demo, kernel))
    out = outer.run("short", plan)
    words = [tested(out, "tiny")]
    for name, (demo, _, more) in demos.items():
        core, said = captured(out, name, demo)
        found = report(core)
        if more:
            check(found["schema"] == "dual" and found.get("early"), f"{name}: a {found['schema']} report")
            found = found["late"]
        names_the_stall(found, demo)
        words.append(f"{name} by {said['trigger']['by']}")
    return "; ".join(words)


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
    if why and "emulate" in why[0]:
        check(re.search(r"at RIP 0x[0-9a-f]+ of vCPU \d+ .*, bytes( [0-9a-f]{2})+$", why[0]), why[0])
    return f"on {said['source']['kind']}: {why}"


def cases(options):
    if options.here:
        yield "here", case_here
        yield "auto", case_auto
        return
    if options.short:
        yield "short", case_short
        return
    yield "tiny", case_tiny
    yield "cycles", lambda outer: case_cycles(outer, "6.18")
    yield "large", lambda outer: case_large(outer, "7.3")
    yield "vmlinux", lambda outer: case_vmlinux(outer, "6.18")
    yield "stall-6.18", lambda outer: case_demo(outer, "stall", "6.18")
    yield "error-7.3", lambda outer: case_demo(outer, "error", "7.3")
    yield "dual-7.3", lambda outer: case_dual(outer, "7.3")
    yield "unparked", lambda outer: case_unparked(outer, "7.3")
    yield "exits", lambda outer: case_exits(outer, "7.3", options.exits)


def main():
    parser = arguments(__doc__)
    parser.add_argument("--exits", type=int, default=5, help="error exits that are counted")
    parser.add_argument("--short", action="store_true", help="all in one outer guest")
    parser.add_argument("--here", action="store_true", help="this machine's own KVM instead of a guest's")
    options = parser.parse_args()
    run_cases(options, "scxpm-nested-", lambda where: Outer(Rig(options.cache, where), where), cases(options),
              (Failed, PackageError, LookupError, OSError, tarfile.TarError), strip="binutils")


if __name__ == "__main__":
    main()
