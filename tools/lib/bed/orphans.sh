#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# A command that leaves orphans behind, which go on ending while its own end is told.
(while :; do (usleep 1000 &); done) > /dev/null 2>&1 &
usleep 100000
echo "orphans everywhere"
exit 7
