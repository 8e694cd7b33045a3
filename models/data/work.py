"""Ordinary work, as people and other machines ask it of an endpoint over ssh and http.

An activity is a generator of tasks: who does it, the lines typed or the command run, and how long to think before it.
It draws from the random generator it is given and touches nothing itself; `hosts.py` carries the tasks out.
What the endpoints do of their own accord (cron, services) is in `hosts.py` and `endpoint/`.
"""

from dataclasses import dataclass


@dataclass
class Task:
    """`user` is a role (admin, dev, svc); one of `lines` (typed into a terminal), `command` (over ssh, no terminal),
    `web` (a path asked of the endpoint's web server) or `upload` (bytes copied there) says what is done."""

    user: str = "admin"
    lines: tuple = ()
    command: str = ""
    web: str = ""
    upload: int = 0
    pause: tuple = (60, 240)


LOOK = [
    ["uptime", "w", "free -m"],
    ["df -hT", "du -xsh /var/log 2>/dev/null", "lsblk 2>/dev/null"],
    ["ps -ef --forest | tail -40"],
    ["top -b -n 1 | head -15", "vmstat 1 2"],
    ["ss -tulpn", "ip -br addr", "ip route"],
    ["last -n 8", "sudo lastb -n 3", "who -a"],
    ["sudo tail -n 60 /var/log/syslog", "sudo grep -c 'Accepted publickey' /var/log/auth.log"],
    ["id", "hostname -f", "uname -r", "cat /etc/debian_version"],
    ["getent passwd | awk -F: '$3 >= 1000'", "getent group sudo"],
    ["sudo lsof -nP -i | head -20", "sudo lsof +L1 | head"],
    ["history 5", "echo $SHELL $PATH"],
    ["man -P cat 5 crontab | head -20"],
    ["ls -lart /etc | tail -15", "sudo find /etc -newer /etc/hostname -type f | head -20"],
    ["date; cat /proc/loadavg; nproc"],
    [
        "sudo du -x --max-depth=1 -h / 2>/dev/null | sort -h | tail",
        "sudo find / -xdev -size +20M -type f 2>/dev/null | head",
    ],
    ["stat /etc/shadow", "sudo awk -F: '$2 ~ /^[!*]/ { n++ } END { print n }' /etc/shadow"],
    ["pgrep -af cron", "pstree -p 2>/dev/null | head -30 || true"],
    ["sudo find / -xdev -perm -4000 -type f 2>/dev/null | xargs ls -l"],
    ["sudo cat /proc/1/status | head -5", "cat /proc/self/limits | head"],
    ["curl -sI http://localhost/ | head -3", "curl -s -o /dev/null -w '%{time_total}\\n' http://mirror.lan/"],
    ["ping -c 2 mirror.lan", "nc -zv mirror.lan 80"],
    ["sudo sar -u 1 2 2>/dev/null", "iostat 2>/dev/null | head"],
    ["openssl s_client -connect localhost:443 </dev/null 2>/dev/null | head -2", "openssl version"],
    ["sudo strace -c -f -p $(pgrep -o cron) & sleep 2; sudo pkill -INT strace", "wait"],
    ["env | sort | head -20", "locale"],
    ["sudo iptables -L -n 2>/dev/null | head", "cat /etc/hosts | wc -l"],
    ["zgrep -h session /var/log/auth.log* 2>/dev/null | tail -3", "sudo less -E /var/log/dpkg.log | tail -5"],
    ["sudo cat /root/.bashrc | head -3", "sudo ls -la /root"],
    ["for h in $(awk '/lan$/ {print $2}' /etc/hosts | head -3); do ping -c1 -W1 $h >/dev/null && echo $h up; done"],
]
CHANGE = [
    [
        "sudo useradd -m -s /bin/bash -c 'temporary {n}' temp{n}",
        "echo 'temp{n}:Start-{n}-now' | sudo chpasswd",
        "sudo chage -M 90 temp{n}",
        "sudo usermod -aG users temp{n}",
    ],
    ["sudo userdel -r $(awk -F: '/temporary/ {{print $1; exit}}' /etc/passwd)"],
    [
        "sudo groupadd -f project{n}",
        "sudo install -d -m 2770 -g project{n} /srv/project{n}",
        "sudo setfacl -m g:users:rx /srv/project{n}",
        "getfacl -p /srv/project{n}",
    ],
    [
        "sudo cp -a /etc/ssh/sshd_config /etc/ssh/sshd_config.$(date +%F)",
        "sudo sed -i 's/^#*MaxAuthTries.*/MaxAuthTries 5/' /etc/ssh/sshd_config",
        "sudo sshd -t && sudo kill -HUP $(pgrep -o sshd)",
    ],
    ["echo '10.88.250.{b} cache{n}.lan' | sudo tee -a /etc/hosts", "getent hosts cache{n}.lan"],
    [
        "sudo crontab -l",
        "(sudo crontab -l 2>/dev/null; echo '{b} 4 * * 1 /usr/bin/find /srv -name \"*.bak\" -mtime +30 -delete') | sudo crontab -",
        "sudo crontab -l | tail -2",
    ],
    ["crontab -l", "printf '{m} * * * * cd $HOME && ls -la > .listing\\n' | crontab -", "crontab -l"],
    ["echo 'logger -t reminder checked {n}' | at now + 2 minutes", "atq"],
    [
        "sudo tee /etc/logrotate.d/app{n} <<< '/var/log/app{n}.log {{ weekly missingok compress rotate 4 }}'",
        "sudo logrotate -d /etc/logrotate.d/app{n} 2>&1 | tail -3",
    ],
    ["sudo logrotate -f /etc/logrotate.conf", "ls -la /var/log | head -30"],
    ["sudo chmod 640 /var/log/report.txt", "sudo chown root:adm /var/log/report.txt"],
    ["sudo sed -i '/temporary/d' /etc/motd; echo 'maintenance {n}' | sudo tee /etc/motd", "cat /etc/motd"],
    [
        "ssh-keygen -q -t ed25519 -N '' -C task{n} -f ~/.ssh/task{n}",
        "cat ~/.ssh/task{n}.pub >> ~/.ssh/authorized_keys",
        "chmod 600 ~/.ssh/authorized_keys",
    ],
    [
        "sudo mkdir -p /etc/profile.d; echo 'export EDITOR=vim' | sudo tee /etc/profile.d/editor.sh",
        "bash -lc 'echo $EDITOR'",
    ],
    ["printf 'umask 027\\nalias ll=\"ls -la\"\\n' >> ~/.bash_aliases; . ~/.bash_aliases; ll"],
    ["sudo visudo -c", "sudo cat /etc/sudoers.d/local"],
    ["sudo truncate -s 0 /var/log/report.txt", "sudo find /var/log -name '*.gz' -delete"],
    [
        "sudo pkill -f /usr/local/sbin/agent; sleep 1; sudo setsid /usr/local/sbin/agent </dev/null >/dev/null 2>&1 &",
        "pgrep -f sbin/agent",
    ],
    [
        "sudo kill -HUP $(cat /run/rsyslogd.pid 2>/dev/null || pgrep -o rsyslogd)",
        "logger -t admin 'log restarted {n}'",
        "sudo tail -1 /var/log/syslog",
    ],
    ["sudo passwd -S svc 2>/dev/null; sudo chage -l $USER", "sudo pwck -r; sudo grpck -r"],
    [
        "tar -C /etc -czf ~/etc-{n}.tgz ssh cron.d logrotate.d 2>/dev/null",
        "tar -tzf ~/etc-{n}.tgz | wc -l",
        "rm -f ~/etc-{n}.tgz",
    ],
    [
        "cd /etc && sudo git status -s | head; sudo etckeeper vcs log --oneline | head -3",
        "sudo etckeeper commit 'change {n}' | tail -1",
    ],
    ["sudo ln -sfn /srv/copy /srv/current", "readlink -f /srv/current"],
    [
        "sudo setcap cap_net_bind_service=+ep /usr/bin/socat",
        "sudo getcap /usr/bin/socat",
        "sudo setcap -r /usr/bin/socat",
    ],
    [
        "sudo dd if=/dev/zero of=/srv/test{n}.img bs=1M count=4 status=none",
        "sudo mkfs.ext4 -q -F /srv/test{n}.img; file /srv/test{n}.img; sudo rm /srv/test{n}.img",
    ],
]
FETCH = [
    [
        "wget -q http://mirror.lan/tools/inventory.sh -O /tmp/inventory.sh",
        "less -E /tmp/inventory.sh",
        "bash /tmp/inventory.sh | tail -4",
        "rm /tmp/inventory.sh",
    ],
    ["curl -fsSL http://mirror.lan/tools/inventory.sh | sh | head -5"],
    [
        "curl -fsSL http://mirror.lan/tools/setup-agent.sh -o setup.sh && chmod +x setup.sh && sudo ./setup.sh",
        "ls -l /opt/agent*",
    ],
    [
        "curl -s http://mirror.lan/tools/app-{v}.tar.gz | sudo tar -xz -C /opt",
        "/opt/app/bin/app --version",
        "sudo ln -sf /opt/app/bin/app /usr/local/bin/app",
    ],
    ["wget -qO- http://mirror.lan/keys/team.pub >> ~/.ssh/authorized_keys", "tail -1 ~/.ssh/authorized_keys"],
    ["echo '{n} status' | base64", "echo c3RhdHVzIG9rCg== | base64 -d", "openssl rand -base64 24"],
    ["gpg --batch --gen-random -a 1 16", "sha256sum /usr/bin/ssh /bin/ls", "md5sum /etc/hosts"],
    ["nc -w 2 mirror.lan 80 <<< $'GET / HTTP/1.0\\r\\n\\r'", "socat -T1 - TCP:mirror.lan:80 </dev/null; true"],
    ["python3 -c \"import socket; s = socket.create_connection(('mirror.lan', 80), 3); print(s.getpeername())\""],
    [
        'python3 -c \'import base64,zlib; print(len(base64.b64encode(zlib.compress(open("/etc/services","rb").read()))))\''
    ],
]


