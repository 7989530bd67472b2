#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""`capture run` and `capture attach` on real guests, and on machines that break.

    tests/guest/capture.py                       what CI runs: two kernels, about five minutes
    tests/guest/capture.py --all                 also a real scheduler, 20 error exits, 10 signals
    tests/guest/capture.py --case stall,kill     some of them
    tests/guest/capture.py --all --write         what was seen goes into docs/captures.md; rows of other cases stay

Each case is one promise of docs/capturing.md. Whatever happens, no file may have its final name
unless it is whole, no emulator may be left, and the exit code must be the documented one.
"""

import argparse
import ctypes
import json
import mmap
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

import schedulers  # noqa: E402
from initramfs import BPF, LIBRARIES, SCHEDULER_LIBRARIES, TOOLS, build_kit  # noqa: E402
from machine import Qmp  # noqa: E402
from packages import Archive, PackageError, install_here  # noqa: E402

# Another build of the programs: `SCX_POSTMORTEM_BUILD=debug`.
BUILD = ROOT / "target" / os.environ.get("SCX_POSTMORTEM_BUILD", "release")
CAPTURE = BUILD / "capture"
# What was seen of all cases.
PAGE = ROOT / "docs/captures.md"
ANALYZE = BUILD / "analyze"
# Demos' watchdog limit, seconds of the guest.
WATCHDOG = 16
# Exit codes of `capture`.
INCOMPLETE, LOST, NO_SCHEDULER, ENDED, FAILED = 3, 5, 6, 7, 10
# A boot that the emulator spoilt: QEMU's software emulation does that now and then under load.
SPOILT = ("Kernel panic - not syncing: Fatal exception", "Oops: int3", "Kernel panic - not syncing: Attempted to kill init")


class Failed(Exception):
    pass


class Spoilt(Failed):
    """The software emulator has spoilt a boot."""


def check(condition, text):
    if not condition:
        raise Failed(text)


class Rig:
    """What all cases need: kernels, a tree with bpftool and its libraries, guestkit."""

    def __init__(self, cache, where):
        self.archive = Archive(cache)
        self.where = where
        self.root = where / "root"
        tools = [self.archive.unpack("bpftool", TOOLS["bpftool"])[0]]
        tools += [self.archive.unpack(p)[0] for p in (*LIBRARIES, *SCHEDULER_LIBRARIES)]
        for tool in tools:
            shutil.copytree(tool, self.root, symlinks=True, dirs_exist_ok=True)
        kit = build_kit(self.archive.cache, ("guestkit",), BPF / "zoo.h")
        (self.root / "usr/bin").mkdir(parents=True, exist_ok=True)
        shutil.copy(kit, self.root / "usr/bin/guestkit")
        self.kernels = {}

    def kernel(self, short):
        if short not in self.kernels:
            self.kernels[short] = self.archive.kernel(short)
        return self.kernels[short]

    def guest(self, demo, kernel):
        """The arguments that make a guest."""
        found = self.kernel(kernel)
        out = ["--kernel", str(found["image"]), "--sysroot", str(self.root)]
        if demo == "lavd":
            built = schedulers.build(self.archive, "lavd")
            config = self.where / f"config-{kernel}"
            config.write_bytes(self.archive.config(found))
            # It does not fail by itself. A real-time task that never sleeps, with nothing that bounds
            # it, keeps a CPU from it, and a task that may run nowhere else waits until the watchdog ends it.
            return out + ["--scheduler", str(built["binary"]), "--kernel-config", str(config),
                          "--append", "sysctl.kernel.sched_rt_runtime_us=-1",
                          "--workload", "guestkit task busy -t 4 pulse 1000 1000",
                          "--workload", "guestkit task bound -c 1 pulse 1000 1000",
                          "--workload", "guestkit hold 40 1"]
        out += ["--scheduler", str(ROOT / f"bpf/objects/{demo}.bpf.o")]
        work = {
            "stall": ["guestkit task starve -t 4 spin", "guestkit task busy spin"],
            "error": ["guestkit task trip -t 2 pulse 500 1000", "guestkit task busy spin"],
            "healthy": ["guestkit task busy -t 2 pulse 500 1000"],
        }
        for line in work[demo]:
            out += ["--workload", line]
        return out

    def command(self, demo, kernel, name, *more):
        output = self.where / f"{name}.core.zst"
        output.unlink(missing_ok=True)
        more = more if "--timeout" in more else ("--timeout", "150", *more)
        return [str(CAPTURE), "run", *self.guest(demo, kernel), "-o", str(output), *more], output


def emulators(parent=None):
    """Processes that are a QEMU, with their parents: [(pid, parent)]."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if "qemu-system" in (entry / "comm").read_text():
                ppid = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                found.append((int(entry.name), ppid))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [pid for pid, ppid in found if parent is None or ppid == parent]


