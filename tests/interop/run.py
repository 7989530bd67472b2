#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Checks reports and captures with everything that is not ours.

    tests/interop/run.py                      every entry of corpus/
    tests/interop/run.py DIR…                 those entries, or what tests/guest/run.py left
    tests/interop/run.py --without crash,gdb  without some tools

Of each guest: the report against the guest's own kernel, bpftool and drgn, other tools on
the capture, and that neither the form of the file nor the number of threads changes the
report. docs/interop.md says what is compared. Needs root only to install zstd, gdb or
binutils where they are missing. Exit 1 when any check failed.
"""

import argparse
import filecmp
import json
import os
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))
import tools  # noqa: E402
from tools import Failure, packages, run  # noqa: E402


def output(command, **options):
    """Standard output, as bytes; degraded reports are reports too."""
    done = subprocess.run(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False, **options
    )
    if not done.stdout:
        said = done.stderr.decode("utf-8", "replace").strip()[-300:]
        raise Failure(f"`{' '.join(map(str, command))}` printed nothing, exit {done.returncode}: {said}")
    return done.stdout


class Entry:
    """One guest: a corpus entry (guest.core.zst) or a raw one (core.elf)."""

    def __init__(self, path, args, work):
        self.path = path
        self.name = path.name
        self.args = args
        self.work = work
        self.raw = path / "core.elf"
        self.capture = path / "guest.core.zst"
        if not self.raw.is_file() and not self.capture.is_file():
            raise Failure(f"{path}: neither guest.core.zst nor core.elf is in it")
        self.report = work / "report.json"

    def prepare(self):
        if not self.capture.is_file():
            self.capture = self.work / "guest.core.zst"
            run([self.args.capture, "convert", self.raw, "-o", self.capture])
        self.report.write_bytes(output([self.args.analyze, self.capture, "--format", "json"]))
        truth = self.path / "truth"
        packed = self.path / "truth.tar.zst"
        if packed.is_file():
            tar = self.work / "truth.tar"
            run(["zstd", "-q", "-d", packed, "-o", tar])
            run(["tar", "-C", self.work, "-xf", tar])
            truth = self.work / "truth"
        self.truth = truth

    # Checks. Each returns what it saw, or raises Failure.

    def threads(self):
        """One thread or two, JSON or text: the same bytes."""
        for form in ("json", "text"):
            one, two = (
                output([self.args.analyze, self.capture, "--format", form],
                       env=dict(os.environ, RAYON_NUM_THREADS=str(n)))
                for n in (1, 2)
            )
            if one != two:
                raise Failure(f"the {form} report differs between one thread and two")
        return "json and text byte-identical with one thread and two"

    def forms(self):
        """The capture, the ELF core in it, and the core that it was made of."""
        exported = self.work / "exported.elf"
        plain = self.work / "plain.elf"
        run([self.args.analyze, "export", self.capture, "-o", exported])
        run(["zstd", "-q", "-d", self.capture, "-o", plain])
        same = filecmp.cmp(exported, plain, shallow=False)
        if not same:
            raise Failure("`analyze export` and `zstd -d` give different files")
        reports = {"capture": self.report.read_bytes(), "exported core": self.of(plain)}
        if self.raw.is_file():
            reports["original core"] = self.of(self.raw)
        said = [self.without_input(json.loads(data)) for data in reports.values()]
        for name, report in list(zip(reports, said))[1:]:
            if report != said[0]:
                where = self.first_difference("", said[0], report)
                raise Failure(f"the report on the {name} differs from that on the capture at {where}")
        exported.unlink()
        plain.unlink()
        return f"export equals zstd -d; same report on {', '.join(reports)}"

    def of(self, core):
        return output([self.args.analyze, core, "--format", "json"])

    @staticmethod
    def without_input(report):
        """What names the kind of file, and how VMCOREINFO was found there, may differ."""
        own = report.get("postmortem") or {}
        own.pop("input", None)
        own.pop("provenance", None)
        return report

    @classmethod
    def first_difference(cls, where, a, b):
        if isinstance(a, dict) and isinstance(b, dict):
            for key in sorted(set(a) | set(b)):
                if a.get(key) != b.get(key):
                    return cls.first_difference(f"{where}.{key}", a.get(key), b.get(key))
        if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            for i, (x, y) in enumerate(zip(a, b)):
                if x != y:
                    return cls.first_difference(f"{where}[{i}]", x, y)
        return f"{where}: {a!r:.80} / {b!r:.80}"

    def kernel(self):
        """The guest's own kernel."""
        if not (self.truth / "after" / "proc").is_dir():
            raise tools.Skipped("a lean guest: nothing was left that could look again")
        command = [sys.executable, HERE / "compare_truth.py", self.report, self.truth]
        command += ["--recipe", self.path / "recipe.json"]
        done = run(command, check=False)
        if done.returncode:
            raise Failure("\n" + (done.stdout.strip() or done.stderr.strip()))
        row = next(line for line in done.stdout.splitlines() if line.split()[:1] == ["all"]).split()
        return f"{row[1]} values: {row[2]} equal, {row[3]} explained, {row[4]} unexplained"


    def maps(self):
        """What bpftool and the guest's own programs read from the BPF maps."""
        if not any((self.truth / stage / "bpftool").is_dir() for stage in ("stop", "late")):
            raise tools.Skipped("the guest saved no maps")
        command = [sys.executable, HERE / "compare_maps.py", self.report, self.truth]
        command += ["--recipe", self.path / "recipe.json"]
        done = run(command, check=False)
        if done.returncode:
            raise Failure("\n" + (done.stdout.strip() or done.stderr.strip()))
        lines = done.stdout.splitlines()
        row = next(line for line in lines if line.split()[:1] == ["all"]).split()
        skipped = sum(line.startswith("  not compared: ") for line in lines)
        return (f"{lines[-1].strip()}, {row[1]} values: {row[2]} equal, {row[3]} explained, "
                f"{row[4]} unexplained; {skipped} not compared")


