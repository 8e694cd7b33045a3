#!/usr/bin/env bash
# base.sh DIR: builds the Debian root file system that every recorded endpoint overlays, and a small package mirror.
#
# Everything is fetched with the ordinary clients from the mirrors that this machine's own apt and pip are set to use.
# Safe to run again: what is there is kept. Takes about 5 minutes and 2 GB.
set -euo pipefail
work=${1:?usage: base.sh DIR}
here=$(cd "$(dirname "$0")" && pwd)
base=$work/base mirror=$work/mirror
[ ! -e "$base/.ready" ] || exit 0
rm -rf "$base" "$mirror"
mkdir -p "$work" "$mirror/debs" "$mirror/wheels"

mapfile -t packages < <(sed 's/#.*//' "$here/packages.txt" | xargs -n1)
source_url=$(apt-get indextargets --format '$(SITE) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    awk '$2 == "bookworm" && $3 == "main" { print $1; exit }')
[ -n "$source_url" ] || { echo "apt on this machine knows no mirror of Debian bookworm" >&2; exit 1; }

debootstrap --variant=minbase --components=main bookworm "$base" "$source_url"
printf '#!/bin/sh\nexit 101\n' >"$base/usr/sbin/policy-rc.d" # nothing starts while it is installed
chmod 755 "$base/usr/sbin/policy-rc.d"
cp /etc/resolv.conf "$base/etc/resolv.conf"
cp -a /etc/apt/apt.conf.d/*proxy* "$base/etc/apt/apt.conf.d/" 2>/dev/null || true
chroot "$base" env DEBIAN_FRONTEND=noninteractive sh -ec \
    'apt-get update -q; apt-get install -q -y --no-install-recommends "$@"' sh "${packages[@]}"

# What package management installs and removes while it is recorded: from a mirror on the recorded network alone.
chroot "$base" sh -ec 'mkdir /tmp/debs; cd /tmp/debs; apt-get download -q "$@"; dpkg-scanpackages -m . >Packages' sh \
    bc cowsay dos2unix figlet hello moreutils ncdu pv pwgen rename sl tree units whois
mv "$base"/tmp/debs/* "$mirror/debs/"
gzip -k "$mirror/debs/Packages"
python3 -m pip download -q --only-binary :all: --python-version 3.11 --dest "$mirror/wheels" \
    click==8.1.7 jinja2==3.1.4 markupsafe==2.1.5 pyyaml==6.0.2 requests==2.32.3 idna==3.10 certifi==2024.8.30 \
    urllib3==2.2.3 charset-normalizer==3.4.0 six==1.16.0 python-dateutil==2.9.0.post0 tabulate==0.9.0
chroot "$base" apt-get clean
rm -f "$base"/etc/apt/apt.conf.d/*proxy* "$base/etc/apt/sources.list" "$base"/etc/apt/sources.list.d/* "$base/etc/resolv.conf"
rm -f "$base"/etc/ssh/ssh_host_* "$base/etc/cron.d/e2scrub_all"
touch "$base/.ready"
