#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# A Linux guest on Arm64, up to its user space and down again: linux-guest.sh CPUS [COMMAND...]. It is the bed's own
# kernel, with busybox, and checks its CPUs, interrupts and timers itself. The command, or `linux`, runs it: the kernel
# is ./vmlinuz, the initrd /tmp/guest.cpio.
mkdir -p /tmp/guest/bin /tmp/guest/proc /tmp/guest/sys /tmp/guest/dev
cp /bin/busybox /tmp/guest/bin/
cat > /tmp/guest/init <<'END'
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
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
cat /proc/interrupts
dmesg | grep -E "WARNING|BUG|soft lockup|stall" && echo "guest: BAD: the kernel complains"
echo "guest: done"
# What has been said goes out first.
sleep 1
poweroff -f
END
chmod 755 /tmp/guest/init
(cd /tmp/guest && find . | cpio -o -H newc > /tmp/guest.cpio 2> /dev/null)
[ $# -gt 1 ] || exec linux "$1" vmlinuz /tmp/guest.cpio
shift
exec "$@"
