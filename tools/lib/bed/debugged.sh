#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# A guest under a debugger: `debugger` (tools/rvmm-lib/examples) takes it through its boot. Words here go to it.
rvmm run --gdb :1234 --kernel vmlinux --initrd initrd --cpus 2 --append 'quiet nokaslr rvmm.cmd=poweroff' \
    < /dev/null > /tmp/guest 2>&1 &
machine=$!
until grep -q 'waiting for gdb: target remote 127.0.0.1:1234' /tmp/guest; do sleep 0.1; done
timeout 200 debugger 1234 "$@"
debugger=$?
if [ $debugger = 0 ]; then
    wait $machine
    status=$?
else
    kill $machine
    wait $machine
    status=1
fi
cat /tmp/guest
# A machine that waits for its debugger can be ended.
rvmm run --gdb /tmp/gdb --kernel vmlinux < /dev/null > /tmp/guest 2>&1 &
machine=$!
until rvmm stat $machine > /dev/null 2>&1; do sleep 0.2; done
sleep 0.5
kill -TERM $machine
wait $machine
[ $? = 1 ] && [ ! -e /tmp/gdb ] && [ $status = 0 ] && echo 'debugged to the end'
