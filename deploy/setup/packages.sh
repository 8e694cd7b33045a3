#!/usr/bin/env bash
# Checks for what the system must offer, and installs what is missing where it may (root, Debian or Ubuntu).
#
#   packages.sh build [test]
#
# Each need is probed by what it offers, not by package name, so other distributions pass as well.
source "$(dirname "$0")/common.sh"

missing=()
need() { # need PACKAGE COMMAND...: the package is missing unless the command succeeds
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}
has() { command -v "$1"; }
java_17() {
    local version
    version=$(java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
    [ "${version:-0}" -ge 17 ]
}

probe() {
    missing=()
    local set
    for set in "$@"; do
        case $set in
            build)
                need gcc has cc
                need g++ has c++
                need make has make
                need pkg-config has pkg-config
                need libssl-dev pkg-config --exists openssl
                need zlib1g-dev pkg-config --exists zlib
                need libzstd-dev pkg-config --exists libzstd
                need zstd has zstd
                need python3 has python3
                need python3-pip python3 -m pip --version
                need python3-venv python3 -c 'import ensurepip, venv'
                ;;
            test)
                need default-jre-headless java_17
                need maven has mvn
                ;;
            *) die "unknown package set '$set'" ;;
        esac
    done
}

if ! command -v cargo >/dev/null; then
    if [ -x "$HOME/.cargo/bin/cargo" ]; then
        die "cargo is installed in $HOME/.cargo/bin but not on PATH: run 'source $HOME/.cargo/env' first"
    fi
    minimum=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml")
    die "cargo not found: install Rust $minimum or later, with rustfmt and clippy for 'make test'"
fi

probe "$@"
[ ${#missing[@]} -gt 0 ] || exit 0

install="apt-get install -y --no-install-recommends ${missing[*]}"
command -v apt-get >/dev/null ||
    die "missing, by their Debian names: ${missing[*]}. Install what this system calls them, then run 'make setup' again"
[ "$(id -u)" -eq 0 ] || die "missing: ${missing[*]}. As root, run: apt-get update && $install"

note "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
retry apt-get update -qq || die "apt-get update failed"
# shellcheck disable=SC2086 # a list of words on purpose
retry $install -qq >/dev/null || die "could not install ${missing[*]}"

probe "$@"
[ ${#missing[@]} -eq 0 ] || die "installed, but still not usable: ${missing[*]}"
