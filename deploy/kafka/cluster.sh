#!/usr/bin/env bash
# Real Kafka brokers on this machine, for tests and benches. Loopback only; nothing survives `stop` but DIR.
#
#   cluster.sh start --dir DIR [--brokers 1|3] [--port BASE] [--owner PID] [--set KEY=VALUE]...
#       Formats storage (first time), starts every broker, waits until all take clients, and prints the
#       bootstrap servers as the only line on standard output. On a DIR whose cluster was stopped: starts it again.
#   cluster.sh stop --dir DIR [--now] [--grace SECONDS]
#   cluster.sh status --dir DIR          one line a broker; exit 0 only if all are running
#   cluster.sh bootstrap --dir DIR       prints the bootstrap servers
#   cluster.sh kill-broker N --dir DIR   kill -9
#   cluster.sh start-broker N --dir DIR [--no-wait]
#   cluster.sh stop-broker N --dir DIR   SIGSTOP: the broker hangs, its connections stay open
#   cluster.sh cont-broker N --dir DIR   SIGCONT
#   cluster.sh tool CLASS ARG...         one of Kafka's own tools: tool org.apache.kafka.tools.TopicCommand --list ...
#
# Ports: broker N listens on BASE + 2(N-1), its controller on the next. Without --port free ones are found.
# --owner: a watcher stops the cluster when that process ends or DIR disappears, so a killed test leaves no broker.
# LOGSTER_KAFKA_JVM replaces the JVM flags, e.g. "-Xmx1g" for a bench (the default starts fast and stays small).
# KAFKA_START_TIMEOUT: seconds a start may take (120).
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tools=${LOGSTER_TOOLS:-$(cd "$here/../.." && pwd)/.tools}
libs=$tools/kafka/libs
archive=$tools/kafka/classes.jsa
timeout_s=${KAFKA_START_TIMEOUT:-120}
host=127.0.0.1

die() {
    echo "cluster.sh: error: $*" >&2
    exit 1
}
usage() {
    sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2
    exit 2
}

tool_flags=(-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData "-Dlog4j2.configurationFile=$here/log4j2-tools.properties")
jvm_flags=(-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xms64m -Xmx384m)
[ -z "${LOGSTER_KAFKA_JVM:-}" ] || read -ra jvm_flags <<<"$LOGSTER_KAFKA_JVM"
jvm_flags+=(-XX:-UsePerfData -XX:+ExitOnOutOfMemoryError "-Dlog4j2.configurationFile=$here/log4j2.properties")
if [ -n "${LOGSTER_KAFKA_RECORD_ARCHIVE:-}" ]; then
    jvm_flags+=("-XX:ArchiveClassesAtExit=$LOGSTER_KAFKA_RECORD_ARCHIVE" -Xlog:cds=off -Xlog:cds+dynamic=off)
elif [ -s "$archive" ]; then
    shared=(-Xshare:auto "-XX:SharedArchiveFile=$archive" -Xlog:disable -Xlog:all=error:stderr)
    jvm_flags+=("${shared[@]}")
    tool_flags+=("${shared[@]}")
fi

# --- a cluster's files: DIR/cluster.env, DIR/broker-N/{server.properties,server.log,pid,data}

load_cluster() {
    [ -f "$dir/cluster.env" ] || die "no cluster in $dir"
    local key value
    while IFS='=' read -r key value; do
        case $key in
            brokers) brokers=$value ;;
            base) base=$value ;;
        esac
    done <"$dir/cluster.env"
}
client_port() { echo $((base + 2 * ($1 - 1))); }
controller_port() { echo $((base + 2 * ($1 - 1) + 1)); }
bootstrap() {
    local n list=
    for ((n = 1; n <= brokers; n++)); do list+=${list:+,}$host:$(client_port "$n"); done
    echo "$list"
}

# The pid of broker N if it is alive. A pid file can outlive its process: the command line must name our file.
broker_pid() {
    local pid
    pid=$(cat "$dir/broker-$1/pid" 2>/dev/null) || return 1
    runs_with "$pid" "$dir/broker-$1/server.properties" && echo "$pid"
}
runs_with() { tr '\0' '\n' 2>/dev/null <"/proc/$1/cmdline" | grep -qxF -- "$2"; } 2>/dev/null
running() { broker_pid "$1" >/dev/null; }

