"""Recordings of one kernel, taken apart again: every record goes to its endpoint, and says what it would say there."""

import json
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

CONVERT = Path(__file__).resolve().parent.parent / "data" / "convert.py"
T = 1_700_000_000


def facts(slot: int, uts: int, init: int, **more) -> dict:
    return {
        "host": f"web-{slot}",
        "role": "web",
        "slot": slot,
        "mark": 20000 + 100 * slot,
        "uts": uts,
        "init": init,
        "start": T,
        "end": T + 100,
        "activities": ["visitors"],
        "attack": None,
        "intervals": [],
        "users": ["alice", "bob", "deploy"],
        "errors": [],
        **more,
    }


def audit(serial: int, text: str, kind: str = "SYSCALL", second: int = 1) -> str:
    return f"type={kind} msg=audit({T + second}.000:{serial}): {text}"


class Recordings(unittest.TestCase):
    def convert(self, hosts: list, log: list, trace: list) -> tuple[dict, list]:
        """Messages of each endpoint, in the order of the stream, and the labels."""
        with tempfile.TemporaryDirectory() as folder:
            raw, out = Path(folder) / "raw", Path(folder) / "out"
            raw.mkdir()
            (raw / "hosts.json").write_text(json.dumps(hosts))
            (raw / "clock").write_text(str(T * 10**9))
            (raw / "audit.log").write_text("\n".join(log) + "\n")
            (raw / "trace.tsv").write_text(
                "\n".join(["Attaching 11 probes...", *("\t".join(map(str, line)) for line in trace)]) + "\n"
            )
            subprocess.run([sys.executable, CONVERT, raw, out], check=True, capture_output=True)
            labels = json.loads((out / "labels.json").read_text())
            streams = {}
            for entry in labels:
                text = subprocess.run(
                    ["zstd", "-dcq", out / f"{entry['id']}.ndjson.zst"], check=True, capture_output=True, text=True
                ).stdout
                values = [json.loads(line)["value"] for line in text.splitlines()]
                self.assertEqual(values, sorted(values, key=lambda v: v["@timestamp"]))
                host = (entry["clean_hosts"] + [h["host"] for h in entry["hosts"]])[0]
                self.assertEqual({v["host"]["name"] for v in values} - {host}, set())
                streams[host] = [v["message"] for v in values]
            return streams, labels

    def test_audit_records_by_login_uid_and_session(self):
        log = [
            audit(
                1,
                'ppid=71 pid=90 auid=20000 uid=33 ses=7 comm="nginx" key="net"\x1dAUID="unknown(20000)" UID="www-data"',
            ),
            audit(
                2,
                'ppid=5 pid=91 auid=20101 uid=20101 euid=0 ses=8 comm="sudo"\x1dAUID="unknown(20101)" UID="unknown(20101)"',
            ),
            audit(3, "pid=92 uid=0 old-auid=20100 auid=0 tty=(none) old-ses=6 ses=9 res=1", "LOGIN"),
            audit(4, 'ppid=92 pid=93 auid=0 uid=0 ses=9 comm="cron"'),
            audit(5, 'ppid=1 pid=94 auid=0 uid=0 ses=55 comm="other"'),
            audit(6, 'ppid=1 pid=95 auid=4294967295 uid=0 ses=4294967295 comm="machine"'),
            audit(7, 'ppid=1 pid=71 auid=20000 uid=0 ses=7 comm="systemd"'),
            audit(8, "auid=20000 op=add_rule", "CONFIG_CHANGE"),
            audit(9, 'ppid=1 pid=96 auid=20001 uid=0 ses=7 comm="late"', second=200),
        ]
        streams, _ = self.convert([facts(0, 500, 71), facts(1, 501, 72)], log, [])
        first, second = streams["web-0"], streams["web-1"]
        self.assertEqual(len(first), 1)
        self.assertIn("ppid=1 pid=90 auid=4294967295 uid=33 ses=4294967295", first[0])
        self.assertIn('AUID="unset"', first[0])
        self.assertIn("auid=1000 uid=1000 euid=0 ses=8", second[0])
        self.assertNotIn("\x1d", second[0])  # every second endpoint is RAW
        self.assertIn("old-auid=4294967295 auid=0 tty=(none) old-ses=4294967295 ses=9", second[1])
        self.assertIn('comm="cron"', second[2])
        self.assertEqual(len(second), 3)

    def test_traced_calls_by_namespace_and_by_parent(self):
        ns = 10**9
        trace = [
            (ns, 500, "E", 80, 71, 20001, "sh", "/usr/bin/ls"),
            (ns + 1, 500, "O", 80, 71, 0, "tmux: server", 0o101, "/tmp/a b"),
            (ns + 2, 777, "E", 81, 80, 0, "crun", "/bin/sh"),  # a container's own namespace
            (ns + 3, 777, "C", 82, 1, 0, "wget", "10.88.0.1", 0x5000),
            (ns + 4, 999, "E", 500, 499, 0, "stranger", "/bin/true"),
            (9 * ns, 998, "E", 501, 80, 0, "later", "/bin/true"),  # 80 is another process by now
            (ns + 5, 500, "E", 71, 70, 0, "systemd", "/bin/own"),
            (ns + 6, 500, "O", 80, 71, 0, "sh", 0, ""),
            (ns + 7, 500, "A", 83, 71, 33, "nginx", "10.88.0.1", 0x3930),
        ]
        streams, labels = self.convert([facts(0, 500, 71)], [], trace)
        self.assertEqual(
            [m.split("[", 1)[1].split() for m in streams["web-0"]],
            [
                ["EXEC]", "pid=80", "ppid=1", "uid=1000", "sh", "/usr/bin/ls"],
                ["FILE]", "pid=80", "tmux:", "server", "flags=O_WRONLY|O_CREAT", "/tmp/a", "b"],
                ["EXEC]", "pid=81", "ppid=80", "uid=0", "crun", "/bin/sh"],
                ["CONNECT]", "pid=82", "wget", "->", "10.88.0.1:80"],
                ["ACCEPT]", "pid=83", "nginx", "->", "10.88.0.1:12345"],
            ],
        )
        self.assertEqual(
            labels[0]["events"], {"linux-ebpf-process-logs": 2, "linux-ebpf-file-logs": 1, "linux-ebpf-network-logs": 2}
        )

    def test_an_attack_leaves_benign_time_around_it(self):
        host = facts(0, 500, 71, attack="dropper", intervals=[[T + 30, T + 60]], title="t", techniques=["T1105"])
        _, labels = self.convert([host], [], [(10**9, 500, "S", 80, 71, 0, "sh", 2)])
        self.assertEqual(labels[0]["clean_hosts"], [])
        (attacked,) = labels[0]["hosts"][0]["attack_intervals"]
        before, after = (i["interval"] for i in labels[0]["benign_intervals"])
        self.assertEqual((before[1], after[0]), tuple(attacked))
        self.assertEqual(labels[0]["techniques"], ["T1105"])


if __name__ == "__main__":
    unittest.main()
