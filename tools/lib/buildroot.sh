#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Enters the build root, in a mount namespace of its own: buildroot.sh ROOT REPOSITORY DIRECTORY [K=V]... COMMAND...
# (tools/lib/buildroot.py calls it; the words after DIRECTORY are those of env).
set -e
root=$1 repo=$2 dir=$3
shift 3
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc" 2>/dev/null || mount --rbind /proc "$root/proc"
mount --rbind /sys "$root/sys"
mkdir -p "$root/tmp" "$root$repo"
mount --bind /tmp "$root/tmp"
mount --rbind "$repo" "$root$repo"
if [ -e /etc/resolv.conf ]; then
    fresh=$root/etc/resolv.conf.new.$$
    cp -fL /etc/resolv.conf "$fresh" && mv -f "$fresh" "$root/etc/resolv.conf"
fi
exec chroot "$root" /usr/bin/env -i --chdir="$dir" "$@"
