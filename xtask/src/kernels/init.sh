#!/bin/busybox sh
# PID 1 of the guest. What it says in lines that begin with "guest:" is read by guest.rs.
# What is in /bin already stays: programs of which tests want more than busybox has.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/ TMPDIR=/tmp

# /run and /tmp stay on the root, which is memory as well: a mount would hide what was packed below them.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
for module in /modules/*; do
    insmod "$module" || echo "guest: broken $module cannot be loaded"
done
ip link set lo up
# As the kubelet's containers have it; a shell without a login would leave 1024.
ulimit -n 65536
. /environment

echo "guest: booted $(uname -r)"
while read -r name command <&3; do
    echo "guest: begin $name"
    $command </dev/null 3<&-
    echo "guest: end $name $?"
done 3</tests/list
echo "guest: done"
# qemu was told not to reboot, so this ends it; powering off would take ACPI.
reboot -f
