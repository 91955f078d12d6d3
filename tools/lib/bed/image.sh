#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# image.sh NODE: an image boots and resets itself, boots again with what it has written, and powers off when its button
# is pressed, by a signal or by its socket. Its changes are kept in an overlay; the image is what it was.
set -e
boot="rvmm run --device $1 --memory 256M --append quiet disk.qcow2 --keep kept.qcow2"
before=$(md5sum < disk.qcow2)
$boot --on-reset exit < /dev/null
$boot --cpus 2 --rng --net tap=t0 --api api < /dev/null > out 2>&1 &
until ip link set t0 up 2> /dev/null; do
    kill -0 $! || { cat out; exit 1; }
    sleep 0.2
done
ip addr add 10.9.0.1/24 dev t0
until grep -q "press the power button" out; do
    kill -0 $! || { cat out; exit 1; }
    sleep 0.2
done
[ $1 = /dev/kvm ] && kill -USR1 $! || rvmm ctl api power-button
wait $!
cat out
[ "$before" = "$(md5sum < disk.qcow2)" ] && echo "the image is what it was"
! rvmm run --device $1 kept.qcow2
