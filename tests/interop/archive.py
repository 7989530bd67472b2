#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Asks DuckDB what `analyze batch` has written of an archive.

    archive.py [INPUT…] [--results DIR] [--sql SQL]

Without INPUT: the corpus and the small captures of tests/findings and tests/signatures. Prints which schedulers stall with an idle CPU,
by kernel, the failures by signature, and what the tables say of themselves; checks that the Parquet table and the
JSON lines have the same rows, and without INPUT that the first answer is the known one. --results keeps the results
there; --sql asks something else of the view `captures`.
DuckDB comes from PyPI into a virtual environment below target/. Exit 1 when something is not as it should be.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DUCKDB = "duckdb==1.4.2"
IDLE = """
select kernel_release as kernel, scheduler, count(distinct input) as captures,
       max(starved_ms) / 1000.0 as longest_s
from captures
where finding_rule = 'idle-cpu-with-waiting-work' and starved_tasks > 0
group by all order by captures desc, kernel, scheduler"""
SHIPPED = ["corpus", "tests/findings", "tests/signatures"]
# What is in them: kernel, scheduler, and how many captures show it.
IDLE_ANSWER = ("7.3.4+deb13-cloud-amd64", "demo_idle", 1)
GROUPS = """
select signature, count(distinct input) as captures, any_value(scheduler) as scheduler,
       any_value(exit_kind_name) as exit_kind, any_value(verdict) as verdict,
       any_value(coalesce(line, program)) as place, list(distinct kernel_release order by kernel_release) as kernels
from captures where signature is not null
group by signature order by captures desc, signature"""


def python(cache):
    """A Python with DuckDB."""
    venv = cache / "duckdb-venv"
    program = venv / "bin/python"
    tried = [str(program), "-c", "import duckdb"]
    if not program.exists() or subprocess.run(tried, stderr=subprocess.DEVNULL, check=False).returncode:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
        subprocess.run([str(venv / "bin/pip"), "install", "-q", DUCKDB], check=True)
    return program


def batch(inputs, results):
    subprocess.run(["cargo", "build", "--release", "--quiet", "-p", "scx-postmortem-analyze", "--features", "parquet"],
                   cwd=ROOT, check=True)
    command = [str(ROOT / "target/release/analyze"), "batch", *map(str, inputs), "--out", str(results),
               "--kernel-tables", "tests/findings/kernel-7.3.tables.zst"]
    done = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}")
    print(done.stdout)


def ask(results, sql, shipped):
    """What runs in the virtual environment."""
    import duckdb  # pylint: disable=import-outside-toplevel,import-error

    connection = duckdb.connect()
    table = results / "index.parquet"
    lines = results / "index.ndjson"
    connection.sql(f"create view captures as from read_parquet('{table}')")
    connection.sql(f"create view lines as from read_json('{lines}', format='newline_delimited', sample_size=-1)")
    if sql:
        connection.sql(sql).show(max_width=200)
        return 0
    print("Which schedulers stall with an idle CPU, by kernel?")
    print(IDLE)
    connection.sql(IDLE).show(max_width=200)
    idle = connection.sql(IDLE).fetchall()
    print("Failures by signature:")
    connection.sql(GROUPS).show(max_width=240)
    rows = connection.sql("select count(*), count(distinct input) from captures").fetchone()
    print(f"{rows[0]} rows of {rows[1]} captures; written by {created_by(connection, table)}")
    wrong = 0
    if not rows[0]:
        wrong += 1
        print("FAILED: the tables have no rows")
    if shipped and IDLE_ANSWER not in [tuple(row[:3]) for row in idle]:
        wrong += 1
        print(f"FAILED: expected {IDLE_ANSWER} among the schedulers that stall with an idle CPU, found {idle}")
    columns = [row[0] for row in connection.sql("describe captures").fetchall()]
    if columns != [row[0] for row in connection.sql("describe lines").fetchall()]:
        wrong += 1
        print("FAILED: the tables have other columns")
    # Texts on both sides: DuckDB guesses the types of JSON.
    as_text = ", ".join(f'"{column}"::varchar as "{column}"' for column in columns)
    differ = connection.sql(f"""select count(*) from (
        (select {as_text} from captures except all select {as_text} from lines) union all
        (select {as_text} from lines except all select {as_text} from captures))""").fetchone()[0]
    if differ:
        wrong += 1
        print(f"FAILED: {differ} rows differ between the Parquet table and the JSON lines")
    else:
        print(f"the Parquet table and the JSON lines have the same {rows[0]} rows of {len(columns)} columns")
    return 1 if wrong else 0


def created_by(connection, table):
    return connection.sql(f"select created_by from parquet_file_metadata('{table}')").fetchone()[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("inputs", nargs="*")
    parser.add_argument("--results", type=pathlib.Path)
    parser.add_argument("--sql")
    parser.add_argument("--ask", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--shipped", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ask:
        return ask(args.ask, args.sql, args.shipped)
    cache = ROOT / "target/interop"
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        results = (args.results or pathlib.Path(work)).absolute()
        batch(args.inputs or SHIPPED, results)
        asked = [str(python(cache)), str(HERE / "archive.py"), "--ask", str(results)]
        asked += ["--sql", args.sql] if args.sql else []
        asked += [] if args.inputs else ["--shipped"]
        return subprocess.run(asked, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
