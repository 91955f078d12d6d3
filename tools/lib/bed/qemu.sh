#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Runs QEMU, the arguments, with a disk for its guest.
truncate -s 8M /tmp/disk
exec "$@"
