#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Schedulers as people use them: built from crates.io, for `run.py --demo lavd` and the like.

    tests/guest/schedulers.py [NAME...]     build these, or all of them

Not part of any build or test of the workspace. The versions are pinned; a binary that is
in the cache is taken as it is. Needs cargo (with a toolchain that the crates accept: 1.91),
clang-19 with its libclang, make and a C compiler. The headers of libelf and zlib come from
the machine's own Debian suite, unpacked into the cache unless they are installed; they fit
the machine's C library, which must not be newer than the guest's (see packages.SUITES).
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from packages import Archive, PackageError, install_here, run  # noqa: E402

# name of the recipe: (crate, version)
SCHEDULERS = {
    "bpfland": ("scx_bpfland", "1.1.4"),
    "lavd": ("scx_lavd", "1.1.4"),
    "p2dq": ("scx_p2dq", "1.1.4"),
}
CLANG = "clang-19"
HEADERS = ("libelf-dev", "libelf1", "zlib1g-dev")
TRIPLET = "x86_64-linux-gnu"
# The slowest of them on a busy machine with two cores: minutes. This is a stop, not an estimate.
BUILD_SECONDS = 3600


def headers(cache):
    """A directory with what HEADERS hold, or None where the machine has them itself."""
    if all(pathlib.Path("/usr/include", name).exists() for name in ("libelf.h", "zlib.h")):
        return None
    root = cache / "headers"
    if root.is_dir():
        return root
    with tempfile.TemporaryDirectory(dir=cache) as work:
        # With the machine's own apt configuration, unlike packages.Archive: these are linked against.
        run(["apt-get", "download", "-q", *HEADERS], cwd=work)
        unpacked = pathlib.Path(work) / "x"
        for package in sorted(pathlib.Path(work).glob("*.deb")):
            run(["dpkg-deb", "-x", str(package), str(unpacked)])
        try:
            unpacked.rename(root)
        except OSError:
            if not root.is_dir():  # else another run was faster
                raise
    return root


def without_this_machine(cache):
    """Compiler options that keep this machine's directories out of programs and of BPF line information."""
    home = pathlib.Path(os.environ.get("CARGO_HOME") or pathlib.Path.home() / ".cargo") / "registry/src"
    # One directory for each registry, and the crates in it; there is none before the first download.
    places = {str(place): "crates" for place in sorted(home.glob("*"))} or {str(home): "crates"}
    places[str(cache / "target")] = "target"
    return places


def environment(cache):
    """What the crates' build scripts look at."""
    places = without_this_machine(cache).items()
    variables = dict(os.environ, CARGO_TARGET_DIR=str(cache / "target"), BPF_CLANG=CLANG)
    variables["RUSTFLAGS"] = " ".join(f"--remap-path-prefix={old}={new}" for old, new in places)
    variables["BPF_EXTRA_CFLAGS_PRE_INCL"] = " ".join(f"-ffile-prefix-map={old}={new}" for old, new in places)
    libclang = sorted(pathlib.Path("/usr/lib").glob("llvm-*/lib/libclang*.so*"))
    same = [path for path in libclang if path.parts[3] == CLANG.replace("clang", "llvm")]
    if same and "LIBCLANG_PATH" not in variables:
        variables["LIBCLANG_PATH"] = str(same[0].parent)
    root = headers(cache)
    if root:
        include, library = root / "usr/include", root / "usr/lib" / TRIPLET
        for name, paths in {
            "CPATH": (include, include / TRIPLET),
            "LIBRARY_PATH": (library,),
            "PKG_CONFIG_PATH": (library / "pkgconfig",),
        }.items():
            given = [variables[name]] if variables.get(name) else []
            variables[name] = os.pathsep.join([*map(str, paths), *given])
    return variables


def build(archive, name):
    """{crate, version, binary, build}: the program, stripped, and how it was made."""
    crate, version = SCHEDULERS[name]
    cache = archive.cache / "schedulers"
    done = cache / f"{crate}-{version}"
    if not (done / "build.json").exists():
        # A lock of its own: guests that only need packages must not wait for a build.
        with Archive(cache).locked():
            if not (done / "build.json").exists():
                make(cache, crate, version, done)
    return {
        "crate": crate,
        "version": version,
        "binary": done / crate,
        "build": json.loads((done / "build.json").read_text()),
    }


def make(cache, crate, version, done):
    install_here({"cargo": "cargo", CLANG: CLANG, "make": "make", "cc": "gcc", "strip": "binutils",
                  "pkg-config": "pkg-config", "dpkg-deb": "dpkg"})
    cache.mkdir(parents=True, exist_ok=True)
    print(f"building {crate} {version}; this takes minutes", file=sys.stderr)
    began = time.monotonic()
    variables = environment(cache)
    root = cache / "root"
    command = ["cargo", "install", "--quiet", "--locked", "--no-track", "--force", "-j2", "--root", str(root),
               "--version", version, crate]
    try:
        subprocess.run(command, check=True, env=variables, cwd=cache, timeout=BUILD_SECONDS)
    except subprocess.CalledProcessError as error:
        raise PackageError(f"`{' '.join(command)}` failed; what it said is above") from error
    except subprocess.TimeoutExpired as error:
        raise PackageError(f"{crate} was not built within {BUILD_SECONDS} s") from error
    done.mkdir(exist_ok=True)
    shutil.copyfile(root / "bin" / crate, done / crate)
    run(["strip", "-s", str(done / crate)])
    (done / crate).chmod(0o755)
    record = {
        "rustc": run(["rustc", "--version"]).strip(),
        "clang": run([CLANG, "--version"]).splitlines()[0],
        "seconds": round(time.monotonic() - began),
        "bytes": (done / crate).stat().st_size,
    }
    (done / "build.json").write_text(json.dumps(record, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "scx-postmortem"
    parser.add_argument("--cache", type=pathlib.Path, default=default)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCHEDULERS)}")
    options = parser.parse_args()
    for name in options.names or SCHEDULERS:
        if name not in SCHEDULERS:
            parser.error(f"{name} is not one of {', '.join(SCHEDULERS)}")
        made = build(Archive(options.cache), name)
        print(f"{made['crate']} {made['version']}: {made['binary']}, {made['build']['bytes']} bytes, "
              f"built in {made['build']['seconds']} s")


if __name__ == "__main__":
    try:
        main()
    except PackageError as error:
        print(f"schedulers.py: {error}", file=sys.stderr)
        sys.exit(1)
