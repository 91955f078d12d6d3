#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# A guest of the launcher's with virtio devices on Arm64: sh linux-guest.sh CPUS sh virtio-arm.sh NODE CPUS. What it has
# written is on the disk, and the host answers it on the network.
insmod /add/modules/tun.ko || exit 1
dd if=/dev/zero of=/tmp/disk bs=64k count=32 2> /dev/null
rvmm run --device $1 --cpus $2 --kernel vmlinuz --initrd /tmp/guest.cpio --append 'quiet guest.devices' \
    --disk /tmp/disk --net tap=t0 --rng < /dev/null > /tmp/out 2>&1 &
until ip link set t0 up 2> /dev/null; do
    kill -0 $! || break
    sleep 0.2
done
ip addr add 10.9.0.1/24 dev t0
wait $!
status=$?
cat /tmp/out
sum=$(dd if=/tmp/disk bs=64k skip=3 count=16 2> /dev/null | md5sum)
grep -q "guest: disk $sum" /tmp/out && echo "the disk has it"
exit $status
