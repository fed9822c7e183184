#!/bin/busybox sh
# First process of the guest, in the initramfs: mounts a writable overlay over the host's files and switches
# to it.
busybox=/bin/busybox

stop() {
    echo "cannot start the guest: $1"
    echo o > /proc/sysrq-trigger
    $busybox sleep 60
}

$busybox mount -t proc proc /proc
$busybox mount -t devtmpfs dev /dev
for module in $($busybox cat /modules/order); do
    $busybox insmod "/modules/$module" || stop "module $module does not load"
done

# The host's files do not change while the guest runs, so the guest may cache them.
shared=trans=virtio,version=9p2000.L,ro,msize=1048576,cache=loose
$busybox mount -t 9p -o $shared host /lower || stop "no view of the host's files"
$busybox mount -t 9p -o $shared kernel /kernel || stop "no view of the kernel's modules"
$busybox mount -t tmpfs tmpfs /rw
$busybox mkdir /rw/upper /rw/work
$busybox mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work overlay /system || stop "no overlay"

$busybox mkdir -p /system/lib/modules /system/guest
$busybox mount --bind /kernel/lib/modules /system/lib/modules
$busybox mount --move /dev /system/dev
$busybox cp /guest/* /system/guest/
exec $busybox switch_root /system /bin/bash /guest/main
