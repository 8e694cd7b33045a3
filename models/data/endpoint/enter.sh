#!/usr/bin/env bash
# enter.sh BASE DIR NAME LOGINUID ADDRESS: runs first in an endpoint's new namespaces, then becomes its process 1.
# Waits for a line on its input, which says that the network interface is there.
# What the kernel shares between all namespaces is read-only or out of reach: settings, clock, modules, reboot.
set -eu
base=$1 dir=$2 name=$3 loginuid=$4 address=$5
root=$dir/root
mount --make-rprivate /
hostname "$name"
read -r _
ip link set lo up
ip addr add "$address/16" dev eth0
ip link set eth0 up
mount -t overlay overlay -o "lowerdir=$base,upperdir=$dir/upper,workdir=$dir/work" "$root"
mount -t proc proc "$root/proc"
for shared in sys irq bus sysrq-trigger; do
    [ -e "$root/proc/$shared" ] || continue
    mount --bind "$root/proc/$shared" "$root/proc/$shared"
    mount -o remount,bind,ro "$root/proc/$shared"
done
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs tmpfs "$root/sys/fs/cgroup" # container programs look for one, and work without it
mount -t tmpfs -o mode=755,size=64m tmpfs "$root/dev"
while read -r node major minor; do
    mknod -m 666 "$root/dev/$node" c "$major" "$minor"
done <<'NODES'
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
NODES
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for n in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${n%:*}" "$root/dev/${n#*:}"; done
mount -t tmpfs -o mode=1777,size=256m tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=755,size=256m tmpfs "$root/run"
mkdir -p "$root"/run/{sshd,lock,postgresql,redis,apache2}
chmod 1777 "$root/run/lock"
chroot "$root" chown postgres: /run/postgresql
chroot "$root" chown redis: /run/redis
echo "$loginuid" >/proc/self/loginuid
cd "$root"
exec setpriv --bounding-set=-sys_time,-sys_boot,-sys_module,-sys_rawio,-syslog \
    chroot "$root" /usr/lib/systemd/systemd
