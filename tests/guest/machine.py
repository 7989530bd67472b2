# SPDX-License-Identifier: GPL-2.0-only
"""One QEMU, its monitor, its debug stub and the serial line to the guest's init."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import zlib


class GuestError(Exception):
    """The guest did not do what it should; the message says what it did."""


class EmulatorError(GuestError):
    """A known failure of the emulator, not of the guest: worth another try."""


def connect(path, deadline):
    while True:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            link.connect(str(path))
            return link
        except OSError:
            link.close()
            if time.monotonic() > deadline:
                raise GuestError(f"QEMU does not answer on {path}") from None
            time.sleep(0.05)


class Qmp:
    def __init__(self, path, deadline):
        self.link = connect(path, deadline)
        self.stream = self.link.makefile("rwb", buffering=0)
        json.loads(self.stream.readline())
        self.ask("qmp_capabilities")

    def ask(self, command, timeout=120, **arguments):
        self.link.settimeout(timeout)
        message = {"execute": command, "arguments": arguments}
        self.stream.write(json.dumps(message).encode() + b"\n")
        while True:
            line = self.stream.readline()
            if not line:
                raise GuestError(f"QEMU went away during {command}")
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise GuestError(f"QEMU refused {command}: {answer['error']['desc']}")


class Gdb:
    """The few packets of the remote serial protocol that breakpoints need."""

    RSP, RIP = 7, 16  # in the order of the `g` packet

    def __init__(self, path, deadline):
        self.link = connect(path, deadline)
        self.buffer = b""
        # QEMU stops the guest as soon as a debugger connects.
        self.ask("?")

    def send(self, text):
        data = text.encode()
        self.link.sendall(b"$" + data + b"#%02x" % (sum(data) & 0xFF))

    def receive(self, timeout):
        deadline = time.monotonic() + timeout
        while True:
            start = self.buffer.find(b"$")
            end = self.buffer.find(b"#", start) if start >= 0 else -1
            if end >= 0 and len(self.buffer) >= end + 3:
                packet = self.buffer[start + 1 : end]
                self.buffer = self.buffer[end + 3 :]
                self.link.sendall(b"+")
                return packet.decode("latin-1")
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self.link.settimeout(left)
            try:
                data = self.link.recv(65536)
            except socket.timeout:
                raise TimeoutError from None
            if not data:
                raise GuestError("QEMU closed the debug stub: the guest is gone")
            self.buffer += data

    def ask(self, text, timeout=20):
        self.send(text)
        while True:
            answer = self.receive(timeout)
            # Connecting stops the guest, and QEMU may report that after the first answer.
            if text == "?" or answer[:1] not in ("T", "S"):
                return answer

    def breakpoint(self, address, add=True):
        # Z1 is a hardware breakpoint: nothing is written into the guest's memory, so the core is unmarked.
        answer = self.ask(f"{'Z' if add else 'z'}1,{address:x},1")
        if answer != "OK":
            raise GuestError(f"QEMU did not take a breakpoint at {address:#x}: {answer!r}")

    def registers(self):
        data = bytes.fromhex(self.ask("g"))
        return [int.from_bytes(data[i * 8 : i * 8 + 8], "little") for i in range(17)]

    def read_u64(self, address):
        answer = self.ask(f"m{address:x},8")
        if len(answer) != 16:
            raise GuestError(f"cannot read guest memory at {address:#x}: {answer!r}")
        return int.from_bytes(bytes.fromhex(answer), "little")

    def resume(self):
        self.send("c")

    def wait_stop(self, timeout):
        while True:
            packet = self.receive(timeout)
            if packet[:1] in "TS":
                return packet
            if packet[:1] in "WX":
                raise GuestError("the guest ended before the breakpoint was met")


class HostLine(threading.Thread):
    """Reads the guest's second serial port: lines that begin with @, and files."""

    def __init__(self, link):
        super().__init__(daemon=True)
        self.link = link
        self.condition = threading.Condition()
        self.lines, self.files = [], {}
        self.error = None
        self.closed = False
        self.start()

    def run(self):
        stream = self.link.makefile("rb")
        while True:
            line = stream.readline()
            if not line:
                break
            text = line.decode("utf-8", "replace").strip()
            if not text.startswith("@"):
                continue
            content = None
            if text.startswith("@FILE "):
                _, name, length, checksum = text.split()
                content = stream.read(int(length))
                if zlib.crc32(content) != int(checksum, 16):
                    self.error = f"the file {name} arrived damaged over the serial line"
                    content = None
            with self.condition:
                self.lines.append(text)
                if content is not None:
                    self.files[name] = content
                self.condition.notify_all()
        with self.condition:
            self.closed = True
            self.condition.notify_all()

    def wait_for(self, prefix, timeout):
        deadline = time.monotonic() + timeout
        with self.condition:
            while True:
                if self.error:
                    raise GuestError(self.error)
                for line in self.lines:
                    if line.startswith("@FAIL"):
                        raise GuestError("the guest gave up: " + line[6:])
                    if line.startswith(prefix):
                        return line
                if self.closed:
                    raise GuestError(f"the guest ended before it said {prefix}")
                if not self.condition.wait(max(0.0, min(1.0, deadline - time.monotonic()))):
                    if time.monotonic() >= deadline:
                        raise TimeoutError
                    if self.check:
                        self.check()

    check = None

    def send(self, text):
        self.link.sendall(text.encode() + b"\n")


