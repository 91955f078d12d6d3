#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# A Linux guest on Arm64, up to its user space and down again: linux-guest.sh CPUS [COMMAND...]. It is the bed's own
# kernel, with busybox, and checks its CPUs, interrupts and timers itself; and the disk and the network if it has them.
# The command, or `linux`, runs it: the kernel is ./vmlinuz, the initrd /tmp/guest.cpio, the disk /tmp/disk, and over
# the network it asks 10.0.2.2 for what is in /tmp/tftp. With `guest.read` it reads a line, with `guest.end=reboot` it
# ends by a reset.
mkdir -p /tmp/guest/bin /tmp/guest/proc /tmp/guest/sys /tmp/guest/dev /tmp/guest/tmp /tmp/tftp
cp -r modules /tmp/guest/
dd if=/dev/urandom of=/tmp/disk bs=1M count=4 2> /dev/null
dd if=/dev/urandom of=/tmp/tftp/file bs=64k count=1 2> /dev/null
for file in /tmp/disk /tmp/tftp/file; do md5sum < $file; done > /tmp/guest/sums
cp /bin/busybox /tmp/guest/bin/
cat > /tmp/guest/init <<'END'
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
# Those of virtio-arm.sh: a disk, a network card, a source of entropy.
mmio_devices() {
    for driver in virtio_mmio virtio_blk failover net_failover virtio_net virtio-rng; do
        insmod /modules/$driver.ko || return 1
    done
    dd if=/dev/urandom of=/written bs=64k count=16 2> /dev/null
    dd if=/written of=/dev/vda bs=64k seek=3 conv=fsync 2> /dev/null || return 1
    echo 3 > /proc/sys/vm/drop_caches
    dd if=/dev/vda bs=64k skip=3 count=16 2> /dev/null | cmp - /written || return 1
    echo "guest: disk $(md5sum < /written)"
    dd if=/dev/hwrng bs=16 count=1 2> /dev/null | grep -q . && echo "guest: entropy ok"
    ip addr add 10.9.0.2/24 dev eth0 && ip link set eth0 up && ping -q -c 2 -W 20 10.9.0.1 && echo "guest: network ok"
}
cpus=$(grep -c ^processor /proc/cpuinfo)
echo "guest: user space is up, $cpus CPUs"
ticks() { awk '/arch_timer/ { for (i = 2; i <= '"$cpus"' + 1; i++) print $i }' /proc/interrupts; }
before=$(date +%s)
sleep 2
after=$(date +%s)
[ $((after - before)) -ge 2 ] && [ $((after - before)) -le 60 ] || echo "guest: BAD: slept $before to $after"
n=0
while [ $n -lt "$cpus" ]; do
    taskset $(printf %x $((1 << n))) sh -c 'i=0; while [ $i -lt 2000 ]; do i=$((i + 1)); done; usleep 20000' &
    n=$((n + 1))
done
wait
for n in $(ticks); do
    [ "$n" -gt 5 ] || echo "guest: BAD: $n interrupts of the timer"
done
n=1
while [ $n -lt "$cpus" ]; do
    echo 0 > /sys/devices/system/cpu/cpu$n/online
    echo 1 > /sys/devices/system/cpu/cpu$n/online
    n=$((n + 1))
done
[ "$(grep -c ^processor /proc/cpuinfo)" = "$cpus" ] || echo "guest: BAD: CPUs are missing"
pci_devices() {
    [ "$(dd if=/dev/vda bs=64k 2> /dev/null | md5sum)" = "$(sed -n 1p /sums)" ] || echo "guest: BAD: the disk"
    # What is written is read again, and not from memory.
    dd if=/sums of=/dev/vda bs=4k seek=7 conv=fsync 2> /dev/null
    echo 3 > /proc/sys/vm/drop_caches
    dd if=/dev/vda bs=4k skip=7 count=1 of=/tmp/read 2> /dev/null
    head -c $(wc -c < /sums) /tmp/read | cmp - /sums || echo "guest: BAD: what was written"
    ip addr add 10.0.2.15/24 dev eth0
    ip link set eth0 up
    ping -c 3 -W 10 10.0.2.2 > /tmp/ping || { cat /tmp/ping; echo "guest: BAD: no echo"; }
    tftp -g -r file -l /tmp/file 10.0.2.2 || echo "guest: BAD: no file"
    [ "$(md5sum < /tmp/file)" = "$(sed -n 2p /sums)" ] || echo "guest: BAD: another file"
    awk '/ITS.*MSI/ { for (i = 2; i <= '"$cpus"' + 1; i++) n += $i } END { exit n < 100 }' /proc/interrupts ||
        echo "guest: BAD: hardly any message"
    echo "guest: disk and network"
}
if [ -d /sys/bus/virtio/devices ] && [ -n "$(ls /sys/bus/virtio/devices)" ]; then
    for driver in virtio_blk failover net_failover virtio_net; do
        insmod /modules/$driver.ko || echo "guest: BAD: $driver"
    done
    pci_devices
fi
cat /proc/interrupts
dmesg | grep -E "WARNING|BUG|soft lockup|stall" && echo "guest: BAD: the kernel complains"
for word in $(cat /proc/cmdline); do
    case $word in
    guest.devices) mmio_devices || echo "guest: BAD: devices" ;;
    guest.read) read -r line; echo "guest: read $line" ;;
    esac
done
echo "guest: done"
# What has been said goes out first.
sleep 1
grep -q guest.end=reboot /proc/cmdline && reboot -f
poweroff -f
END
chmod 755 /tmp/guest/init
(cd /tmp/guest && find . | cpio -o -H newc > /tmp/guest.cpio 2> /dev/null)
[ $# -gt 1 ] || exec linux "$1" vmlinuz /tmp/guest.cpio
shift
exec "$@"
