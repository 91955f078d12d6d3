#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# First process of the bed: mounts, modules, the command, its status, the end.
export PATH=/add:/usr/local/bin:/bin:/sbin:/usr/bin:/usr/sbin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
ln -s /proc/self/fd /dev/fd
ip link set lo up 2>/dev/null
echo 8 > /proc/sys/kernel/printk
hostname bed
. /bed/config
# Open until the end: the last close resets the UART, and does not wait for what it still has to send when a signal is
# pending, as SIGCHLD is here whenever an orphan of the command ends.
exec 3> "/dev/$SERIAL"
finish() {
    # The terminal's line discipline cannot do it: the command may have left it in any mode.
    printf '\036%s end %s\036' "$TOKEN" "$1" >&3
    # Waits for what is still to be sent, which may be seconds of it.
    stty -F "/dev/$SERIAL" raw -echo
    sleep 2
    poweroff -f
}
if [ -n "$INTERACTIVE" ]; then
    stty -F "/dev/$SERIAL" sane rows "$ROWS" cols "$COLUMNS"
else
    stty -F "/dev/$SERIAL" raw -echo
fi
while read -r module file parameters; do
    if ! insmod "$file" $parameters > /bed/insmod.log 2>&1; then
        echo "bed: $module refused: $(cat /bed/insmod.log)" > /dev/kmsg
        printf '\036%s start\036' "$TOKEN" >&3
        finish module
    fi
done < /bed/modules
if [ -n "$UNTRAIN" ]; then
    # The functions that untrain returns, byte by byte, for the checks (tools/bochs/checker.cc).
    grep -E ' (entry|srso_alias)_untrain_ret$' /proc/kallsyms | while read -r address _; do
        for at in 15-16 13-14 11-12 9-10 7-8 5-6 3-4 1-2; do
            printf "\\x$(echo "$address" | cut -c $at)" | dd of=/dev/port bs=1 seek=$((0x8a00)) 2> /dev/null
        done
    done
fi
printf '\036%s start\036' "$TOKEN" >&3
cd /add
if [ -n "$INTERACTIVE" ]; then
    # The end of the session hangs the terminal up: stty waits for what is still to be sent, and the descriptor is
    # opened anew.
    setsid -c sh -c 'sh /bed/command; status=$?; stty raw -echo; exit $status' \
        < "/dev/$SERIAL" > "/dev/$SERIAL" 2>&1 3>&-
    status=$?
    exec 3> "/dev/$SERIAL"
else
    sh /bed/command < /dev/null > "/dev/$SERIAL" 2>&1 3>&-
    status=$?
fi
# Unloading is part of every run: a module that cannot go, or that complains when it goes, is a failure.
if [ -n "$UNLOAD" ] && [ -d /sys/module/rvmm ]; then
    tries=0
    until rmmod rvmm 2> /bed/rmmod.log; do
        tries=$((tries + 1))
        if [ $tries = 30 ]; then
            echo "bed: Unable to unload rvmm: $(cat /bed/rmmod.log)" > /dev/kmsg
            break
        fi
        sleep 0.1
    done
fi
finish $status
