#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Asks `analyze query` what drgn was asked, and compares.

    compare_query.py target/release/analyze FILE DRGN.json

DRGN.json is drgn_query.py's, of the ELF core in FILE. Exit 1 on any difference.
"""

import json
import subprocess
import sys

# Fewer say too little.
LEAST = 30


def plain(value):
    """A value of an answer as drgn_query.py has it."""
    if not isinstance(value, dict):
        return value
    kind = value.get("kind")
    if kind == "array":
        data = bytes(each["value"] for each in value["elements"] if each["kind"] in ("char", "int", "uint"))
        return data.split(b"\0")[0].decode("utf-8", "replace")
    if kind == "struct":  # atomic_t
        return plain(value["members"][0]["value"])
    if kind == "bool":
        return int(value["value"])
    return value.get("value")


def main():
    analyze, file, listed = sys.argv[1:]
    with open(listed) as stream:
        wanted = json.load(stream)
    done = subprocess.run([analyze, "query", file, "--json", *(expression for expression, _ in wanted)],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if not done.stdout:
        raise SystemExit(f"analyze query printed nothing, exit {done.returncode}: {done.stderr.strip()}")
    equal = absent = 0
    different = []
    for (expression, value), answer in zip(wanted, json.loads(done.stdout), strict=True):
        if value is None or value == "fault":
            # No such member, or a pointer that leads nowhere.
            if "error" in answer:
                absent += 1
                continue
        ours = plain(answer["value"]) if "value" in answer else answer["error"]["message"]
        if ours == value:
            equal += 1
        else:
            different.append(f"{expression}: drgn {value!r}, analyze {ours!r}")
    print("\n".join(different))
    print(f"{equal} expressions equal, {absent} without a value in both, {len(different)} differ")
    return 1 if different or equal < LEAST else 0


if __name__ == "__main__":
    raise SystemExit(main())