def fill(rng, lines):
    values = {
        "n": rng.randint(100, 9999),
        "b": rng.randint(1, 59),
        "m": rng.randint(0, 59),
        "v": rng.choice(["1.4", "1.5", "2.0"]),
    }
    return [line.format(**values) for line in lines]


def pick(rng, pool, low, high):
    return tuple(line for lines in rng.sample(pool, rng.randint(low, high)) for line in lines)


def administrator(rng):
    """Looks around, changes a little, fetches a tool now and then."""
    while True:
        lines = list(pick(rng, LOOK, 1, 3))
        if rng.random() < 0.55:
            lines += fill(rng, rng.choice(CHANGE))
        if rng.random() < 0.2:
            lines += fill(rng, rng.choice(FETCH))
        yield Task("admin", lines=tuple(lines), pause=(90, 480))


def packages(rng):
    """Package management: lists, upgrades simulated and real installations, removal, checks of what is installed."""
    names = [
        "bc",
        "cowsay",
        "dos2unix",
        "figlet",
        "hello",
        "moreutils",
        "ncdu",
        "pv",
        "pwgen",
        "rename",
        "sl",
        "tree",
        "units",
        "whois",
    ]
    get = "sudo DEBIAN_FRONTEND=noninteractive apt-get -y -q"
    yield Task("admin", command="sudo apt-get -q update", pause=(5, 90))
    while True:
        some = rng.sample(names, rng.randint(1, 3))
        yield Task(
            "admin",
            lines=tuple(
                rng.choice(
                    [
                        [
                            "sudo apt-get -q update",
                            f"{get} install {' '.join(some)}",
                            f"dpkg -L {some[0]} | head",
                            f"{some[0]} --version | head -1",
                        ],
                        [f"{get} purge {' '.join(some)}", f"{get} autoremove", "dpkg -l | grep -c ^ii"],
                        [
                            "sudo apt-get -s upgrade | tail -3",
                            "apt-cache policy nginx-light openssh-server | head",
                            "apt list --upgradable 2>/dev/null | wc -l",
                        ],
                        [
                            f"cd /tmp && apt-get download -q {some[0]} && dpkg-deb -I {some[0]}*.deb | head -12 && sudo dpkg -i {some[0]}*.deb; rm -f /tmp/{some[0]}*.deb"
                        ],
                        [
                            f"sudo debsums -s {rng.choice(['bash', 'coreutils', 'openssh-server', 'cron'])}; dpkg --verify | head -3"
                        ],
                        [
                            "sudo dpkg-reconfigure -f noninteractive man-db",
                            "sudo apt-mark hold bash; sudo apt-mark unhold bash",
                        ],
                        [f"{get} install --reinstall {some[0]}", "tail -4 /var/log/dpkg.log"],
                    ]
                )
            ),
            pause=(200, 700),
        )