signal_broker() { # signal_broker SIGNAL N
    local pid
    pid=$(broker_pid "$2") || die "broker $2 is not running in $dir"
    kill -s "$1" "$pid"
}
wait_gone() { # wait_gone N SECONDS
    local tries=$(($2 * 20))
    while running "$1"; do
        ((tries-- > 0)) || return 1
        sleep 0.05
    done
}

# --- ports

port_taken() { (exec 3<>"/dev/tcp/$host/$1") 2>/dev/null; }
taken_port() { # the first port of our range that something listens on
    local port
    for ((port = base; port < base + 2 * brokers; port++)); do
        if port_taken "$port"; then
            echo "$port"
            return 0
        fi
    done
    return 1
}
pick_ports() { # below the ephemeral range, so that no client connection sits on one
    local tries
    for ((tries = 0; tries < 50; tries++)); do
        base=$((20000 + RANDOM % 5900 * 2))
        taken_port >/dev/null || return 0
    done
    die "no free ports between 20000 and 31800"
}

# --- configuration

write_config() {
    local n voters=
    for ((n = 1; n <= brokers; n++)); do voters+=${voters:+,}$n@$host:$(controller_port "$n"); done
    local replicas=$brokers min_isr=$((brokers > 1 ? 2 : 1))
    printf 'brokers=%s\nbase=%s\n' "$brokers" "$base" >"$dir/cluster.env"
    for ((n = 1; n <= brokers; n++)); do
        mkdir -p "$dir/broker-$n"
        {
            cat <<CONFIG
process.roles=broker,controller
node.id=$n
controller.quorum.voters=$voters
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://$host:$(client_port "$n"),CONTROLLER://$host:$(controller_port "$n")
advertised.listeners=PLAINTEXT://$host:$(client_port "$n")
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=$dir/broker-$n/data

auto.create.topics.enable=false
default.replication.factor=$replicas
min.insync.replicas=$min_isr
offsets.topic.replication.factor=$replicas
transaction.state.log.replication.factor=$replicas
transaction.state.log.min.isr=$min_isr
share.coordinator.state.topic.replication.factor=$replicas
share.coordinator.state.topic.min.isr=$min_isr

# Captures played with their own times are years old: no retention by age.
log.retention.ms=-1

# Quick and small. The internal topics default to 50 partitions, which a first consumer or transaction waits for.
group.initial.rebalance.delay.ms=0
offsets.topic.num.partitions=8
transaction.state.log.num.partitions=8
share.coordinator.state.topic.num.partitions=2
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
broker.session.timeout.ms=6000
num.network.threads=2
num.io.threads=4
background.threads=2
log.cleaner.dedupe.buffer.size=8388608
CONFIG
            [ ${#settings[@]} -eq 0 ] || printf '%s\n' "${settings[@]}"
        } >"$dir/broker-$n/server.properties"
    done
}

# One run of the tool (0.6 s of a core) does for all: the bootstrap records are the same for every node, and a
# broker gives its directory an id of its own where it finds none.
format_storage() {
    local id n
    id=$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=')
    [ "${id:0:1}" != - ] || id=A${id:1} # the tool would take it for an option
    java "${tool_flags[@]}" -cp "$libs/*" kafka.tools.StorageTool format -t "$id" \
        -c "$dir/broker-1/server.properties" </dev/null >"$dir/broker-1/format.log" 2>&1 ||
        die "could not format storage: $(tail -n 3 "$dir/broker-1/format.log")"
    for ((n = 2; n <= brokers; n++)); do
        mkdir -p "$dir/broker-$n/data"
        cp "$dir/broker-1/data/bootstrap.checkpoint" "$dir/broker-$n/data/"
        sed "s/^node.id=.*/node.id=$n/;/^directory.id=/d" "$dir/broker-1/data/meta.properties" \
            >"$dir/broker-$n/data/meta.properties"
    done
}

# --- starting and stopping

declare -A log_start pids
launch() { # starts broker N and returns at once
    local log=$dir/broker-$1/server.log
    touch "$log"
    log_start[$1]=$(stat -c %s "$log")
    # Its own session and no inherited descriptors: a caller reading our output is not kept waiting by the broker.
    setsid java "${jvm_flags[@]}" -cp "$libs/*" kafka.Kafka "$dir/broker-$1/server.properties" \
        </dev/null >>"$log" 2>&1 3>&- 9>&- &
    pids[$1]=$!
    echo "$!" >"$dir/broker-$1/pid"
    disown
}
new_log() { tail -c "+$((log_start[$1] + 1))" "$dir/broker-$1/server.log"; }
# 0: up, 1: gone or too late. The broker writes this line once it takes clients.
await() {
    local deadline=$((SECONDS + timeout_s))
    until new_log "$1" | grep -q 'Kafka Server started'; do
        [ -e "/proc/${pids[$1]}" ] || return 1
        ((SECONDS < deadline)) || return 1
        sleep 0.05
    done
}
explain() { # why broker N did not come up
    if new_log "$1" | grep -q 'Address already in use\|failed to bind'; then
        echo "port $(client_port "$1") or $(controller_port "$1") was taken while broker $1 started"
    else
        echo "broker $1 did not start within $timeout_s s; the end of $dir/broker-$1/server.log:"
        new_log "$1" | grep -E 'ERROR|FATAL|Exception|Caused' | tail -n 10 || tail -n 10 "$dir/broker-$1/server.log"
    fi
}

stop_watcher() {
    local pid
    pid=$(cat "$dir/watch.pid" 2>/dev/null) || return 0
    rm -f "$dir/watch.pid"
    # Also called by the watcher itself.
    [ "$pid" = $$ ] || ! runs_with "$pid" "$dir" || kill "$pid" 2>/dev/null || true
}
stop_brokers() { # stop_brokers GRACE_SECONDS; 0: kill at once
    local n pid deadline=$((SECONDS + $1))
    for ((n = 1; n <= brokers; n++)); do
        pid=$(broker_pid "$n") || continue
        if [ "$1" -gt 0 ]; then
            kill -s TERM "$pid" 2>/dev/null || true
            kill -s CONT "$pid" 2>/dev/null || true
        else
            kill -s KILL "$pid" 2>/dev/null || true
        fi
    done
    for ((n = 1; n <= brokers; n++)); do
        until ! running "$n" || ((SECONDS >= deadline)); do sleep 0.05; done
        if pid=$(broker_pid "$n"); then
            kill -s KILL "$pid" 2>/dev/null || true
            wait_gone "$n" 10 || die "broker $n (pid $pid) does not die"
        fi
        rm -f "$dir/broker-$n/pid"
    done
}

start_time() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

cmd_start() {
    local fixed=$port attempt n failed
    if [ -f "$dir/cluster.env" ]; then
        load_cluster
        fixed=$base
        for ((n = 1; n <= brokers; n++)); do
            ! running "$n" || die "broker $n is already running in $dir"
        done
        ! port=$(taken_port) || die "port $port is in use: the cluster of $dir needs ports $base to $((base + 2 * brokers - 1))"
    else
        mkdir -p "$dir"
        base=$fixed
        if [ "$fixed" != 0 ]; then
            ! port=$(taken_port) || die "port $port is in use (needed: $base to $((base + 2 * brokers - 1)))"
        fi
    fi

    for attempt in 1 2 3; do
        if [ ! -f "$dir/cluster.env" ] || [ ! -d "$dir/broker-1/data" ]; then
            [ "$fixed" != 0 ] || pick_ports
            write_config
            trap 'stop_watcher; stop_brokers 0; rm -rf "$dir"/broker-*/data "$dir/cluster.env"' EXIT
            format_storage
        fi
        if [ "$owner" != 0 ] && [ "$attempt" = 1 ]; then
            setsid "$BASH" "${BASH_SOURCE[0]}" watch --dir "$dir" --owner "$owner" </dev/null >>"$dir/watch.log" 2>&1 3>&- 9>&- &
            echo "$!" >"$dir/watch.pid"
            disown
        fi
        for ((n = 1; n <= brokers; n++)); do launch "$n"; done
        failed=
        for ((n = 1; n <= brokers; n++)); do
            await "$n" || { failed=$(explain "$n"); break; }
        done
        [ -n "$failed" ] || break
        stop_brokers 0
        # Someone took a port that we found free: take others, if they were ours to choose.
        if [ "$fixed" = 0 ] && [ "$attempt" -lt 3 ] && [[ $failed == port* ]]; then
            rm -rf "$dir"/broker-* "$dir/cluster.env"
            continue
        fi
        stop_watcher
        die "$failed"
    done
    trap - EXIT
    bootstrap
}

cmd_watch() {
    local started n alive=()
    started=$(start_time "$owner")
    while [ -d "$dir" ] && [ -n "$started" ] && [ "$(start_time "$owner")" = "$started" ]; do
        if [ -f "$dir/cluster.env" ]; then
            load_cluster
            alive=()
            for ((n = 1; n <= brokers; n++)); do alive[n]=$(broker_pid "$n" || true); done
        fi
        sleep 1
    done
    for n in "${!alive[@]}"; do
        if [ -n "${alive[n]}" ] && runs_with "${alive[n]}" "$dir/broker-$n/server.properties"; then
            kill -s KILL "${alive[n]}" 2>/dev/null || true
        fi
    done
    if [ -f "$dir/cluster.env" ]; then
        load_cluster
        stop_brokers 0
    fi
    stop_watcher
}

cmd_status() {
    local n pid state all=0
    for ((n = 1; n <= brokers; n++)); do
        state=stopped
        if pid=$(broker_pid "$n"); then
            case $(sed 's/.*) //' "/proc/$pid/stat" | cut -d' ' -f1) in
                T) state=paused ;;
                *) state=running ;;
            esac
        fi
        [ $state = running ] || all=1
        echo "broker $n $host:$(client_port "$n") $state${pid:+ pid $pid}"
    done
    return $all
}

