#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Opens a capture, or the ELF core in it, with tools that are not ours.

    tools.py FILE [--truth TRUTHDIR] [--report REPORT.json] [--cache DIR] [--only NAME,…]

FILE is a capture (*.zst) or an ELF core with a VMCOREINFO note. Each tool says `ok` and what
it saw, or exactly how it failed; with --truth and --report that is compared too. makedumpfile
and crash come from Debian packages unpacked in the cache, never installed; crash needs a
kernel with a debug package and is skipped otherwise. Exit 1 when a tool failed.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "guest"))
import packages  # noqa: E402

# Kernels whose DWARF is in the archive, by release: the package and its version.
DWARF = {
    "7.3.4+deb13-cloud-amd64": ("linux-image-7.3.4+deb13-cloud-amd64-dbg", "7.3.4-1~bpo13+1"),
    "7.2.13+deb14-cloud-amd64": ("linux-image-7.2.13+deb14-cloud-amd64-dbg", "7.2.13-1"),
    "7.2.6+deb13-cloud-amd64": ("linux-image-7.2.6+deb13-cloud-amd64-dbg", "7.2.6-1~bpo13+1"),
    "6.12.107+deb13-cloud-amd64": ("linux-image-6.12.107+deb13-cloud-amd64-dbg", "6.12.107-1"),
}
DWARF_OF_SID = ("7.2.13+deb14-cloud-amd64",)
DRGN = "drgn==0.3.0"


class Failure(Exception):
    """A tool did not do what it should; the sentence says what it did."""


class Skipped(Exception):
    """A tool cannot be tried here; the sentence says why."""


def run(command, seconds=300, check=True, **options):
    try:
        done = subprocess.run(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=seconds,
            check=False, text=True, errors="replace", stdin=options.pop("stdin", subprocess.DEVNULL), **options
        )
    except FileNotFoundError:
        raise Failure(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Failure(f"{command[0]} did not end within {seconds} s") from None
    if check and done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-400:]
        raise Failure(f"exit {done.returncode}: {said}")
    return done


class Programs(packages.Archive):
    """Programs of packages of sid that run from where they are unpacked."""

    def __init__(self, cache):
        of_sid = packages.Archive(cache).of_sid()
        super().__init__(of_sid.cache, of_sid.suites)

    def bundle(self, package):
        """Directories of a package and of the libraries that it needs."""
        wanted, done = [package], {}
        while wanted:
            name = wanted.pop()
            if name in done:
                continue
            done[name], _ = self.unpack(name)
            shown = packages.run(["apt-cache", "show", "--no-all-versions", name], env=self.environment())
            for line in re.findall(r"^(?:Pre-)?Depends: (.*)", shown, re.M):
                for item in line.split(","):
                    item = re.sub(r"[\s(:].*", "", item.split("|")[0].strip())
                    # Programs that a package runs are the machine's own.
                    if item.startswith("lib") and not item.startswith("libdebuginfod-common"):
                        wanted.append(item)
        return done

    def command(self, package, program):
        """A command line that runs the package's program with the package's own libraries."""
        bundle = self.bundle(package)
        files = {d: [f for f in d.rglob("*") if f.is_file() or f.is_symlink()] for d in bundle.values()}
        found = [f for f in files[bundle[package]] if f.name == program and "bin" in f.parts]
        loaders = [f for d in files for f in files[d] if f.name == "ld-linux-x86-64.so.2"]
        if not found or not loaders:
            raise Failure(f"{package} holds no {program}" if not found else "no dynamic loader in libc6")
        libraries = sorted({str(f.parent) for d in files for f in files[d] if ".so." in f.name})
        return [loaders[0], "--library-path", ":".join(libraries), found[0]]