def run(command, during=None, timeout=240):
    """Runs `capture`; `during` gets the process, its emulator, and a way to wait for a text on the guest's console."""
    if during:
        command = [*command, "--show-console"]
    # Whatever it leaves is there.
    temporary = pathlib.Path(tempfile.mkdtemp(prefix="scxpm-t-"))
    child = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, errors="replace",
                             env={**os.environ, "TMPDIR": str(temporary)})
    said, words = [], []
    readers = [threading.Thread(target=lambda pipe, into: into.extend(pipe), args=pair, daemon=True)
               for pair in ((child.stderr, said), (child.stdout, words))]
    for reader in readers:
        reader.start()

    def until(text, limit=60):
        deadline = time.time() + limit
        while not any(text in line for line in list(said)):
            if time.time() > deadline or child.poll() is not None:
                raise Failed(f"the guest never said {text!r}: {''.join(said)[-400:]}")
            time.sleep(0.05)

    try:
        own, deadline = [], time.time() + 30
        while not own and time.time() < deadline and child.poll() is None:
            own = emulators(child.pid)
            time.sleep(0.05)
        if during:
            check(own, f"no emulator was started: {''.join(said)}")
            during(child, own, until)
        child.wait(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Failed(f"capture did not end in {timeout} s") from None
    finally:
        child.kill()
        child.wait()
    for reader in readers:
        reader.join(5)
    out, err = "".join(words), "".join(said)
    for _ in range(20):
        left = [pid for pid in own if pathlib.Path(f"/proc/{pid}").exists()]
        if not left:
            break
        time.sleep(0.1)
    check(not left, f"the emulator {left} is left")
    left = sorted(p.name for p in temporary.iterdir())
    shutil.rmtree(temporary)
    check(not left, f"in its directory for temporary files there is {left}")
    if any(text in err + out for text in SPOILT):
        raise Spoilt(f"the emulator spoilt the boot: {err[-400:]}")
    return child.returncode, out, err


def report(path, *options):
    done = subprocess.run([str(ANALYZE), str(path), "--format", "json", *options], capture_output=True, text=True)
    check(done.returncode in (0, 3), f"analyze {path}: exit {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


def manifest(path):
    """What the writer says, out of the ELF note."""
    data = subprocess.run(f"zstd -dcq {path} 2>/dev/null | head -c 4000000", shell=True, capture_output=True).stdout
    at = data.find(b'{"version":1,"tool"')
    check(at >= 0, f"{path}: no manifest in its first 4 MB")
    return json.JSONDecoder().raw_decode(data[at:].split(b"\0", 1)[0].decode())[0]


def whole(path):
    done = subprocess.run([str(ANALYZE), "verify", str(path)], capture_output=True, text=True)
    check(done.returncode == 0, f"{path} is not whole: {done.stderr}")


def names_the_stall(single, demo="stall"):
    findings = single["postmortem"]["findings"]
    rule = {"stall": "queue-never-consumed", "error": "error-exit"}[demo]
    check(findings and findings[0]["rule"] == rule, f"the first finding is {findings[:1]}")


def nothing_but(where, name, *expected):
    there = sorted(p.name for p in where.iterdir() if p.name.startswith((name, f".{name}")))
    check(there == sorted(expected), f"there are {there}, expected {sorted(expected)}")


# The cases ---------------------------------------------------------------------------------------


def case_single(rig, demo, kernel):
    name = f"{demo}-{kernel}"
    command, output = rig.command(demo, kernel, name)
    code, _, err = run(command)
    check(code == FAILED, f"exit {code}: {err}")
    whole(output)
    said = manifest(output)
    check(said["trigger"]["by"] == "breakpoint", f"{said['trigger']}")
    single = report(output)
    names_the_stall(single, demo)
    # libbpf names maps after the object's file.
    check(f"{demo}.bss" in [bpf_map["name"] for bpf_map in single["maps"]], "the object has lost its name")
    check((output.stat().st_mode & 0o777) == 0o600, "others may read the capture")
    before = said["trigger"]["exit_kind_unset_ns_before"] / 1e6
    return f"exit kind set less than {before:.0f} ms before, {output.stat().st_size >> 20} MiB"


def case_dual(rig, kernel):
    command, output = rig.command("stall", kernel, f"dual-{kernel}", "--dual", "--exclude", "free,user,cache")
    code, _, err = run(command)
    check(code == FAILED, f"exit {code}: {err}")
    whole(output)
    said = manifest(output)
    early = said["early"]["trigger"]
    age, half = early["max_age_jiffies"], early["threshold_jiffies"]
    check(half <= age < 2 * half, f"the early image is of age {age}, half of the limit is {half}")
    dual = report(output)
    check(dual["schema"] == "dual" and dual.get("early"), f"a {dual['schema']} report")
    names_the_stall(dual["late"])
    queues = [q for q in dual["late"]["dsq_states"] if q["id"] == 0xDEAD5]
    check(queues and queues[0]["nr"] == queues[0]["seq"] > 0, f"the late image shows {queues}")
    pause = said["early"]["timings"]["pause_ns"] / 1e6
    rate = early["copied_bytes"] / said["early"]["timings"]["copy_ns"]
    return f"early at {age} of {2 * half} jiffies, pause {pause:.0f} ms ({rate:.1f} GB/s), {output.stat().st_size >> 20} MiB"


def case_numa(rig, kernel):
    """Two nodes, each in a file of its own."""
    command, output = rig.command("error", kernel, "numa", "--numa", "2", "--cpus", "4")
    code, _, err = run(command)
    check(code == FAILED, f"exit {code}: {err}")
    whole(output)
    single = report(output)
    names_the_stall(single, "error")
    nodes = [node["node"] for node in single["per_node_numa"]]
    check(nodes == [0, 1], f"nodes {nodes}: {single.get('per_node_numa_unavailable')}")
    return f"nodes {nodes}, {output.stat().st_size >> 20} MiB"


def case_timed(rig, kernel, demo="error"):
    """How long the exit kind had been set at the freeze: by a watchpoint exactly, without one at most."""
    out = []
    command, output = rig.command(demo, kernel, f"dump-{kernel}", "--moment", "dump")
    code, _, err = run(command)
    check(code == FAILED, f"dump: exit {code}: {err}")
    said = manifest(output)["trigger"]
    check(said["by"] == "breakpoint", f"dump: {said}")
    ms = (said["exit_kind_unset_ns_before"] + said["freeze_ns"]) / 1e6
    out.append(f"dump at most {ms:.1f} ms")
    output.unlink()
    for moment in ("store", "timed"):
        command, output = rig.command(demo, kernel, f"{moment}-{kernel}", "--moment", moment)
        code, _, err = run(command)
        check(code == FAILED, f"{moment}: exit {code}: {err}")
        said = manifest(output)["trigger"]
        check(said["watchpoint_hit"], f"{moment}: {said}")
        ms = (said["exit_kind_set_ns_before"] + said["freeze_ns"]) / 1e6
        out.append(f"{moment} {ms:.1f} ms")
        output.unlink()
    return "from the store of the exit kind to the freeze: " + ", ".join(out)


def given_up(rig, kernel, name, *more, during=None):
    """Runs a guest whose capture has to come out degraded: that report, and the best that can be made of it."""
    command, output = rig.command("stall", kernel, name, *more)
    code, _, err = run(command, during)
    check(code == INCOMPLETE, f"exit {code}: {err}")
    degraded, best = report(output), report(output, "--best-effort")
    check(degraded["schema"] == "degraded", f"a {degraded['schema']} report")
    check(best["schema"] == "single", f"a {best['schema']} report")
    check(best["postmortem"]["scheduler"], "the scheduler is not in the best effort")
    return degraded, manifest(output)


def case_unparked(rig, kernel):
    for vcpu in (1, 0):
        name = f"unparked-{vcpu}"
        degraded, said = given_up(rig, kernel, name, "--unparked", str(vcpu))
        check(any("1/2 vCPUs parked" in why for why in said["degraded"]), f"{said['degraded']}")
        best = report(rig.where / f"{name}.core.zst", "--best-effort")
        for what, regs in (("degraded", degraded["vcpu_regs"]), ("best effort", best["vcpu_regs"])):
            check(len(regs) == 2 and regs[vcpu] is None and regs[1 - vcpu], f"{what}, vCPU {vcpu} unparked: {regs}")
    return degraded["reason"]


def case_kill(rig, kernel):
    def kill(_, own, until):
        until('" enabled')
        time.sleep(4)
        os.kill(own[0], signal.SIGKILL)

    degraded, said = given_up(rig, kernel, "kill", during=kill)
    check(said["trigger"]["detail"] == "QEMU died (signal: 9 (SIGKILL))", f"{said['trigger']}")
    return degraded["reason"]


def case_clock(rig, kernel):
    """A guest whose kernel is told a TSC fifteen times too slow: that its clock runs off is told."""
    command, output = rig.command("healthy", kernel, "clock", "--after", "25", "--append", "tsc_early_khz=170000")
    code, _, err = run(command)
    check(code == 0, f"exit {code}: {err}")
    said = [line for line in err.splitlines() if "the guest's clock went" in line]
    check(said and said[0].removeprefix("capture: ") in manifest(output)["source"]["detail"], f"{manifest(output)['source']}: {err}")
    command, output = rig.command("healthy", kernel, "clock", "--after", "25", "--force")
    code, _, err = run(command)
    check(code == 0 and "the guest's clock" not in err, f"exit {code}: {err}")
    return said[0]


def case_too_soon(rig, kernel):
    """A capture that is asked for before there is a kernel."""
    command, output = rig.command("healthy", kernel, "soon", "--after", "1")
    code, _, err = run(command)
    check(code == INCOMPLETE and "the guest's kernel was" in err, f"exit {code}: {err}")
    whole(output)
    return err.strip().splitlines()[-1][-120:]


def case_hang(rig, kernel):
    """An emulator that does not answer any more, asked for a capture."""
    def stop(child, own, until):
        until('" enabled')
        time.sleep(3)
        os.kill(own[0], signal.SIGSTOP)
        time.sleep(0.5)
        child.send_signal(signal.SIGUSR1)

    degraded, _ = given_up(rig, kernel, "hang", during=stop)
    return f"frozen emulator, SIGUSR1: {degraded['reason']}"


def case_killed(rig, kernel):
    """SIGKILL of capture while the guest runs: the guest goes with it, and nothing is left of either."""
    def kill(child, own, until):
        until('" enabled')
        child.kill()

    command, _ = rig.command("stall", kernel, "killed", "--dual")
    code, _, err = run(command, kill)
    check(code == -signal.SIGKILL, f"exit {code}: {err}")
    nothing_but(rig.where, "killed")
    return "no file, no emulator, no directory"


def case_full(rig, kernel):
    """The disk is full in the middle."""
    small = rig.where / "small"
    small.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", str(small)], check=True)
    try:
        command, _ = rig.command("stall", kernel, "full")
        command[command.index("-o") + 1] = str(small / "full.core.zst")
        code, _, err = run(command)
        check(code == 1, f"exit {code}: {err}")
        there = sorted(p.name for p in small.iterdir())
        check(there == ["full.core.zst.partial"], f"there are {there}")
        done = subprocess.run([str(ANALYZE), "info", str(small / there[0])], capture_output=True, text=True)
        check("kernel      " in done.stdout, f"the partial capture does not open: {done.stderr}")
        tells_the_failure(err)
        return f"kept {there[0]}: {err.strip().splitlines()[-1][-120:]}"
    finally:
        subprocess.run(["umount", str(small)], check=True)


def tells_the_failure(err, demo="stall"):
    """What failed is told before a file is written, and without one."""
    check(f"capture: scx_exit: demo_{demo}: SCX_EXIT_ERROR_" in err, f"the failure is not told: {err}")
    said = {"stall": "was ever taken from DSQ 0xdead5", "error": "scx_bpf_error() in error_enqueue()"}[demo]
    check(any(said in line for line in err.splitlines() if not line.startswith("capture: scx_exit")), f"no headline: {err}")


def case_max_size(rig, kernel):
    """Too large: without the pages that no report needs it fits, or nothing does and the failure is told all the same."""
    command, output = rig.command("error", kernel, "max", "--max-size", "40M")
    code, _, err = run(command)
    check(code == INCOMPLETE and "became larger than 40 MiB (--max-size)" in err, f"40M: exit {code}: {err}")
    nothing_but(rig.where, "max", "max.core.zst")
    whole(output)
    names_the_stall(report(output), "error")
    left_out = [excluded["rule"] for excluded in manifest(output)["excluded"]]
    check(left_out == ["free", "user", "cache"], f"40M: left out are {left_out}")
    size = output.stat().st_size >> 20
    command, output = rig.command("error", kernel, "max", "--max-size", "5M")
    code, out, err = run(command)
    check(code == 1 and "--max-size" in err and not out, f"5M: exit {code}: {out}{err}")
    nothing_but(rig.where, "max", "max.core.zst.partial")
    tells_the_failure(err, "error")
    check("no report can be made of it" in err, f"5M: {err}")
    check("free, user and cache pages had been left out already" in err, f"5M: {err}")
    check(re.search(r"needs --max-size \d+M or more", err), f"5M: {err}")
    check("--vmlinux" not in err, f"5M: {err}")
    return f"40 MiB: {size} MiB without pages that no report needs; 5 MiB: .partial, and the failure is told"


def case_poll(rig, kernel):
    """A failure that is over between two looks, with nothing that stops the guest for it."""
    command, output = rig.command("error", kernel, "poll", "--moment", "poll")
    code, _, err = run(command)
    # Degraded when the guest was off by the time that it was found.
    check(code in (FAILED, INCOMPLETE), f"exit {code}: {err}")
    whole(output)
    trigger = manifest(output)["trigger"]
    check(trigger["kind"] == "scx_exit" and trigger["by"] in ("kernel log", "poll"), f"{trigger}")
    log = [line["text"] for line in report(output, "--best-effort")["postmortem"]["kernel_log"]]
    check(any("tripped over pid" in line for line in log) or trigger["by"] == "poll", f"the log ends with {log[-3:]}")
    return f"exit {code}, by {trigger['by']}: {trigger['detail']}"


def case_two(rig, kernel):
    """Two captures at once."""
    commands = [rig.command("error", kernel, f"two-{i}") for i in (0, 1)]
    children = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c, _ in commands]
    for child, (_, output) in zip(children, commands):
        _, err = child.communicate(timeout=240)
        check(child.returncode == FAILED, f"exit {child.returncode}: {err}")
        names_the_stall(report(output), "error")
    return "both whole"


def case_sigterm(rig, kernel, count):
    """SIGTERM at random moments: from the start until after the failure."""
    choice, outcomes = random.Random(4711), []
    for index in range(count):
        at = choice.uniform(0.2, 24)

        def end(child, _, __, at=at):
            time.sleep(at)
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)

        command, output = rig.command("error", kernel, "term")
        code, _, err = run(command, end)
        check(code in (ENDED, FAILED), f"after {at:.1f} s: exit {code}: {err}")
        if code == FAILED:
            whole(output)
            nothing_but(rig.where, "term", "term.core.zst")
        else:
            nothing_but(rig.where, "term")
        outcomes.append(f"{at:.1f} s: {code}")
    return ", ".join(outcomes)


