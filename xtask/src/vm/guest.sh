# Second stage of the guest, in its final root: runs /guest/job and says on the first serial line how it ended.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
output=/dev/ttyS0

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
# The host's sockets and locks lead nowhere. /tmp stays: the tree that is tested may be there.
[ -e /guest/keep-run ] || mount -t tmpfs tmpfs /run

while read -r module; do
    modprobe -q "$module" || echo "this kernel has no module $module" > $output
done < /guest/modules
ip link set lo up

# A pipe, so that programs do not take the serial line for a terminal.
mkfifo /guest/output
cat /guest/output > $output &
reader=$!
bash /guest/job < /dev/null > /guest/output 2>&1
status=$?

# A process that the job left behind may hold its output open for ever.
for _ in {1..20}; do
    kill -0 $reader 2> /dev/null || break
    sleep 0.1
done
# Switching off ends the host's files before the machine. This process needs none of them to wait, and must not end,
# because that would be a panic.
mkfifo /guest/never
exec 3<> /guest/never
read -r -t 0.01 -u 3 _
echo "$(< /guest/marker) $status" > $output
echo o > /proc/sysrq-trigger
read -r -u 3 _
