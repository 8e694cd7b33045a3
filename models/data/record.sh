#!/usr/bin/env bash
# record.sh DIR [--minutes N] [--hosts N] [--seed N] [--attacks]: records throwaway endpoints at work.
#
# Writes DIR/raw-<time>/ (audit log, traced calls, hosts.json) and converts it into DIR/out-<time>/ (labels.json and one
# stream per endpoint, as `logster backtest` and `logster export-windows` read them). See README.md beside this file.
# LOGSTER_RECORD_CPU: the CPU time of all endpoints together, in cores (default 0.5).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=$(realpath -m "${1:?usage: record.sh DIR [--minutes N] [--hosts N] [--seed N] [--attacks]}")
shift
cpu=${LOGSTER_RECORD_CPU:-0.5}
stamp=$(date -u +%Y%m%dT%H%M%SZ)
raw=$dir/raw-$stamp out=$dir/out-$stamp
network=logster-record
group=/sys/fs/cgroup/cpu/logster-record
[ -d /sys/fs/cgroup/cpu ] || group=/sys/fs/cgroup/logster-record

[ "$(id -u)" = 0 ] || { echo "record.sh needs root" >&2; exit 1; }
for tool in auditctl auditd bpftrace debootstrap ssh-keygen ip setpriv zstd; do
    command -v "$tool" >/dev/null || { echo "record.sh needs $tool" >&2; exit 1; }
done
read -r enabled pid < <(auditctl -s | awk '$1 == "enabled" { e = $2 } $1 == "pid" { p = $2 } END { print e, p }')
if [ "$pid" != 0 ] || [ "$enabled" = 2 ]; then
    echo "the kernel's audit belongs to process $pid (enabled $enabled): stop that auditd, or use another machine" >&2
    exit 1
fi
[ ! -e "/run/netns/$network" ] || { echo "another recording runs, or one was killed: ip netns del $network" >&2; exit 1; }

"$here/base.sh" "$dir"
"$here/mirror.sh" "$dir"
mkdir -p "$raw/auditd"

auditd_pid='' tracer_pid='' hosts_pid='' rules='' tracefs=''
stop() {
    set +e
    trap '' INT TERM
    if [ -n "$hosts_pid" ]; then kill "$hosts_pid"; wait "$hosts_pid"; fi 2>/dev/null
    if [ -n "$tracer_pid" ]; then kill -INT "$tracer_pid"; wait "$tracer_pid"; fi 2>/dev/null
    [ -z "$rules" ] || auditctl -R "$raw/rules.off" >/dev/null
    if [ -n "$auditd_pid" ]; then auditctl -s >"$raw/audit.status"; auditctl -e "$enabled" >/dev/null; kill "$auditd_pid"; wait "$auditd_pid"; fi 2>/dev/null
    ip netns del "$network" 2>/dev/null
    rmdir "$group" 2>/dev/null
    [ -z "$tracefs" ] || umount /sys/kernel/tracing
}
trap stop EXIT
trap 'exit 130' INT TERM

# The endpoints' share of the machine
mkdir -p "$group"
if [ -e "$group/cpu.cfs_quota_us" ]; then
    awk -v c="$cpu" 'BEGIN { print int(c * 100000) }' >"$group/cpu.cfs_quota_us"
    echo 800 >"$group/cpu.shares"
elif [ -e "$group/cpu.max" ]; then
    awk -v c="$cpu" 'BEGIN { print int(c * 100000), 100000 }' >"$group/cpu.max"
else
    echo "note: no limit of CPU time here, low priority alone" >&2
fi

# Audit: a daemon with a configuration of its own, rules for the endpoints' login uids alone
sed -e "s,^log_file =.*,log_file = $raw/audit.log," -e 's,^log_format =.*,log_format = ENRICHED,' \
    -e 's,^max_log_file_action =.*,max_log_file_action = IGNORE,' -e 's,^freq =.*,freq = 200,' \
    -e 's,^plugin_dir =.*,plugin_dir = '"$raw/auditd"',' /etc/audit/auditd.conf >"$raw/auditd/auditd.conf"
chmod 640 "$raw/auditd/auditd.conf"
{
    sed 's/@WHO@/-F auid>=20000 -F auid<=29999/' "$here/audit.rules"
    sed 's/@WHO@/-F auid=0/' "$here/audit.rules"
} >"$raw/rules.on"
sed -n 's/^-a /-d /p' "$raw/rules.on" >"$raw/rules.off"
printf -- '-b 131072\n--backlog_wait_time 500\n-f 1\n' | cat - "$raw/rules.on" >"$raw/rules.load"
auditd -n -c "$raw/auditd" -s enable >"$raw/auditd.out" 2>&1 &
auditd_pid=$!
sleep 2
rules=1
auditctl -R "$raw/rules.load" >"$raw/rules.out" 2>&1 || { cat "$raw/rules.out" >&2; exit 1; }

# The tracer
if [ ! -e /sys/kernel/tracing/events ]; then
    mount -t tracefs tracefs /sys/kernel/tracing
    tracefs=1
fi
python3 -c 'import time; print(time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME))' >"$raw/clock"
BPFTRACE_STRLEN=160 BPFTRACE_PERF_RB_PAGES=2048 bpftrace -B full "$here/trace.bt" "$(stat -Lc %i /proc/self/ns/uts)" \
    >"$raw/trace.tsv" 2>"$raw/trace.err" &
tracer_pid=$!
for _ in $(seq 60); do grep -qs Attaching "$raw/trace.err" "$raw/trace.tsv" && break; sleep 0.5; done
sleep 5
kill -0 "$tracer_pid" "$auditd_pid" || { cat "$raw/trace.err" "$raw/auditd.out" >&2; exit 1; }

# The endpoints' network, which leads nowhere else
ip netns add "$network"
ip -n "$network" link set lo up
ip -n "$network" link add br0 type bridge
ip -n "$network" addr add 10.88.0.1/16 dev br0
ip -n "$network" link set br0 up

(
    echo "$BASHPID" >"$group/cgroup.procs"
    exec nsenter --net="/run/netns/$network" nice -n 19 python3 "$here/hosts.py" "$dir" "$raw" "$@"
) &
hosts_pid=$!
wait "$hosts_pid"
hosts_pid=''
sleep 2
stop
trap - EXIT
set -e
python3 "$here/convert.py" "$raw" "$out"
echo "recorded: $out"