def case_exits(rig, kernel, count):
    """Error exits, and how many were caught before the kernel took the queues apart."""
    out = []
    for moment, since in (("dump", "exit_kind_unset_ns_before"), ("timed", "exit_kind_set_ns_before")):
        caught, times, spoilt = 0, [], 0
        while len(times) < count:
            command, output = rig.command("error", kernel, "exits", "--moment", moment)
            try:
                code, _, err = run(command)
            except Spoilt:
                output.unlink(missing_ok=True)
                spoilt += 1
                check(spoilt <= count / 4, f"{moment}: the emulator spoilt {spoilt} boots")
                continue
            check(code == FAILED, f"{moment}: exit {code}: {err}")
            said, single = manifest(output)["trigger"], report(output)
            # The teardown begins by setting the exit kind to DONE and entering bypass.
            sched = single["postmortem"]["scheduler"]
            caught += sched["exit_kind"] >= 1024 and not sched.get("bypass_depth")
            times.append((said[since] + said["freeze_ns"]) / 1e6)
            output.unlink()
        check(caught == count, f"{moment}: {caught} of {count} were caught before the teardown")
        times.sort()
        words = "store to freeze" if moment == "timed" else "last look without an exit kind to freeze"
        out.append(f"--moment {moment}: {caught} of {count} before the teardown; {words} "
                   f"{times[0]:.0f} to {times[-1]:.0f} ms, median {times[len(times) // 2]:.0f}"
                   + (f" (not counted: {spoilt} boots that the emulator spoilt)" if spoilt else ""))
    return "; ".join(out)


