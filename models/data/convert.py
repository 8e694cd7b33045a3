#!/usr/bin/env python3
"""Turns what was recorded into labelled streams, one per endpoint, in the raw formats that Logster reads.

    convert.py RAW OUT        RAW: audit.log, trace.tsv, clock, hosts.json; OUT: labels.json, <id>.ndjson.zst

An audit event belongs to the endpoint whose range of login uids holds its login uid; root's own sessions (login uid 0)
belong where their session was opened. A traced call belongs to its UTS namespace; one of a container to the endpoint
that its process comes from. What belongs nowhere, or was before the start and after the end, is left out.

Changed in the text, because recording many endpoints on one kernel needed it, and nothing else:
  * the login uid that marks an endpoint reads as unset, as a service's does; its session likewise;
  * the accounts' numbers become 1000, 1001, 1002;
  * process 1 of an endpoint reads as 1 where it is a parent, and what it does itself is left out;
  * every second endpoint is written without what auditd adds after the record (log_format RAW).
"""

import collections
import functools
import json
import pathlib
import re
import subprocess
import sys
import time

MARK, STEP = 20000, 100
FAMILIES = {
    0: "AF_UNSPEC",
    1: "AF_UNIX",
    2: "AF_INET",
    10: "AF_INET6",
    16: "AF_NETLINK",
    17: "AF_PACKET",
    38: "AF_ALG",
    40: "AF_VSOCK",
}
OPEN_FLAGS = (
    (0o100, "O_CREAT"),
    (0o200, "O_EXCL"),
    (0o1000, "O_TRUNC"),
    (0o2000, "O_APPEND"),
    (0o200000, "O_DIRECTORY"),
)
RECORD = re.compile(r"type=(\S+) msg=audit\((\d+)\.(\d{3}):(\d+)\):")
LOGIN_UID = re.compile(r"\b(?:old-)?auid=(\d+)")
SESSION = re.compile(r" ses=(\d+)")
NUMBER = re.compile(r"\b((?:old-)?auid|[efs]?s?[ug]id|ou?id|ogid|oauid|obj_uid|id)=(2\d{4})\b")
UNKNOWN = re.compile(r"unknown\((2\d{4})\)")
OWN = {"CONFIG_CHANGE", "DAEMON_START", "DAEMON_END", "DAEMON_CONFIG", "BPF"}  # the recorder's


class Stream:
    """One endpoint's records, in the order of their time."""

    def __init__(self, facts, number):
        self.facts = facts
        self.start, self.end = (int(facts[k] * 1e9) for k in ("start", "end"))
        self.init, self.mark = facts["init"], facts["mark"]
        self.enriched = number % 2 == 0
        self.records = []
        self.counts = collections.Counter()
        self.empty = 0

    def add(self, ns, topic, message):
        if self.start <= ns < self.end:
            self.records.append((ns, len(self.records), topic, message))
            self.counts[topic] += 1

    def uid(self, number):
        """An account's number as another machine would have it; the mark itself is no account."""
        number = int(number)
        return number - self.mark - 1 + 1000 if self.mark < number < self.mark + STEP else number


