#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# udhcpc calls it: an address has been leased.
[ "$1" = bound ] && ip addr add $ip/${mask:-24} dev $interface && ip route add default via $router
exit 0
