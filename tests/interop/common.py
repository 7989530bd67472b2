# SPDX-License-Identifier: GPL-2.0-only
"""What the comparison scripts share: getting a report, counting, printing."""

import collections
import json
import os
import subprocess


def load_report(path, core=None):
    """A report's JSON, from a file or from an `analyze` binary run on `core`."""
    if core is not None:
        command = [path, core, "--format", "json"]
        run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        try:
            return json.loads(run.stdout)
        except ValueError:
            raise SystemExit(
                f"`{' '.join(command)}` gave no report (exit {run.returncode}): "
                f"{run.stderr.decode('utf-8', 'replace').strip()[-400:]}"
            ) from None
    if os.access(path, os.X_OK) and not path.endswith(".json"):
        raise SystemExit(f"{path} is a program; say with --core which file it is to read")
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: {error}") from None


def hexa(text):
    """A Hex member as a number; None stays None."""
    return None if text is None else int(text, 16)


UNAVAILABLE = "the report says that it is not available, and why"


def unavailable(own, *sections):
    """Whether the report lists one of these under `unavailable`."""
    return any(entry["section"] in sections for entry in own.get("unavailable") or [])


class Tally:
    """Values compared, by section, and what differed."""

    def __init__(self):
        self.compared = collections.Counter()
        self.explained = collections.Counter()
        self.problems = []
        self.reasons = collections.Counter()

    def check(self, section, where, ours, theirs):
        self.compared[section] += 1
        if ours != theirs or isinstance(ours, bool) != isinstance(theirs, bool):
            self.problems.append((section, f"{where}: ours {show(ours)}, theirs {show(theirs)}"))
            return False
        return True

    def allow(self, section, where, ours, theirs, rule, ok):
        """Equal, or different in the way that `rule` says."""
        self.compared[section] += 1
        if ours == theirs:
            return True
        if ok:
            self.explained[section] += 1
            self.reasons[f"{section}: {rule}"] += 1
            return True
        self.problems.append((section, f"{where}: ours {show(ours)}, theirs {show(theirs)}; allowed: {rule}"))
        return False

    def problem(self, section, text):
        self.compared[section] += 1
        self.problems.append((section, text))

    def print(self, name, against, limit=200):
        width = max([len(s) for s in self.compared] + [5])
        wrong = collections.Counter(section for section, _ in self.problems)
        print(f"{name} against {against}")
        print(f"  {'':{width}}  compared  equal  explained  unexplained")
        total = [0, 0, 0, 0]
        for section in list(self.compared) + [None]:
            if section is None:
                row, label = total, "all"
            else:
                bad, why = wrong[section], self.explained[section]
                row = [self.compared[section], self.compared[section] - bad - why, why, bad]
                total = [a + b for a, b in zip(total, row)]
                label = section
            print(f"  {label:{width}}  {row[0]:8}  {row[1]:5}  {row[2]:9}  {row[3]:11}")
        for reason, count in sorted(self.reasons.items()):
            print(f"  explained {count}x {reason}")
        for section, text in self.problems[:limit]:
            print(f"  DIFFERENT {section}: {text}")
        if len(self.problems) > limit:
            print(f"  … and {len(self.problems) - limit} more")
        return 1 if self.problems else 0


def show(value):
    if isinstance(value, int) and not isinstance(value, bool) and value > 1 << 32:
        return f"{value} ({value:#x})"
    text = repr(value)
    return text if len(text) <= 160 else text[:157] + "..."
