#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""How long a guest stands still for a capture, beside QEMU's own dump of the same guest.

    tests/bench/pause.py                       a 512 MB guest of 7.3, three rounds
    tests/bench/pause.py --memory 2G --rounds 5

A guest under software emulation, its memory in a memfd. Each round boots it anew and takes, one after the other, a
capture with `capture attach --now`, a plain copy of the memory's bytes with dd, which leaves out those that are zero, and
a `dump-guest-memory` of QEMU with `zstd -1 -T0` behind it. QEMU's dump comes last and the guest ends after it, for it
touches every page of the memory, so that nothing measured behind it would have holes. Figures are ratios within one
round; the median is printed.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent / "guest"))

from capture import CAPTURE, Rig, manifest  # noqa: E402
from machine import Qmp, megabytes  # noqa: E402
from packages import install_here  # noqa: E402


def memfd(pid):
    for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        if "memory-backend-memfd" in os.readlink(entry) or "memfd:m0" in os.readlink(entry):
            return entry
    raise SystemExit("QEMU has no memfd open")


def blocks(path):
    return os.stat(path).st_blocks * 512


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", default="512M")
    parser.add_argument("--kernel", default="7.3")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=pathlib.Path, default=pathlib.Path.home() / ".cache/scx-postmortem")
    options = parser.parse_args()
    install_here({"qemu-system-x86_64": "qemu-system-x86", "cc": "gcc", "zstd": "zstd"})
    with tempfile.TemporaryDirectory(prefix="scxpm-bench-") as name:
        where = pathlib.Path(name)
        rig = Rig(options.cache, where)
        initrd = where / "initrd"
        subprocess.run([str(CAPTURE), "initrd", *rig.guest("healthy", options.kernel), "-o", str(initrd)], check=True)
        image = rig.kernel(options.kernel)["image"]
        rows = [booted(image, initrd, megabytes(options.memory), where / str(index)) for index in range(options.rounds)]
    median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    print(f"guest's memory touched     {median['touched'] / 2**20:8.0f} MiB, not zero {median['nonzero'] / 2**20:.0f} MiB")
    print(f"pause for a capture        {median['pause'] * 1e3:8.1f} ms   {median['touched'] / median['pause'] / 1e9:.2f} GB/s of what was touched")
    print(f"pause / dump-guest-memory  {median['pause'] / median['dump']:8.3f}      at most 0.1    ({median['dump'] * 1e3:.0f} ms)")
    print(f"pause / plain copy         {median['pause'] / median['copy']:8.3f}      at most 1.5    ({median['copy'] * 1e3:.0f} ms)")
    print(f"whole / dump and zstd -1   {median['whole'] / (median['dump'] + median['zstd']):8.3f}      below 1        ({median['whole']:.2f} s, {median['dump'] + median['zstd']:.2f} s)")
    print(f"memory that it cost QEMU   {median['grown'] / 2**20:8.1f} MiB   what the guest touched meanwhile included: holes stay holes")


def booted(image, initrd, memory, where):
    """One round's guest: started, let run until its scheduler is loaded, measured, ended."""
    where.mkdir()
    sockets = [where / "qmp0", where / "qmp1"]
    console = where / "console"
    command = [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg,thread=multi",
        "-cpu", "max,la57=off", "-smp", "2", "-m", f"{memory}M", "-machine", "pc,memory-backend=m0",
        "-object", f"memory-backend-memfd,id=m0,size={memory}M,share=on", "-kernel", str(image), "-initrd", str(initrd),
        "-append", "console=ttyS0 panic=0 tsc=reliable no_timer_check", "-serial", f"file:{console}",
    ]
    for socket in sockets:
        command += ["-qmp", f"unix:{socket},server=on,wait=off"]
    qemu = subprocess.Popen(command)
    deadline = time.time() + 180
    try:
        while not console.exists() or b"enabled" not in console.read_bytes():
            if qemu.poll() is not None:
                sys.exit("the guest ended while it booted")
            if time.time() > deadline:
                sys.exit("the guest's scheduler was not loaded within three minutes")
            time.sleep(0.5)
        time.sleep(4)
        return one_round(Qmp(sockets[0], time.time() + 20), sockets[1], qemu.pid, where)
    finally:
        qemu.kill()
        qemu.wait()


def one_round(qmp, socket, pid, where):
    row = {}
    file = memfd(pid)
    row["touched"] = blocks(file)
    output = where / "now.core.zst"
    start = time.monotonic()
    subprocess.run([str(CAPTURE), "attach", "--qmp", str(socket), "--now", "--no-monitor", "-o", str(output), "--force"],
                   check=True, stdout=subprocess.DEVNULL)
    row["whole"] = time.monotonic() - start
    timings = manifest(output)["timings"]
    row["pause"] = timings["pause_ns"] / 1e9
    qmp.ask("stop")
    # What the guest itself touched since the freeze is in here as well, so that this is an upper bound.
    row["grown"] = max(0, blocks(file) - row["touched"])
    copied = pathlib.Path("/dev/shm") / f"scxpm-copy-{os.getpid()}"
    try:
        start = time.monotonic()
        subprocess.run(["dd", f"if={file}", f"of={copied}", "bs=4M", "conv=sparse", "status=none"], check=True)
        row["copy"] = time.monotonic() - start
        row["nonzero"] = blocks(copied)
    finally:
        copied.unlink(missing_ok=True)
    core = where / "dump.elf"
    start = time.monotonic()
    qmp.ask("dump-guest-memory", paging=False, protocol=f"file:{core}")
    row["dump"] = time.monotonic() - start
    start = time.monotonic()
    subprocess.run(["zstd", "-q", "-1", "-T0", "-f", "-o", str(where / "dump.zst"), str(core)], check=True)
    row["zstd"] = time.monotonic() - start
    core.unlink()
    return row


if __name__ == "__main__":
    main()
