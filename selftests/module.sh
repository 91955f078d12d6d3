#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# The module itself: loaded and unloaded, busy, on CPUs that go and come. Wants root, rvmm.ko beside it (or $RVMM_KO),
# and nobody else using the module. Leaves it loaded as it found it.
here=$(dirname "$0")
ko=${RVMM_KO:-$here/rvmm.ko}
number=0
failed=0

result() { # status name [text]
    number=$((number + 1))
    if [ "$1" = 0 ]; then
        echo "ok $number $2"
    else
        echo "not ok $number $2"
        failed=1
    fi
}

skip() { # name reason
    number=$((number + 1))
    echo "ok $number $1 # SKIP $2"
}

references() { cat /sys/module/rvmm/refcnt; }

wait_for() { # seconds command...
    tries=$(($1 * 10))
    shift
    until "$@"; do
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || return 1
        sleep 0.1
    done
}

unused() { [ "$(references)" = 0 ]; }
used() { [ "$(references)" != 0 ]; }
unload() { rmmod rvmm 2> /dev/null; }

# A VMM that runs a guest until it is killed: a test that takes its time.
start_guest() {
    "$here/signals" -d /dev/rvmm hold > /dev/null 2>&1 &
    guest=$!
    wait_for 20 used
}

echo "TAP version 13"
if [ ! -e /sys/module/rvmm ] || [ ! -f "$ko" ] || [ "$(id -u)" != 0 ] || [ "${DEVICE:-/dev/rvmm}" != /dev/rvmm ]; then
    echo "1..0 # SKIP not root, no $ko, or rvmm is not what is tested"
    exit 4
fi
echo "1..7"
parameters=${RVMM_PARAMETERS:-}

wait_for 10 unload && [ ! -e /dev/rvmm ] && [ ! -e /sys/module/rvmm ]
status=$?
for i in 1 2 3 4 5 6 7 8 9 10; do
    # shellcheck disable=SC2086
    insmod "$ko" $parameters && [ -e /dev/rvmm ] || status=1
    # Used once in half of the rounds.
    [ $((i % 2)) = 0 ] && { "$here/regs" -d /dev/rvmm regs_in_guest > /dev/null || status=1; }
    wait_for 10 unload || status=1
done
# shellcheck disable=SC2086
insmod "$ko" $parameters || status=1
result $status load_and_unload

insmod "$ko" 2> /dev/null
[ $? != 0 ] && [ -e /dev/rvmm ]
result $? loaded_twice

status=0
start_guest || status=1
if rmmod rvmm 2> /dev/null; then
    status=1
    # shellcheck disable=SC2086
    insmod "$ko" $parameters
fi
[ -e /dev/rvmm ] || status=1
kill -9 $guest
wait $guest 2> /dev/null
wait_for 10 unused || status=1
result $status unload_while_used

# kill -9, and unload at once.
status=0
for i in 1 2 3; do
    start_guest || status=1
    kill -9 $guest
    wait $guest 2> /dev/null
    wait_for 10 unload || status=1
    # shellcheck disable=SC2086
    insmod "$ko" $parameters || status=1
done
result $status killed

# VMX stays on while vCPUs are in the processors: kvm_intel cannot go before rvmm, and can after it.
if [ -e /sys/module/kvm_intel ] && [ -f "${KVM_KO:-/bed/kvm_intel.ko}" ]; then
    status=0
    "$here/regs" -d /dev/rvmm regs_in_guest > /dev/null || status=1
    rmmod kvm_intel 2> /dev/null && status=1
    "$here/regs" -d /dev/rvmm regs_in_guest > /dev/null || status=1
    wait_for 10 unload || status=1
    wait_for 10 rmmod kvm_intel 2> /dev/null || status=1
    # Loaded after rvmm, it comes and goes, and rvmm finds a way in each case.
    # shellcheck disable=SC2086
    insmod "$ko" $parameters || status=1
    for i in 1 2 3; do
        "$here/regs" -d /dev/rvmm regs_in_guest > /dev/null || status=1
        start_guest || status=1
        insmod "${KVM_KO:-/bed/kvm_intel.ko}" enable_apicv=0 || status=1
        "$here/regs" -d /dev/rvmm regs_in_guest > /dev/null || status=1
        "$here/regs" -d /dev/kvm regs_in_guest > /dev/null || status=1
        wait_for 10 rmmod kvm_intel 2> /dev/null || status=1
        kill -9 $guest
        wait $guest 2> /dev/null
    done
    # As it was found.
    wait_for 10 unload || status=1
    insmod "${KVM_KO:-/bed/kvm_intel.ko}" enable_apicv=0 || status=1
    # shellcheck disable=SC2086
    insmod "$ko" $parameters || status=1
    result $status kvm_intel_comes_and_goes
else
    skip kvm_intel_comes_and_goes "no kvm_intel that can be loaded anew"
fi

cpu=/sys/devices/system/cpu/cpu1/online
if [ -w $cpu ] && [ "$(cat $cpu)" = 1 ]; then
    status=0
    "$here/multi" -d /dev/rvmm vms_at_once > /tmp/rvmm-hotplug 2>&1 &
    guests=$!
    for i in 1 2 3 4; do
        echo 0 > $cpu || status=1
        sleep 0.3
        "$here/regs" -d /dev/rvmm regs_in_guest > /dev/null || status=1
        echo 1 > $cpu || status=1
        sleep 0.3
        taskset 2 "$here/regs" -d /dev/rvmm regs_in_guest > /dev/null || status=1
    done
    wait $guests || status=1
    # Loaded while a CPU is off, which comes later.
    wait_for 10 unload || status=1
    echo 0 > $cpu || status=1
    # shellcheck disable=SC2086
    insmod "$ko" $parameters || status=1
    echo 1 > $cpu || status=1
    taskset 2 "$here/regs" -d /dev/rvmm regs_in_guest > /dev/null || status=1
    result $status cpu_hotplug
else
    skip cpu_hotplug "one CPU"
fi

# Down to where the last CPU switches interrupts off, and back, with guests that are in the middle of something.
if [ -w /sys/power/pm_test ] && echo core > /sys/power/pm_test 2> /dev/null; then
    status=0
    [ -w /sys/module/suspend/parameters/pm_test_delay ] && echo 1 > /sys/module/suspend/parameters/pm_test_delay
    "$here/multi" -d /dev/rvmm vms_at_once > /tmp/rvmm-suspend 2>&1 &
    guests=$!
    for i in 1 2; do
        echo mem > /sys/power/state || status=1
        "$here/regs" -d /dev/rvmm regs_in_guest > /dev/null || status=1
    done
    wait $guests || status=1
    echo none > /sys/power/pm_test
    result $status suspended
else
    skip suspended "no pm_test"
fi
exit $failed
