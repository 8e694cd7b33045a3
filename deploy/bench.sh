#!/usr/bin/env bash
# One run, one machine, ratios: what each stage costs on real captures, beside the peers where they are.
#
# Needs LOGSTER_CORPUS (make bench sets it). Absolute figures are this machine's at this moment; quote ratios.
# LOGSTER_PEERS: folder with reference.py and bytewax_flow.py (default beside the corpus); without it, no peers.
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
windows=() linux=()
while read -r file; do windows+=("$file"); done < <(find "$corpus/windows" -name '*.ndjson.zst' -printf '%s %p\n' | sort -rn | sed -n 's/^[0-9]* //; 1,12p')
while read -r file; do linux+=("$file"); done < <(find "$corpus/linux" -name '*.ndjson.zst' | sort | head -n 2)
mkdir "$work/windows" "$work/linux"
ln -s "${windows[@]}" "$work/windows/"
ln -s "${linux[@]}" "$work/linux/"

now() { date +%s.%N; }
per() { awk -v n="$1" -v a="$2" -v b="$3" 'BEGIN { printf "%.0f", n / (b - a) }'; }
times() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.1f", a / b }'; }

echo "== operators, one core: validation alone, normalize; window and graph"
cargo bench --quiet --locked -p logster-operators --bench normalize
cargo bench --quiet --locked -p logster-operators --bench graph

python=.tools/bench-venv/bin/python
if [ -f "$peers/reference.py" ]; then
    if ! cmp -s deploy/bench-requirements.txt .tools/bench-venv/requirements.txt; then
        rm -rf .tools/bench-venv
        python3 -m venv .tools/bench-venv
        "$python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r deploy/bench-requirements.txt
        cp deploy/bench-requirements.txt .tools/bench-venv/requirements.txt
    fi
else
    echo "note: no peers at $peers (LOGSTER_PEERS)"
    python=
fi

declare -A one
for platform in windows linux; do
    declare -n captures=$platform
    echo "== $platform: the pipeline without scoring (parse, key, window, graph), one core"
    cargo bench --quiet --locked -p logster-operators --bench pipeline -- "${captures[@]}" | tee "$work/pipeline"
    ours=$(sed -nE 's/^normalize, key.*: ([0-9]+) events.*/\1/p' "$work/pipeline")
    if [ -n "$python" ]; then
        for peer in reference bytewax_flow; do
            theirs=$("$python" "$peers/$peer.py" "${captures[@]}" | sed -nE 's/.*"events_per_s": ([0-9]+).*/\1/p')
            echo "peer $peer: $theirs events/s; logster is $(times "$ours" "$theirs") times as fast"
        done
    fi

    for workers in 1 2; do
        echo "== $platform: files in, everything out with scoring, $workers worker(s), process start included"
        a=$(now)
        "$logster" run -w $workers --input "$work/$platform" --out "$work/out-$platform" "${quiet[@]}" 2> "$work/log"
        b=$(now)
        events=$(wc -l < "$work/out-$platform/normalized-endpoint-events.ndjson")
        bytes=$(zstdcat --long=27 "${captures[@]}" | wc -c)
        rate=$(per "$events" "$a" "$b")
        echo "$events events, $rate events/s, $(per $((bytes / 1000000)) "$a" "$b") MB/s"
        if [ $workers = 1 ]; then one[$platform]=$rate; else echo "$(times "$rate" "${one[$platform]}") times one worker"; fi
        rm -rf "$work/out-$platform"
    done
done

echo "== scoring beside PyTorch Geometric: the same network, the same windows, one core"
trained=models/.venv/bin/python
if [ -x "$trained" ]; then
    if ! cmp -s models/bench-requirements.txt .tools/bench-pyg/requirements.txt; then
        rm -rf .tools/bench-pyg
        "$trained" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
            --target .tools/bench-pyg -r models/bench-requirements.txt
        cp models/bench-requirements.txt .tools/bench-pyg/requirements.txt
    fi
    for platform in windows linux; do
        "$logster" export-windows --input "$work/$platform" --out "$work/$platform.arrow" --set log.level=error
        (cd models && PYTHONWARNINGS=ignore PYTHONPATH=../.tools/bench-pyg .venv/bin/python -m trainer.bench "$work/$platform.arrow")
    done
else
    echo "note: no PyTorch at $trained (make train installs it)"
fi

export LOGSTER_KAFKA_JVM="-XX:+UseG1GC -Xmx1g"
echo "== Kafka to Kafka, exactly once, one worker, one broker; window close to alert"
cargo bench --quiet --locked -p logster-dataflow --bench kafka -- "$work/windows"

echo "== the writer alone: what exactly-once costs beside a plain producer"
cargo bench --quiet --locked -p logster-sinks --bench writer

echo "== the broker's own tools in the same run"
brokers=$(deploy/kafka/cluster.sh start --dir "$work/kafka" --owner $$)
broker_up=1
tool() { deploy/kafka/cluster.sh tool "$@"; }
tool org.apache.kafka.tools.TopicCommand --bootstrap-server "$brokers" --create --topic perf --partitions 12 > /dev/null
tool org.apache.kafka.tools.ProducerPerformance --topic perf --num-records 300000 --record-size 1000 --throughput -1 \
    --producer-props "bootstrap.servers=$brokers" compression.type=lz4 | tail -n 1
tool org.apache.kafka.tools.ConsumerPerformance --topic perf --num-records 300000 --bootstrap-server "$brokers" | tail -n 1