# --- command line

[ $# -gt 0 ] || usage
command=$1
shift

if [ "$command" = tool ]; then
    [ -d "$libs" ] || die "Kafka is not set up: run 'make setup'"
    exec java "${tool_flags[@]}" -cp "$libs/*" "$@"
fi

number=
case $command in
    kill-broker | start-broker | stop-broker | cont-broker)
        [[ ${1:-} =~ ^[1-9]$ ]] || die "$command needs a broker number"
        number=$1
        shift
        ;;
    start | stop | status | bootstrap | watch) ;;
    *) usage ;;
esac

dir='' brokers=1 base=0 port=0 owner=0 grace=5 wait=1 settings=()
while [ $# -gt 0 ]; do
    case $1 in
        --now) grace=0 ;;
        --no-wait) wait=0 ;;
        --dir | --brokers | --port | --owner | --grace | --set)
            [ $# -ge 2 ] || die "$1 needs a value"
            case $1 in
                --dir) dir=$(realpath -m -- "$2") ;;
                --brokers) brokers=$2 ;;
                --port) port=$2 ;;
                --owner) owner=$2 ;;
                --grace) grace=$2 ;;
                --set) settings+=("$2") ;;
            esac
            shift
            ;;
        *) die "unknown option '$1'" ;;
    esac
    shift