def developer(rng):
    """A developer's shell: git, compilers, scripts, tests, virtual environments, a debugger, an editor."""
    n = 0
    clone = "cd ~ && [ -d app ] || git clone -q http://mirror.lan/repos/app.git; cd ~/app; git config user.name dev; git config user.email dev@example.org"
    while True:
        n += 1
        name = rng.choice(["parse", "report", "client", "cache", "table", "queue"]) + str(n)
        test = f"printf 'import unittest\\nclass T(unittest.TestCase):\\n    def test(self):\\n        self.assertEqual({n} * 2, {2 * n})\\nunittest.main()\\n' > test_{name}.py"
        yield Task(
            "dev",
            lines=(
                clone,
                *rng.choice(
                    [
                        [
                            "git pull -q --rebase; git log --oneline -5",
                            f"git checkout -q -b {name}",
                            f"echo '# {name}' >> NOTES.md",
                            f"git commit -qam 'notes {name}'",
                            "git diff --stat HEAD~1",
                            "git checkout -q main; git branch | head",
                        ],
                        [
                            f"printf '#include <stdio.h>\\nint main(void) {{ puts(\"{name}\"); return 0; }}\\n' > {name}.c",
                            f"gcc -Wall -O2 -g -o {name} {name}.c",
                            f"./{name}",
                            f"gdb -q -batch -ex run -ex bt ./{name}",
                            f"strace -c ./{name}",
                            f"nm ./{name} | wc -l; ldd ./{name}",
                        ],
                        ["make -j2", "make test", "make clean; git status -s"],
                        [
                            test,
                            f"python3 test_{name}.py",
                            f"python3 -m py_compile test_{name}.py; git add test_{name}.py; git commit -qm 'test {name}'",
                        ],
                        [
                            "python3 -m venv --without-pip .venv; . .venv/bin/activate; python -c 'import sys; print(sys.prefix)'; deactivate; rm -rf .venv"
                        ],
                        [
                            "python3 -m venv ~/v; ~/v/bin/pip -q install --no-index -f http://mirror.lan/wheels/ --trusted-host mirror.lan click tabulate requests",
                            "~/v/bin/python -c 'import requests, click; print(requests.__version__)'",
                            "~/v/bin/pip list; rm -rf ~/v",
                        ],
                        [
                            "grep -rn TODO . | head",
                            "find . -name '*.py' -o -name '*.c' | xargs wc -l | tail -1",
                            "sed -i 's/TODO/DONE/' NOTES.md; git diff | head -20; git checkout -q NOTES.md",
                        ],
                        [
                            f"vi -es -c 'normal Gohello {name}' -c wq NOTES.md; git diff --stat; git stash -q; git stash drop -q"
                        ],
                        [
                            "mkdir -p build && cd build && cmake .. >/dev/null && make && ctest 2>&1 | tail -3; cd ..; rm -rf build"
                        ],
                        [
                            "python3 -m http.server 8099 --bind 127.0.0.1 >/dev/null 2>&1 & sleep 1; curl -s http://127.0.0.1:8099/ | head -3; kill %1"
                        ],
                        [
                            f"tmux new-session -d -s {name} 'make; sleep 20'",
                            f"tmux ls; sleep 5; tmux kill-session -t {name}",
                        ],
                        [
                            "curl -s http://mirror.lan/data/sample.json | jq '.items | length'",
                            "curl -s http://mirror.lan/data/sample.json | python3 -m json.tool | head -8",
                        ],
                        [
                            "sqlite3 ~/dev.db 'create table if not exists t(a, b); insert into t select random(), random() from (select 1 union select 2); select count(*) from t'"
                        ],
                        [
                            'perl -e \'print join(",", map { $_ ** 2 } 1 .. 9), "\\n"\'',
                            "awk 'BEGIN { for (i = 0; i < 5; i++) print i * i }'",
                            "php -r 'echo PHP_VERSION;'",
                        ],
                        [
                            "tar -cJf ~/app-src.tar.xz --exclude=.git . ; ls -l ~/app-src.tar.xz; rm ~/app-src.tar.xz",
                            "git archive HEAD | gzip | wc -c; git gc -q",
                        ],
                        ["nohup sh -c 'sleep 40; date > ~/finished' >/dev/null 2>&1 &", "jobs; disown -a"],
                        [
                            "ssh -o BatchMode=yes -o StrictHostKeyChecking=no localhost true; echo $?",
                            "cat ~/.ssh/known_hosts 2>/dev/null | wc -l",
                            "scp -q -o BatchMode=yes NOTES.md localhost:/tmp/ ; true",
                        ],
                    ]
                ),
            ),
            pause=(40, 260),
        )


