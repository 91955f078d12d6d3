#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# First process of the image of tools/guest, in its initrd: finds the root that the command line names, and goes there.
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in $(cat /modules/order); do
    insmod /modules/$module || echo "rvmm image: $module FAILED"
done
wanted=$(sed -n 's/.*root=PARTUUID=\([^ ]*\).*/\1/p' /proc/cmdline)
root=$(grep -l "^PARTUUID=$wanted\$" /sys/class/block/*/uevent)
root=${root%/uevent}
mount -t ext4 /dev/${root##*/} /root || exec sh
umount /sys /proc
mount --move /dev /root/dev
exec switch_root /root /sbin/init
