#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Runs `analyze batch` over captures in object stores, and compares with the same captures as files.

    stores.py [--latency MS] [CAPTURE…]

Without CAPTURE: the corpus and a few small ones. A server on this machine speaks what `analyze` uses of plain HTTP, S3,
Google's and Azure's blob stores: objects with ranges, entity tags and conditions, lists in pages of two. It counts what is
asked of it. One capture more has a name that means something else in an address. For each store the results have to be
those of the files but for the names, and what the server sent has to be what `analyze` says it fetched. Then one object is
replaced in the middle of being read, one goes, and the body of one answer is cut off, and of what is asked to go on from there:
each has to cost that capture's report alone. Of a capture longer than 64 MB less than a quarter may be fetched. Exit 1 when
something is not as it should be.
"""

import argparse
import email.utils
import hashlib
import http.server
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ANALYZE = ROOT / "target/release/analyze"
TABLES = ROOT / "tests/findings/kernel-7.3.tables.zst"
# Captures that hold much that no report needs.
BIG = 64 << 20
PAGE = 2
# Beside the captures' own names one that is another in an address, also once decoded.
ODD = "run #3%20.core.zst"
# The stores' addresses, and what of them is signed.
STORES = {
    "http": "http://{host}/plain/bucket",
    "s3": "s3://bucket",
    "gs": "gs://bucket",
    "az": "az://bucket",
}
PREFIXES = {"plain": "http", "s3": "s3", "gcs": "gs", "devstoreaccount1": "az"}


class Objects:
    """What the server has and what was asked of it."""

    def __init__(self, paths, latency):
        self.bytes = {f"captures/{name}": path.read_bytes() for name, path in paths.items()}
        self.latency = latency
        self.changed = time.time() // 1 - 1000
        self.lock = threading.Lock()
        self.requests = self.sent = self.lists = 0
        self.faults = []
        # What is to go wrong: the object's name, and what happens to its tenth range.
        self.spoil = None
        self.ranges = {}

    def tag(self, name):
        return '"' + hashlib.md5(self.bytes[name]).hexdigest() + '"'

    def begin(self):
        with self.lock:
            self.requests = self.sent = self.lists = 0
            self.ranges = {}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, with_body):
        objects = self.server.objects
        time.sleep(objects.latency)
        url = urllib.parse.urlsplit(self.path)
        parts = urllib.parse.unquote(url.path).strip("/").split("/")
        store = PREFIXES.get(parts[0])
        query = urllib.parse.parse_qs(url.query)
        signed = self.headers.get("Authorization", "")
        expected = {"s3": "AWS4-HMAC-SHA256 Credential=key/", "az": "SharedKey devstoreaccount1:"}.get(store, "")
        if store is None or parts[1:2] != ["bucket"] or not signed.startswith(expected):
            return self.send(403, b"not so")
        if "prefix" in query or len(parts) == 2:
            return self.listed(store, query)
        name = "/".join(parts[2:])
        if name not in objects.bytes:
            return self.send(404, b"<Error><Code>NoSuchKey</Code></Error>")
        data, tag = objects.bytes[name], objects.tag(name)
        headers = {"ETag": tag, "Last-Modified": email.utils.formatdate(objects.changed, usegmt=True),
                   "Accept-Ranges": "bytes", "x-ms-blob-type": "BlockBlob"}
        if not with_body:
            return self.send(200, b"", headers, length=len(data))
        asked = self.headers.get("Range") or self.headers.get("x-ms-range")
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked or "")
        if not found:
            with objects.lock:
                objects.faults.append(f"{store}: {name} was asked for without a range")
            return self.send(200, data, headers)
        begin, end = int(found[1]), min(int(found[2]), len(data) - 1)
        with objects.lock:
            objects.requests += 1
            count = objects.ranges[name] = objects.ranges.get(name, 0) + 1
            how = objects.spoil[1] if objects.spoil and objects.spoil[0] == name else None
            spoil = how if count == 10 or (count > 10 and how == "cut") else None
            if spoil == "replace":
                objects.bytes[name] = data = data[:-1] + bytes([data[-1] ^ 1])
                tag = objects.tag(name)
        if self.headers.get("If-Match", tag) != tag:
            return self.send(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
        if spoil == "gone":
            return self.send(404, b"gone")
        body = data[begin : end + 1]
        whole = len(body)
        if spoil == "cut":
            # In the middle of it; whoever asks again for what is left gets nothing of it.
            body = body[: whole // 2 if count == 10 else 0]
            self.close_connection = True
        with objects.lock:
            objects.sent += len(body)
        return self.send(206, body, headers, length=whole)

    def listed(self, store, query):
        """Names in pages, so that going on is tested too."""
        objects = self.server.objects
        if store == "http":
            return self.send(405, b"no lists here")
        with objects.lock:
            objects.lists += 1
        prefix = query.get("prefix", [""])[0]
        names = sorted(name for name in objects.bytes if name.startswith(prefix))
        mark = (query.get("continuation-token") or query.get("marker") or ["0"])[0]
        page, after = names[int(mark) : int(mark) + PAGE], int(mark) + PAGE
        more = str(after) if after < len(names) else ""
        if store == "az":
            rows = "".join(f"<Blob><Name>{name}</Name><Properties><Last-Modified>"
                           f"{email.utils.formatdate(objects.changed, usegmt=True)}</Last-Modified><Content-Length>"
                           f"{len(objects.bytes[name])}</Content-Length><Content-Type>x</Content-Type><Etag>"
                           f"{objects.tag(name).strip(chr(34))}</Etag></Properties></Blob>" for name in page)
            body = f"<EnumerationResults><Blobs>{rows}</Blobs><NextMarker>{more}</NextMarker></EnumerationResults>"
        else:
            at = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(objects.changed))
            rows = "".join(f"<Contents><Key>{name}</Key><Size>{len(objects.bytes[name])}</Size><LastModified>{at}"
                           f"</LastModified><ETag>{objects.tag(name)}</ETag></Contents>" for name in page)
            token = f"<NextContinuationToken>{more}</NextContinuationToken>" if more else ""
            body = f"<ListBucketResult>{rows}{token}</ListBucketResult>"
        return self.send(200, body.encode(), {"Content-Type": "application/xml"})

    def send(self, status, body, headers=None, length=None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)


def environment(host, work):
    """What each store's own tools would be configured with."""
    account = work / "account.json"
    account.write_text(json.dumps({"gcs_base_url": f"http://{host}/gcs", "disable_oauth": True, "client_email": "",
                                   "private_key": "", "private_key_id": ""}))
    return {
        **{key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "GOOGLE_", "AZURE_"))},
        "AWS_ENDPOINT_URL": f"http://{host}/s3", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "GOOGLE_SERVICE_ACCOUNT": str(account), "GOOGLE_ALLOW_HTTP": "true",
        "AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": f"http://{host}",
    }