done
[ -n "$dir" ] || die "--dir is needed"
[[ $brokers == 1 || $brokers == 3 ]] || die "--brokers is 1 or 3"
[[ $port =~ ^[0-9]+$ && $owner =~ ^[0-9]+$ && $grace =~ ^[0-9]+$ ]] || die "--port, --owner and --grace are numbers"
((port <= 65535 - 2 * brokers)) || die "--port is too large"

case $command in
    start | start-broker)
        [ -d "$libs" ] || die "Kafka is not set up: run 'make setup'"
        command -v java >/dev/null || die "java is not installed: run 'make setup'"
        ;;
esac
[ "$command" = start ] || [ "$command" = watch ] || load_cluster
[ -z "$number" ] || ((number <= brokers)) || die "there are $brokers brokers, no broker $number"

case $command in
    start) cmd_start ;;
    watch) cmd_watch ;;
    stop)
        stop_watcher
        stop_brokers "$grace"
        ;;
    status) cmd_status ;;
    bootstrap) bootstrap ;;
    kill-broker)
        signal_broker KILL "$number"
        wait_gone "$number" 10 || die "broker $number does not die"
        rm -f "$dir/broker-$number/pid"
        ;;
    start-broker)
        ! running "$number" || die "broker $number is already running"
        launch "$number"
        [ $wait = 0 ] || await "$number" || die "$(explain "$number")"
        ;;
    stop-broker) signal_broker STOP "$number" ;;
    cont-broker) signal_broker CONT "$number" ;;
esac
