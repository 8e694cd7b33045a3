#!/usr/bin/env bash
# mirror.sh DIR: fills DIR/mirror with what the endpoints fetch over http besides packages: a repository, tools, data.
set -euo pipefail
mirror=${1:?usage: mirror.sh DIR}/mirror
mkdir -p "$mirror"/{repos,tools,keys,data}
[ -e "$mirror/.ready" ] && exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

git -c init.defaultBranch=main init -q "$work/app"
cd "$work/app"
mkdir -p src tests debian
for name in parse table queue report; do
    printf '#include "app.h"\nint %s(int n) { return n * 2 + %d; }\n' "$name" "${#name}" >"src/$name.c"
done
printf 'int parse(int); int table(int); int queue(int); int report(int);\n' >src/app.h
printf '#include <stdio.h>\n#include "app.h"\nint main(void) { printf("%%d\\n", parse(1) + table(2) + queue(3) + report(4)); return 0; }\n' >src/main.c
printf 'CFLAGS = -O2 -Wall\nOBJECTS = $(patsubst %%.c,%%.o,$(wildcard src/*.c))\napp: $(OBJECTS)\n\t$(CC) -o $@ $^\ntest: app\n\t./app | grep -q .\n\tsh tests/run.sh\nclean:\n\trm -f app src/*.o\n' >Makefile
printf 'cmake_minimum_required(VERSION 3.10)\nproject(app C)\nenable_testing()\nfile(GLOB SOURCES src/*.c)\nadd_executable(app ${SOURCES})\nadd_test(NAME runs COMMAND app)\n' >CMakeLists.txt
printf 'for n in 1 2 3; do ./app >/tmp/app-test.$n; cmp /tmp/app-test.$n /tmp/app-test.1; done; rm -f /tmp/app-test.*\n' >tests/run.sh
cat >debian/build.sh <<'DEB'
set -e
make
d=$(mktemp -d)
mkdir -p "$d/DEBIAN" "$d/usr/bin"
install -m 755 app "$d/usr/bin/app"
printf 'Package: app\nVersion: 1.0\nArchitecture: amd64\nMaintainer: Nobody <nobody@example.org>\nDescription: test\n' >"$d/DEBIAN/control"
dpkg-deb --build --root-owner-group "$d" ../app_1.0_amd64.deb
rm -rf "$d"
DEB
printf 'notes\nTODO: more\n' >NOTES.md
printf 'app\n*.o\n.venv\nbuild\n' >.gitignore
git add -A
git -c user.name=team -c user.email=team@example.org commit -qm start
git clone -q --bare . "$mirror/repos/app.git"
git -C "$mirror/repos/app.git" update-server-info

cat >"$mirror/tools/inventory.sh" <<'TOOL'
#!/bin/sh
# What is this machine?
hostname; uname -a; nproc; free -m | head -2; df -P | tail -n +2; dpkg -l | wc -l; ip -br addr; id; ps -e | wc -l
TOOL
cat >"$mirror/tools/setup-agent.sh" <<'TOOL'
#!/bin/sh
# Installs a small agent that writes the load into a file, and a cron entry that starts it.
mkdir -p /opt/agent
printf '#!/bin/sh\ncat /proc/loadavg >/opt/agent/load\n' >/opt/agent/run
chmod 755 /opt/agent/run
printf '*/2 * * * * root /opt/agent/run\n' >/etc/cron.d/agent
/opt/agent/run
TOOL
for version in 1.4 1.5 2.0; do
    mkdir -p "$work/pack/app/bin"
    printf '#!/bin/sh\necho app %s\n' "$version" >"$work/pack/app/bin/app"
    chmod 755 "$work/pack/app/bin/app"
    tar -C "$work/pack" -czf "$mirror/tools/app-$version.tar.gz" app
done
ssh-keygen -q -t ed25519 -N '' -C team -f "$work/team"
cp "$work/team.pub" "$mirror/keys/"
python3 -c 'import json; print(json.dumps({"items": [{"id": n, "name": f"item {n}"} for n in range(400)]}))' >"$mirror/data/sample.json"
cat >"$mirror/site.yml" <<'PLAY'
- hosts: all
  become: true
  tasks:
    - { name: issue, copy: { dest: /etc/issue.net, content: "managed host\n", mode: "0644" } }
    - { name: directory, file: { path: /srv/managed, state: directory, mode: "0755" } }
    - { name: line, lineinfile: { path: /etc/environment, regexp: "^SITE=", line: "SITE=main" } }
    - { name: account, user: { name: reports, system: true, shell: /usr/sbin/nologin, create_home: false } }
    - { name: job, cron: { name: tidy, minute: "17", hour: "3", job: "find /srv/managed -mtime +9 -delete", user: root } }
    - { name: facts, command: uptime, changed_when: false }
PLAY
echo "<h1>mirror</h1>" >"$mirror/index.html"
touch "$mirror/.ready"
