#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Compiles the demo schedulers. The objects are checked in, so that neither a build
# of the workspace nor a test needs clang; `build.sh --check` proves that they are
# what the sources give.
#
# usage: bpf/build.sh [--check]     CLANG=... and LLVM_STRIP=... choose the tools
set -eu
cd "$(dirname "$0")"

CLANG=${CLANG:-clang-19}
LLVM_STRIP=${LLVM_STRIP:-llvm-strip-19}
for tool in "$CLANG" "$LLVM_STRIP"; do
	command -v "$tool" >/dev/null || {
		echo "build.sh: $tool not found (Debian packages: clang-19 llvm-19)" >&2
		exit 1
	}
done

check=
case "${1:-}" in
"") ;;
--check) check=1 ;;
*)
	echo "usage: build.sh [--check]" >&2
	exit 2
	;;
esac

# Only the upstream version counts: Debian's revision and suite do not change the code.
version=$("$CLANG" --version | sed -n '1s/.*clang version \([0-9.]*\).*/\1/p')
recorded=$(sed -n 's/^clang //p' objects/BUILT_WITH 2>/dev/null || true)
if [ -n "$check" ] && [ "$version" != "$recorded" ]; then
	echo "build.sh: the objects were built with clang $recorded, this is clang $version;" \
		"the comparison would say nothing (set CLANG)" >&2
	exit 3
fi

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for source in *.bpf.c fail/*.bpf.c; do
	object=$(basename "${source%.c}.o")
	# -g gives the BTF that the loader needs; the DWARF that comes with it goes again.
	"$CLANG" -target bpf -mcpu=v3 -O2 -g -std=gnu11 -Wall -Wextra -Werror \
		-Wno-unused-const-variable -Wno-unused-parameter -Wno-unknown-attributes \
		-ffile-prefix-map="$PWD"=. -fdebug-compilation-dir=. \
		-c "$source" -o "$out/$object"
	"$LLVM_STRIP" -g "$out/$object"
	if [ -n "$check" ]; then
		cmp "$out/$object" "objects/$object" || {
			echo "build.sh: objects/$object is not what $source gives; run bpf/build.sh" >&2
			exit 1
		}
	else
		mkdir -p objects
		cp "$out/$object" "objects/$object"
	fi
done
[ -n "$check" ] || echo "clang $version" >objects/BUILT_WITH
