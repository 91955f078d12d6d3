#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# One guest works with the disk while another one attacks; then a launcher is killed while its guest works with it.
set -e
cd /sys/bus/pci/devices; nvme=$(grep -l 0x010802 */class); nvme=${nvme%/class}; cd /add
rvmm pci bind $nvme
boot="rvmm run --pci $nvme --memory 256M --kernel vmlinux --initrd initrd"
{
    while [ ! -e /tmp/done ]; do
        ONE_DEVICE=1 ATTEMPTS=100 assign isolation messages >> /tmp/attacks 2>&1 || touch /tmp/failed
    done
} &
$boot --append "quiet rvmm.cmd=poweroff" < /dev/null
touch /tmp/done
wait
cat /tmp/attacks
[ ! -e /tmp/failed ]
$boot --append quiet < /dev/null > /tmp/killed 2>&1 &
until grep -q "userland is up" /tmp/killed; do sleep 0.1; done
sleep 2
kill -9 $!
wait || true
rvmm pci unbind $nvme
for n in 0 1 2 3 4 5 6 7 8 9; do [ -b /dev/nvme0n1 ] && break; sleep 0.5; done
dd if=probe of=/dev/nvme0n1 bs=64k conv=fsync
echo 3 > /proc/sys/vm/drop_caches
dd if=/dev/nvme0n1 bs=64k count=1 | cmp - probe
echo "the host writes and reads its disk"
