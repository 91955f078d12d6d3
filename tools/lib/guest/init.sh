#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# First process of the guest: says that it is up, tries its devices, does what the kernel command line asks for.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=${TERM:-linux}
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts && mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
hostname guest
# A thread of the kernel's may be far behind with the console; from here on it has errors only, so that its lines do not
# get into ours.
dmesg -n 4
echo "rvmm guest: userland is up ($(nproc) CPUs, $(uname -r))"
. /devices
for word in $(cat /proc/cmdline); do
    case $word in
    rvmm.cmd=poweroff)
        reboot -f
        ;;
    rvmm.cmd=reboot)
        # The guest resets once; the second time there is something on the disk.
        [ -e /tmp/known ] || reboot -f
        echo "rvmm guest: here again"
        # This sets SLP_EN of a machine with ACPI.
        printf '\040' | dd of=/dev/port bs=1 seek=$((0x605)) conv=notrunc
        ;;
    rvmm.cmd=smpcheck)
        smpcheck
        reboot -f
        ;;
    rvmm.cmd=console)
        line=0
        while [ $line -lt 100 ]; do
            line=$((line + 1))
            echo "rvmm guest: line $line, with an interrupt for every 16 characters"
        done
        sleep 0.1
        reboot -f
        ;;
    esac
done
echo "rvmm guest: a shell; 'exit' ends the machine"
setsid -c sh < /dev/ttyS0 > /dev/ttyS0 2>&1
reboot -f
