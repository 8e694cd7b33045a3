#!/usr/bin/env bash
# One run, one machine, ratios: what each stage costs on real captures, beside the peers where they are.
#
# Needs LOGSTER_CORPUS (make bench sets it). Absolute figures are this machine's at this moment; quote ratios.
set -euo pipefail
cd "$(dirname "$0")/.."
corpus=${LOGSTER_CORPUS:?set LOGSTER_CORPUS to the folder of the captures}
peers=${LOGSTER_PEERS:-$corpus/../peers}
logster=target/release/logster
work=$(mktemp -d)
quiet=(--set http.enabled=false --set log.level=error)
broker_up=
finish() {
    [ -z "$broker_up" ] || deploy/kafka/cluster.sh stop --dir "$work/kafka" --now || true
    rm -rf "$work"
}
trap finish EXIT

# A few captures of each platform, so that the slowest peer ends within minutes.
mapfile -t windows < <(ls -S "$corpus"/windows/*.ndjson.zst | head -n 12)
mapfile -t linux < <(ls "$corpus"/linux/*.ndjson.zst | head -n 2)
mkdir "$work/windows" "$work/linux"
ln -s "${windows[@]}" "$work/windows/"
ln -s "${linux[@]}" "$work/linux/"

echo "== operators: validation, normalize, window and graph (one core)"
cargo bench --locked -p logster-operators --bench normalize
cargo bench --locked -p logster-operators --bench graph

now() { date +%s.%N; }
rate() { awk -v n="$1" -v a="$2" -v b="$3" 'BEGIN { printf "%.0f", n / (b - a) }'; }

declare -A scored
for platform in windows linux; do
    echo "== $platform: files in, everything with scoring out, one worker"
    a=$(now)
    "$logster" run --input "$work/$platform" --out "$work/out-$platform" "${quiet[@]}" 2> "$work/log"
    b=$(now)
    events=$(wc -l < "$work/out-$platform/normalized-endpoint-events.ndjson")
    declare -n captures=$platform
    bytes=$(zstdcat --long=27 "${captures[@]}" | wc -c)
    scored[$platform]=$(rate "$events" "$a" "$b")
    echo "$events events, ${scored[$platform]} events/s, $(rate $((bytes / 1000000)) "$a" "$b") MB/s"
done

echo "== Kafka to Kafka, exactly once, one worker, one broker"
export LOGSTER_KAFKA_JVM="-XX:+UseG1GC -Xmx1g"
brokers=$(deploy/kafka/cluster.sh start --dir "$work/kafka" --owner $$)
broker_up=1
kafka=(--kafka "$brokers" --set input.arrival=create)
"$logster" topics create "${kafka[@]}" > /dev/null
"$logster" produce --kafka "$brokers" --input "$work/windows" | tail -n 1
a=$(now)
"$logster" run "${kafka[@]}" --until-end "${quiet[@]}"
b=$(now)
events=$(wc -l < "$work/out-windows/normalized-endpoint-events.ndjson")
echo "$(rate "$events" "$a" "$b") events/s, start-up of the run included"
cargo bench --locked -p logster-sinks --bench writer

if [ -f "$peers/reference.py" ] && python3 -c 'import networkx' 2> /dev/null; then
    echo "== peer: the same captures in plain Python (parse, windows, NetworkX graphs; no model), one core"
    for platform in windows linux; do
        declare -n captures=$platform
        out=$(python3 "$peers/reference.py" "${captures[@]}")
        python_rate=$(sed -E 's/.*"events_per_s": ([0-9]+).*/\1/' <<< "$out")
        echo "$platform: $python_rate events/s; logster with scoring, output and process start: $(awk \
            -v a="${scored[$platform]}" -v b="$python_rate" 'BEGIN { printf "%.1f", a / b }') times that"
    done
else
    echo "note: no Python peer (LOGSTER_PEERS, and python3 with networkx)"
fi
