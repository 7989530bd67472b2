#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Makes one entry of the corpus out of what tests/guest/run.py left.

    tests/guest/run.py --kernel 6.18 --demo stall --memory 192M --cpus 2 --out /tmp/g
    corpus/make.py /tmp/g stall-6.18

The entry then holds
    guest.core.zst     the capture, level 19, without free pages, user memory and page cache
    recipe.json        what made it
    truth.tar.zst      all that the guest's kernel said about itself
    truth/             the few files of that which `cargo test` reads
and, after `INSTA_UPDATE=always cargo test --test golden`, the golden reports. The same
input gives the same bytes.
"""
import io
import pathlib
import shutil
import subprocess
import sys
import tarfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
# Limits of the repository: MB for one capture and for all of them.
ONE, ALL = 25, 70
# What `cargo test` reads of an entry's truth, and the folder below truth/ that it goes to.
KEPT = (
    ("after/scx_exit.json", ""),
    ("after/scx_dump.txt", ""),
    ("stop/sys/kernel/sched_ext/root/events", ""),
    ("stop/sys/kernel/sched_ext/state", ""),
    ("stop/taskmap_*.txt", ""),
    ("stop/arena_pages_*.bin", ""),
    ("stop/bpftool/map_show.json", ""),
    ("stop/raw/*", "raw"),
    ("zoo/[!b]*.txt", "zoo"),
    ("after/dmesg", "after"),
    *(
        (f"{stage}/{kept}", stage)
        for stage in ("stop", "after")
        for kept in ("proc/pressure/cpu", "proc/pressure/io", "proc/pressure/memory", "proc/interrupts",
                     "proc/schedstat", "sys/devices/system/node/node0/numastat")
    ),
)


def pack(folder, target):
    """A tar with sorted names and no times or owners, compressed."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(folder.rglob("*")):
            info = tar.gettarinfo(path, arcname=str(pathlib.Path("truth") / path.relative_to(folder)))
            info.mtime = info.uid = info.gid = 0
            info.uname = info.gname = ""
            info.mode = 0o755 if path.is_dir() else 0o644
            if path.is_file():
                with path.open("rb") as file:
                    tar.addfile(info, file)
            else:
                tar.addfile(info)
    packed = subprocess.run(["zstd", "-q", "-19", "-c"], input=raw.getvalue(), stdout=subprocess.PIPE, check=True)
    target.write_bytes(packed.stdout)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    made, name = pathlib.Path(sys.argv[1]), sys.argv[2]
    for needed in ("core.elf", "recipe.json", "truth"):
        if not (made / needed).exists():
            sys.exit(f"{made / needed}: missing; expected what tests/guest/run.py --out writes")
    entry = HERE / name
    entry.mkdir(exist_ok=True)
    subprocess.run(["cargo", "build", "--release", "--quiet", "--bin", "capture"], cwd=ROOT, check=True)
    capture = entry / "guest.core.zst"
    subprocess.run([ROOT / "target/release/capture", "convert", made / "core.elf", "-o", capture,
                    "--level", "19", "--force", "--exclude", "free,user,cache"], check=True)
    capture.chmod(0o644)
    shutil.copyfile(made / "recipe.json", entry / "recipe.json")
    pack(made / "truth", entry / "truth.tar.zst")
    shutil.rmtree(entry / "truth", ignore_errors=True)
    for kept, folder in KEPT:
        for source in sorted((made / "truth").glob(kept)):
            target = entry / "truth" / folder
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target / source.name)
    sizes = {c.parent.name: c.stat().st_size / 1e6 for c in HERE.glob("*/guest.core.zst")}
    for other, size in sorted(sizes.items()):
        print(f"{other:<20} {size:6.1f} MB")
    if sizes[name] > ONE or sum(sizes.values()) > ALL:
        sys.exit(f"too large: at most {ONE} MB each and {ALL} MB together")


if __name__ == "__main__":
    main()