def batch(inputs, out, env=None):
    begin = time.monotonic()
    done = subprocess.run([str(ANALYZE), "batch", *map(str, inputs), "--out", str(out), "--kernel-tables", str(TABLES)],
                          check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    return done.returncode, time.monotonic() - begin, done.stdout


def rows(out):
    """The table's rows by the capture's own name, without what only says where it was."""
    found = {}
    for line in (out / "index.ndjson").read_text().splitlines():
        row = json.loads(line)
        name = row["input"].rsplit("/", 1)[-1]
        if "://" in row["input"]:
            name = urllib.parse.unquote(name)
        report = row.pop("report")
        text = (out / report).read_text() if report else None
        found.setdefault(name, []).append(({key: value for key, value in row.items() if key != "input"}, text))
    return found


def upgraded(paths, work):
    """Copies that have their digest in the first bytes, as captures of today have."""
    copies = {}
    for path in paths:
        name = f"{path.parent.name}.core.zst" if path.name == "guest.core.zst" else path.name
        copies[name] = work / "files" / name
        copies[name].parent.mkdir(exist_ok=True)
        copies[name].write_bytes(path.read_bytes())
    copies[ODD] = work / "files" / ODD
    copies[ODD].write_bytes(paths[-1].read_bytes())
    subprocess.run([str(ANALYZE), "upgrade", "--write", *map(str, copies.values())], check=True, stdout=subprocess.DEVNULL)
    return copies


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captures", nargs="*", type=pathlib.Path)
    parser.add_argument("--latency", type=float, default=0, metavar="MS", help="how long the server waits before each answer")
    parser.add_argument("--build", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    if options.build:
        subprocess.run(["cargo", "build", "--release", "--quiet", "-p", "scx-postmortem-analyze", "--features", "archive"],
                       cwd=ROOT, check=True)
    paths = options.captures or [*sorted(ROOT.glob("corpus/*/guest.core.zst")),
                                 *(ROOT / f"tests/findings/{name}.core.zst" for name in ("hog", "idle", "lock"))]
    faults = []
    with tempfile.TemporaryDirectory(prefix="scxpm-stores-") as name:
        work = pathlib.Path(name)
        copies = upgraded(paths, work)
        code, seconds, said = batch([work / "files"], work / "near")
        if code:
            raise SystemExit(f"of the files: exit {code}: {said}")
        near = rows(work / "near")
        print(f"{len(copies)} captures as files, {sum(path.stat().st_size for path in copies.values())} bytes: {seconds:.2f} s")
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.objects = objects = Objects(copies, options.latency / 1000)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_port}"
        env = environment(host, work)
        for store, address in STORES.items():
            faults += compared(store, address.format(host=host), objects, near, work, env)
        for spoil in ("replace", "gone", "cut"):
            faults += spoiled(spoil, objects, near, work, env)
        faults += objects.faults
        for name in copies if len(copies) <= 12 else ():
            objects.begin()
            address = f"http://{host}/plain/bucket/captures/{urllib.parse.quote(name)}"
            code, seconds, said = batch([address], work / f"one-{name}", env)
            size = len(objects.bytes[f"captures/{name}"])
            if size > BIG and objects.sent >= size / 4:
                faults.append(f"{name}: {objects.sent} of its {size} bytes were fetched, expected less than a quarter")
            print(f"  {name:24} {size:12} bytes  {objects.sent / size:6.1%}  {objects.requests:4} requests  {seconds:6.2f} s")
    for fault in faults:
        print(f"FAILED: {fault}")
    return 1 if faults else 0


def compared(store, address, objects, near, work, env):
    objects.begin()
    # A plain server has no list.
    inputs = [f"{address}/captures/"]
    if store == "http":
        inputs = [f"{address}/{urllib.parse.quote(name)}" for name in objects.bytes]
    code, seconds, said = batch(inputs, work / store, env)
    if code:
        return [f"{store}: exit {code}: {said[-400:]}"]
    far = rows(work / store)
    wrong = [f"{store}: {name} is not as from the file" for name in sorted(near.keys() | far.keys())
             if near.get(name) != far.get(name)]
    told = re.search(r"fetched (\d+) of \d+ bytes .* in (\d+) requests", said)
    numbers = [int(text) for text in told.groups()] if told else None
    if numbers != [objects.sent, objects.requests]:
        wrong.append(f"{store}: says {numbers or said!r}, the server sent {objects.sent} bytes for {objects.requests} requests")
    total = sum(map(len, objects.bytes.values()))
    print(f"{store:5} {len(far)} captures: {objects.sent / total:.1%} in {objects.requests} requests, {seconds:.2f} s, "
          f"{objects.lists} lists; {len(wrong)} not as the files")
    return wrong


def spoiled(how, objects, near, work, env):
    """One capture is lost, no other."""
    victim = next(iter(objects.bytes))
    kept = objects.bytes[victim]
    objects.begin()
    objects.spoil = (victim, how)
    out = work / how
    code, _, said = batch(["s3://bucket/captures/"], out, env)
    objects.spoil = None
    objects.bytes[victim] = kept
    far, name = rows(out), victim.rsplit("/", 1)[-1]
    error = far.get(name, [({}, None)])[0][0].get("error")
    print(f"{how}: exit {code}, {name}: {error}")
    wrong = [f"{how}: {other} is not as from the file" for other in near if other != name and near[other] != far.get(other)]
    if code != 3 or not error:
        wrong.append(f"{how}: expected exit 3 and an error for {name}: exit {code}, {said[-300:]}")
    code, _, said = batch(["s3://bucket/captures/"], out, env)
    if code or rows(out) != near:
        wrong.append(f"{how}: once the object is whole again, the same command does not complete the results: exit {code}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
