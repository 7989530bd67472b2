# SPDX-License-Identifier: GPL-2.0-only
"""Debian packages, unpacked into a cache directory and never installed.

Guest kernels and the guest's bpftool come from newer suites than the machine that
runs the tests may have. apt is therefore used with directories of its own: no file
of the machine's apt configuration is changed, and no root is needed.
"""

import contextlib
import fcntl
import os
import pathlib
import re
import shutil
import subprocess
import time

SUITES = ("trixie", "trixie-updates", "trixie-backports")
SID = ("sid",)
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# short name: (release, version of the package, how the image's package is named)
KERNELS = {
    "6.12": ("6.12.107+deb13", "6.12.107-1", "linux-image"),
    "6.16": ("6.16.12+deb13", "6.16.12-1~bpo13+1", "linux-image"),
    "6.17": ("6.17.13+deb13", "6.17.13-1~bpo13+1", "linux-image"),
    "6.18": ("6.18.15+deb13", "6.18.15-1~bpo13+1", "linux-image"),
    "6.19": ("6.19.14+deb13", "6.19.14-1~bpo13+1", "linux-binary"),
    "7.0": ("7.0.13+deb13", "7.0.13-1~bpo13+1", "linux-binary"),
    # Debian's 7.1 builds, and 7.2.9 to 7.2.12, describe some of the scheduler's kfuncs with an
    # argument too many in their BTF: nothing that creates a queue loads there.
    "7.1": ("7.1.13+deb13", "7.1.13-1~bpo13+1", "linux-binary"),
    "7.2": ("7.2.6+deb13", "7.2.6-1~bpo13+1", "linux-binary-unsigned"),
    "7.3": ("7.3.4+deb13", "7.3.4-1~bpo13+1", "linux-binary-unsigned"),
    # Another layout of 7.2, with a debug package. Of sid, where nothing stays for long.
    "7.2.13": ("7.2.13+deb14", "7.2.13-1", "linux-binary-unsigned"),
}
OF_SID = ("7.2.13",)
FLAVOUR = "cloud-amd64"

# What runs in the guest. The libraries are bpftool's; any version of the suite will do.
TOOLS = {"bpftool": "7.5.0+6.12.107-1", "busybox-static": "1:1.37.0-6+b9"}
LIBRARIES = ("libc6", "libcap2", "libelf1t64", "libzstd1", "zlib1g")
# What schedulers written in Rust (schedulers.py) want beyond those.
SCHEDULER_LIBRARIES = ("libgcc-s1",)


class PackageError(Exception):
    """A sentence for the person who runs the script."""


def run(command, **options):
    options.setdefault("text", True)
    try:
        return subprocess.run(
            command, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
        ).stdout
    except FileNotFoundError as error:
        raise PackageError(f"{command[0]} is not there; this script needs a Debian machine") from error
    except subprocess.CalledProcessError as error:
        stderr = error.stderr if isinstance(error.stderr, str) else error.stderr.decode("utf-8", "replace")
        raise PackageError(f"`{' '.join(map(str, command))}` failed: {stderr.strip()[-600:]}") from error


def install_here(programs):
    """Installs, from the machine's own suite, what a {program: package} table lacks."""
    missing = sorted({package for program, package in programs.items() if not shutil.which(program)})
    if not missing:
        return
    if os.geteuid() != 0:
        raise PackageError(f"these packages are needed and only root can install them: {' '.join(missing)}")
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    run(["apt-get", "update", "-q"], env=environment)
    run(["apt-get", "install", "-q", "-y", "--no-install-recommends", *missing], env=environment)


def machine_mirror():
    """The Debian mirror that this machine uses, so that a local one serves here too."""
    if os.environ.get("SCX_POSTMORTEM_MIRROR"):
        return os.environ["SCX_POSTMORTEM_MIRROR"]
    targets = run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(COMPONENT) $(SUITE)",
         "Created-By: Packages"]
    )
    for line in targets.splitlines():
        fields = line.split()
        if len(fields) >= 3 and fields[1] == "Debian" and fields[2] == "main" and "security" not in fields[0]:
            return fields[0].rstrip("/")
    raise PackageError(
        "no Debian mirror in this machine's apt configuration (after `apt-get update`); "
        "set SCX_POSTMORTEM_MIRROR to one"
    )