@functools.lru_cache(64)
def second(seconds):
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def iso(ns):
    return second(ns // 10**9).replace(" ", "T") + f".{ns // 10**6 % 1000:03}Z"


def opened(flags):
    return "|".join(
        [("O_RDONLY", "O_WRONLY", "O_RDWR", "O_RDWR")[flags & 3]] + [name for bit, name in OPEN_FLAGS if flags & bit]
    )


def swapped(port):
    return (port & 255) << 8 | port >> 8


def traced(raw, streams):
    """The tracer's lines. Returns how many belonged nowhere and how many could not be read."""
    offset = int((raw / "clock").read_text())
    spaces = {s.facts["uts"]: s for s in streams if s.facts["uts"]}
    born = {}  # process: its endpoint and when it was seen, for containers with a UTS namespace of their own
    lost = collections.Counter()
    with open(raw / "trace.tsv", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            field = line.rstrip("\n").split("\t")
            if len(field) < 8 or not field[0].isdigit():
                lost["unreadable"] += line[0] != "A" and line.strip() != ""
                continue
            ns, space, kind, pid, parent = int(field[0]) + offset, int(field[1]), field[2], int(field[3]), int(field[4])
            stream = spaces.get(space)
            if stream is None:
                # Numbers of processes are used again: only one seen just now is the same process.
                near = [born[p] for p in (pid, parent) if p in born and abs(ns - born[p][1]) < 2 * 10**9]
                if not near:
                    lost["nowhere"] += 1
                    continue
                stream = spaces[space] = near[0][0]
            born[pid] = stream, ns
            if pid == stream.init:
                continue
            parent = 1 if parent == stream.init else parent
            comm, day = field[6], second(ns // 10**9)
            if kind == "E" and field[7]:
                stream.add(
                    ns,
                    "linux-ebpf-process-logs",
                    f"{day} [EXEC]    pid={pid:<7} ppid={parent:<7} uid={stream.uid(field[5]):<5} {comm:<16} {field[7]}",
                )
            elif kind == "O" and len(field) > 8 and field[8]:
                stream.add(
                    ns,
                    "linux-ebpf-file-logs",
                    f"{day} [FILE]    pid={pid:<7} {comm:<16} flags={opened(int(field[7])):<10} "
                    + "\t".join(field[8:]),
                )
            elif kind == "S":
                family = int(field[7])
                stream.add(
                    ns,
                    "linux-ebpf-network-logs",
                    f"{day} [SOCKET]   pid={pid:<7} {comm:<16} {FAMILIES.get(family, f'AF_{family}')}",
                )
            elif kind in "CA" and len(field) > 8:
                what = "[CONNECT]" if kind == "C" else "[ACCEPT]"
                address = f"[{field[7]}]" if ":" in field[7] else field[7]
                stream.add(
                    ns,
                    "linux-ebpf-network-logs",
                    f"{day} {what:<10} pid={pid:<7} {comm:<16} -> {address}:{swapped(int(field[8]))}",
                )
            elif kind in "EO":
                stream.empty += 1
            else:
                lost["unreadable"] += 1
    return lost


def audited(raw, streams):
    """The audit log, event by event: records of one serial belong together. Returns what was left out, by reason."""
    slots = {s.facts["slot"]: s for s in streams}
    sessions = {}  # the kernel's number of a login session, used once: where it was opened
    lost = collections.Counter()
    waiting = collections.OrderedDict()

    def owner(records):
        for record in records:
            for number in map(int, LOGIN_UID.findall(record)):
                if MARK <= number < 30000:
                    return slots.get((number - MARK) // STEP)
        for record in records:
            for session in SESSION.findall(record):
                if session in sessions:
                    return sessions[session]
        return None

    def flush(key, records):
        ns = int(key[0]) * 10**9 + int(key[1]) * 10**6
        if any(RECORD.match(r).group(1) in OWN for r in records):
            lost["recorder"] += len(records)
            return
        stream = owner(records)
        if stream is None:
            lost["nowhere"] += len(records)
            return
        if records[0].startswith("type=LOGIN"):
            sessions[SESSION.search(records[0]).group(1)] = stream
        if re.search(rf" pid={stream.init} ", records[0]) and records[0].startswith("type=SYSCALL"):
            return
        for record in records:
            stream.add(ns, "linux-auditd-logs", rewritten(stream, record))

    with open(raw / "audit.log", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            line = line.rstrip("\n")
            match = RECORD.match(line)
            if not match:
                lost["unreadable"] += 1
                continue
            waiting.setdefault(match.groups()[1:], []).append(line)
            if len(waiting) > 500:
                flush(*waiting.popitem(last=False))
    while waiting:
        flush(*waiting.popitem(last=False))
    return lost


def rewritten(stream, record):
    """One record's text with the changes that the head of this file names."""
    text, separator, added = record.partition("\x1d")
    mark = str(stream.mark)
    if f" auid={mark} " in text:
        text = re.sub(r" ses=\d+", " ses=4294967295", text)
    if f"old-auid={mark} " in text:
        text = re.sub(r"old-ses=\d+", "old-ses=4294967295", text)
    text = NUMBER.sub(
        lambda m: f"{m[1]}=" + ("4294967295" if m[2] == mark and m[1].endswith("auid") else str(stream.uid(m[2]))), text
    )
    text = text.replace(f" ppid={stream.init} ", " ppid=1 ")
    if not (separator and stream.enriched):
        return text
    names = stream.facts["users"]

    def name(match):
        number = int(match[1]) - stream.mark - 1
        return (
            "unset"
            if number == -1
            else names[number]
            if 0 <= number < len(names)
            else f"unknown({stream.uid(match[1])})"
        )

    return text + separator + UNKNOWN.sub(name, added)


def label(stream, identity, path):
    facts, span = stream.facts, [iso(stream.start), iso(stream.end)]
    host, attacked = facts["host"], [[iso(int(t * 1e9)) for t in pair] for pair in facts["intervals"]]
    entry = {
        "id": identity,
        "source": "recorded on a throwaway Debian 12 endpoint (kernel audit and eBPF)",
        "title": "Ordinary work: " + ", ".join(facts["activities"]),
        "workloads": facts["activities"],
        "audit_format": "ENRICHED" if stream.enriched else "RAW",
        "start": span[0],
        "end": span[1],
        "events": dict(stream.counts),
        "bytes": path.stat().st_size,
        "errors": facts["errors"],
        "family": identity,
        "confidence": "high",
        "hosts": [],
        "clean_hosts": [],
        "techniques": [],
        "benign_intervals": [],
        "licence": "own recording",
    }
    if attacked:
        entry.update(
            title=facts["title"],
            techniques=facts["techniques"],
            attacks=[facts["attack"]],
            hosts=[{"host": host, "attack_intervals": attacked}],
        )
        entry["benign_intervals"] = [
            {"host": host, "kind": "pre_attack", "interval": [span[0], attacked[0][0]]},
            {"host": host, "kind": "post_attack", "interval": [attacked[-1][1], span[1]]},
        ]
    else:
        entry.update(clean_hosts=[host], benign_intervals=[{"host": host, "kind": "clean_host", "interval": span}])
    return entry


def main():
    raw, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    streams = [
        Stream(f, n) for n, f in enumerate(json.loads((raw / "hosts.json").read_text())) if f["end"] - f["start"] > 30
    ]
    print("traced calls left out:", dict(traced(raw, streams)), "empty paths:", sum(s.empty for s in streams))
    print("audit records left out:", dict(audited(raw, streams)))
    labels = []
    prefix = time.strftime("%d%H%M", time.gmtime(min(s.start for s in streams) // 10**9))
    for stream in streams:
        identity = f"rec-{prefix}-{stream.facts['host']}" + (
            f"-{stream.facts['attack']}" if stream.facts["attack"] else ""
        )
        path = out / f"{identity}.ndjson.zst"
        stream.records.sort()
        with subprocess.Popen(["zstd", "-q", "-f", "-6", "-o", path], stdin=subprocess.PIPE) as packer:
            for ns, _, topic, message in stream.records:
                value = {
                    "@timestamp": iso(ns),
                    "host": {"name": stream.facts["host"]},
                    "log_source": topic.removesuffix("-logs"),
                    "message": message.encode("utf-8", "surrogateescape").decode("utf-8", "replace"),
                }
                packer.stdin.write(
                    json.dumps({"topic": topic, "value": value}, ensure_ascii=False, separators=(",", ":")).encode()
                    + b"\n"
                )
        labels.append(label(stream, identity, path))
        print(
            f"{identity}: {len(stream.records)} records, {(stream.end - stream.start) / 6e10:.1f} minutes, {path.stat().st_size} bytes"
        )
        stream.records = []
    (out / "labels.json").write_text(json.dumps(labels, indent=1))
    hours = sum(s.end - s.start for s in streams) / 3.6e12
    print(f"{len(streams)} endpoints, {hours:.2f} host-hours, {sum(sum(s.counts.values()) for s in streams)} records")


if __name__ == "__main__":
    main()