def case_quiet(rig, kernel):
    """A workload that ends by itself: no capture, exit code 0."""
    command, output = rig.command("healthy", kernel, "quiet")
    at = command.index("--workload")
    command[at + 1] = "bpftool version"
    code, out, err = run(command)
    check(code == 0 and not out, f"exit {code}: {out}{err}")
    said = err.strip().splitlines()
    check(said[-1] == "capture: nothing failed; no capture", f"{said}")
    check("capture: attached" in said and any(line.startswith("capture: kernel 7") for line in said), f"{said}")
    nothing_but(rig.where, "quiet")
    return f"no capture; {len(said)} lines"


def case_no_scheduler(rig, kernel):
    command, output = rig.command("healthy", kernel, "none")
    command[command.index("--scheduler") + 1] = "bpftool nonsense"
    code, _, err = run(command)
    check(code == NO_SCHEDULER and "before it was attached" in err, f"exit {code}: {err}")
    nothing_but(rig.where, "none")
    return next(line for line in err.splitlines() if "before it was attached" in line)[:120]


def case_package(rig, kernel):
    """A kernel as its package, with a module that needs another one."""
    found = rig.kernel(kernel)
    done = subprocess.run(["apt-get", "download", "-q", f"{found['package']}={found['version']}"], capture_output=True,
                          text=True, env=rig.archive.environment(), cwd=rig.where)
    check(done.returncode == 0, f"apt-get download: {done.stderr}")
    package = next(rig.where.glob(f"{found['package']}_*.deb"))
    command, output = rig.command("error", kernel, "package", "--module", "overlay", "--module", "nls_utf8")
    command[command.index("--kernel") + 1] = str(package)
    code, _, err = run(command)
    check(code == FAILED, f"exit {code}: {err}")
    names_the_stall(report(output), "error")
    # A module that does not load ends the guest before the scheduler, with another exit code.
    package.unlink()
    return f"{package.name}, two modules loaded"


