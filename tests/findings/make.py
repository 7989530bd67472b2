#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Makes the captures of this folder: one for each guest that has one known fault.

    tests/findings/make.py                       all of them, about ten minutes
    tests/findings/make.py lock stuck            these
    tests/findings/make.py lock --from DIR       of what tests/guest/run.py left in DIR/lock, core.elf
                                                 or what capture convert made of it, guest.core.zst

Each is reduced to the pages that a report reads, less those that are in the file with the
kernel's types and symbols, which is made of the first guest where it is missing. All have to
be made again when a report reads more than it did, or `cargo test` finds pages missing.
"""
import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KERNEL = "7.3"
TABLES = HERE / f"kernel-{KERNEL}.tables.zst"
# By `capture run --moment store`, which stops a guest where no breakpoint of run.py does.
STORE = "claimed"
GUESTS = "affinity arena bypass claimed fifo healthy hog idle lock preempt prio ring slice slow stopped stranded stuck twice vtime".split()
# Limit of the repository, MB.
ALL = 12


def store(made):
    """A guest that is stopped at the store of its scheduler's exit kind."""
    made.mkdir()
    subprocess.run(["cargo", "build", "--release", "--quiet", "--bin", "capture"], cwd=ROOT, check=True)
    sys.path.insert(0, str(ROOT / "tests/guest"))
    from capture import Rig, run  # noqa: PLC0415
    rig = Rig(pathlib.Path.home() / ".cache/scx-postmortem", made)
    command, output = rig.command("error", KERNEL, "guest", "--moment", "store")
    code, _, said = run(command)
    if code != 10:
        sys.exit(f"capture run: exit {code}: {said}")
    recipe = {"kernel": rig.kernel(KERNEL)["release"], "demo": "error", "made by": "capture run --moment store"}
    (made / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="made", type=pathlib.Path, help="guests that have run already")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(GUESTS)}")
    options = parser.parse_args()
    for name in options.names:
        if name not in GUESTS:
            parser.error(f"{name} is not one of {', '.join(GUESTS)}")
    analyze = ROOT / "target/release/analyze"
    subprocess.run(["cargo", "build", "--release", "--quiet", "--bin", "analyze"], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory(prefix="scxpm-findings-") as scratch:
        for name in options.names or GUESTS:
            made = (options.made or pathlib.Path(scratch)) / name
            if not options.made and name == STORE:
                store(made)
            elif not options.made:
                subprocess.run([ROOT / "tests/guest/run.py", "--kernel", KERNEL, "--demo", name, "--memory", "256M",
                                "--out", made], check=True)
            core = next(made / each for each in ("core.elf", "guest.core.zst") if (made / each).exists())
            if not TABLES.exists():
                subprocess.run([analyze, "tables", core, "-o", TABLES], check=True)
                TABLES.chmod(0o644)
            capture = HERE / f"{name}.core.zst"
            capture.unlink(missing_ok=True)
            subprocess.run([analyze, "reduce", core, "--kernel-tables", TABLES, "-o", capture], check=True)
            capture.chmod(0o644)
            shutil.copyfile(made / "recipe.json", HERE / f"{name}.recipe.json")
            if not options.made:
                core.unlink()
    sizes = {path.name: path.stat().st_size for path in sorted(HERE.glob("*.zst"))}
    for name, size in sizes.items():
        print(f"{name:<28} {size / 1000:8.0f} kB")
    if sum(sizes.values()) > ALL * 1_000_000:
        sys.exit(f"too large: at most {ALL} MB together")


if __name__ == "__main__":
    main()