def elf_vcpus(core):
    """(vCPUs, note names) by the notes of an ELF64 core."""
    with open(core, "rb") as file:
        head = file.read(64)
        if head[:5] != b"\x7fELF\x02":
            raise Failure(f"not an ELF64 file: it begins with {head[:5].hex()}")
        (phoff,) = struct.unpack_from("<Q", head, 32)
        file.seek(phoff)
        kind, _, offset, _, _, length, _, _ = struct.unpack("<IIQQQQQQ", file.read(56))
        if kind != 4:
            raise Failure("its first program header is not PT_NOTE")
        file.seek(offset)
        data, at, names = file.read(length), 0, []
        while at + 12 <= len(data):
            name_len, desc_len, of = struct.unpack_from("<III", data, at)
            name = data[at + 12 : at + 12 + name_len].rstrip(b"\0").decode()
            names.append((name, of))
            at += 12 + (name_len + 3 & ~3) + (desc_len + 3 & ~3)
    return names.count(("CORE", 1)), [name for name, _ in names]


class Tools:
    def __init__(self, args, work):
        self.args = args
        self.work = work
        self.file = args.file
        self.core = args.file
        self.is_capture = False
        self.report = json.loads(args.report.read_text()) if args.report else None
        self.sid = Programs(args.cache)

    def release(self):
        with open(self.core, "rb") as file:
            match = re.search(rb"OSRELEASE=([^\n]+)\n", file.read(1 << 20))
        if not match:
            raise Skipped("the core has no VMCOREINFO note")
        return match[1].decode()

    # zstd

    def zstd(self):
        with open(self.file, "rb") as file:
            magic = file.read(4)
        if magic == b"\x7fELF":
            raise Skipped("an ELF core, not a capture")
        self.is_capture = True
        run(["zstd", "-q", "-t", self.file])
        listed = run(["zstd", "-l", self.file]).stdout.splitlines()
        fields = listed[-1].split()
        self.core = self.work / "core.elf"
        run(["zstd", "-q", "-d", self.file, "-o", self.core])
        size = self.core.stat().st_size
        said = re.search(r"Decompressed Size: .*\((\d+) B\)", run(["zstd", "-l", "-v", self.file]).stdout)
        if said and int(said[1]) != size:
            raise Failure(f"zstd -l says {said[1]} bytes, zstd -d gives {size}")
        return f"-t, -l ({fields[0]} frames, {fields[1]} skippable) and -d ({size} bytes) work"

    # readelf and gdb

    def readelf(self):
        done = run(["readelf", "-hlnW", self.core])
        if "warning" in done.stderr.lower() or "error" in done.stderr.lower():
            raise Failure(done.stderr.strip()[-300:])
        if "CORE (Core file)" not in done.stdout or "X86-64" not in done.stdout:
            raise Failure("it does not call this an x86-64 core")
        loads = len(re.findall(r"^ +LOAD ", done.stdout, re.M))
        states = done.stdout.count("NT_PRSTATUS")
        vcpus, _ = elf_vcpus(self.core)
        if states != vcpus or not loads:
            raise Failure(f"{states} NT_PRSTATUS and {loads} LOAD seen, {vcpus} notes in the file")
        info = "with" if "VMCOREINFO" in done.stdout else "without"
        return f"{loads} LOAD, {states} NT_PRSTATUS, {info} VMCOREINFO, no warning"

    def gdb(self):
        packages.install_here({"gdb": "gdb"})
        out = run(
            ["gdb", "-nx", "-batch", "-iex", "set debuginfod enabled off", "-c", self.core,
             "-ex", "info threads", "-ex", "thread apply all p/x $rip"]
        ).stdout
        threads = len(re.findall(r"^[* ] +\d+ +", out, re.M))
        vcpus, _ = elf_vcpus(self.core)
        if threads != vcpus:
            raise Failure(f"it lists {threads} threads, the core has {vcpus} vCPUs")
        by_thread = dict(re.findall(r"^Thread (\d+).*\n\$\d+ = (0x[0-9a-f]+)", out, re.M))
        rips = [int(by_thread[str(i + 1)], 16) for i in range(threads) if str(i + 1) in by_thread]
        if self.report:
            ours = [(r or {}).get("instruction_pointer") for r in self.report.get("vcpu_regs") or []]
            if ours != rips:
                raise Failure(f"$rip is {[hex(r) for r in rips]}, the report has {[hex(r or 0) for r in ours]}")
            return f"{threads} threads, $rip of each equals the report"
        return f"{threads} threads"

    # makedumpfile

    def makedumpfile(self):
        command = self.sid.command("makedumpfile", "makedumpfile")
        version = run([*command, "-v"], check=False).stdout.split("\n")[0]
        log = self.work / "dmesg.txt"
        run([*command, "--dump-dmesg", self.core, log])
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        compared = ""
        if self.args.truth:
            compared = self.same_log(lines)
        if not lines:
            raise Failure("--dump-dmesg wrote nothing")
        dump = self.work / "dump.kdump"
        run([*command, "-d", "31", "-l", self.core, dump])
        size = dump.stat().st_size
        return f"{version}: --dump-dmesg {len(lines)} lines{compared}, -d 31 -l {size >> 10} KiB"

    def same_log(self, lines):
        """The kernel log that the guest printed, up to the core."""
        saved = None
        for stage in ("late", "stop"):
            path = self.args.truth / stage / "dmesg"
            if path.exists():
                saved = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
                break
        if not saved:
            return ""
        # makedumpfile adds the caller, `[T1]` or `[C0]`, and indents what follows a line break.
        bare = lambda line: re.sub(r"^(\[ *\d+\.\d+\] )?(\[ *[TC]\d+\] )?", "", line).strip()
        there = set(map(bare, lines))
        missing = [line for line in saved if bare(line) not in there]
        if missing:
            raise Failure(f"{len(missing)} of the {len(saved)} lines of the guest's dmesg are not in it: {missing[0]!r}")
        return f" (all {len(saved)} of the guest's own dmesg)"

    # drgn

    def python(self):
        """A Python with drgn."""
        venv = self.args.cache / "venv"
        python = venv / "bin/python"
        if not python.exists() or run([python, "-c", "import drgn"], check=False).returncode:
            run([sys.executable, "-m", "venv", "--clear", venv])
            run([venv / "bin/pip", "install", "-q", DRGN])
        return python

    def drgn(self):
        listed = self.work / "drgn.json"
        start = time.monotonic()
        run([self.python(), HERE / "drgn_lists.py", self.core, "-o", listed])
        took = time.monotonic() - start
        seen = json.loads(listed.read_text())
        said = (f"BTF types, VMCOREINFO from the {seen['vmcoreinfo']}: {len(seen['run_queues'])} run queues, "
                f"{len(seen['dsqs'])} DSQs, {len(seen['tasks'])} tasks in {took:.1f} s")
        if self.is_capture and seen["vmcoreinfo"] != "note":
            raise Failure("the capture's core has no VMCOREINFO note")
        return said + self.same_values(listed) + self.same_answers()

    def same_answers(self):
        """What `analyze query` answers, against drgn."""
        analyze = getattr(self.args, "analyze", None)
        if not analyze:
            return ""
        answers = self.work / "query.json"
        run([self.python(), HERE / "drgn_query.py", self.core, "-o", answers])
        done = run([sys.executable, HERE / "compare_query.py", analyze, self.file, answers], check=False)
        if done.returncode:
            raise Failure(f"analyze query answers otherwise:\n{(done.stdout or done.stderr).strip()}")
        return "; query: " + done.stdout.strip()

    def same_values(self, listed):
        """The report's values against those that drgn listed."""
        if not self.report:
            return ""
        done = run([sys.executable, HERE / "compare_drgn.py", self.args.report, listed], check=False)
        if done.returncode:
            raise Failure(f"the report differs:\n{(done.stdout or done.stderr).strip()}")
        row = next(line for line in done.stdout.splitlines() if line.split()[:1] == ["all"]).split()
        return f"; {row[1]} values of the report: {row[2]} equal, {row[3]} explained"

    # With DWARF

    def vmlinux(self):
        release = self.release()
        if release not in DWARF:
            raise Skipped(f"no debug package of {release} in the archive")
        archive = packages.Archive(self.args.cache)
        archive = archive.of_sid() if release in DWARF_OF_SID else archive
        root, _ = archive.unpack(*DWARF[release])
        return root / f"usr/lib/debug/boot/vmlinux-{release}"

    def drgn_dwarf(self):
        listed = self.work / "drgn-dwarf.json"
        run([self.python(), HERE / "drgn_lists.py", self.core, "--vmlinux", self.vmlinux(), "-o", listed])
        plain = self.work / "drgn.json"
        with_dwarf = json.loads(listed.read_text())
        if not plain.exists():
            run([self.python(), HERE / "drgn_lists.py", self.core, "-o", plain])
        with_btf = json.loads(plain.read_text())
        for side in (with_dwarf, with_btf):
            side.pop("types")
        compared = self.same_values(listed)
        # Which of several symbols at one address is named first is not the kernel's state.
        different = [name for name in with_btf if with_btf[name] != with_dwarf[name] and name != "exit_info"]
        if different:
            raise Failure(f"DWARF and BTF types read different values: {', '.join(different)}")
        return "DWARF types read what BTF types read" + compared

    def crash(self):
        vmlinux = self.vmlinux()
        command = self.sid.command("crash", "crash")
        start = time.monotonic()
        script = self.work / "crash.txt"
        script.write_text("sys\nps\nrunq\nquit\n")
        done = run(
            # crash 9.0.2 reads module.num_gpl_syms, which 7.1 removed: with a module loaded it stops there.
            [*command, "--no_crashrc", "--no_modules", "--no_scroll", "-s", "-i", script, vmlinux, self.core],
            seconds=600, check=False, env=dict(os.environ, TERM="dumb", HOME=str(self.work)),
        )
        out, took = done.stdout, time.monotonic() - start
        if done.returncode or "RELEASE:" not in out:
            said = (done.stderr.strip() + "\n" + out.strip()).strip()
            raise Failure(f"exit {done.returncode}: {said[-500:]}")
        field = lambda name: (re.search(rf"^ *{name}: (.*)", out, re.M) or [None, "?"])[1].strip()
        tasks = {
            int(pid) for pid in re.findall(r"^[> ] +(\d+) +\d+ +\d+ +[0-9a-f]{16} ", out, re.M)
        }
        said = f"{field('RELEASE')}, {field('CPUS')} CPUs, {len(tasks)} pids in `ps`, {took:.0f} s"
        if self.report:
            # crash walks the table of pids; a task that was reaped has left it.
            states = {t["pid"]: t.get("state") for t in self.report["postmortem"]["tasks"]}
            extra = sorted(tasks - set(states) - {0})
            missing = sorted(p for p, state in states.items() if p not in tasks and p and state not in ("X", "Z"))
            if extra or missing:
                raise Failure(f"{said}; only in crash: {extra}, only in the report: {missing}")
            said += ", the same as in the report"
        return said


