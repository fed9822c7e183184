# Second stage of the guest, in its final root: runs /guest/job and prints its exit status on the first serial
# line.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
output=/dev/ttyS0

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
# The host's sockets and locks in /run are useless here. /tmp remains, because it may contain the tested tree.
[ -e /guest/keep-run ] || mount -t tmpfs tmpfs /run

while read -r module; do
    modprobe -q "$module" || echo "this kernel has no module $module" > $output
done < /guest/modules
ip link set lo up

# A pipe, because programs would treat the serial line as a terminal.
mkfifo /guest/output
cat /guest/output > $output &
reader=$!
bash /guest/job < /dev/null > /guest/output 2>&1
status=$?

# An orphan of the job may hold the output open forever.
for _ in {1..20}; do
    kill -0 $reader 2> /dev/null || break
    sleep 0.1
done
# The power-off unmounts the host's files first. This process waits without them, and must not exit, because
# the kernel would panic.
mkfifo /guest/never
exec 3<> /guest/never
read -r -t 0.01 -u 3 _
echo "$(< /guest/marker) $status" > $output
echo o > /proc/sysrq-trigger
read -r -u 3 _