class Machine:
    """A running guest. Use with `with`: the process is gone afterwards, whatever happened."""

    def __init__(self, kernel, initrd, append, memory, cpus, cpu, numa, vmcoreinfo, console, timeout, single):
        self.deadline = time.monotonic() + timeout
        # AF_UNIX paths are short, so the sockets do not go below the output directory.
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="scxpm-"))
        self.console = pathlib.Path(console)
        self.process = None
        initrd_file = self.directory / "initrd"
        initrd_file.write_bytes(initrd)
        self.command = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-machine", "pc",
            "-accel", f"tcg,thread={'single' if single else 'multi'}",
            "-cpu", cpu, "-m", memory, "-smp", str(cpus),
            "-kernel", str(kernel), "-initrd", str(initrd_file), "-append", append,
            "-serial", f"file:{self.console}",
            "-chardev", f"socket,id=host,path={self.directory}/host,server=on,wait=off", "-serial", "chardev:host",
            "-chardev", f"socket,id=gdb,path={self.directory}/gdb,server=on,wait=off", "-gdb", "chardev:gdb",
            "-qmp", f"unix:{self.directory}/qmp,server=on,wait=off",
        ]
        if numa > 1:
            self.command += numa_arguments(memory, cpus, numa)
        if vmcoreinfo:
            self.command += ["-device", "vmcoreinfo"]

    def __enter__(self):
        try:
            self.console.parent.mkdir(parents=True, exist_ok=True)
            self.console.write_bytes(b"")
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            start = min(self.deadline, time.monotonic() + 20)
            self.qmp = Qmp(self.directory / "qmp", start)
            self.host = HostLine(connect(self.directory / "host", start))
            self.host.check = self.check
            return self
        except BaseException as error:
            said = self.stop()
            if said and isinstance(error, GuestError):
                raise GuestError(f"{error}; QEMU said: {said}") from error
            raise

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        said = ""
        if self.process:
            self.process.kill()
            said = self.process.communicate()[1].decode("utf-8", "replace").strip()
        shutil.rmtree(self.directory, ignore_errors=True)
        return said

    def left(self):
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise GuestError("the guest took too long (--timeout); the end of its console is in console.log")
        return left

    def check(self):
        """Raises when the console shows that waiting on is pointless."""
        text = self.console.read_text("utf-8", "replace")
        if "int3: 0000" in text or "int3:" in text and "Oops" in text:
            raise EmulatorError("the emulator lost a race while the guest patched its own text (int3 Oops)")
        if "Kernel panic" in text:
            last = [line for line in text.splitlines() if "Kernel panic" in line][-1]
            raise EmulatorError(f"the guest's kernel panicked: {last.strip()}")

    def wait_for(self, prefix):
        try:
            return self.host.wait_for(prefix, self.left())
        except TimeoutError:
            self.left()
            raise

    def attach_debugger(self):
        self.gdb = Gdb(self.directory / "gdb", min(self.deadline, time.monotonic() + 20))
        return self.gdb

    def wait_breakpoint(self, address):
        """Waits until a CPU stands at `address`, looking at the console meanwhile."""
        while True:
            try:
                self.gdb.wait_stop(min(2.0, self.left()))
                break
            except TimeoutError:
                self.check()
                if any(line.startswith("@FAIL") for line in self.host.lines):
                    self.host.wait_for("@FAIL", 0)
        registers = self.gdb.registers()
        if registers[Gdb.RIP] != address:
            raise GuestError(f"the guest stopped at {registers[Gdb.RIP]:#x} instead of {address:#x}")
        return registers

    def dump(self, path):
        """QEMU's own ELF core of the physical memory; the guest must stand still already."""
        if self.qmp.ask("query-status")["running"]:
            raise GuestError("the guest runs while its memory is to be dumped")
        partial = pathlib.Path(f"{path}.partial")
        self.qmp.ask(
            "dump-guest-memory", timeout=600, paging=False, protocol=f"file:{partial.absolute()}"
        )
        partial.chmod(0o600)  # QEMU makes it read-only
        os.replace(partial, path)


def megabytes(memory):
    units = {"M": 1, "G": 1024}
    if memory[-1:] not in units or not memory[:-1].isdigit():
        raise GuestError(f"--memory {memory}: write it as 512M or 2G")
    return int(memory[:-1]) * units[memory[-1]]


def numa_arguments(memory, cpus, nodes):
    arguments, total = [], megabytes(memory)
    for node in range(nodes):
        first, last = cpus * node // nodes, cpus * (node + 1) // nodes - 1
        arguments += [
            "-object", f"memory-backend-ram,id=ram{node},size={total // nodes}M",
            "-numa", f"node,nodeid={node},cpus={first}-{last},memdev=ram{node}",
        ]
    return arguments
