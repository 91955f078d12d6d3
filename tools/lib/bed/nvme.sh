#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# A guest fills the host's disk, resets its machine, and finds the data there; a second guest, which has no messages but
# the device's pin, finds them as well, and so does the host when it has its disk again.
set -e
cd /sys/bus/pci/devices; nvme=$(grep -l 0x010802 */class); nvme=${nvme%/class}; cd /add
rvmm pci list
rvmm pci bind $nvme
boot="rvmm run --pci $nvme --memory 256M --kernel vmlinux --initrd initrd"
$boot --on-reset restart --append "quiet rvmm.cmd=reboot"
$boot --append "quiet pci=nomsi rvmm.cmd=poweroff"
rvmm pci unbind $nvme
for n in 0 1 2 3 4 5 6 7 8 9; do [ -b /dev/nvme0n1 ] && break; sleep 0.5; done
dd if=/dev/nvme0n1 bs=1M count=64 | md5sum | cmp - nvme.md5
echo "the host has the data"
