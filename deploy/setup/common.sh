# shellcheck shell=bash
# Shared by the set-up scripts; sourced, not run.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
tools=${LOGSTER_TOOLS:-$root/.tools}

note() { echo "setup: $*" >&2; }
die() {
    echo "setup: error: $*" >&2
    exit 1
}

# Registries hiccup; three tries tell a hiccup from a refusal.
retry() {
    local attempt
    for attempt in 1 2 3; do
        "$@" && return 0
        note "attempt $attempt of 3 failed: $1"
        sleep $((attempt * 2))
    done
    return 1
}

# A directory for downloads under .tools, removed when the script ends.
scratch_dir() {
    mkdir -p "$tools"
    scratch=$(mktemp -d "$tools/.tmp.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
}