def case_same_initrd(rig, kernel):
    """The same input gives the same initramfs."""
    found = []
    for index in (0, 1):
        path = rig.where / f"initrd-{index}"
        subprocess.run([str(CAPTURE), "initrd", *rig.guest("stall", kernel), "-o", str(path), "--force"], check=True)
        found.append(path.read_bytes())
    check(found[0] == found[1], "two initramfs differ")
    return f"{len(found[0]) >> 20} MiB, twice the same"


def case_attach(rig, kernel):
    """A QEMU that someone else started, with its memory shared and private; it goes on."""
    initrd = rig.where / "attach.initrd"
    subprocess.run([str(CAPTURE), "initrd", *rig.guest("healthy", kernel), "-o", str(initrd), "--force"], check=True)
    out = []
    for how, memory in {
        "shared": ["-machine", "pc,memory-backend=m0", "-object", "memory-backend-memfd,id=m0,size=512M,share=on"],
        "private": ["-machine", "pc"],
    }.items():
        socket = rig.where / "qmp"
        qemu = subprocess.Popen([
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg,thread=multi",
            "-cpu", "max,la57=off", "-smp", "2", "-m", "512M", *memory, "-kernel", str(rig.kernel(kernel)["image"]),
            "-initrd", str(initrd), "-append", "console=ttyS0 panic=0 tsc=reliable no_timer_check",
            "-serial", f"file:{rig.where / 'attach.console'}", "-qmp", f"unix:{socket},server=on,wait=off",
        ])
        try:
            output = rig.where / f"attach-{how}.core.zst"
            output.unlink(missing_ok=True)
            time.sleep(1)
            done = subprocess.run([str(CAPTURE), "attach", "--qmp", str(socket), "--after", "25", "-o", str(output)],
                                  capture_output=True, text=True, timeout=120)
            check(done.returncode == 0, f"{how}: exit {done.returncode}: {done.stderr}")
            whole(output)
            single = report(output)
            check(single["postmortem"]["scheduler"]["ops_name"] == "demo_healthy", f"{how}: {single['postmortem']['headline']}")
            qmp = Qmp(socket, time.time() + 10)
            status = qmp.ask("query-status")
            check(status["running"], f"{how}: the guest is {status}")
            before = cpu_time(qemu.pid)
            time.sleep(3)
            check(cpu_time(qemu.pid) > before, f"{how}: the guest does nothing any more")
            pause = manifest(output)["timings"]["pause_ns"] / 1e6
            out.append(f"{how}: pause {pause:.0f} ms, guest goes on")
        finally:
            qemu.kill()
            qemu.wait()
            socket.unlink(missing_ok=True)
    return ", ".join(out)


