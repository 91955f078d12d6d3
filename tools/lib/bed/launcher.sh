#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# The launcher as its users meet it: wrong words and files, pipes, signals, and what it tells about running machines.
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
    rvmm run --kernel bzImage "$@" > /tmp/out 2>&1
}

# Refused with a sentence and a hint that points the right way, before anything runs.
run --memory 1K; is 1 'give more, such as --memory 512M' 'too little memory'
run --memory 16385K; is 1 '--memory 16388K' 'half a page of memory'
run --memory 64T; is 1 'give less: --memory .* at most' 'too much memory'
run --cpus 0; is 4 'use --cpus 1 or more' 'no CPU'
run --cpus 100000; is 4 'use --cpus .* or fewer' 'too many CPUs'
run --cpus -1; is 2 'give a number of CPUs' 'less than no CPU'
head -c 3000000 bzImage > /tmp/half
rvmm run --kernel /tmp/half > /tmp/out 2>&1; is 1 'cut short: 3000000 bytes of at least 1[0-9]* are' 'half a kernel'
rvmm run --kernel /bin/busybox > /tmp/out 2>&1; is 1 'and no kernel' 'a program as a kernel'
rvmm run --kernel /bed/config > /tmp/out 2>&1; is 1 'too few for a bzImage' 'a text as a kernel'
: > /tmp/empty
run --initrd /tmp/empty; is 1 '/tmp/empty: it is empty' 'an empty initrd'
mkfifo /tmp/fifo
run --initrd /tmp/fifo --on-reset restart; is 1 'can be read only once' 'a FIFO for every reset'

# A machine that a pipe feeds: its initrd comes out of a FIFO, its shell reads commands to their end, and ends.
cat initrd > /tmp/fifo &
echo 'echo answer $((6 * 7))' | rvmm run --kernel bzImage --initrd /tmp/fifo --append quiet > /tmp/guest 2>&1 &
until rvmm stat > /tmp/out 2>&1 && grep -q exit_io_cycles /tmp/out; do sleep 0.2; done
machine=$(sed -n 's/^process \([0-9]*\) kvm-vcpu-stats:0: .*/\1/p' /tmp/out)
[ -n "$machine" ]; is 0 'kvm-vcpu-stats:0' 'statistics of a running vCPU'
rvmm list > /tmp/out; is 0 "^ *$machine  *1  *1 .* /dev/rvmm  *rvmm run" 'a running machine'
wait
cp /tmp/guest /tmp/out
grep -q 'guest reset' /tmp/guest; is 0 '^answer 42' 'commands from a pipe, which ends'