def builder(rng):
    """A build server's runner: fetch, build in a fresh directory, test, pack, keep the result, clean up."""
    while True:
        n = rng.randint(1000, 9999)
        steps = [
            "set -e; d=$(mktemp -d /tmp/build-XXXXXX); cd $d; git clone -q --depth 1 http://mirror.lan/repos/app.git 2>/dev/null || git clone -q http://mirror.lan/repos/app.git; cd app"
        ]
        steps += rng.choice(
            [
                ["make -s -j2 && make -s test"],
                ["cmake -S . -B out >/dev/null && cmake --build out >/dev/null && (cd out && ctest >/dev/null)"],
                [
                    "python3 -m venv env && env/bin/pip -q install --no-index -f http://mirror.lan/wheels/ --trusted-host mirror.lan click pyyaml && env/bin/python -m compileall -q ."
                ],
                ["sh debian/build.sh >/dev/null 2>&1 && ls ../*.deb"],
            ]
        )
        steps += [
            f"tar -czf /srv/artifacts/app-{n}.tar.gz --exclude=.git . && sha256sum /srv/artifacts/app-{n}.tar.gz >> /srv/artifacts/SHA256SUMS",
            "cd /; rm -rf $d; ls -1t /srv/artifacts/*.gz | tail -n +8 | xargs -r rm -f",
        ]
        yield Task("svc", command="; ".join(steps), pause=(120, 420))