def tsc_khz():
    """The host's TSC, which a guest under software emulation has, too. Its kernel is told: it may measure ten times as
    much, and then its watchdogs bite while the emulator hangs for seconds."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(bytes.fromhex("0f31 48c1e220 4809d0 c3"))  # rdtsc; shl rdx,32; or rax,rdx; ret
    ticks = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    before, start = ticks(), time.monotonic_ns()
    time.sleep(0.2)
    after, end = ticks(), time.monotonic_ns()
    return (after - before) * 1_000_000 // (end - start)


class Other:
    """A QEMU that someone else started, with two monitors: one for capture, one for its owner."""

    def __init__(self, rig, kernel, *workloads):
        initrd = rig.where / "other.initrd"
        more = [word for line in workloads for word in ("--workload", line)]
        subprocess.run([str(CAPTURE), "initrd", *rig.guest("healthy", kernel), *more, "-o", str(initrd), "--force"],
                       check=True)
        self.sockets = [rig.where / "qmp0", rig.where / "qmp1"]
        self.console = rig.where / "other.console"
        self.console.unlink(missing_ok=True)
        command = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg,thread=multi",
            "-cpu", "max,la57=off", "-smp", "2", "-m", "512M", "-machine", "pc", "-kernel", str(rig.kernel(kernel)["image"]),
            "-initrd", str(initrd), "-append",
            f"console=ttyS0 panic=0 tsc=reliable no_timer_check tsc_early_khz={tsc_khz()}",
            "-serial", f"file:{self.console}",
        ]
        for socket in self.sockets:
            command += ["-qmp", f"unix:{socket},server=on,wait=off"]
        self.qemu = subprocess.Popen(command)

    def __enter__(self):
        deadline = time.time() + 120
        while not self.console.exists() or b"enabled" not in self.console.read_bytes():
            check(self.qemu.poll() is None and time.time() < deadline, "the scheduler was not loaded")
            time.sleep(0.5)
        self.owner = Qmp(self.sockets[1], time.time() + 10)
        return self

    def __exit__(self, *_):
        self.qemu.kill()
        self.qemu.wait()
        for socket in self.sockets:
            socket.unlink(missing_ok=True)

    def attach(self, output, *more):
        return subprocess.Popen([str(CAPTURE), "attach", "--qmp", str(self.sockets[0]), "-o", str(output), "--force", *more],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def goes_on_or_ends(self, text):
        """It runs, or has come to an end of its own: a pause that its kernel's watchdog takes for a stall."""
        if self.qemu.poll() == 0:
            check(b"watchdog" in self.console.read_bytes(), f"{text}: the guest has ended, and not by its watchdog")
            return "ended by its watchdog"
        self.works(text)
        return "works"

    def works(self, text):
        """It runs, and does something."""
        check(self.qemu.poll() is None, f"{text}: QEMU has ended: {self.qemu.poll()}")
        check(self.owner.ask("query-status")["running"], f"{text}: the guest stands still")
        before = cpu_time(self.qemu.pid)
        time.sleep(2)
        check(cpu_time(self.qemu.pid) > before, f"{text}: the guest does nothing any more")


def case_frozen(rig, kernel):
    """An emulator that hangs for longer than a freeze may take, and comes back: the guest goes on."""
    output = rig.where / "frozen.core.zst"
    with Other(rig, kernel, "guestkit sysrq D 3 1000") as other:
        child = other.attach(output, "--timeout", "300")
        time.sleep(8)
        os.kill(other.qemu.pid, signal.SIGSTOP)
        child.send_signal(signal.SIGUSR1)
        time.sleep(34)
        os.kill(other.qemu.pid, signal.SIGCONT)
        _, err = child.communicate(timeout=200)
        check(child.returncode == 3, f"exit {child.returncode}: {err}")
        whole(output)
        # sched_ext's watchdog waits for no longer than 30 s, as a freeze does.
        then = other.goes_on_or_ends("after it hung for longer than a freeze may take")
        return f"{'; '.join(manifest(output)['degraded'])}; the guest went on: {then}"


def case_paused(rig, kernel):
    """A guest that stands when it is attached to and is resumed by its owner; an emulator that hangs as capture leaves."""
    output = rig.where / "paused.core.zst"
    with Other(rig, kernel, "guestkit sysrq D 3 1000") as other:
        other.owner.ask("stop")
        child = other.attach(output, "--after", "25")
        time.sleep(5)
        other.owner.ask("cont")
        _, err = child.communicate(timeout=120)
        check(child.returncode == 0, f"resumed by its owner: exit {child.returncode}: {err}")
        whole(output)
        other.works("after its owner resumed it")
        child = other.attach(output, "--timeout", "300")
        time.sleep(8)
        os.kill(other.qemu.pid, signal.SIGSTOP)
        child.send_signal(signal.SIGTERM)
        # Longer than capture waits for it. The guest's own watchdog may wait for less.
        time.sleep(14)
        os.kill(other.qemu.pid, signal.SIGCONT)
        child.communicate(timeout=200)
        time.sleep(8)
        then = other.goes_on_or_ends("after it hung while capture left")
    return f"resumed and captured; left by a capture whose emulator hung: {then}"


