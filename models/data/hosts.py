#!/usr/bin/env python3
"""Runs throwaway endpoints and the work done on them; writes what `convert.py` must know about them.

    hosts.py DIR OUT --minutes N --hosts N [--attacks]

Started by `record.sh` inside a network namespace of its own, at low priority and within a limit of CPU time. Each
endpoint is a set of namespaces over one shared root file system. Its login uid (20000 + 100 * slot) tells its audit
records apart, its UTS namespace its traced calls. The people and machines that use the endpoints run here, outside of
what is recorded, and reach them over the bridge of this namespace. OUT/hosts.json is written at the end: an endpoint
that could not start, or died, is named there with its error.
"""

import argparse
import functools
import http.server
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import attacks
import work

HERE = pathlib.Path(__file__).resolve().parent
MARK, STEP = 20000, 100  # login uids
ADMINS = ["alice", "marta", "jonas", "opsadmin", "kim", "petra"]
DEVELOPERS = ["bob", "nina", "tomas", "yara", "wei", "lena"]
SERVICES = ["deploy", "svcapp", "ftpsync", "reports", "runner", "transfer"]

NGINX = "exec nginx -g 'daemon off;'"
PORTAL = "exec setpriv --reuid=www-data --regid=www-data --init-groups /usr/bin/python3 /opt/portal.py 8000"
APACHE = "exec apachectl -D FOREGROUND"
REDIS = "exec setpriv --reuid=redis --regid=redis --init-groups redis-server /etc/redis/redis.conf --daemonize no"
EXPORTER = "exec setpriv --reuid=nobody --regid=nogroup --clear-groups prometheus-node-exporter"
POSTGRES = """pg_ctlcluster 15 main start && sleep 2 && su postgres -c "psql -qc \\"create role shop login password 'local-shop'\\"; createdb -O shop shop" && su postgres -c "psql -qd shop -c 'create table orders(id serial, amount int, at timestamptz default now()); alter table orders owner to shop'" """
AGENT = "exec /usr/local/sbin/agent"

# role: services, ports that are checked, activities, jobs besides those of every endpoint
ROLES = {
    "web": ([NGINX, PORTAL], [80, 8000], ["visitors", "administrator", "management"], ["certificate-check"]),
    "db": ([POSTGRES], [5432], ["database_work", "backups", "administrator"], ["dump-databases"]),
    "build": ([], [], ["builder", "developer", "packages"], []),
    "files": ([], [], ["transfers", "backups", "service_account", "administrator"], ["backup-config"]),
    "app": (
        [APACHE, REDIS],
        [80, 6379],
        ["visitors", "service_account", "management", "administrator"],
        ["pull-config"],
    ),
    "dev": ([], [], ["developer", "containers", "packages"], []),
    "node": ([EXPORTER, AGENT], [9100], ["monitoring", "containers", "administrator"], ["pull-config"]),
    "control": ([AGENT], [], ["playbooks", "administrator", "packages"], ["certificate-check"]),
    "shop": (
        [NGINX, PORTAL, POSTGRES],
        [80, 5432],
        ["visitors", "database_work", "developer"],
        ["dump-databases", "certificate-check"],
    ),
}
JOBS = ["node-metrics", "sweep-temp", "log-report", "backup-config", "certificate-check"]
NAMES = {  # what a site may call such a job
    "check-services": ["check-services", "healthcheck", "svc_check", "watch", "alive", "monitor"],
    "node-metrics": ["node-metrics", "collect", "stats", "metrics_push", "telemetry"],
    "backup-config": ["backup-config", "backup", "save-etc", "nightly", "archive"],
    "dump-databases": ["dump-databases", "pgdump-all", "dbbackup", "sqldump"],
    "certificate-check": ["certificate-check", "certs", "tls-renew", "ssl_check"],
    "sweep-temp": ["sweep-temp", "cleanup", "tmpclean", "housekeeping"],
    "log-report": ["log-report", "logsummary", "report", "audit-report"],
    "pull-config": ["pull-config", "cfgpull", "converge", "site-apply"],
}
USER_TASKS = [  # people's own
    "curl -s -m 5 http://mirror.lan/data/sample.json -o $HOME/sample.json",
    "cd $HOME && ls -la > .listing 2>&1",
    "python3 -c 'import os, time; print(time.time(), os.getloadavg())' >> $HOME/load.txt",
    "find $HOME -name '*.tmp' -delete",
    "wget -q -O - http://mirror.lan/ | wc -c >> $HOME/mirror.size",
    "tar -czf /tmp/home-$LOGNAME.tgz -C $HOME . 2>/dev/null",
    "rsync -a $HOME/ /tmp/copy-$LOGNAME/",
    "test -d $HOME/app && cd $HOME/app && git fetch -q",
    "/bin/bash -lc 'date >> $HOME/ticks'",
]
TOOLS = [  # root's tools that run once an hour somewhere
    "cd / && run-parts --report /etc/cron.daily",
    "lynis audit system --quick --quiet --no-colors",
    "debsums -cs",
    "apt-get -q update && apt-get -s -q upgrade",
    "/usr/lib/sysstat/sa1 1 1",
    "updatedb 2>/dev/null; mandb -q",
    "etckeeper commit daily || etckeeper init",
    "find / -xdev -nouser -print 2>/dev/null | head",
    "sysctl -a >/var/log/sysctl.txt 2>/dev/null",
]


