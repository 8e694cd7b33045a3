#!/usr/bin/env bash
# The jars of a real Kafka broker and its tools, for tests and benches, in .tools/kafka/libs.
#
#   kafka.sh install   fetch what is missing, verify every jar
#   kafka.sh pin       after a change of kafka/pom.xml: fetch and rewrite kafka/SHA256SUMS; review its diff
source "$(dirname "$0")/common.sh"

sums=$here/kafka/SHA256SUMS
libs=$tools/kafka/libs
archive=$tools/kafka/classes.jsa

# Every pinned jar is there and unchanged, and no other file is.
verify() {
    [ -d "$1" ] || return 1
    [ "$(find "$1" -mindepth 1 -printf '%f\n' | LC_ALL=C sort)" = "$(sed 's/^[0-9a-f]*  //' "$sums")" ] || return 1
    (cd "$1" && sha256sum --check --status "$sums" 2>/dev/null)
}

fetch() {
    note "fetching Kafka's jars"
    # Maven resets colours even where it was told to print none.
    retry mvn --batch-mode --quiet --file "$here/kafka/pom.xml" dependency:copy-dependencies -DoutputDirectory="$1" 2>&1 |
        sed $'s/\e\\[[0-9;]*m//g' >&2 || die "maven could not fetch Kafka's jars"
}

# A class-data archive takes a broker's start from 2.2 s to about 1 s of a core, and spares as much again on three.
# It is made by running a broker once, which also shows that the kit works here. The JVM ignores an archive
# that does not fit it, so a stale one costs speed only.
make_archive() {
    local dir="$scratch/cluster"
    note "preparing Kafka's class archive"
    LOGSTER_KAFKA_RECORD_ARCHIVE="$scratch/classes.jsa" "$root/deploy/kafka/cluster.sh" start --dir "$dir" >/dev/null
    "$root/deploy/kafka/cluster.sh" stop --dir "$dir" --grace 30
    if [ -s "$scratch/classes.jsa" ]; then
        mv -f "$scratch/classes.jsa" "$archive"
    else
        note "no class archive could be made; brokers will start more slowly"
        touch "$archive"
    fi
}

case ${1:-} in
    install)
        if ! verify "$libs"; then
            scratch_dir
            fetch "$scratch/libs"
            verify "$scratch/libs" ||
                die "Kafka's jars differ from $sums: $(cd "$scratch/libs" && sha256sum --check --quiet "$sums" 2>&1 | head -n 3)"
            mkdir -p "$tools/kafka"
            rm -rf "$libs" "$archive"
            mv "$scratch/libs" "$libs"
        fi
        if [ ! -e "$archive" ]; then
            [ -n "${scratch:-}" ] || scratch_dir
            make_archive
        fi
        ;;
    pin)
        scratch_dir
        fetch "$scratch/libs"
        (cd "$scratch/libs" && LC_ALL=C sha256sum -- *.jar) >"$sums"
        note "wrote $sums: $(wc -l <"$sums") jars"
        ;;
    *) die "usage: kafka.sh install | pin" ;;
esac
