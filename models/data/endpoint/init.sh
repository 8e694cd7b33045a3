#!/bin/bash
# Process 1 of an endpoint: starts what /etc/endpoint.services names, reaps, and ends when /run/halt appears.
# What it does itself is left out of the recording; what it starts is kept.
exec </dev/null >/dev/null 2>&1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
cd /
mkfifo /run/idle
exec {idle}<>/run/idle # reading from it sleeps without a process
rm /run/idle
while read -r service; do
    if [ -n "$service" ]; then setsid sh -c "$service" & fi
    read -rt 0.2 -u "$idle"
done </etc/endpoint.services
read -rt 4 -u "$idle"
: >/run/booted
while [ ! -e /run/halt ]; do
    read -rt 1 -u "$idle"
done