def check(entry, args, work):
    """(check, "ok" or "FAILED" or "not tried", what was seen) of one guest."""
    yield from attempt("threads", entry.threads)
    yield from attempt("forms", entry.forms)
    yield from attempt("own kernel", entry.kernel)
    yield from attempt("maps", entry.maps)
    options = argparse.Namespace(file=entry.capture, truth=entry.truth, report=entry.report, cache=args.cache,
                                 analyze=args.analyze)
    box = tools.Tools(options, work)
    for name in tools.NAMES:
        if name not in args.without or name == "zstd":
            yield from attempt(name, getattr(box, name))


def attempt(name, what):
    try:
        yield name, "ok", what()
    except tools.Skipped as reason:
        yield name, "not tried", str(reason)
    except (Failure, packages.PackageError) as error:
        yield name, "FAILED", str(error)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("entries", nargs="*", type=pathlib.Path, help="default: all of corpus/")
    parser.add_argument("--analyze", type=pathlib.Path, default=ROOT / "target/release/analyze")
    parser.add_argument("--capture", type=pathlib.Path, default=ROOT / "target/release/capture")
    parser.add_argument("--cache", type=pathlib.Path, default=ROOT / "target/interop",
                        help="where packages are unpacked (default: target/interop)")
    parser.add_argument("--without", default="", help=f"tools to leave out: {','.join(tools.NAMES)}")
    args = parser.parse_args()
    args.without = set(filter(None, args.without.split(",")))
    args.cache = args.cache.absolute()
    args.cache.mkdir(parents=True, exist_ok=True)
    for binary in (args.analyze, args.capture):
        if not binary.is_file():
            raise SystemExit(f"{binary}: missing; `cargo build --release` makes it")
    entries = args.entries or sorted(p.parent for p in (ROOT / "corpus").glob("*/guest.core.zst"))
    if not entries:
        raise SystemExit("corpus/ has no entry with a guest.core.zst")
    packages.install_here({"zstd": "zstd", "readelf": "binutils"})
    failed = []
    for path in entries:
        print(f"== {path.name}", flush=True)
        with tempfile.TemporaryDirectory(dir=args.cache) as work:
            work = pathlib.Path(work)
            try:
                entry = Entry(path.absolute(), args, work)
                entry.prepare()
            except Failure as error:
                print(f"   FAILED: {error}")
                failed.append(f"{path.name}: not readable")
                continue
            for name, state, said in check(entry, args, work):
                print(f"   {name:13} {state}: {said}", flush=True)
                if state == "FAILED":
                    failed.append(f"{path.name}: {name}")
    if failed:
        print(f"{len(failed)} of the checks failed: {', '.join(failed)}")
        return 1
    print(f"all checks passed on {len(entries)} guests")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
