#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# A guest of libvirt's, whose driver for QEMU runs in a program of its own: all of it below `rvmm exec`.
set -e
mkdir -p /tmp/root/etc /etc/libvirt
cat > /tmp/root/etc/qemu.conf << 'END'
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
END
# It looks for these before it reads that.
printf 'root:x:0:0::/:/bin/sh\nlibvirt-qemu:x:64055:64055::/:/bin/sh\n' >> /etc/passwd
printf 'root:x:0:\nlibvirt-qemu:x:64055:\nkvm:x:104:\n' >> /etc/group
cat > /tmp/guest.xml << 'END'
<domain type='kvm'>
  <name>guest</name>
  <memory unit='MiB'>384</memory>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>/add/bzImage</kernel>
    <initrd>/add/initrd</initrd>
    <cmdline>console=ttyS0 reboot=t rvmm.cmd=poweroff</cmdline>
  </os>
  <features><acpi/><apic/></features>
  <cpu mode='host-passthrough'/>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>/add/qemu-system-x86_64</emulator>
    <serial type='file'><source path='/tmp/serial'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
END
rvmm exec -- virt-qemu-run --root=/tmp/root /tmp/guest.xml &
guest=$!
until grep -q "userland is up" /tmp/serial 2> /dev/null; do
    kill -0 $guest || { cat /tmp/root/log/qemu/*; exit 1; }
    sleep 0.5
done
grep -h "userland is up" /tmp/serial
rvmm list
kill $guest
wait $guest || true
echo "its guest has ended"