class Endpoint:
    """One endpoint: its files, its namespaces, the sessions on it."""

    def __init__(self, directory, slot, role, seed, minutes, attack=None):
        self.rng = random.Random(seed)
        self.slot, self.role, self.attack, self.minutes = slot, role, attack, minutes
        self.name = f"{role}-{slot + 1:02}"
        self.address = f"10.88.0.{10 + slot}"
        self.mark = MARK + STEP * slot
        self.users = {
            "admin": self.rng.choice(ADMINS),
            "dev": self.rng.choice(DEVELOPERS),
            "svc": self.rng.choice(SERVICES),
        }
        self.directory = directory / "endpoints" / self.name
        self.base, self.key = directory / "base", directory / "key"
        self.log = open(directory / "log" / f"{self.name}.log", "ab")
        self.services, self.ports, self.activities, self.jobs = ROLES[role]
        self.process = None
        self.init = self.uts = 0
        self.start = self.end = 0.0
        self.errors, self.intervals = [], []

    # ---- files

    def put(self, path, text, mode=0o644, owner=0):
        """A file of the endpoint; directories above it are made as root's."""
        target = self.directory / "upper" / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        target.chmod(mode)
        os.chown(target, owner, owner)

    def grow(self, path, text, mode=None):
        """The base's file with `text` at its end."""
        old = self.base / path.lstrip("/")
        self.put(path, old.read_text(encoding="utf-8") + text, mode or old.stat().st_mode & 0o777)
        os.chown(self.directory / "upper" / path.lstrip("/"), 0, old.stat().st_gid)

    def folder(self, path, owner=0, mode=0o755):
        target = self.directory / "upper" / path.lstrip("/")
        target.mkdir(parents=True, exist_ok=True)
        target.chmod(mode)
        os.chown(target, owner, owner)

    def prepare(self, neighbours):
        shutil.rmtree(self.directory, ignore_errors=True)
        for part in ("upper", "work", "root"):
            (self.directory / part).mkdir(parents=True)
        self.put("/usr/lib/systemd/systemd", (HERE / "endpoint/init.sh").read_text(), 0o755)
        self.put("/usr/local/sbin/agent", (HERE / "endpoint/agent").read_text(), 0o755)
        self.put("/etc/hostname", self.name + "\n")
        names = "".join(f"{e.address} {e.name}.lan {e.name}\n" for e in neighbours)
        self.put("/etc/hosts", f"127.0.0.1 localhost\n::1 localhost ip6-localhost\n10.88.0.1 mirror.lan\n{names}")
        self.put("/etc/apt/sources.list", "deb [trusted=yes] http://mirror.lan/debs ./\n")
        self.put("/etc/sudoers.d/local", f"Defaults !lecture\n{self.users['admin']} ALL=(ALL) NOPASSWD: ALL\n", 0o440)
        self.put(
            "/etc/ssh/sshd_config.d/local.conf", "HostKey /etc/ssh/ssh_host_ed25519_key\nUseDNS no\nMaxStartups 60\n"
        )
        subprocess.run(
            [
                "ssh-keygen",
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-C",
                self.name,
                "-f",
                self.directory / "upper/etc/ssh/ssh_host_ed25519_key",
            ],
            check=True,
        )
        self.accounts(neighbours)
        self.put("/etc/checked-ports", " ".join(map(str, self.ports + [22])) + "\n")
        self.put(
            "/etc/endpoint.services",
            "\n".join(["exec rsyslogd -n", "exec cron -f", "exec /usr/sbin/sshd -D", "exec atd -f"] + self.services)
            + "\n",
        )
        self.put("/etc/cron.d/local", self.crontab())
        self.put(
            "/etc/rsyslog.conf",
            (self.base / "etc/rsyslog.conf").read_text().replace('module(load="imklog"', '# module(load="imklog"'),
        )
        for folder in ("/srv/copy", "/srv/share"):
            self.folder(folder)
        self.folder("/srv/artifacts", self.mark + 3)
        self.put("/opt/portal.py", (HERE / "endpoint/portal.py").read_text(), 0o755)
        for folder in ("/var/lib/portal", "/var/lib/portal/uploads"):
            self.folder(folder, 33)
        self.put("/var/lib/portal/report.sh", "date; uptime; df -h /; wc -l /var/lib/portal/access.log\n", 0o755, 33)
        self.put(
            "/etc/nginx/sites-available/default",
            "server { listen 80 default_server; root /var/www/html; location /app/ { proxy_pass http://127.0.0.1:8000/; client_max_body_size 20m; } }\n",
        )
        bundle = {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "cwd": "/",
                "env": ["PATH=/bin"],
                "args": ["sh", "-c", "id; ls -la /; date; sleep 4; echo done"],
            },
            "root": {"path": "rootfs"},
            "hostname": "box",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {"namespaces": [{"type": t} for t in ("pid", "mount", "ipc", "uts")]},
        }
        self.put("/etc/endpoint-bundle.json", json.dumps(bundle))

    def accounts(self, neighbours):
        """Three people, in the words of passwd(5), with the keys that let this program and the control machines in."""
        passwd = shadow = group = ""
        keys = (self.key.with_suffix(".pub")).read_text()
        for number, role in enumerate(("admin", "dev", "svc")):
            user, uid = self.users[role], self.mark + 1 + number
            passwd += f"{user}:x:{uid}:{uid}::/home/{user}:/bin/bash\n"
            shadow += f"{user}:*:20000:0:99999:7:::\n"
            group += f"{user}:x:{uid}:\n"
            home = f"/home/{user}"
            self.folder(home, uid, 0o750)
            self.folder(home + "/.ssh", uid, 0o700)
            self.put(home + "/.ssh/authorized_keys", keys, 0o600, uid)
            for name in (".bashrc", ".profile", ".bash_logout"):
                self.put(f"{home}/{name}", (self.base / "etc/skel" / name).read_text(), 0o644, uid)
        self.grow("/etc/passwd", passwd)
        self.grow("/etc/shadow", shadow)
        self.grow("/etc/group", group)
        self.folder(f"/home/{self.users['svc']}/incoming", self.mark + 3)
        if self.role == "control":
            uid, home = self.mark + 1, "/home/" + self.users["admin"]
            others = self.rng.sample([e for e in neighbours if e is not self], min(3, len(neighbours) - 1))
            lines = [f"{self.name} ansible_connection=local"] + [
                f"{e.name}.lan ansible_user={e.users['admin']}" for e in others
            ]
            self.folder(home + "/plays", uid)
            self.put(home + "/plays/hosts.ini", "\n".join(lines) + "\n", 0o644, uid)
            self.put(home + "/plays/site.yml", (self.base.parent / "mirror/site.yml").read_text(), 0o644, uid)
            self.put(
                home + "/plays/ansible.cfg",
                "[defaults]\nhost_key_checking = False\n[ssh_connection]\nssh_args = -o ControlMaster=auto -o ControlPersist=30s\n",
                0o644,
                uid,
            )
            self.put(home + "/.ssh/id_ed25519", self.key.read_text(), 0o600, uid)

    def install(self, job):
        """Puts a job where a site of its own kind would, and returns the command that cron is given for it."""
        rng, text = self.rng, (HERE / "endpoint/jobs" / job).read_text()
        kind = "py" if "python3" in text.splitlines()[0] else "sh"
        name = rng.choice(NAMES[job]) + rng.choice(["", "", "." + kind])
        directory = rng.choice(
            [
                "/usr/local/sbin",
                "/usr/local/bin",
                "/opt/ops/bin",
                "/opt/scripts",
                "/usr/lib/site",
                "/root/bin",
                "/srv/admin",
                "/etc/site/jobs",
            ]
        )
        path = f"{directory}/{name}"
        self.put(path, text, 0o755)
        lock = f"/run/lock/{name}.lock"
        forms = [
            path,
            path,
            f"{path} >/dev/null 2>&1",
            f"{path} >/dev/null 2>&1",
            f"nice -n 10 {path}",
            f"timeout 300 {path} 2>&1 | logger -t {name}",
            f"flock -n {lock} {path}",
            f"test -x {path} && {path}",
            f"cd / && {path} >>/var/log/jobs.log 2>&1",
            f"{'python3' if kind == 'py' else 'bash'} {path}",
            f"sleep {rng.randrange(1, 20)}; {path}",
        ]
        if directory.startswith("/usr/local"):
            forms += [name, f"{name} >/dev/null 2>&1"]
        return rng.choice(forms)

    def crontab(self):
        """What cron starts: checks, jobs every few minutes, tools at one minute of the hour."""
        rng, lines = self.rng, ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
        for job in ["check-services", *sorted(set(self.jobs + rng.sample(JOBS, 3)))]:
            every = rng.choice([1, 1, 2, 5]) if job == "check-services" else rng.choice([3, 5, 7, 10, 15])
            when = "*" if every == 1 else f"{rng.randrange(every)}-59/{every}"
            lines.append(f"{when} * * * * root {self.install(job)}")
        for tool in rng.sample(TOOLS, 4):
            lines.append(f"{rng.randrange(60)} * * * * root {tool}")
        for task in rng.sample(USER_TASKS, rng.randrange(3)):
            lines.append(
                f"*/{rng.choice([2, 3, 5, 10])} * * * * {self.users[rng.choice(['svc', 'dev', 'admin'])]} {task}"
            )
        return "\n".join(lines) + "\n"

    # ---- life

    def boot(self):
        enter = [
            str(HERE / "endpoint/enter.sh"),
            str(self.base),
            str(self.directory),
            self.name,
            str(self.mark),
            self.address,
        ]
        self.process = subprocess.Popen(
            ["unshare", "-m", "-u", "-i", "-p", "-n", "--fork", "--kill-child"] + enter,
            stdin=subprocess.PIPE,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        self.init = wait_for(lambda: int(children.read_text().split()[0]) if children.read_text() else 0, 120)
        wait_for(lambda: os.readlink(f"/proc/{self.init}/ns/net") != os.readlink("/proc/self/ns/net"), 120)
        self.uts = os.stat(f"/proc/{self.init}/ns/uts").st_ino
        link = f"h{self.slot}"
        subprocess.run(
            ["ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(self.init)], check=True
        )
        subprocess.run(["ip", "link", "set", link, "master", "br0", "up"], check=True)
        self.process.stdin.write(b"\n")
        self.process.stdin.close()
        wait_for(lambda: os.path.exists(f"/proc/{self.init}/root/run/booted"), 600)

    def kill(self):
        """Process 1 takes all of the endpoint's with it."""
        if self.process:
            for pid in (self.init, self.process.pid):
                try:
                    if pid:
                        os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass

    def remove(self):
        if self.process:
            self.process.wait(60)
        shutil.rmtree(self.directory, ignore_errors=True)
        self.log.close()

    def over(self):
        return time.time() >= self.end or self.process.poll() is not None

    def pause(self, low, high):
        """Waits; false when the recording has ended."""
        until = time.time() + self.rng.uniform(low, high)
        while time.time() < until and not self.over():
            time.sleep(min(1.0, max(0.01, until - time.time())))
        return not self.over()

    # ---- sessions

    def ssh(self, user, *arguments):
        options = [
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=30",
            "IdentitiesOnly=yes",
        ]
        return (
            ["ssh", "-i", str(self.key)]
            + [x for o in options for x in ("-o", o)]
            + [*arguments, f"{self.users[user]}@{self.address}"]
        )

    def run(self, command, limit=300):
        try:
            subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired:
            pass

    def type(self, user, lines, pace=(1.0, 9.0)):
        """Lines typed into a terminal, with the pauses of a person."""
        with subprocess.Popen(
            self.ssh(user, "-tt"), stdin=subprocess.PIPE, stdout=self.log, stderr=self.log
        ) as session:
            try:
                for line in [*lines, "exit"]:
                    if not self.pause(*pace) or session.poll() is not None:
                        break
                    session.stdin.write(line.encode() + b"\n")
                    session.stdin.flush()
                session.stdin.close()
                session.wait(180)
            except (OSError, subprocess.TimeoutExpired):
                pass
            finally:
                session.kill()

    def ask(self, path, body=None):
        url = f"http://{self.address}{path}"
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, data=body, method="PUT" if body else "GET"), timeout=30
            ) as answer:
                answer.read()
        except (OSError, urllib.error.URLError, ValueError):
            pass

    def do(self, task):
        if task.lines:
            self.type(task.user, task.lines)
        elif task.command:
            self.run(self.ssh(task.user) + [task.command])
        elif task.web:
            self.ask(task.web, self.rng.randbytes(task.upload) if task.upload else None)
        elif task.upload:
            file = self.directory / f"upload-{self.rng.randrange(20)}.dat"
            file.write_bytes(self.rng.randbytes(task.upload))
            name = f"{self.users[task.user]}@{self.address}:incoming/"
            self.run(["scp", "-q"] + self.ssh(task.user)[1:-1] + [str(file), name])

    def busy(self, activity):
        rng = random.Random(f"{activity} {self.rng.random()}")
        for task in work.ACTIVITIES[activity](rng):
            if not self.pause(*task.pause):
                return
            self.do(task)

    def emulate(self):
        """One attack in the middle of the recording; its interval goes into the labels."""
        self.pause(0.25 * self.minutes * 60, 0.4 * self.minutes * 60)
        interval = [time.time(), self.end]
        self.intervals.append(interval)
        attacks.ATTACKS[self.attack].run(self)
        interval[1] = min(time.time(), self.end)

    def record(self, latest):
        try:
            self.boot()
            self.start = time.time() + 5
            self.end = min(latest, self.start + self.minutes * 60)
            threads = [threading.Thread(target=self.busy, args=(a,), daemon=True) for a in self.activities]
            if self.attack:
                threads.append(threading.Thread(target=self.emulate, daemon=True))
            for thread in threads:
                thread.start()
            while not self.over():
                time.sleep(1)
            if self.process.poll() is not None:
                self.errors.append("ended early")
            self.end = min(self.end, time.time())
        except (OSError, subprocess.SubprocessError, TimeoutError, ValueError) as error:
            self.errors.append(repr(error))
            self.end = time.time()

    def facts(self):
        return {
            "host": self.name,
            "role": self.role,
            "slot": self.slot,
            "mark": self.mark,
            "uts": self.uts,
            "init": self.init,
            "start": self.start,
            "end": self.end,
            "activities": self.activities,
            "attack": self.attack,
            "intervals": self.intervals,
            "users": list(self.users.values()),
            "errors": self.errors,
            **(
                {"title": attacks.ATTACKS[self.attack].title, "techniques": attacks.ATTACKS[self.attack].techniques}
                if self.attack
                else {}
            ),
        }


