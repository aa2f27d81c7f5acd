#!/bin/sh
# Which faults this machine cannot make: prints how a test runner is told to leave their tests out, and says on stderr what is missing.

without() {
    echo "left out: tests of $1 (they need $2)" >&2
    shift 2
    printf -- '--skip %s ' "$@"
}

can() {
    sh -c "$1" >/dev/null 2>&1
}

can 'unshare --net -- sh -c "ip link add probe0 type veth peer name probe1 && nft add table ip probe && tc qdisc show" && command -v nsenter' ||
    without 'networks' 'root, ip, tc, nft, unshare and nsenter: apt-get install iproute2 util-linux nftables' partitions:: links:: names::
can 'unshare --mount -- mount -t tmpfs none /mnt' ||
    without 'disks' 'root and mount namespaces' disk::
can 'command -v faketime' ||
    without 'clocks' 'libfaketime: apt-get install faketime' clocks::
can 'command -v prlimit' ||
    without 'file descriptors' 'prlimit: apt-get install util-linux' starved::without_file_descriptors

# As `Memory` of the harness makes one.
if [ -d /sys/fs/cgroup/memory ]; then
    group=/sys/fs/cgroup/memory/postrider-test-probe-$$ limit=memory.limit_in_bytes
else
    group=/sys/fs/cgroup/postrider-test-probe-$$ limit=memory.max
fi
can "mkdir $group && echo 1000000000 > $group/$limit" ||
    without 'memory' 'root and control groups for memory' starved::with_less_memory
rmdir "$group" 2>/dev/null || true
