#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Compares `capture convert --exclude free,user,cache` with `makedumpfile -d 31` on the same cores.

    exclude.py FILE… [--cache DIR]

FILE is a capture or an ELF core. Prints a table of sizes, and of pages by what each of the two
takes them for; makedumpfile comes from Debian's sid and is unpacked in the cache, never
installed. Exit 1 when the report is another one without these pages, or makedumpfile refuses.
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
from tools import Failure, Programs, run  # noqa: E402

LEVEL = "1"


def report(analyze, file):
    """The report without what it says about the file."""
    done = run([analyze, file, "--format", "json"], check=False)
    if done.returncode not in (0, 3, 6):
        raise Failure(f"analyze {file}: exit {done.returncode}: {done.stderr.strip()}")
    full = json.loads(done.stdout)
    full["postmortem"].pop("input")
    return full


def makedumpfile(command, core, work):
    """Its counts of pages, and the size of what it writes, compressed with zstd."""
    dump = work / "dump.kdump"
    dump.unlink(missing_ok=True)
    done = run([*command, "-z", "-d", "31", "--message-level", "16", core, dump])
    said = done.stdout + done.stderr
    counts = {name: int(value, 16) for name, value in re.findall(r"^ *(\S[^:\n]*?) *: (0x[0-9a-f]+)$", said, re.M)}
    if "User process data pages" not in counts:
        raise Failure(f"makedumpfile printed no counts: {said[-300:]}")
    warned = "not supported" if "kernel version is not supported" in said else ""
    return counts, dump.stat().st_size, warned


def ours(capture, analyze, core, work):
    whole, small = work / "whole.core.zst", work / "small.core.zst"
    run([capture, "convert", core, "-o", whole, "--force", "--level", LEVEL])
    run([capture, "convert", core, "-o", small, "--force", "--level", LEVEL, "--exclude", "free,user,cache"])
    if report(analyze, whole) != report(analyze, small):
        raise Failure(f"{core}: another report without the excluded pages")
    info = run([analyze, "info", small]).stdout
    pages = {rule: int(n) // 4096 for n, rule in re.findall(r"(\d+) bytes.*--exclude (\w+)", info)}
    return whole.stat().st_size, small.stat().st_size, pages


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path.home() / ".cache/scx-postmortem")
    args = parser.parse_args()
    subprocess.run(["cargo", "build", "--release", "--quiet", "--bins"], cwd=ROOT, check=True)
    capture, analyze = ROOT / "target/release/capture", ROOT / "target/release/analyze"
    print("| core | whole | excluded | of it | makedumpfile -d 31 -z | free | user | cache | makedumpfile: free, user, cache |")
    print("|---|---|---|---|---|---|---|---|---|")
    try:
        command = Programs(args.cache).command("makedumpfile", "makedumpfile")
        for file in args.files:
            with tempfile.TemporaryDirectory() as work:
                work = pathlib.Path(work)
                core = file
                if file.suffix == ".zst":
                    core = work / "core.elf"
                    run([analyze, "export", file, "-o", core])
                whole, small, pages = ours(capture, analyze, core, work)
                # QEMU's cores lack the note that makedumpfile must have; a capture brings it.
                noted = work / "noted.elf"
                run([analyze, "export", work / "whole.core.zst", "-o", noted])
                counts, size, warned = makedumpfile(command, noted, work)
                name = file.parent.name
                cache = counts["Non-private cache pages"] + counts["Private cache pages"]
                print(f"| {name} | {whole / 1e6:.1f} MB | {small / 1e6:.1f} MB | {small / whole:.2f} | {size / 1e6:.1f} MB"
                      f" | {pages.get('free', 0)} | {pages.get('user', 0)} | {pages.get('cache', 0)}"
                      f" | {counts['Free pages']}, {counts['User process data pages']}, {cache}"
                      f" {warned and f'({warned})'} |", flush=True)
    except Failure as failure:
        print(failure)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
