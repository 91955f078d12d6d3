#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# Runs each given program of the kernel's selftests by itself, at most SECONDS_EACH seconds: name, status, the end of
# what it says.
for name in "$@"; do
    timeout -s KILL $SECONDS_EACH /add/$name > /tmp/out 2>&1
    echo "== $name $?"
    tail -n 12 /tmp/out | cut -c 1-200
done
