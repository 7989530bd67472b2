# SPDX-License-Identifier: GPL-2.0-only
"""The guest's initramfs: a newc cpio whose bytes depend on nothing but its contents."""

import hashlib
import os
import pathlib
import struct

from packages import LIBRARIES, SCHEDULER_LIBRARIES, TOOLS, PackageError, run

HERE = pathlib.Path(__file__).resolve().parent
BPF = HERE.parent.parent / "bpf"

APPLETS = (
    "sh cat chmod cp cut date dmesg echo env expr find gzip grep head insmod ls md5sum mkdir mknod "
    "mount mv ps rm sed seq sleep sort sync tail tar test tr true uname usleep wc"
).split()
# Demos that differ from another only in what the guest does with the scheduler.
SAME_OBJECT = {"hog": "fifo", "twice": "healthy"}
MACHINE_LIBRARIES = "usr/lib/x86_64-linux-gnu"


def cpio(entries):
    """entries: {path: (mode, bytes)}; parents must be there. Sorted, owned by root, dated 0."""
    out = bytearray()

    def put(name, mode, data, inode):
        encoded = name.encode() + b"\0"
        links = 2 if mode & 0o170000 == 0o040000 else 1
        fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        out.extend(b"070701" + b"".join(b"%08X" % field for field in fields) + encoded)
        out.extend(b"\0" * (-len(out) % 4))
        out.extend(data)
        out.extend(b"\0" * (-len(out) % 4))

    for inode, name in enumerate(sorted(entries), 1):
        put(name, *entries[name], inode)
    put("TRAILER!!!", 0, b"", 0)
    out.extend(b"\0" * (-len(out) % 512))
    return bytes(out)


def needed(elf):
    """DT_NEEDED of a shared object or program, so that only what is loaded goes in."""
    data = elf.read_bytes()
    if data[:4] != b"\x7fELF":
        raise PackageError(f"{elf} is no ELF file")
    phoff, = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    loads, dynamic = [], None
    for i in range(count):
        kind, _, offset, vaddr, _, filesz, _, _ = struct.unpack_from("<IIQQQQQQ", data, phoff + i * size)
        if kind == 1:
            loads.append((vaddr, offset, filesz))
        elif kind == 2:
            dynamic = (offset, filesz)
    if dynamic is None:
        return []
    entries = [struct.unpack_from("<QQ", data, dynamic[0] + at) for at in range(0, dynamic[1], 16)]
    strtab = next(value for tag, value in entries if tag == 5)
    base = next(offset + strtab - vaddr for vaddr, offset, filesz in loads if vaddr <= strtab < vaddr + filesz)
    names = [value for tag, value in entries if tag == 1]
    return [data[base + at : data.index(b"\0", base + at)].decode() for at in names]


def build_kit(cache, names, *headers):
    """The guest's own helpers as one program, linked statically so that it needs nothing in the guest."""
    sources = [BPF / "guest" / f"{name}.c" for name in names]
    content = b"".join(path.read_bytes() for path in (*sources, *headers))
    # Named after the sources' content: checkouts of several commits may share a cache.
    target = cache / f"{names[-1]}-{hashlib.sha256(content).hexdigest()[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        work = cache / f"{target.name}.{os.getpid()}"
        run(["cc", "-static", "-Os", "-s", "-fno-omit-frame-pointer", "-Wall", "-Wextra", "-Wno-format-truncation", "-I", str(BPF),
             f"-ffile-prefix-map={BPF / 'guest'}=.", "-o", str(work), *map(str, sources), "-lpthread"])
        work.rename(target)
    return target


def build(archive, demo, modules=(), scheduler=None):
    """The initramfs' bytes and {package: version} of what went in.

    scheduler: {name, binary, config, release}, a program from schedulers.py and the
    configuration of the kernel that it will run on, instead of a demo's BPF object.
    """
    versions, libraries = {}, {}
    entries = {}

    def add(path, data, mode=0o100755):
        parts = path.split("/")[:-1]
        for i in range(len(parts)):
            entries.setdefault("/".join(parts[: i + 1]), (0o040755, b""))
        entries[path] = (mode, data)

    tools = {}
    for package, version in TOOLS.items():
        tools[package], versions[package] = archive.unpack(package, version)
    for package in LIBRARIES + (SCHEDULER_LIBRARIES if scheduler else ()):
        root, versions[package] = archive.unpack(package)
        for path in (root / MACHINE_LIBRARIES).glob("*.so*"):
            libraries[path.name] = path

    busybox = next(tools["busybox-static"].rglob("bin/busybox"))
    bpftool = next(tools["bpftool"].rglob("sbin/bpftool"))
    add("bin/busybox", busybox.read_bytes())
    for applet in APPLETS:
        add(f"bin/{applet}", b"busybox", 0o120777)
    add("bin/bpftool", bpftool.read_bytes())
    wanted, seen = needed(bpftool), set()
    if scheduler:
        add(f"bin/{scheduler['name']}", scheduler["binary"].read_bytes())
        add(f"boot/config-{scheduler['release']}", scheduler["config"], 0o100644)
        wanted += needed(scheduler["binary"])
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        if name not in libraries:
            raise PackageError(f"a program of the guest needs {name}, which none of the packages for it holds")
        wanted += needed(libraries[name])
        add(f"lib/{name}", libraries[name].read_bytes())
    loader = "ld-linux-x86-64.so.2"
    add(f"lib64/{loader}", libraries[loader].read_bytes())
    kits = ("guestkit", "mapkit") if demo == "maps" else ("guestkit",)
    add("bin/guestkit", build_kit(archive.cache, kits, BPF / "zoo.h").read_bytes())
    add("init", (BPF / "guest" / "init").read_bytes())
    if demo == "maps":
        add("bin/mapkit", b"guestkit", 0o120777)
        add("zoo.bpf.o", (BPF / "objects" / "zoo.bpf.o").read_bytes(), 0o100644)
    if demo != "none" and not scheduler:
        add("demo.bpf.o", (BPF / "objects" / f"{SAME_OBJECT.get(demo, demo)}.bpf.o").read_bytes(), 0o100644)
    for name, data in modules:
        add(f"lib/{name}.ko", data, 0o100644)
    for directory in ("dev", "proc", "sys", "tmp"):
        entries[directory] = (0o040755, b"")
    # The kernel opens /dev/console before init can mount devtmpfs.
    return cpio(entries), versions
