#!/usr/bin/env bash
# Exports the corpus' windows, trains both models, writes packages, has the product judge them on what they have not
# seen, and writes the report. Interrupted, it goes on where it stopped.
#
#   LOGSTER_CORPUS  folder with windows/ and linux/ (default ../shared/corpus)
#   MODEL_VERSION   version of the packages (default 5; count on when data or recipe change: ids of results hold it)
#   MODEL_SEEDS     seeds per model (default 5)
#   MODEL_GAT       platforms whose package holds a trained GAT beside the linear head (default "windows":
#                   on Linux it has not been evaluated yet)
#   MODEL_FEEDBACK  folder of `logster export-feedback`: alerts that analysts decided on, to train on as well
#   MODEL_THREADS   threads of PyTorch (default 1: repeats bit for bit)
set -euo pipefail

models=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$models")
corpus=${LOGSTER_CORPUS:-$root/../shared/corpus}
work=$models/.work
venv=$models/.venv
python=$venv/bin/python
threads=${MODEL_THREADS:-1}

[ -d "$corpus/windows" ] && [ -d "$corpus/linux" ] || {
    echo "no corpus at $corpus: set LOGSTER_CORPUS to a folder with windows/ and linux/" >&2
    exit 1
}
mkdir -p "$work"

# The environment is made anew when the pins change.
if ! cmp -s "$models/requirements.txt" "$venv/requirements.txt"; then
    echo "installing the pinned Python packages (about 2.5 GB, PyTorch's CUDA libraries included)"
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r "$models/requirements.txt"
    cp "$models/requirements.txt" "$venv/requirements.txt"
fi

(cd "$root" && cargo build --release --locked -p logster-dataflow)
logster=$root/target/release/logster

cd "$models"
export OMP_NUM_THREADS=$threads
"$python" -m unittest discover -s tests -t .

for platform in windows linux; do
    windows=$work/$platform.arrow
    # The export is made anew when the program or the labels change.
    if ! sha256sum --check --status "$windows.sha256" 2>/dev/null; then
        views=()
        [ "$platform" = linux ] && views=(--views)
        "$logster" export-windows --input "$corpus/$platform" --out "$windows" "${views[@]}"
        sha256sum "$logster" "$corpus/$platform/labels.json" "$windows" >"$windows.sha256"
    fi
    feedback=()
    [ -n "${MODEL_FEEDBACK:-}" ] && feedback=(--feedback "$MODEL_FEEDBACK")
    gat=(--linear-only)
    [[ " ${MODEL_GAT:-windows} " == *" $platform "* ]] && gat=()
    nice "$python" -m trainer.train --platform "$platform" --windows "$windows" \
        --labels "$corpus/$platform/labels.json" --work "$work/$platform" --package "packages/$platform" \
        --version "${MODEL_VERSION:-5}" --seeds "${MODEL_SEEDS:-5}" --threads "$threads" "${gat[@]}" "${feedback[@]}"
done
# The product judges: each fold's recordings with the package that has not seen them.
for platform in windows linux; do
    nice "$python" -m trainer.backtest --platform "$platform" --logster "$logster" --corpus "$corpus/$platform" --work "$work/$platform"
done
"$python" -m trainer.report --work "$work" --out reports
