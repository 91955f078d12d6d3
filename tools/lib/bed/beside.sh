#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Runs a program of selftests/ on rvmm and on KVM at the same time, again and again: beside.sh PROGRAM.
i=0
while [ $i -lt 10 ]; do
    DEVICE=/dev/kvm "$1" > /tmp/kvm &
    "$1" > /tmp/rvmm || { cat /tmp/rvmm; exit 1; }
    wait $! || { cat /tmp/kvm; exit 1; }
    i=$((i + 1))
done
tail -n 1 /tmp/rvmm
