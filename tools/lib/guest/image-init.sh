#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# First process of the image of tools/guest: counts its boots on its disk. The first one resets the machine, each later
# one discards, reads and writes, and powers off when the power button is pressed.
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -o remount,rw /
dmesg -n 4
boots=$(($(cat /boots) + 1))
echo $boots > /boots
sync
echo "rvmm image: boot $boots, $(nproc) CPUs, $(cat /sys/block/vda/mq/*/cpu_list | wc -l) queues"
[ $boots -gt 1 ] || reboot -f
dd if=/dev/urandom of=/data bs=64k count=32 2> /dev/null
md5sum /data > /sum
sync
rm -f /old && fstrim -v / && echo 3 > /proc/sys/vm/drop_caches
md5sum -c /sum && echo "rvmm image: data ok"
for module in $(cat /modules/order); do
    insmod /modules/$module || echo "rvmm image: $module FAILED"
done
[ -e /dev/input/event0 ] && echo "rvmm image: press the power button"
head -c 24 /dev/input/event0 > /dev/null
echo "rvmm image: pressed"
umount -r / || mount -o remount,ro /
poweroff -f
