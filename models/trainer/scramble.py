"""Rewrites a recording so that nothing of its laboratory is left: hosts, users, domains, dates and the attackers'
literals get other names, the same everywhere within the recording. What a model learned of behaviour still holds
on the result; what it learned of the laboratory does not.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime, timedelta

#: Names of tools and places that only the attackers of this corpus use.
LITERALS = ("GruntHTTP", "payload", "wardog", "backup-helper", "10.10.10.5", "setsid", "Seatbelt", "SharpView", "launcher")
#: Users and domains that every system has.
SYSTEM = {
    "public", "default", "all users", "administrator", "nt authority", "window manager", "font driver host", "system",
    "local service", "network service", "root", "builtin", "nt service", "workgroup",
}  # fmt: skip
USER = re.compile(r'"[A-Za-z]*User": ?"([^"\\]+)\\\\([^"\\]+)"|\\\\Users\\\\([^"\\ ]+)\\\\|/home/([a-z_][a-z0-9_-]*)')
DATE = re.compile(r"\b(\d{4}-\d{2}-\d{2})(?=[T ]\d{2}:)")
EPOCH = re.compile(r"audit\((\d{10})")


def other(name: str, salt: str) -> str:
    """Another name of the same length and make-up."""
    digest = hashlib.sha256(f"{salt}:{name.lower()}".encode()).digest()
    out = []
    for i, c in enumerate(name):
        k = digest[i % len(digest)]
        if c.isdigit():
            out.append(c if "." in name and i == 0 else str(k % 9 + 1 if i == 0 else k % 10))
        elif c.isalpha() and c.isascii():
            new = chr(ord("a") + k % 26)
            out.append(new.upper() if c.isupper() else new)
        else:
            out.append(c)
    return "".join(out)


class Scramble:
    """The rewriting of one recording; `lines` is read once to find the names."""

    def __init__(self, label: dict, lines):
        self.salt = label["id"]
        self.days = 40 + hashlib.sha256(self.salt.encode()).digest()[0]
        hosts = {h["host"] for h in label["hosts"]} | {b["host"] for b in label["benign_intervals"]} | set(label.get("clean_hosts") or ())
        names = {*hosts, *LITERALS}
        for line in lines:
            for found in USER.finditer(line):
                names.update(g for g in found.groups() if g)
        names = {n for n in names if len(n) > 2 and n.lower() not in SYSTEM}
        self.new = {n.lower(): other(n.lower(), self.salt) for n in names}
        longest_first = sorted(map(re.escape, self.new), key=len, reverse=True)
        self.names = re.compile(rf"(?<![A-Za-z0-9])({'|'.join(longest_first)})(?![A-Za-z0-9])", re.IGNORECASE)

    def name(self, found) -> str:
        old = found.group(0)
        new = self.new[old.lower()]
        return new.upper() if old.isupper() else new

    def date(self, found) -> str:
        return (datetime.fromisoformat(found.group(1)) + timedelta(days=self.days)).strftime("%Y-%m-%d")

    def text(self, line: str) -> str:
        line = self.names.sub(self.name, line)
        line = DATE.sub(self.date, line)
        return EPOCH.sub(lambda m: f"audit({int(m.group(1)) + self.days * 86_400}", line)

    def label(self, label: dict) -> dict:
        """The recording's labels, hosts and times changed alike; its id stays."""
        changed = json.loads(self.text(json.dumps(label)))
        return {**changed, "id": label["id"], "family": label["family"], "techniques": label["techniques"]}
