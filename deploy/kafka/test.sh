#!/usr/bin/env bash
# Checks the kit that every Kafka test relies on. Prints one line a check and "N passed, N failed".
set -euo pipefail

kit=$(dirname "${BASH_SOURCE[0]}")/cluster.sh
topics=org.apache.kafka.tools.TopicCommand
work=$(mktemp -d)
passed=0 failed=0

cleanup() {
    local cluster
    for cluster in "$work"/*/cluster.env; do
        [ ! -f "$cluster" ] || "$kit" stop --now --dir "$(dirname "$cluster")" || true
    done
    rm -rf "$work"
}
trap cleanup EXIT

check() { # check NAME COMMAND...
    local name=$1
    shift
    if "$@" >"$work/out" 2>&1; then
        passed=$((passed + 1))
        echo "ok   $name"
    else
        failed=$((failed + 1))
        echo "FAIL $name"
        sed 's/^/     /' "$work/out"
    fi
}
refuses() { # refuses TEXT COMMAND...: it fails, and says TEXT
    local text=$1 said
    shift
    if said=$("$@" 2>&1); then
        echo "succeeded: $said"
        return 1
    fi
    [[ $said == *"$text"* ]] || { echo "said: $said"; return 1; }
}
equal() { [ "$1" = "$2" ] || { echo "'$1' is not '$2'"; return 1; }; }
within() { # within SECONDS COMMAND...
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || { echo "not within the time: $*"; return 1; }
        sleep 0.2
    done
}
states() { "$kit" status --dir "$1" | cut -d' ' -f4 | paste -sd' '; }
topic() { "$kit" tool $topics --bootstrap-server "$servers" "$@"; }
dead() { ! kill -0 "$1" 2>/dev/null; }

one=$work/one
servers=$("$kit" start --dir "$one")
check "one broker starts and prints its address" test "${servers%:*}" = 127.0.0.1
check "a topic is created" topic --create --topic kept --partitions 2
check "its port is refused to a second cluster" refuses "port ${servers#*:} is in use" "$kit" start --dir "$work/two" --port "${servers#*:}"
check "a running cluster is not started again" refuses "already running" "$kit" start --dir "$one"
check "an unknown broker is refused" refuses "no broker 2" "$kit" kill-broker 2 --dir "$one"
"$kit" stop-broker 1 --dir "$one"
check "a hung broker is seen as such" equal "$(states "$one")" paused
"$kit" cont-broker 1 --dir "$one"
check "and goes on" equal "$(states "$one")" running
"$kit" kill-broker 1 --dir "$one"
check "a killed broker is gone" equal "$(states "$one")" stopped
check "it comes back" "$kit" start-broker 1 --dir "$one"
check "with its topics, on its port" topic --describe --topic kept
check "it stops" "$kit" stop --dir "$one"
check "and is stopped" equal "$(states "$one")" stopped
check "stopping twice is no error" "$kit" stop --dir "$one"

sleep 300 &
owner=$!
owned=$work/owned
"$kit" start --dir "$owned" --owner "$owner" >/dev/null
pid=$("$kit" status --dir "$owned" | sed 's/.*pid //')
kill "$owner"
check "a broker ends with its owner" within 5 dead "$pid"

sleep 300 &
owner=$!
"$kit" start --dir "$work/lost" --owner "$owner" >/dev/null
pid=$("$kit" status --dir "$work/lost" | sed 's/.*pid //')
rm -rf "$work/lost"
check "a broker ends with its directory" within 5 dead "$pid"
kill "$owner"

three=$work/three
servers=$("$kit" start --dir "$three" --brokers 3 --set message.max.bytes=2000000)
check "three brokers start" equal "$(states "$three")" "running running running"
check "three replicas" bash -c "'$kit' tool $topics --bootstrap-server $servers --create --topic t --replication-factor 3"
"$kit" kill-broker 2 --dir "$three"
check "one is killed" equal "$(states "$three")" "running stopped running"
check "and comes back to the quorum" "$kit" start-broker 2 --dir "$three"
check "all are killed at once" "$kit" stop --now --dir "$three"
check "and are gone" equal "$(states "$three")" "stopped stopped stopped"

echo "$passed passed, $failed failed"
[ $failed = 0 ]