def wait_for(what, seconds):
    until = time.time() + seconds
    while time.time() < until:
        try:
            if value := what():
                return value
        except OSError:
            pass
        time.sleep(0.1)
    raise TimeoutError("an endpoint does not start")


class Server(http.server.ThreadingHTTPServer):
    """A client that goes away in the middle of an answer is nothing to report."""

    def handle_error(self, request, client_address):
        pass


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):  # pylint: disable=redefined-builtin
        pass


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, default=50)
    parser.add_argument("--hosts", type=int, default=26)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--attacks", action="store_true", help="one emulated attack on every endpoint")
    args = parser.parse_args()
    for folder in ("endpoints", "log"):
        (args.directory / folder).mkdir(parents=True, exist_ok=True)
    if not (args.directory / "key").exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", args.directory / "key"], check=True)

    roles = list(ROLES)
    plan = [(roles[n % len(roles)], None) for n in range(args.hosts)]
    if args.attacks:
        names = list(attacks.ATTACKS)
        plan = [(attacks.ATTACKS[names[n % len(names)]].role, names[n % len(names)]) for n in range(args.hosts)]
    endpoints = [
        Endpoint(args.directory, slot, role, args.seed * 1000 + slot, args.minutes, attack)
        for slot, (role, attack) in enumerate(plan)
    ]
    server = Server(("10.88.0.1", 80), functools.partial(Quiet, directory=args.directory / "mirror"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    latest = time.time() + args.minutes * 60 + 600
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    threads = []
    try:
        for endpoint in endpoints:
            endpoint.prepare(endpoints)
            threads.append(threading.Thread(target=endpoint.record, args=(latest,), daemon=True))
            threads[-1].start()
            time.sleep(1.5)
        print(time.strftime("%H:%M:%S"), len(endpoints), "endpoints started", flush=True)
        for thread in threads:
            thread.join()
    finally:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "hosts.json").write_text(json.dumps([e.facts() for e in endpoints], indent=1))
        for endpoint in endpoints:
            endpoint.kill()
        for endpoint in endpoints:
            endpoint.remove()
    failed = [(e.name, e.errors) for e in endpoints if e.errors]
    print(time.strftime("%H:%M:%S"), "ended;", failed or "no errors", flush=True)


if __name__ == "__main__":
    main()