class Archive:
    """Package versions of some suites, and unpacked packages below `cache`."""

    def __init__(self, cache, suites=SUITES):
        self.cache, self.suites = pathlib.Path(cache).absolute(), suites
        self.apt_dir = self.cache / "apt"
        self.ready = False

    def environment(self):
        return dict(os.environ, APT_CONFIG=str(self.apt_dir / "apt.conf"), LC_ALL="C")

    def prepare(self):
        if self.ready:
            return
        apt = self.apt_dir
        for part in ("etc/preferences.d", "etc/apt.conf.d", "lists/partial", "archives/partial", "state"):
            (apt / part).mkdir(parents=True, exist_ok=True)
        (apt / "status").touch()
        mirror = machine_mirror()
        (apt / "etc/sources.list").write_text(
            "".join(f"deb [signed-by={KEYRING}] {mirror} {suite} main\n" for suite in self.suites)
        )
        (apt / "apt.conf").write_text(
            f'Dir::Etc "{apt}/etc";\n'
            f'Dir::Etc::sourcelist "{apt}/etc/sources.list";\n'
            'Dir::Etc::sourceparts "-";\n'
            f'Dir::State "{apt}/state";\n'
            f'Dir::State::lists "{apt}/lists";\n'
            f'Dir::State::status "{apt}/status";\n'
            f'Dir::Cache "{apt}";\n'
            'APT::Architecture "amd64";\n'
            'APT::Sandbox::User "";\n'
            'Acquire::Languages "none";\n'
            'Acquire::Retries "3";\n'
            # The Release file of a mirror of sid may be out of date.
            + ('Acquire::Check-Valid-Until "false";\n' if self.suites == SID else "")
        )
        # The lists of a day are good enough, and most runs then need no network.
        stamp = apt / "updated"
        if not stamp.exists() or time.time() - stamp.stat().st_mtime > 24 * 3600:
            run(["apt-get", "update", "-q"], env=self.environment())
            stamp.touch()
        self.ready = True

    def versions(self, package):
        out = run(["apt-cache", "madison", package], env=self.environment())
        return [line.split("|")[1].strip() for line in out.splitlines() if line.count("|") >= 2]

    def similar(self, package):
        """Other packages of the same kernel series, for an error message."""
        match = re.match(r"(linux-(?:image|binary(?:-unsigned)?)-\d+\.\d+)\.", package)
        if not match:
            return []
        names = run(["apt-cache", "pkgnames", match.group(1) + "."], env=self.environment()).split()
        return sorted(name for name in names if name.endswith(FLAVOUR))

    @contextlib.contextmanager
    def locked(self):
        """Two runs at once would trip over each other's apt."""
        self.cache.mkdir(parents=True, exist_ok=True)
        with open(self.cache / "lock", "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def unpack(self, package, version=None):
        with self.locked():
            return self.unpack_locked(package, version)

    def unpack_locked(self, package, version):
        """The directory that holds the package's files, and the version that it is."""
        if version:
            # A package that is in the cache needs no network.
            done = self.directory(package, version)
            if done.is_dir():
                return done, version
        self.prepare()
        there = self.versions(package)
        if not there:
            others = ", ".join(self.similar(package)) or "none"
            raise PackageError(
                f"{package} is in none of {', '.join(self.suites)}; of the same series there are: {others} "
                "(--kernel-version chooses another)"
            )
        if version is None:
            version = there[0]
        elif version not in there:
            raise PackageError(
                f"{package} {version} is gone from the archive, which has {', '.join(there)}; "
                f"update the table in {__file__}, or give --kernel-version for a kernel"
            )
        done = self.directory(package, version)
        if done.is_dir():
            return done, version
        work = self.cache / f"tmp-{os.getpid()}"
        shutil.rmtree(work, ignore_errors=True)
        (work / "x").mkdir(parents=True)
        try:
            run(["apt-get", "download", "-q", f"{package}={version}"], env=self.environment(), cwd=work)
            run(["dpkg-deb", "-x", str(next(work.glob("*.deb"))), str(work / "x")])
            done.parent.mkdir(parents=True, exist_ok=True)
            try:
                (work / "x").rename(done)
            except OSError:
                if not done.is_dir():  # else another run was faster
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return done, version

    def directory(self, package, version):
        return self.cache / "unpacked" / f"{package}_{version.replace(':', '%')}"

    def of_sid(self):
        """The same for packages of sid: with lists of its own, since its names and versions are others."""
        return Archive(self.cache / "suite-sid", SID)

    def kernel(self, short, release=None):
        """{release, package, version, image, root, archive} of one guest kernel."""
        if short not in KERNELS:
            raise PackageError(f"kernel {short} is not one of {', '.join(KERNELS)}")
        archive = self.of_sid() if short in OF_SID else self
        pinned, version, prefix = KERNELS[short]
        if release and release != pinned:
            pinned, version = release, None
        release = f"{pinned}-{FLAVOUR}"
        package = f"{prefix}-{release}"
        root, version = archive.unpack(package, version)
        images = list(root.rglob("vmlinuz*"))
        if not images:
            raise PackageError(f"{package} {version} holds no vmlinuz")
        return {
            "release": release,
            "package": package,
            "version": version,
            "image": images[0],
            "root": root,
            "archive": archive,
        }

    def config(self, kernel):
        """The kernel's configuration, which libbpf reads. From 7.2 on it is in linux-base."""
        found = list(kernel["root"].rglob("config-*")) or list(kernel["root"].rglob("modules/*/config"))
        if not found:
            root, _ = kernel["archive"].unpack(f"linux-base-{kernel['release']}", kernel["version"])
            found = list(root.rglob("modules/*/config")) or list(root.rglob("config-*"))
        if not found:
            raise PackageError(f"no configuration for {kernel['release']}")
        return found[0].read_bytes()

    def module(self, kernel, name):
        """A kernel module's bytes. From 7.2 on modules have a package of their own."""
        roots = [kernel["root"]]
        found = list(roots[0].rglob(f"{name}.ko*"))
        if not found:
            root, _ = kernel["archive"].unpack(f"linux-modules-{kernel['release']}", kernel["version"])
            found = list(root.rglob(f"{name}.ko*"))
        if not found:
            raise PackageError(f"no module {name} for {kernel['release']}")
        data = found[0].read_bytes()
        if found[0].suffix == ".xz":
            import lzma

            data = lzma.decompress(data)
        return data
