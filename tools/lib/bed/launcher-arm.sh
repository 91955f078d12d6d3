#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# The launcher on Arm64 as its users meet it: sh linux-guest.sh CPUS sh launcher-arm.sh. Wrong words and files, the
# library's smallest machine, a guest that is paused and ended, one that panics.
failed=0
# is STATUS TEXT WHAT: the last command's output, in /tmp/out, and its status.
is() {
    got=$?
    if [ $got = "$1" ] && { [ -z "$2" ] || grep -q -- "$2" /tmp/out; }; then
        echo "ok - $3"
    else
        echo "not ok - $3: status $got and not $1, or no '$2' in:"
        cat /tmp/out
        failed=1
    fi
}
run() {
    rvmm run --kernel vmlinuz "$@" > /tmp/out 2>&1
}

hello > /tmp/out 2>&1; is 0 '^hello$' 'the smallest machine'

run --memory 1K; is 1 'give more, such as --memory 512M' 'too little memory'
run --memory 32M; is 1 'kernel does not fit: .*' 'too little memory for the kernel'
run --cpus 100000; is 4 'use --cpus .* or fewer' 'too many CPUs'
run --pci 0000:00:01.0; is 4 'leave out --pci' 'a device of the host'
run --gdb :1; is 1 'cannot be debugged yet' 'a debugger'
rvmm bench --json > /tmp/out 2>&1; is 4 'tools/bench' 'a command for x86 alone'
rvmm restore /tmp/file > /tmp/out 2>&1; is 4 'boot with' 'a saved machine'
head -c 3000000 vmlinuz > /tmp/half
rvmm run --kernel /tmp/half > /tmp/out 2>&1; is 1 'cut short: 3000000 bytes' 'half a kernel'
rvmm run --kernel /bin/busybox > /tmp/out 2>&1; is 1 'no Image of Arm64' 'a program as a kernel'
gzip < /tmp/half > /tmp/packed
rvmm run --kernel /tmp/packed > /tmp/out 2>&1; is 1 'unpack it first' 'a packed kernel'
run --device /dev/none; is 4 'there is no /dev/none' 'a node that is missing'

# A machine that does what its socket tells, and ends by a signal.
rvmm run --kernel vmlinuz --api /tmp/api < /dev/null > /tmp/said 2>&1 &
machine=$!
until grep -q 'Booting Linux' /tmp/said; do sleep 0.2; done
rvmm list > /tmp/out; is 0 "^ *$machine  *1  *1 .* /dev/rvmm  *rvmm run" 'a running machine'
rvmm ctl /tmp/api pause > /tmp/out 2>&1; is 0 '' 'a pause'
rvmm ctl /tmp/api status > /tmp/out 2>&1; is 0 '"state": "paused"' 'it is told'
before=$(wc -c < /tmp/said)
sleep 1
[ "$before" = "$(wc -c < /tmp/said)" ]; is 0 '' 'a machine that stands still'
rvmm ctl /tmp/api snapshot /tmp/file > /tmp/out 2>&1; is 1 'cannot be saved yet' 'nothing is saved'
rvmm ctl /tmp/api power-button > /tmp/out 2>&1; is 1 'no power button yet' 'there is no button'
rvmm ctl /tmp/api resume > /tmp/out 2>&1; is 0 '' 'its end'
until [ "$before" != "$(wc -c < /tmp/said)" ]; do sleep 0.2; done
kill $machine
wait $machine; is 1 '' 'a signal'

# A kernel that panics; no file system has its root.
run --append 'quiet root=/dev/none' < /dev/null; is 6 'the guest.s kernel panicked' 'a panic'

[ $failed = 0 ] && echo "the launcher is well-behaved"
