#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Two guests of the launcher's side by side, one of them KVM's: sh linux-guest.sh CPUS sh launchers.sh.
run() {
    rvmm run --kernel vmlinuz --initrd /tmp/guest.cpio --stats "$@"
}
run --device /dev/kvm --append 'quiet guest.end=reboot' < /dev/null > /tmp/kvm 2>&1 &
echo 'typed to it' | run --append 'quiet guest.read'
ours=$?
wait $!
echo "on /dev/kvm, with status $?:"
cat /tmp/kvm
exit $ours
