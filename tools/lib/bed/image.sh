#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# image.sh NODE: an image boots and resets itself, boots again in the same launcher with what it has written, is saved,
# goes on from the file, answers on its network, and powers off when its button is pressed, by a signal or by its
# socket. Its changes are kept in an overlay; the image is what it was.
set -e
boot="rvmm run --device $1 --memory 256M --append quiet disk.qcow2 --keep kept.qcow2"
before=$(md5sum < disk.qcow2)
# The host's end of the network of a machine that writes to FILE, once it is there.
network() {
    until ip link set t0 up 2> /dev/null; do
        kill -0 $! || { cat $1; exit 1; }
        sleep 0.2
    done
    ip addr add 10.9.0.1/24 dev t0
}
# On KVM the launcher may call whatever it likes, and that is compared with what it may in its sandbox.
calls=/sys/kernel/tracing/events/raw_syscalls/sys_enter
sandbox=
if [ $1 = /dev/kvm ]; then
    sandbox=--no-sandbox
    echo 'hist:keys=common_pid.execname,id:size=4096' > $calls/trigger
fi
$boot $sandbox --cpus 2 --rng --balloon --console con --net tap=t0 --api api < /dev/null > out 2>&1 &
machine=$!
# It has started again by then, with devices of the same names.
until grep -q "image: boot 2" out; do
    kill -0 $machine || { cat out; exit 1; }
    sleep 0.2
done
network out
until [ -e con ]; do sleep 0.2; done
cat con > typed &
# What comes before somebody reads there may be lost.
until grep -q "console says" out; do
    kill -0 $machine || { cat out; exit 1; }
    echo hello > con
    sleep 1
done
until grep -q "press the power button" out; do
    kill -0 $machine || { cat out; exit 1; }
    sleep 0.2
done
cat out typed
rvmm ctl api balloon 192M
until rvmm ctl api status | grep '"balloon": 67108864'; do
    kill -0 $machine || { cat out; exit 1; }
    sleep 0.2
done
rvmm ctl api snapshot saved
rvmm ctl api quit
wait $machine || true
if [ $1 = /dev/kvm ]; then
    rvmm calls | sort -u > listed
    sed -n 's/.*common_pid: \([a-z]*\)[0-9]* *\[.*id: *\([0-9]*\) .*/\1 \2/p' $calls/hist |
        sed -n 's/^virtio /Device /p; s/^vcpu /Cpu /p; s/^api /Commands /p' | sort -u > called
    beside=$(grep -vxFf listed called | tr '\n' ' ')
    echo "$(wc -l < called) calls of three kinds of threads; beside the list: $beside."
    echo '!hist:keys=common_pid.execname,id' > $calls/trigger
fi
rvmm restore --device $1 saved --api api < /dev/null > out 2>&1 &
network out
until ping -q -c 1 -W 1 10.9.0.2; do
    kill -0 $! || { cat out; exit 1; }
done
rvmm ctl api fork
rvmm ctl api --clone 0 status | grep '"state": "running"'
rvmm ctl api --clone 0 quit
[ $1 = /dev/kvm ] && kill -USR1 $! || rvmm ctl api power-button
wait $!
cat out
[ "$before" = "$(md5sum < disk.qcow2)" ] && echo "the image is what it was"
! rvmm run --device $1 kept.qcow2