# A machine that does what its socket tells, and one that has none.
mkfifo /tmp/in
run_api() {
    exec rvmm run --kernel bzImage --initrd initrd --append quiet --api /tmp/api < /tmp/in > /tmp/guest 2>&1
}
run_api &
machine=$!
exec 5> /tmp/in
echo 'while echo tick; do sleep 0.1; done' >&5
ticks() {
    grep -c '^tick' /tmp/guest
}
until [ "$(ticks)" -gt 5 ]; do sleep 0.2; done
rvmm ctl /tmp/api status > /tmp/out 2>&1; is 0 '"state": "running"' 'a machine tells that it runs'
rvmm ctl /tmp/api pause > /tmp/out 2>&1; is 0 '' 'a machine is paused'
sleep 0.5
before=$(ticks)
sleep 2
[ "$before" = "$(ticks)" ]; is 0 '' 'a paused machine does nothing'
rvmm ctl /tmp/api status > /tmp/out 2>&1; is 0 '"state": "paused"' 'a machine tells that it is paused'
rvmm ctl /tmp/api resume > /tmp/out 2>&1; is 0 '' 'a machine goes on'
until [ "$(ticks)" -gt "$((before + 5))" ]; do sleep 0.2; done
rvmm ctl /tmp/api stats > /tmp/out 2>&1; is 0 '"exit_io_cycles"' 'statistics of a machine'
rvmm ctl /tmp/api power-button > /tmp/out 2>&1; is 1 'no power button: it needs a disk' 'a machine without a button'
stat -c %a /tmp/api > /tmp/out; is 0 '^600$' 'a socket for the user alone'
# Every thread of it is limited, and files that it makes are those beside its socket.
grep -L '^Seccomp:.2$' /proc/$machine/task/*/status > /tmp/out
[ ! -s /tmp/out ] && grep -q '^NoNewPrivs:.1$' /proc/$machine/status; is 0 '' 'a machine in a sandbox'
rvmm ctl /tmp/api fork > /tmp/out 2>&1; is 0 '"clones"' 'another machine goes on from one that runs'
before=$(ticks)
until [ "$(grep -c '^0: tick' /tmp/guest)" -gt 5 ] && [ "$(ticks)" -gt $((before + 10)) ]; do
    kill -0 $machine || break
    sleep 0.2
done
rvmm ctl /tmp/api fork --clone 0 > /tmp/out 2>&1; is 1 'cannot be forked: save it' 'a fork of a fork'
rvmm ctl /tmp/api quit --clone 0; is 0 '' 'it ends alone'
rvmm ctl /tmp/api snapshot /saved > /tmp/out 2>&1; is 1 'Permission denied' 'no file elsewhere'
rvmm ctl /tmp/api snapshot /tmp/saved > /tmp/out 2>&1; is 0 '' 'a machine is saved'
rvmm ctl /tmp/api pause
rvmm ctl /tmp/api snapshot /tmp/other > /dev/null 2>&1 &
until [ -e /tmp/other.new-$machine ]; do kill -0 $! || break; done
rvmm ctl /tmp/api quit > /tmp/out 2>&1; is 0 '' 'a paused machine is told to end while it is saved'
wait $machine; is 1 '' 'a machine that was told to end'
exec 5>&-
cp /tmp/guest /tmp/out
[ ! -e /tmp/api ]; is 0 'rvmm: stopped' 'its socket is gone'
[ ! -e /tmp/other.new-$machine ]; is 0 '' 'nothing is left of a file that is half written'
rvmm ctl /tmp/api status > /tmp/out 2>&1; is 1 '/tmp/api: No such file' 'no machine at a socket'

# Sockets to the host; a machine that stands still, and two that go on from it, with CIDs of their own.
mkdir -p /tmp/more/more
cp vsock /bed/vsock.ko /bed/vmw_vsock*.ko /tmp/more/more/
(cd /tmp/more && find more | cpio -o -H newc > ../more.cpio) 2> /dev/null
cat initrd /tmp/more.cpio > /tmp/initrd
run_vsock() {
    exec rvmm run --kernel bzImage --initrd /tmp/initrd --append quiet --vsock 7 --api /tmp/api < /tmp/in \
        > /tmp/sockets 2>&1
}
run_vsock &
machine=$!
exec 5> /tmp/in
echo 'for m in vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport; do insmod /more/$m.ko; done' >&5
echo '/more/vsock answer 99 & while echo tick; do sleep 0.1; done' >&5
vsock ask 7 99 hello > /tmp/out 2>&1; is 0 '7 answers hello' 'a guest answers over vsock'
run --vsock 7; is 1 "CID 7 is another machine's" 'a CID twice'
run --vsock 2; is 2 'a number from 3' "the host's CID"
rvmm ctl /tmp/api fork > /tmp/out 2>&1; is 1 'pause it first' 'a machine with sockets goes on'
rvmm ctl /tmp/api pause
rvmm ctl /tmp/api fork 2 > /tmp/out 2>&1; is 0 '"clones"' 'two machines come from another'
rvmm ctl /tmp/api resume > /tmp/out 2>&1; is 1 'stands still as long' 'which stands still'
vsock ask 8 99 one > /tmp/out 2>&1; is 0 '8 answers one' 'the first one answers'
vsock ask 9 99 two > /tmp/out 2>&1; is 0 '9 answers two' 'the second one answers'
until grep -q '^0: tick' /tmp/sockets && grep -q '^1: tick' /tmp/sockets; do kill -0 $machine || break; sleep 0.2; done
cp /tmp/sockets /tmp/out; is 0 '^1: tick' 'both go on'
rvmm ctl /tmp/api status > /tmp/out 2>&1; tr -d ' \n' < /tmp/out | grep -q '"clones":.0,1.'; is 0 '' 'their numbers'
for n in 0 1; do rvmm ctl /tmp/api quit --clone $n; done
until rvmm ctl /tmp/api resume > /tmp/out 2>&1; do kill -0 $machine || break; sleep 0.2; done
vsock ask 7 99 again > /tmp/out 2>&1; is 0 '7 answers again' 'it goes on when they have ended'
rvmm ctl /tmp/api quit
wait $machine
exec 5>&-

# Two machines go on from where one was saved, each for itself.
rvmm restore /tmp/saved --api /tmp/api --clones 2 < /dev/null > /tmp/again 2>&1 &
for n in 0 1; do
    until [ "$(grep -c "^$n: tick" /tmp/again)" -gt 5 ] || ! kill -0 $!; do sleep 0.2; done
    cp /tmp/again /tmp/out
    rvmm ctl /tmp/api$n quit; is 0 "^$n: tick" "a machine goes on, $n"
done
wait $!; is 1 '' 'clones that were told to end'
head -c 1000000 /tmp/saved > /tmp/half
rvmm restore /tmp/half > /tmp/out 2>&1; is 1 '/tmp/half: it is cut short' 'half a machine'
rvmm restore bzImage > /tmp/out 2>&1; is 1 'it is no machine' 'a kernel as a machine'

# What cloud-init shall do: the first sector of a disk has the label, and one after it the data.
echo '#cloud-config of this bed' > /tmp/user-data
echo 'head -c 512 /dev/vda | grep -q CIDATA && grep -q "#cloud-config of this" /dev/vda && echo seed $((6 * 7))' |
    rvmm run --kernel bzImage --initrd initrd --append quiet --user-data /tmp/user-data > /tmp/out 2>&1
is 0 '^seed 42' "cloud-init's data"

# A kernel that panics, without a root: a status of its own; as a user of the device's group, who may lock no memory.
echo 'kvm:x:104:user' >> /etc/group
echo 'user:x:1000:1000::/:/bin/sh' >> /etc/passwd
chgrp 104 /dev/rvmm
chmod 660 /dev/rvmm
su user -c 'ulimit -l 0 && exec rvmm run --kernel bzImage --append quiet' < /dev/null > /tmp/out 2>&1
is 6 "the guest's kernel panicked" 'a panic, of a user'

# A guest whose output nobody reads waits, and a signal ends it all the same.
mkfifo /tmp/full
sleep 1000 < /tmp/full &
reader=$!
truncate -s 1M /tmp/disk
{
    head -c 65536 /dev/zero
    exec rvmm run --kernel bzImage --append ignore_loglevel --disk /tmp/disk --api /tmp/api 2>> /tmp/out
} > /tmp/full &
blocked=$!
until grep -q pipe_write "/proc/$blocked"/task/*/wchan 2> /dev/null; do sleep 0.2; done
timeout 20 rvmm ctl /tmp/api pause; is 0 '' 'a machine whose output waits is paused'
timeout 20 rvmm ctl /tmp/api fork >> /tmp/out 2>&1; is 1 "/tmp/disk is one machine's disk" 'a machine with a disk'
timeout 20 rvmm ctl /tmp/api resume; is 0 '' 'and goes on'
kill -TERM $blocked
wait $blocked; is 1 'stopped' 'a signal while output waits'
kill $reader
# Neither does one whose output has nobody left to read it, standard error included.
run --append quiet --cpus 0 2>&1 | true
sh -c 'rvmm run --kernel /bin/busybox 2>&1; echo status $? > /tmp/out' | true
true; is 0 'status 1' 'nobody reads the error'

