#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Runs QEMU with a PCI device of the bed's: qemu-vfio.sh ADDRESS COMMAND... Its driver loses the device, and gets it
# back afterwards; the guest's disk is the host's again then.
address=$1
shift
truncate -s 8M /tmp/disk
cd /sys/bus/pci/devices/$address
echo vfio-pci > driver_override
[ -e driver ] && echo $address > driver/unbind
echo $address > /sys/bus/pci/drivers_probe
cd - > /dev/null
"$@"
status=$?
echo > /sys/bus/pci/devices/$address/driver_override
echo $address > /sys/bus/pci/devices/$address/driver/unbind
echo $address > /sys/bus/pci/drivers_probe
for n in 0 1 2 3 4 5 6 7 8 9; do [ -b /dev/nvme0n1 ] && break; sleep 0.5; done
dd if=/dev/nvme0n1 bs=1M count=64 | md5sum | cmp - /tftp/nvme.md5 && echo "the host has the data"
exit $status
