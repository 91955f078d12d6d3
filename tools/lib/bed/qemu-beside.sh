#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Runs QEMU, the arguments, beside a guest of the launcher's on /dev/rvmm, which starts and ends meanwhile; its output
# comes at the end.
truncate -s 8M /tmp/disk
(rvmm run --kernel bzImage --initrd initrd --append 'loglevel=4 rvmm.cmd=poweroff' < /dev/null > /tmp/beside 2>&1
 echo "the launcher has ended with status $?" >> /tmp/beside) &
"$@"
status=$?
grep -q 'has ended' /tmp/beside && echo "the launcher was first"
wait
sed 's/^/beside: /' /tmp/beside
exit $status
