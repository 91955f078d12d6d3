#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# What only the guest can say of its CPUs. The last line is `rvmm guest: smpcheck passed (...)` or `... failed: WHAT`.
failed=
fail() { failed="$failed $1;"; }
# The counts of one line of /proc/interrupts, one per CPU.
counts() { grep "^ *$1:" /proc/interrupts | sed 's/^[^:]*: *//; s/ *[A-Za-z].*//'; }
# Runs something on every CPU; fails where no timer interrupt came meanwhile.
ticking() {
    before=$(counts LOC)
    cpu=0
    while [ $cpu -lt $cpus ]; do
        taskset $(printf %x $((1 << cpu))) sh -c 'n=0; while [ $n -lt 3000 ]; do n=$((n + 1)); done; sleep 0.3' &
        cpu=$((cpu + 1))
    done
    wait
    set -- $(counts LOC)
    for old in $before; do
        [ "${1:-0}" -gt $old ] || fail "a CPU without timer interrupts: before $before, after $(counts LOC)"
        shift
    done
}
# Work that forks, execs, pipes and waits, one line of output at a time.
work() {
    n=0
    while [ $n -lt $1 ]; do
        [ "$(echo "$n" | sed 's/$/x/' | cat | wc -c)" -ge 2 ] || echo wrong
        n=$((n + 1))
    done
}

cpus=$(nproc)
want=$(sed -n 's/.*rvmm.cpus=\([0-9]*\).*/\1/p' /proc/cmdline)
[ "$cpus" = "${want:-$cpus}" ] || fail "$cpus CPUs instead of $want"

ticking

# As a parallel build: twice as many jobs as CPUs; with rvmm.load=N for N seconds of the guest's time.
load=$(sed -n 's/.*rvmm.load=\([0-9]*\).*/\1/p' /proc/cmdline)
uptime() { sed 's/\..*//' /proc/uptime; }
begin=$(uptime)
job=0
while [ $job -lt $((2 * cpus)) ]; do
    {
        work 25
        while [ $(($(uptime) - begin)) -lt ${load:-0} ]; do work 10; done
    } > /tmp/job.$job &
    job=$((job + 1))
done
wait
load=$(($(uptime) - begin))
cat /tmp/job.* | grep -q . && fail "wrong output of a job"

# Every CPU but the first leaves and comes back, and works again.
cycles=0
for online in /sys/devices/system/cpu/cpu[1-9]*/online; do
    [ -e $online ] || continue
    echo 0 > $online && [ "$(cat $online)" = 0 ] || fail "$online cannot be cleared"
    echo 1 > $online && [ "$(cat $online)" = 1 ] || fail "$online cannot be set"
    cycles=$((cycles + 1))
done
[ $(nproc) = $cpus ] || fail "$(nproc) CPUs after $cycles hot-plug cycles"
ticking

clocks='clocksource.*(unstable|skew|watchdog on)|tsc.*unstable'
stalls='soft lockup|hard lockup|rcu.*stall'
dmesg | grep -iE "$clocks|$stalls|BUG:|WARNING:|spurious.*vector|No irq handler" && fail "the kernel complains"
clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
if [ "$failed" ]; then
    cat /proc/interrupts
    echo "rvmm guest: smpcheck failed:$failed"
else
    echo "rvmm guest: smpcheck passed ($cpus CPUs, $job jobs for $load s, $cycles hot-plug cycles, clock $clock)"
fi
