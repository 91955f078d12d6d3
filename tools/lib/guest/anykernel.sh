#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# First process of a guest of any kernel, all programs being 32-bit: says that it is up, checks what it can, and takes
# commands. The last line of the checks is `GUEST checks passed` or `GUEST checks failed: WHAT`.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2> /dev/null
mount -t tmpfs tmpfs /tmp
dmesg -n 3
failed=
fail() { failed="$failed $1;"; }
for module in $(cat /modules/order 2> /dev/null); do
    insmod "/modules/$module" || fail "insmod $module"
done
clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
echo "GUEST up $(uname -r) $(uname -m) cpus=$(nproc) clock=$clock"

# Processes, pipes, and arithmetic that has one result, on every CPU at once.
cpu=0
while [ $cpu -lt $(nproc) ]; do
    taskset $(printf %x $((1 << cpu))) sh -c 'seq 1 2000 | gzip -c | gunzip -c | md5sum' > /tmp/sum.$cpu &
    cpu=$((cpu + 1))
done
wait
sort -u /tmp/sum.* | wc -l | grep -qx 1 || fail "different sums: $(sort -u /tmp/sum.*)"
[ "$(seq 1 2000 | wc -c)" = 8893 ] || fail "seq"
# A timer that ends, and a clock that goes on.
before=$(cut -d. -f1 /proc/uptime)
sleep 2
after=$(cut -d. -f1 /proc/uptime)
[ $((after - before)) -ge 1 ] || fail "a clock that stands: $before, $after"
if [ -e /dev/vda ]; then
    seq 1 40000 > /tmp/data
    dd if=/tmp/data of=/dev/vda bs=4k conv=fsync 2> /dev/null || fail "disk write"
    echo 3 > /proc/sys/vm/drop_caches
    cmp -n "$(stat -c %s /tmp/data)" /tmp/data /dev/vda || fail "disk data"
fi
complaints='unchecked MSR|soft lockup|rcu.*stall|BUG:|WARNING: CPU|Call Trace'
dmesg | grep -E "$complaints" && fail "the kernel complains"
if [ "$failed" ]; then
    echo "GUEST checks failed:$failed"
else
    echo "GUEST checks passed"
fi
# Commands, a line each, and the end of each.
stty -F /dev/console -echo 2> /dev/null
while read -r line; do
    eval "$line"
    echo "GUEST done $?"
done < /dev/console
poweroff -f
