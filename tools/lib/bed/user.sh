#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR MIT
# user.sh NODE: a guest has an address by DHCP, fetches a file from its host and gives it one, on a network in user
# mode, and mounts a directory of the host's; it resets once, and both go on. Another one with such a network is saved,
# and goes on with a network of its own.
set -e
# A host with an address, which is what a guest gets, and a gateway, by which a guest reaches the host itself.
ip link add host0 type dummy
ip addr add 10.0.2.15/24 dev host0
ip link set host0 up
ip route add default via 10.0.2.2
echo 'nobody:x:65534:65534::/:/bin/sh' >> /etc/passwd
mkdir -p /tmp/www /tmp/more /tmp/shared/deep
dd if=/dev/urandom of=/tmp/www/data bs=64k count=32 2> /dev/null
(cd /tmp/www && md5sum data > sum)
httpd -p 127.0.0.1:8000 -h /tmp/www
cp /tmp/www/data /tmp/www/sum /tmp/shared
n=0
while [ $n -lt 100 ]; do
    n=$((n + 1))
    echo $n > /tmp/shared/deep/$n
done

# What the guest does.
cat > /tmp/more/user << 'END'
#!/bin/sh
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
dmesg -n 4
. /drivers
for module in $virtio_net; do insmod /modules/$module.ko; done
mkdir -p /shared
if mount -t virtiofs data /shared 2> /dev/null; then
    cd /shared
    md5sum -c sum && echo "guest: read $(cat deep/* | awk '{ all += $1 } END { print all }')"
    if [ ! -e once ]; then
        echo 1 > once
        reboot -f
    fi
    dd if=/dev/urandom of=written bs=64k count=32 2> /dev/null
    md5sum written > written.sum
    mkdir new
    for n in $(seq 100); do echo $n > new/$n; done
    mv new/100 new/last
    rm new/99
fi
cd /tmp
ip link set eth0 up
udhcpc -q -n -f -t 20 -T 1 -i eth0 -s /lease > udhcpc 2>&1 || cat udhcpc
ip -4 addr show dev eth0 | grep inet
wget -q http://10.0.2.2:8000/data
wget -q http://10.0.2.2:8000/sum
md5sum -c sum && echo "guest: fetched"
httpd -f -p 80 -h /tmp
END
chmod +x /tmp/more/user
(cd /tmp/more && find . | cpio -o -H newc) > /tmp/more.cpio 2> /dev/null
cat initrd /tmp/more.cpio > /tmp/initrd

run="rvmm run --device $1 --memory 256M --kernel bzImage --initrd /tmp/initrd"
! $run --net user 2>&1
! $run --share nowhere 2>&1
mv /add/hidden/* /add
run() {
    $run --append "quiet rdinit=/user" --api /tmp/api "$@" < /dev/null > /tmp/out 2>&1 &
    machine=$!
}
# Fetches a file from the guest, once it gives it, and compares.
fetch() {
    until wget -q -T 5 -O /tmp/back http://127.0.0.1:$1/$2 2> /dev/null; do
        kill -0 $machine || { cat /tmp/out; exit 1; }
        sleep 0.2
    done
    cmp /tmp/back /tmp/www/$2
}
quit() {
    rvmm ctl /tmp/api quit
    wait $machine || true
    cat /tmp/out
    while pidof passt virtiofsd > /dev/null; do sleep 0.2; done
}
run --net user,tcp=8080:80 --share data=/tmp/shared --on-reset restart
fetch 8080 data && echo "host: fetched"
(cd /tmp/shared && md5sum -c written.sum)
echo "host: read $(cat /tmp/shared/new/* | awk '{ all += $1 } END { print all }')"
! rvmm ctl /tmp/api fork 2>&1
fetch 8080 sum && echo "host: fetched again"
pidof passt virtiofsd > /dev/null
quit
echo "both programs have ended"

run --net user,tcp=8080:80
fetch 8080 sum && echo "host: fetched without a directory"
! rvmm ctl /tmp/api fork 2>&1
rvmm ctl /tmp/api snapshot /tmp/saved
quit
rvmm restore --device $1 /tmp/saved --api /tmp/api < /dev/null > /tmp/out 2>&1 &
machine=$!
fetch 8080 data && echo "host: fetched from where it was saved"
quit
