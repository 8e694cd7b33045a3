#!/usr/bin/env bash
# Brings a machine to where `make build`, `make demo` and `make test` work. Idempotent; a second run only verifies.
#
#   setup.sh              everything
#   setup.sh PART...      some of: build-packages, test-packages, onnxruntime, kafka
source "$(dirname "$0")/common.sh"

[ $# -gt 0 ] || set -- build-packages test-packages onnxruntime kafka

mkdir -p "$tools"
exec 9>"$tools/.lock"
flock 9 # two `make` runs in one checkout take turns

for part in "$@"; do
    case $part in
        build-packages) "$here/packages.sh" build ;;
        test-packages) "$here/packages.sh" build test ;;
        onnxruntime) "$here/onnxruntime.sh" ;;
        kafka) "$here/kafka.sh" install ;;
        *) die "unknown part '$part'" ;;
    esac
done
