#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Runs each given program of the kernel's selftests by itself, with its arguments in the same word, at most SECONDS_EACH
# seconds: the word, the status, how long it took, the end of what it says.
# One looks for the controller of memory; some want pages of 2 MiB, one has to be told that KVM does not run code in
# such pages.
mkdir -p /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup 2> /dev/null
echo +memory > /sys/fs/cgroup/cgroup.subtree_control
# Programs read what KVM's modules have been loaded with; with rvmm none of a vendor is there, and what they are told is
# so of rvmm.
if [ "$(uname -m)" = x86_64 ] && ! [ -e /sys/module/kvm_amd ] && ! [ -e /sys/module/kvm_intel ]; then
    mkdir -p /tmp/module/kvm/parameters /tmp/module/kvm_amd/parameters /tmp/module/kvm_intel/parameters
    cp /sys/module/kvm/parameters/* /tmp/module/kvm/parameters
    mount --bind /tmp/module /sys/module
    for one in kvm/enable_pmu kvm_amd/avic kvm_amd/enable_mediated_pmu kvm_intel/enable_mediated_pmu; do
        echo N > /sys/module/${one%/*}/parameters/${one#*/}
    done
    for one in kvm_amd/npt kvm_intel/ept kvm_intel/unrestricted_guest; do
        echo Y > /sys/module/${one%/*}/parameters/${one#*/}
    done
    echo 0 > /sys/module/kvm_amd/parameters/lbrv
fi
kvm=/sys/module/kvm/parameters
for words in "$@"; do
    case $words in
    *hugetlb* | *" -H"* | nx_huge_pages*) echo ${HUGE_PAGES:-600} > /proc/sys/vm/nr_hugepages ;;
    *) echo 0 > /proc/sys/vm/nr_hugepages ;;
    esac
    nx=$(cat $kvm/nx_huge_pages 2> /dev/null)
    case $words in
    nx_huge_pages*)
        echo 1 > $kvm/nx_huge_pages
        echo 1 > $kvm/nx_huge_pages_recovery_ratio
        echo 2000 > $kvm/nx_huge_pages_recovery_period_ms
        ;;
    esac
    echo "=> $words"
    from=$(cut -d . -f 1 /proc/uptime)
    timeout -s KILL $SECONDS_EACH /add/$words > /tmp/out 2>&1
    status=$?
    echo "== $words: $status after $(($(cut -d . -f 1 /proc/uptime) - from)) s"
    tail -n 12 /tmp/out | cut -c 1-200
    [ "$(cat $kvm/nx_huge_pages 2> /dev/null)" = "$nx" ] || echo "$nx" > $kvm/nx_huge_pages
done