def visitors(rng):
    """People and monitors that ask the web server."""
    while True:
        path = rng.choices(
            [
                "/",
                "/app/",
                "/app/search?q=item" + str(rng.randint(1, 99)),
                "/app/report",
                "/app/diag?host=127.0.0.1",
                "/app/health",
                "/missing",
                "/index.html",
            ],
            [20, 15, 20, 3, 3, 10, 2, 5],
        )[0]
        if rng.random() < 0.05:
            yield Task(upload=rng.randint(500, 60000), web=f"/app/file{rng.randint(1, 30)}.csv", pause=(3, 30))
        else:
            yield Task(web=path, pause=(2, 45))


def database_work(rng):
    """A database administrator and the programs that use the database."""
    sql = "psql -h 127.0.0.1 -U shop -d shop"
    while True:
        yield Task(
            "admin",
            command="export PGPASSWORD=local-shop; "
            + rng.choice(
                [
                    f"{sql} -Atc 'select count(*), sum(amount) from orders'",
                    f'{sql} -c "insert into orders(amount) select (random() * 100)::int from generate_series(1, {rng.randint(10, 400)})"',
                    f"{sql} -c 'explain analyze select * from orders where amount > 50 limit 5'",
                    f"{sql} -c 'vacuum analyze orders'",
                    "sudo -u postgres psql -c 'select pid, state, query from pg_stat_activity' | head",
                    f"{sql} -c '\\copy orders to /tmp/orders.csv csv'; wc -l /tmp/orders.csv; gzip -f /tmp/orders.csv; rm -f /tmp/orders.csv.gz",
                    "pg_dump -h 127.0.0.1 -U shop shop | gzip > ~/shop.sql.gz; ls -l ~/shop.sql.gz",
                    "sudo -u postgres psql -c 'checkpoint'; sudo tail -n 3 /var/log/postgresql/*.log",
                    f"{sql} -c 'create index concurrently if not exists by_amount on orders(amount)'; {sql} -c 'drop index by_amount'",
                    "redis-cli ping 2>/dev/null; for i in 1 2 3 4 5; do redis-cli set k$i $RANDOM >/dev/null 2>&1; done; redis-cli info 2>/dev/null | grep used_memory_human",
                    f"sudo -u postgres createdb scratch{rng.randint(1, 99)} 2>&1 | tail -1; sudo -u postgres psql -l | wc -l",
                ]
            ),
            pause=(30, 200),
        )