# Another program's /dev/kvm, where there is none, and where there is one that is not rvmm's; as root, and as a user.
kvm='rvmm exec -- ./exits -d /dev/kvm port_io'
[ ! -e /dev/kvm ] || echo "not ok - /dev/kvm is there"
$kvm > /tmp/out 2>&1; is 0 '^ok 1' 'a program for KVM'
[ ! -e /dev/kvm ]; is 0 '' '/dev/kvm for that program alone'
su user -c "$kvm" > /tmp/out 2>&1; is 0 '^ok 1' 'a program for KVM, of a user'
mknod /dev/kvm c 10 232
chmod 666 /dev/kvm
$kvm > /tmp/out 2>&1; is 0 '^ok 1' 'a program for KVM, over its device'
su user -c "$kvm" > /tmp/out 2>&1; is 0 '^ok 1' 'a program for KVM, over its device, of a user'
su user -c 'rvmm exec -- id' > /tmp/out 2>&1; is 0 'uid=1000' 'the user is still the same'
./exits -d /dev/kvm > /tmp/out 2>&1; is 1 '' 'outside nothing has changed'
rvmm exec -- no-such-program > /tmp/out 2>&1; is 127 'no-such-program: No such file' 'no program'
rvmm exec -- /add > /tmp/out 2>&1; is 126 'Permission denied' 'no program but a directory'
rvmm exec -- sh -c 'echo here; exit 42' > /tmp/out 2>&1; is 42 here "the program's status"
rvmm exec --device /dev/null -- true > /tmp/out 2>&1; is 4 'another kind of device' 'no device for exec'
echo 0 > /proc/sys/user/max_user_namespaces
su user -c "$kvm" > /tmp/out 2>&1; is 1 'user.max_user_namespaces' 'no user namespaces'
rm /dev/kvm

grep 'wants system call' /tmp/guest /tmp/again* /tmp/sockets > /tmp/out; is 1 '' 'no system call is missed'

[ $failed = 0 ] && echo 'the launcher is well-behaved'
exit $failed