def case_owner(rig, kernel):
    """Its owner stops, resumes and resets an attached guest; capture is killed; it is left as its owner has it."""
    output = rig.where / "owner.core.zst"
    # Every three seconds a dump of the scheduler, at whose entry the breakpoint is.
    with Other(rig, kernel, "guestkit sysrq D 3 1000") as other:
        # Stopped by its owner: the capture is taken, and the guest stays stopped.
        child = other.attach(output, "--after", "12")
        time.sleep(6)
        other.owner.ask("stop")
        _, err = child.communicate(timeout=90)
        check(child.returncode == 0, f"stopped by its owner: exit {child.returncode}: {err}")
        check(not other.owner.ask("query-status")["running"], "a guest that its owner had stopped was resumed")
        whole(output)
        other.owner.ask("cont")
        other.works("after its owner resumed it")
        # Killed: no breakpoint is left behind for the next dump.
        child = other.attach(output, "--timeout", "60")
        time.sleep(8)
        check(child.poll() is None, f"attach ended: {child.poll()}")
        child.kill()
        child.wait()
        time.sleep(8)
        other.works("after capture was killed")
        # Reset: its kernel is somewhere else then, and found again.
        child = other.attach(output, "--after", "60")
        time.sleep(6)
        other.owner.ask("system_reset")
        _, err = child.communicate(timeout=180)
        check(child.returncode == 0, f"reset: exit {child.returncode}: {err}")
        name = report(output)["postmortem"]["scheduler"]["ops_name"]
        check(name == "demo_healthy", f"after a reset: {name}")
        other.works("after a reset")
    return "stopped and left so, killed and left running, reset and found again"


def case_panic(rig, kernel):
    """The kernel itself fails, in a guest of our own and in someone else's, whose console nobody reads."""
    command, own = rig.command("healthy", kernel, "panic", "--workload", "guestkit sysrq c 8 1")
    code, _, err = run(command)
    check(code == 10, f"exit {code}: {err}")
    other_one = rig.where / "panic-other.core.zst"
    with Other(rig, kernel, "guestkit sysrq c 20 1") as other:
        child = other.attach(other_one, "--timeout", "90")
        _, err = child.communicate(timeout=180)
        check(child.returncode == 10, f"attached: exit {child.returncode}: {err}")
    for path in (own, other_one):
        trigger = manifest(path)["trigger"]
        check(trigger["kind"] == "panic", f"{path.name}: {trigger}")
        said = [line["text"] for line in report(path)["postmortem"]["kernel_log"]]
        check(any("sysrq triggered crash" in line for line in said), f"{path.name}: the log ends with {said[-3:]}")
    return f"{manifest(own)['trigger']['detail']}; attached: {trigger['detail']} ({trigger['by']})"


def case_closed(rig, kernel):
    """A QEMU whose process is closed to capture: another user's. Its memory comes through QEMU."""
    with tempfile.TemporaryDirectory(prefix="scxpm-nobody-") as name:
        here = pathlib.Path(name)
        here.chmod(0o777)
        program = shutil.copy(CAPTURE, here)
        nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
        # The panic comes when it is attached, under load as well.
        with Other(rig, kernel, "guestkit sysrq c 40 1") as other:
            other.sockets[0].chmod(0o777)
            rig.where.chmod(0o711)
            output = here / "closed.core.zst"
            done = subprocess.run([*nobody, str(program), "attach", "--qmp", str(other.sockets[0]), "--dual", "--timeout", "150",
                                   "-o", str(output)], capture_output=True, text=True, timeout=240, env={**os.environ, "TMPDIR": name})
            check(done.returncode == 10, f"exit {done.returncode}: {done.stderr}")
        whole(output)
        said, single = manifest(output), report(output)
        check((said["trigger"]["kind"], said["trigger"]["by"]) == ("panic", "breakpoint"), f"{said['trigger']}")
        why = said["early_skipped_reason"]
        check("QEMU's process is closed to capture" in why, why)
        check(single["postmortem"]["scheduler"]["ops_name"] == "demo_healthy", f"{single['postmortem']['headline']}")
        log = [line["text"] for line in single["postmortem"]["kernel_log"]]
        check(any("sysrq triggered crash" in line for line in log), f"the log ends with {log[-3:]}")
    return f"panic of a guest that only QEMU may read, {said['trigger']['copied_bytes'] >> 20} MiB"


