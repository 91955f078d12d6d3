#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# image.sh NODE: an image boots and resets itself, boots again with what it has written, is saved, goes on from the
# file, answers on its network, and powers off when its button is pressed, by a signal or by its socket. Its changes are
# kept in an overlay; the image is what it was.
set -e
boot="rvmm run --device $1 --memory 256M --append quiet disk.qcow2 --keep kept.qcow2"
before=$(md5sum < disk.qcow2)
$boot --on-reset exit < /dev/null
# The host's end of the network of a machine that writes to FILE, once it is there.
network() {
    until ip link set t0 up 2> /dev/null; do
        kill -0 $! || { cat $1; exit 1; }
        sleep 0.2
    done
    ip addr add 10.9.0.1/24 dev t0
}
$boot --cpus 2 --rng --net tap=t0 --api api < /dev/null > out 2>&1 &
network out
until grep -q "press the power button" out; do
    kill -0 $! || { cat out; exit 1; }
    sleep 0.2
done
cat out
rvmm ctl api snapshot saved
rvmm ctl api quit
wait $! || true
rvmm restore --device $1 saved --api api < /dev/null > out 2>&1 &
network out
until ping -q -c 1 -W 1 10.9.0.2; do
    kill -0 $! || { cat out; exit 1; }
done
[ $1 = /dev/kvm ] && kill -USR1 $! || rvmm ctl api power-button
wait $!
cat out
[ "$before" = "$(md5sum < disk.qcow2)" ] && echo "the image is what it was"
! rvmm run --device $1 kept.qcow2