def backups(rng):
    """Backups: archives by tar, rsync of trees, borg with its own repository, and restoring to see that it works."""
    yield Task(
        "admin",
        command="sudo borg init -e none /srv/borg 2>/dev/null; sudo mkdir -p /srv/mirror-copy; true",
        pause=(5, 30),
    )
    while True:
        n = rng.randint(1, 99999)
        yield Task(
            "admin",
            command=rng.choice(
                [
                    f"sudo borg create --stats /srv/borg::a{n} /etc /home 2>&1 | tail -3; sudo borg prune --keep-last 4 /srv/borg",
                    "sudo borg list /srv/borg | tail -2; sudo borg check --repository-only /srv/borg",
                    "sudo sh -c 'cd /tmp && borg extract --dry-run /srv/borg::$(borg list --short --last 1 /srv/borg)'",
                    "sudo rsync -aH --delete --exclude=.cache /home/ /srv/mirror-copy/home/; sudo rsync -a --stats /etc/ /srv/mirror-copy/etc/ | tail -3",
                    f"sudo tar -cpf - /etc /var/lib/dpkg/status 2>/dev/null | zstd -q -3 > ~/full-{n}.tar.zst; ls -l ~/full-{n}.tar.zst; rm ~/full-{n}.tar.zst",
                    "mkdir -p ~/restore; sudo tar -xzf $(ls -1t /var/backups/config/etc-*.gz 2>/dev/null | head -1) -C ~/restore 2>/dev/null; diff -rq ~/restore/etc /etc 2>/dev/null | head -3; sudo rm -rf ~/restore",
                    f"sudo sh -c 'find /home -type f -print0 | cpio -0o 2>/dev/null | gzip > /srv/homes-{n}.cpio.gz; rm /srv/homes-{n}.cpio.gz'; true",
                    f"openssl enc -aes-256-cbc -pbkdf2 -pass pass:archive -in /etc/services -out ~/services.enc; rm ~/services.enc; zip -qr -P archive ~/n{n}.zip ~/.bashrc /etc/hosts; rm ~/n{n}.zip",
                ]
            ),
            pause=(120, 500),
        )


def transfers(rng):
    """Files come and go over scp and rsync, and people work on them."""
    while True:
        if rng.random() < 0.4:
            yield Task("svc", upload=rng.randint(1000, 300000), pause=(60, 240))
        else:
            yield Task(
                "svc",
                lines=tuple(
                    rng.choice(
                        [
                            ["ls -la incoming | tail", "find incoming -type f -size +50k | wc -l", "du -sh incoming"],
                            ["mkdir -p done; mv incoming/* done/ 2>/dev/null; ls done | wc -l"],
                            ["gzip -kf done/* 2>/dev/null; tar -czf done.tgz done; rm -rf done/*; ls -l done.tgz"],
                            ["split -b 20k done.tgz part.; ls part.* | wc -l; cat part.* | sha256sum; rm -f part.*"],
                            [
                                "rsync -av --remove-source-files incoming/ /srv/share/ | tail -2",
                                "ls -lt /srv/share | head -5",
                            ],
                            ["sha256sum incoming/* > sums; sha256sum -c sums | tail -2"],
                            [
                                "awk 'NR % 2' /etc/services > sample.txt; sort -u sample.txt | head -3; wc sample.txt",
                                "iconv -f utf-8 -t latin1 sample.txt > sample.l1; file sample.*; rm sample.*",
                            ],
                            ["sftp -b /dev/stdin -o BatchMode=yes localhost <<< 'ls' ; true"],
                        ]
                    )
                ),
                pause=(60, 300),
            )


