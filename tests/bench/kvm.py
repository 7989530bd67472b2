#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""The in-process machine beside QEMU: time to the guest's init, memory beside the guest's own, and how long a guest stands still.

    tests/bench/kvm.py                  three rounds
    tests/bench/kvm.py --rounds 5

Both run in one guest of software emulation that has AMD's virtualisation (`tests/guest/nested.py`), so times are far from
those of hardware, and their ratio is what counts. The same kernel, the same initramfs, 256 MB and two vCPUs; QEMU as
`-M microvm -accel kvm`, once as it comes and once with the smaller firmware (qboot). In turns, in each round. To init is
from the start of the process to the first line of the guest's init: of the machine alone, and of `capture run`, which looks
for the kernel in the guest's memory meanwhile and shows the console in between. The guest's memory is a memfd in all, so
RssAnon and RssFile are what a process has beside it. The freeze is that of a capture, by `capture` in both, until all vCPUs
stand and their registers are taken: SIGUSR1 to `capture run --backend kvm`, `capture attach --now` to QEMU.
"""

import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "guest"))

from capture import Rig, arguments, manifest  # noqa: E402
from nested import Outer  # noqa: E402
from packages import install_here  # noqa: E402

KERNEL = "6.18"
APPEND = "console=ttyS0 panic=0 tsc=reliable no_timer_check quiet"
# What is broken two levels down (docs/capturing.md), as the in-process machine leaves it out by itself.
CPU = "host,-xsave,-avx,-pku"
FIRMWARE = ("bios-microvm.bin", "qboot.rom", "linuxboot_dma.bin", "kvmvapic.bin")
SHELL = """
up() {
    name=$1; shift
    rm -f pipe; mkfifo pipe
    read t0 rest < /proc/uptime
    "$@" > pipe 2>&1 < /dev/null &
    pid=$!
    exec 3< pipe
    while read -r line <&3; do case "$line" in *"inner: up"*) break;; esac; done
    read t1 rest < /proc/uptime
    sleep 4
    echo "$t0 $t1" > out/$name.boot
    [ -d /proc/$pid ] || return
    cat /proc/$pid/status > out/$name.status
    for task in /proc/$pid/task/*; do read comm < $task/comm; echo "$comm $(grep Seccomp: $task/status)"; done > out/$name.tasks
}
down() { kill $pid; wait $pid; exec 3<&-; }
"""


def qemu_files(outer):
    """QEMU of this machine, with its libraries and firmware, into the outer guest."""
    listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        name, arrow, path = line.strip().partition(" => ")
        if arrow and "x86-64" in name:
            outer.libraries.setdefault(name.split()[0], pathlib.Path(path))
    outer.program("bin/qemu-system-x86_64", pathlib.Path(shutil.which("qemu-system-x86_64")))
    for name in FIRMWARE:
        found = [pathlib.Path(where) / name for where in ("/usr/share/seabios", "/usr/share/qemu")]
        path = next((path for path in found if path.exists()), None)
        if path is None:
            sys.exit(f"QEMU's firmware {name} is in none of {', '.join(str(path.parent) for path in found)}")
        outer.add(f"share/{name}", path.read_bytes(), 0o100644)


def plan(kernel, initrd, rounds):
    ours = (f"capture run --backend kvm --show-console --no-monitor --memory 256M --append quiet --kernel {kernel} --initrd {initrd} "
            f"-o out/ours-%d.core.zst")
    qemu = (f"qemu-system-x86_64 -L /share -M microvm%s,memory-backend=ram -object memory-backend-memfd,id=ram,size=256M,share=on "
            f"-accel kvm -cpu {CPU} -smp 2 -m 256M -nodefaults -no-user-config -display none -no-reboot -kernel {kernel} "
            f"-initrd {initrd} -append '{APPEND}' -serial stdio -qmp unix:/tmp/qmp,server=on,wait=off")
    lines = [SHELL, f"export SCX_POSTMORTEM_KERNEL={kernel} SCX_POSTMORTEM_INITRD={initrd}"]
    for index in range(rounds):
        lines += [f"up alone-{index} tests --ignored --nocapture machine::kvm::booted::a_kernel_comes", "down"]
        lines += [f"up ours-{index} {ours % index}", "kill -USR1 $pid; wait $pid; exec 3<&-"]
        for name, more in (("qemu", ""), ("qboot", ",acpi=off -bios /share/qboot.rom")):
            firmware = more.split(" ", 1)[1] if " " in more else ""
            machine = more.split(" ", 1)[0]
            lines += [f"up {name}-{index} {qemu % machine} {firmware}",
                      f"capture attach --qmp /tmp/qmp --now --no-monitor -o out/{name}-{index}.core.zst > out/{name}-{index}.out 2>&1",
                      "down"]
        lines.append(f"echo 'nested: round {index}'")
    return "\n".join(lines) + "\n"


def one(out, name):
    start, end = (float(word) for word in (out / f"{name}.boot").read_text().split())
    row = {"boot": end - start}
    if not (out / f"{name}.core.zst").exists():
        return row
    status = dict(line.split(":", 1) for line in (out / f"{name}.status").read_text().splitlines() if ":" in line)
    mb = {key: int(status[key].split()[0]) / 1024 for key in ("RssAnon", "RssFile", "RssShmem")}
    freeze = manifest(out / f"{name}.core.zst")["trigger"]["freeze_ns"] / 1e6
    return row | {"beside": mb["RssAnon"] + mb["RssFile"], "guest": mb["RssShmem"], "freeze": freeze}


def main():
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    install_here({"qemu-system-x86_64": "qemu-system-x86", "cc": "gcc", "zstd": "zstd", "strip": "binutils"})
    with tempfile.TemporaryDirectory(prefix="scxpm-bench-") as name:
        where = options.keep or pathlib.Path(name)
        where.mkdir(parents=True, exist_ok=True)
        outer = Outer(Rig(options.cache, where), where)
        qemu_files(outer)
        outer.add_tests()
        out = outer.run("bench", plan(outer.image(KERNEL), outer.bare(), options.rounds), timeout=600 * options.rounds, memory="3G")
        names = {"alone": "in-process, alone", "ours": "capture run", "qemu": "QEMU microvm", "qboot": "QEMU microvm, qboot"}
        rows = {kind: [one(out, f"{kind}-{index}") for index in range(options.rounds)] for kind in names}
        tasks = (out / "ours-0.tasks").read_text().splitlines()
    median = {kind: {key: statistics.median(row[key] for row in each) for key in each[0]} for kind, each in rows.items()}
    units = {"boot": ("to init", "s"), "beside": ("beside the guest", "MiB"), "guest": ("the guest's", "MiB"), "freeze": ("freeze", "ms")}
    for kind, text in names.items():
        cells = (f"{units[key][0]} {value:.2f} {units[key][1]}" for key, value in median[kind].items())
        each = " ".join(f"{row['boot']:.1f}" for row in rows[kind])
        print(f"{text:<22} {', '.join(cells)}; each round to init: {each}")
    served = [line for line in tasks if line.startswith(("vcpu-", "watcher"))]
    print("threads that serve the guest:", ", ".join(" ".join(line.split()) for line in served))
    missed = False
    for key, kind in (("boot", "alone"), ("beside", "ours"), ("freeze", "ours")):
        best = min(median["qemu"][key], median["qboot"][key])
        ok = median[kind][key] <= best
        missed |= not ok
        text, unit = units[key]
        print(f"{text:<18} {median[kind][key]:8.2f} {unit}, QEMU's better one {best:8.2f} {unit}: {'ok' if ok else 'MISSED'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
