#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# First process of the image of tools/guest: counts its boots on its disk. The first one resets the machine, each later
# one discards, reads and writes, tries its other devices, and powers off when the power button is pressed.
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
dd if=/dev/hwrng bs=16 count=1 2> /dev/null | grep -q . && echo "rvmm image: entropy ok"
ip addr add 10.9.0.2/24 dev eth0 && ip link set eth0 up && ping -q -c 3 -W 10 10.9.0.1 && echo "rvmm image: network ok"
read -r line < /dev/hvc0 && echo "rvmm image: console says $line" && echo "console ok" > /dev/hvc0
[ -e /dev/input/event0 ] && echo "rvmm image: press the power button"
head -c 24 /dev/input/event0 > /dev/null
echo "rvmm image: pressed"
dmesg | grep -q "virtual machine fork" && echo "rvmm image: another generation"
umount -r / || mount -o remount,ro /
poweroff -f