def management(rng):
    """Configuration management as it is pushed over ssh: a temporary directory, a packed module, become root, clean up."""
    modules = [
        "import json, platform, os; print(json.dumps({'node': platform.node(), 'release': platform.release(), 'users': len(open('/etc/passwd').readlines())}))",
        "import subprocess; print(subprocess.run(['dpkg-query', '-W', '-f', '${Status}', 'rsync'], capture_output=True).stdout)",
        "import os, stat; p = '/etc/issue.net'; os.chmod(p, 0o644); print(oct(os.stat(p).st_mode))",
        "import shutil, tempfile, os; f, n = tempfile.mkstemp(); os.write(f, b'managed\\n'); os.close(f); shutil.move(n, '/etc/managed'); os.chmod('/etc/managed', 0o644)",
        "import subprocess; subprocess.run(['/bin/sh', '-c', 'pgrep -x sshd && id root && df -P /'])",
    ]
    while True:
        import base64

        steps = []
        for _ in range(rng.randint(2, 4)):
            directory = f"$HOME/.ansible/tmp/ansible-tmp-{rng.randint(10**9, 10**10)}.{rng.randint(1, 99)}-{rng.randint(1000, 9999)}"
            packed = base64.b64encode(rng.choice(modules).encode()).decode()
            steps += [
                f"/bin/sh -c '( umask 77 && mkdir -p \"{directory}\" ) && echo {packed} | base64 -d > {directory}/module.py && sleep 0'",
                f"/bin/sh -c 'chmod u+x {directory}/module.py && sleep 0'",
                f"sudo -n /bin/sh -c '/usr/bin/python3 {directory}/module.py && sleep 0'".replace(
                    "$HOME", "/home/$SUDO_USER"
                ),
                f"/bin/sh -c 'rm -rf {directory}/ >/dev/null 2>&1 && sleep 0'",
            ]
        yield Task("admin", command="; ".join(steps), pause=(200, 600))


def playbooks(rng):
    """A control machine that runs ansible on itself and on its neighbours."""
    while True:
        yield Task(
            "admin",
            command=rng.choice(
                [
                    "cd ~/plays && ansible-playbook -i hosts.ini site.yml",
                    "cd ~/plays && ansible -i hosts.ini all -m ping",
                    "cd ~/plays && ansible -i hosts.ini all -b -m command -a uptime",
                    "cd ~/plays && ansible-playbook -i hosts.ini --check --diff site.yml",
                ]
            ),
            pause=(240, 700),
        )


