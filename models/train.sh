#!/usr/bin/env bash
# Exports the corpus' windows, trains both models, writes packages, has the product judge them on what they have not
# seen, and writes the report. Interrupted, it goes on where it stopped.
#
#   LOGSTER_CORPUS  folder with windows/ and linux/ (default ../shared/corpus)
#   MODEL_VERSION     version of the packages (default 8; count on when data or recipe change: ids of results hold it)
#   MODEL_SEEDS       seeds per model (default 5)
#   MODEL_GAT         platforms whose package holds a trained GAT beside the linear head (default "windows")
#   MODEL_FEEDBACK    folder of `logster export-feedback`: alerts that analysts decided on, to train on as well
#   MODEL_BACKGROUND  folder of recordings of one's own, their labels.json beside them or one folder down (models/data/ makes
#                     them, Linux): they train, out of fold, and the report says what is raised on them
#   MODEL_JOBS        trainings and plays at a time (default: the cores; nothing depends on it)
#   MODEL_THREADS     threads of one training (default 1: repeats bit for bit; with more, one training at a time)
set -euo pipefail

models=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$models")
corpus=${LOGSTER_CORPUS:-$root/../shared/corpus}
work=$models/.work
venv=$models/.venv
python=$venv/bin/python
threads=${MODEL_THREADS:-1}
jobs=${MODEL_JOBS:-$(nproc)}

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

(cd "$root" && cargo build --release --locked)
logster=$root/target/release/logster

cd "$models"
export OMP_NUM_THREADS=$threads
"$python" -m unittest discover -s tests -t .

# exported NAME FOLDER [OPTION...]: the windows of the captures in FOLDER as $work/NAME.arrow, made anew when the program
# or the recordings change.
exported() {
    local out=$work/$1.arrow folder=$2
    shift 2
    if ! sha256sum --check --status "$out.sha256" 2>/dev/null || [ "$(find -L "$folder" -newer "$out.sha256" -type f | wc -l)" != 0 ]; then
        "$logster" export-windows --input "$folder" --out "$out" "$@"
        sha256sum "$logster" "$out" >"$out.sha256"
    fi
}

for platform in windows linux; do
    options=()
    [ "$platform" = linux ] && options=(--views)
    exported "$platform" "$corpus/$platform" "${options[@]}"
    options=()
    [[ " ${MODEL_GAT:-windows} " == *" $platform "* ]] || options+=(--linear-only)
    [ -n "${MODEL_FEEDBACK:-}" ] && options+=(--feedback "$MODEL_FEEDBACK")
    if [ "$platform" = linux ] && [ -n "${MODEL_BACKGROUND:-}" ]; then
        exported background "$MODEL_BACKGROUND" --views
        options+=(--background "$work/background.arrow" --background-labels "$MODEL_BACKGROUND")
    fi
    nice "$python" -m trainer.train --platform "$platform" --windows "$work/$platform.arrow" \
        --labels "$corpus/$platform/labels.json" --work "$work/$platform" --package "packages/$platform" \
        --version "${MODEL_VERSION:-8}" --seeds "${MODEL_SEEDS:-5}" --threads "$threads" --jobs "$jobs" "${options[@]}"
done
# The product judges: each fold's recordings with the packages that have not seen them.
for platform in windows linux; do
    options=()
    [ "$platform" = linux ] && [ -n "${MODEL_BACKGROUND:-}" ] && options+=(--own "$MODEL_BACKGROUND")
    nice "$python" -m trainer.backtest --platform "$platform" --logster "$logster" --corpus "$corpus/$platform" \
        --work "$work/$platform" --jobs "$jobs" "${options[@]}"
done
"$python" -m trainer.report --work "$work" --out reports