def cpu_time(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def case_lavd(rig, kernel):
    """A real scheduler, under load, with a CPU that a real-time task does not give back."""
    command, output = rig.command("lavd", kernel, f"lavd-{kernel}", "--timeout", "280", "--memory", "768M")
    code, out, err = run(command, timeout=340)
    check(code == 10, f"exit {code}: {err}")
    single = report(output)
    own = single["postmortem"]
    check("lavd" in own["scheduler"]["ops_name"], f"{own['headline']}")
    check(own["exit_info"]["kind"] == 1026, f"exit kind {own['exit_info']['kind']}: {own['headline']}")
    check([task["comm"] for task in own["starved"]] == ["bound"], f"starved: {own['starved']}")
    rule = own["findings"][0]["rule"]
    check(rule == "real-time-hog", f"first finding: {own['findings'][0]}")
    return f"{own['scheduler']['ops_name']}: {own['findings'][0]['what']}; {output.stat().st_size >> 20} MiB"


def cases(everything):
    yield "initrd", lambda rig: case_same_initrd(rig, "7.3")
    for kernel in ("7.3", "6.18"):
        for demo in ("stall", "error"):
            if everything or (demo, kernel) != ("stall", "7.3"):
                yield f"{demo}-{kernel}", lambda rig, d=demo, k=kernel: case_single(rig, d, k)
    yield "dual-7.3", lambda rig: case_dual(rig, "7.3")
    yield "timed-7.3", lambda rig: case_timed(rig, "7.3")
    yield "unparked", lambda rig: case_unparked(rig, "7.3")
    yield "kill", lambda rig: case_kill(rig, "7.3")
    yield "clock", lambda rig: case_clock(rig, "7.3")
    yield "soon", lambda rig: case_too_soon(rig, "7.3")
    yield "killed", lambda rig: case_killed(rig, "7.3")
    yield "full", lambda rig: case_full(rig, "7.3")
    yield "two", lambda rig: case_two(rig, "7.3")
    yield "max", lambda rig: case_max_size(rig, "7.3")
    yield "poll", lambda rig: case_poll(rig, "7.3")
    yield "quiet", lambda rig: case_quiet(rig, "7.3")
    yield "none", lambda rig: case_no_scheduler(rig, "7.3")
    yield "package-6.18", lambda rig: case_package(rig, "6.18")
    yield "attach", lambda rig: case_attach(rig, "7.3")
    if everything:
        yield "owner", lambda rig: case_owner(rig, "7.3")
        yield "closed", lambda rig: case_closed(rig, "7.3")
        yield "panic", lambda rig: case_panic(rig, "7.3")
        yield "frozen", lambda rig: case_frozen(rig, "7.3")
        yield "paused", lambda rig: case_paused(rig, "7.3")
        yield "dual-6.18", lambda rig: case_dual(rig, "6.18")
        yield "timed-6.18", lambda rig: case_timed(rig, "6.18")
        yield "hang", lambda rig: case_hang(rig, "7.3")
        yield "numa", lambda rig: case_numa(rig, "7.3")
        for kernel in ("7.3", "6.18"):
            yield f"lavd-{kernel}", lambda rig, k=kernel: case_lavd(rig, k)
        yield "sigterm", lambda rig: case_sigterm(rig, "7.3", 10)
        yield "exits", lambda rig: case_exits(rig, "7.3", 20)


def arguments(description):
    """The options that every script of cases has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="", help="these alone, separated by commas: a name or its beginning")
    parser.add_argument("--attempts", type=int, default=3, help="for each case: the emulator spoils a boot now and then")
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path.home() / ".cache/scx-postmortem")
    parser.add_argument("--keep", type=pathlib.Path, help="leave the captures in this directory")
    return parser


def run_cases(options, prefix, make_rig, cases, failures, then=None, **tools):
    """Runs the cases that were asked for on what make_rig makes of a directory; exits 1 when one fails.

    failures: the exceptions after which a case is tried again.
    then: is given what each case that held saw, [(name, text)], before that.
    """
    install_here({"qemu-system-x86_64": "qemu-system-x86", "cc": "gcc", "zstd": "zstd", **tools})
    for program in (CAPTURE, ANALYZE):
        if not program.exists():
            sys.exit(f"{program} is not there; cargo build --release makes it")
    wanted = [name for name in options.case.split(",") if name]
    where = options.keep or pathlib.Path(tempfile.mkdtemp(prefix=prefix))
    where.mkdir(parents=True, exist_ok=True)
    bad, seen = 0, []
    try:
        rig = make_rig(where)
        for name, case in cases:
            if wanted and not any(name.startswith(w) for w in wanted):
                continue
            for attempt in range(1, options.attempts + 1):
                start = time.time()
                try:
                    text = case(rig)
                    print(f"ok      {name} ({time.time() - start:.0f} s): {text}", flush=True)
                    seen.append((name, text))
                    break
                except failures as error:
                    print(f"FAILED  {name}, attempt {attempt}: {error!r}", flush=True)
            else:
                bad += 1
    finally:
        if not options.keep:
            shutil.rmtree(where, ignore_errors=True)
    if then:
        then(seen)
    if bad:
        sys.exit(f"{bad} cases failed")


ROW = re.compile(r"\| `([^`]+)` \| ([0-9-]+) \| (.*) \|")


def page(seen, names):
    """The page of what the cases saw: rows of before stay until their case is seen again."""
    before = PAGE.read_text().splitlines() if PAGE.exists() else []
    rows = {found[1]: found.group(2, 3) for found in map(ROW.fullmatch, before) if found}
    today = time.strftime("%Y-%m-%d", time.gmtime())
    rows.update({name: (today, " ".join(text.replace("|", "/").split())) for name, text in seen})
    emulator = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True)
    version = emulator.stdout.splitlines()[0].removeprefix("QEMU emulator version ").split()[0]
    lines = "".join(f"| `{name}` | {rows[name][0]} | {rows[name][1]} |\n" for name in names if name in rows)
    return f"""# Captures

What `tests/guest/capture.py --all --write` saw of `capture` on real guests and on machines that break: QEMU {version}
under software emulation on {os.cpu_count()} CPUs, Debian's kernels of the series in the case's name, else of 7.3. Times
are those of the host. Each line is a case that held what docs/capturing.md promises: the exit code, no file under its final
name unless whole, no emulator left.

| case | seen on | what was seen |
|---|---|---|
{lines}"""


def main():
    parser = arguments(__doc__)
    parser.add_argument("--all", action="store_true", help="every case")
    parser.add_argument("--write", action="store_true", help="what was seen goes into docs/captures.md")
    options = parser.parse_args()
    everything = options.all or bool(options.case)
    write = (lambda seen: PAGE.write_text(page(seen, [name for name, _ in cases(True)]))) if options.write else None
    run_cases(options, "scxpm-capture-", lambda where: Rig(options.cache, where), cases(everything),
              (Failed, PackageError, subprocess.TimeoutExpired, LookupError), then=write, setpriv="util-linux")


if __name__ == "__main__":
    main()