def containers(rng):
    """Containers: a root made of busybox, run by crun or bubblewrap, now and then entered; jobs that come and go."""
    make = "sudo sh -c 'mkdir -p /srv/c/rootfs/bin /srv/c/rootfs/proc /srv/c/rootfs/dev /srv/c/rootfs/tmp /srv/c/rootfs/etc /srv/c/rootfs/sys; cp /bin/busybox /srv/c/rootfs/bin/; for a in sh ls cat sleep date wget id ps echo wc; do ln -sf busybox /srv/c/rootfs/bin/$a; done; echo root:x:0:0::/:/bin/sh > /srv/c/rootfs/etc/passwd; cp /etc/endpoint-bundle.json /srv/c/config.json'"
    yield Task("admin", command=make, pause=(5, 40))
    crun = "sudo crun --root /run/crun --cgroup-manager=disabled"
    while True:
        n = rng.randint(100, 9999)
        yield Task(
            "admin",
            command=rng.choice(
                [
                    f"cd /srv/c && {crun} run --bundle /srv/c job{n} </dev/null; {crun} list",
                    f"cd /srv/c && {crun} run --bundle /srv/c job{n} </dev/null & sleep 2; {crun} list; {crun} state job{n} | head -5; wait",
                    f"sudo bwrap --unshare-pid --unshare-uts --unshare-ipc --ro-bind /srv/c/rootfs / --proc /proc --dev /dev --tmpfs /tmp --hostname box{n} /bin/sh -c 'id; ls /; cat /etc/passwd; sleep {rng.randint(1, 20)}'",
                    "sudo bwrap --ro-bind /usr /usr --symlink usr/lib /lib --symlink usr/lib64 /lib64 --symlink usr/bin /bin --proc /proc --dev /dev --unshare-pid --tmpfs /tmp python3 -c 'import os; print(os.getpid(), os.listdir(\"/\"))'",
                    "sudo unshare -m -p -f --mount-proc sh -c 'mount -t tmpfs tmpfs /mnt; cp /etc/hosts /mnt; ls /mnt; ps -e'",
                    f"sudo sh -c 'tar -C /srv/c/rootfs -cf /srv/c/image-{n}.tar . && mkdir -p /srv/c/l{n} && tar -C /srv/c/l{n} -xf /srv/c/image-{n}.tar && chroot /srv/c/l{n} /bin/sh -c \"ls -la / ; id\"; rm -rf /srv/c/l{n} /srv/c/image-{n}.tar'",
                    f"sudo nsenter -t $(pgrep -n -x rsyslogd) -m -p ls /tmp | head -3; sudo ip netns add n{n} && sudo ip netns exec n{n} ip -br link; sudo ip netns del n{n}",
                ]
            ),
            pause=(60, 240),
        )


def monitoring(rng):
    """A monitoring server's active checks: commands over ssh, scraped metrics, log greps."""
    while True:
        if rng.random() < 0.5:
            yield Task(web=":9100/metrics", pause=(15, 60))
        else:
            yield Task(
                "svc",
                command=rng.choice(
                    [
                        "df -P / | tail -1",
                        "cat /proc/loadavg",
                        "pgrep -c sshd",
                        "ps -eo stat | grep -c Z; true",
                        "ss -s | head -2",
                        "who | wc -l",
                        "free -m | awk '/Mem/ { print $4 }'",
                        "test -f /var/run/reboot-required; echo $?",
                        "tail -1 /var/log/node-metrics.json",
                        "stat -c %Y /var/log/syslog",
                    ]
                ),
                pause=(30, 120),
            )


def service_account(rng):
    """A service account's own jobs and the person who looks after it."""
    while True:
        yield Task(
            "svc",
            lines=tuple(
                rng.choice(
                    [
                        ["ls -la; df -h .", "crontab -l", "id"],
                        [
                            "python3 - <<< 'import csv, glob; print(sum(1 for f in glob.glob(\"*.csv\") for _ in open(f)))'"
                        ],
                        ["curl -s -m 3 http://localhost/ > page.html; wc -c page.html; rm page.html"],
                        [
                            "(crontab -l 2>/dev/null | grep -v rotate; echo '*/5 * * * * cd $HOME && ls > rotate.txt') | crontab -",
                            "crontab -l | wc -l",
                        ],
                        [
                            "nohup bash -c 'while sleep 15; do date >> ticks; [ $(wc -l < ticks) -gt 10 ] && exit; done' >/dev/null 2>&1 &",
                            "sleep 1; cat ticks | tail -1",
                        ],
                        ["cat ~/.bash_history | tail -3; tail -2 ~/.profile; umask"],
                        [
                            "chmod 700 ~/bin 2>/dev/null; mkdir -p bin; printf '#!/bin/sh\\necho run $(date)\\n' > bin/run; chmod +x bin/run; bin/run; ls -la bin"
                        ],
                        ["ps -u $USER -o pid,etime,args | head; kill -0 $$; ulimit -a | head -3"],
                    ]
                )
            ),
            pause=(90, 400),
        )


ACTIVITIES = {
    f.__name__: f
    for f in (
        administrator,
        packages,
        developer,
        builder,
        visitors,
        database_work,
        backups,
        transfers,
        management,
        playbooks,
        containers,
        monitoring,
        service_account,
    )
}
