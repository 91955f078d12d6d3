#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Exits recorded and explained: of a command from its beginning, and of a machine that runs.
failed=0
# is TEXT FILE WHAT: the file has it.
is() {
    if grep -q -- "$1" "$2"; then
        echo "ok - $3"
    else
        echo "not ok - $3: no '$1' in:"
        tail -n 20 "$2"
        failed=1
    fi
}

# A guest's whole life. Its first record is an entry at the kernel's start, its last exit goes to user space.
rvmm trace --csv -o /tmp/csv -- \
    rvmm run --kernel bzImage --initrd initrd --append 'quiet rvmm.cmd=poweroff' > /tmp/guest 2>&1
echo "status $?" >> /tmp/guest
is '^status 0$' /tmp/guest 'a traced guest boots and ends'
head -n 2 /tmp/csv > /tmp/first
is '^0.000,[0-9]*,0,entry,0x1' /tmp/first 'the first entry of a guest'
for class in cpuid wrmsr io nested_fault external_interrupt; do
    is "^[0-9.]*,[0-9]*,0,$class," /tmp/csv "exits of class $class"
done
is '^[0-9.]*,[0-9]*,0,io,0x[0-9a-f]*,0x3f8,0x[0-9a-f]*,0x1,' /tmp/csv 'output by the serial port'
is '^[0-9.]*,[0-9]*,0,entry,.*,0x800000[0-9a-f]*,0x0,[0-9]*$' /tmp/csv 'interrupts that entries deliver'

# A machine that runs, by its process: each form, and filters.
mkfifo /tmp/see
(exec rvmm run --kernel bzImage --initrd initrd --append quiet < /tmp/see > /tmp/guest 2>&1) &
machine=$!
exec 6> /tmp/see
echo 'while echo tick; do sleep 0.1; done' >&6
until [ "$(grep -c tick /tmp/guest)" -gt 2 ]; do sleep 0.2; done
rvmm trace --pid $machine --count 300 > /tmp/out 2>&1; is ' us  vcpu 0   .* cycles after ' /tmp/out 'text'
[ "$(wc -l < /tmp/out)" = 300 ] || echo 'another count' > /tmp/out; is ' us ' /tmp/out 'so many records'
rvmm trace --pid $machine --class io --address 0x3f8-0x3ff --count 5 --json > /tmp/out 2>&1
[ "$(grep -c '"class":"io"' /tmp/out)" = 5 ] || echo 'not 5' >> /tmp/out
is '"address":10' /tmp/out 'JSON, of ports alone'
! grep -v '"address":10[0-9][0-9],' /tmp/out > /tmp/rest; : >> /tmp/rest; echo end >> /tmp/rest
[ "$(wc -l < /tmp/rest)" = 1 ]; echo "rest $?" > /tmp/out; is 'rest 0' /tmp/out 'no other address'
rvmm trace --pid $machine --seconds 1 --perfetto /tmp/chrome > /tmp/out 2>&1
is '"name":"vCPU 0"' /tmp/chrome 'a trace of Chrome'
tail -n 1 /tmp/chrome > /tmp/out; is '^]$' /tmp/out 'and its end'
rvmm explain --pid $machine --seconds 1 > /tmp/out 2>&1
is 'cycles ([0-9]* to [0-9]*), .* the guest executed ' /tmp/out 'sentences'
rvmm trace --pid $machine --ring 65 > /tmp/out 2>&1; is 'a power of two' /tmp/out 'a wrong size'
rvmm trace --pid $machine --seconds 5 > /dev/null 2>&1 &
sleep 1
rvmm trace --pid $machine > /tmp/out 2>&1; is 'somebody records it' /tmp/out 'two recorders'
# The machine ends before the recorder does.
kill -TERM $machine
wait
rvmm trace --pid $$ --seconds 1 > /tmp/out 2>&1; is 'no vCPU' /tmp/out 'a process without a machine'
rvmm trace --class nonsense -- true > /tmp/out 2>&1; is 'there is no class "nonsense"' /tmp/out 'a wrong class'
[ $failed = 0 ] && echo 'all that happened was seen'