NAMES = ("zstd", "readelf", "gdb", "makedumpfile", "drgn", "drgn_dwarf", "crash")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--truth", type=pathlib.Path, help="the saved state of the guest, with its dmesg")
    parser.add_argument("--report", type=pathlib.Path, help="the JSON report on the same file")
    parser.add_argument("--cache", type=pathlib.Path, default=HERE.parent.parent / "target/interop",
                        help="where packages are unpacked (default: target/interop)")
    parser.add_argument("--only", help=f"some of {','.join(NAMES)}")
    args = parser.parse_args()
    args.cache = args.cache.absolute()
    args.cache.mkdir(parents=True, exist_ok=True)
    if not args.file.is_file():
        raise SystemExit(f"{args.file}: no such file")
    only = args.only.split(",") if args.only else NAMES
    if set(only) - set(NAMES):
        raise SystemExit(f"--only: {', '.join(sorted(set(only) - set(NAMES)))} is not one of {', '.join(NAMES)}")
    failed = 0
    with tempfile.TemporaryDirectory(dir=args.cache) as work:
        tools = Tools(args, pathlib.Path(work))
        for name in NAMES:
            # The ELF core that the others read comes out of zstd.
            if name not in only and name != "zstd":
                continue
            try:
                print(f"{name:13} ok: {getattr(tools, name)()}", flush=True)
            except Skipped as reason:
                print(f"{name:13} not tried: {reason}", flush=True)
            except (Failure, packages.PackageError) as error:
                failed += 1
                print(f"{name:13} FAILED: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
