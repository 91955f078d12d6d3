#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Runs each given program of the kernel's selftests by itself, with its arguments in the same word, at most SECONDS_EACH
# seconds: the word, the status, the end of what it says.
# One looks for the controller of memory; some want pages of 2 MiB.
mkdir -p /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup 2> /dev/null
echo +memory > /sys/fs/cgroup/cgroup.subtree_control
for words in "$@"; do
    case $words in
    *hugetlb* | *" -H"*) echo ${HUGE_PAGES:-600} > /proc/sys/vm/nr_hugepages ;;
    *) echo 0 > /proc/sys/vm/nr_hugepages ;;
    esac
    echo "=> $words"
    from=$(cut -d . -f 1 /proc/uptime)
    timeout -s KILL $SECONDS_EACH /add/$words > /tmp/out 2>&1
    status=$?
    echo "== $words: $status after $(($(cut -d . -f 1 /proc/uptime) - from)) s"
    tail -n 12 /tmp/out | cut -c 1-200
done
