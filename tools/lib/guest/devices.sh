#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Tries the devices that the guest has, and says how it went; init.sh reads it. Nothing is loaded where there is no such
# device. Lists of modules to load for virtio_blk, virtio_net, virtio_mmio, nvme, from tools/guest:
. /drivers
load() {
    for name; do
        [ -d /sys/module/$name ] || insmod /modules/$name.ko || echo "rvmm guest: $name FAILED"
    done
}
has() {
    grep -qs "^$1\$" /sys/bus/virtio/devices/*/device
}
disk() {
    load $virtio_blk
    dd if=/dev/urandom of=/tmp/written bs=64k count=16 2> /dev/null
    dd if=/tmp/written of=/dev/vda bs=64k seek=3 conv=fsync 2> /dev/null || return 1
    echo 3 > /proc/sys/vm/drop_caches
    dd if=/dev/vda of=/tmp/read bs=64k skip=3 count=16 2> /dev/null || return 1
    cmp /tmp/written /tmp/read
}
network() {
    load $virtio_net
    ip link set eth0 up || return 1
    udhcpc -q -n -f -t 20 -T 1 -i eth0 -s /lease > /tmp/udhcpc 2>&1 || { cat /tmp/udhcpc; return 1; }
    ping -c 2 -W 10 10.0.2.2 > /tmp/ping || { cat /tmp/ping; return 1; }
    tftp -g -r probe -l /tmp/probe 10.0.2.2 2> /tmp/tftp && cmp /probe /tmp/probe
}
disk_sum() {
    echo 3 > /proc/sys/vm/drop_caches
    dd if=/dev/nvme0n1 bs=1M count=64 2> /dev/null | md5sum
}
# A disk of the host that the guest was given: it gets 64 MiB, each sector its number (build/guest/nvme.md5), and has to
# have them. The host looks as well.
nvme() {
    load $nvme
    n=0
    until [ -b /dev/nvme0n1 ]; do
        n=$((n + 1))
        [ $n -lt 100 ] || return 1
        sleep 0.2
    done
    want=$(cat /nvme.md5)
    if [ "$(disk_sum)" = "$want" ]; then
        echo "rvmm guest: nvme has the data of before"
        : > /tmp/known
    fi
    dd if=/dev/zero of=/dev/nvme0n1 bs=1M count=64 conv=fsync 2> /dev/null || return 1
    awk 'BEGIN { for (n = 0; n < 131072; n++) printf "%0511d\n", n }' > /tmp/written
    dd if=/tmp/written of=/dev/nvme0n1 bs=1M conv=fsync 2> /dev/null || return 1
    rm /tmp/written
    grep 'nvme0q' /proc/interrupts
    [ "$(disk_sum)" = "$want" ]
}
if grep -qs virtio_mmio /proc/cmdline || ls -d /sys/bus/acpi/devices/LNRO0005* > /dev/null 2>&1; then
    load $virtio_mmio
fi
tried=
has 0x0002 && { disk && tried="disk ok" || tried="disk FAILED"; }
has 0x0001 && { network && tried="${tried:+$tried, }network ok" || tried="${tried:+$tried, }network FAILED"; }
grep -qs 0x010802 /sys/bus/pci/devices/*/class &&
    { nvme && tried="${tried:+$tried, }nvme ok" || tried="${tried:+$tried, }nvme FAILED"; }
[ -z "$tried" ] || echo "rvmm guest: $tried"
