#!/bin/bash
# Process 1 of the test VM (uml.py). Mounts what a Linux has, runs one command, powers off.
#
# The root is the host's, read-only. The kernel passes the words NAME=VALUE of its command line on
# as environment: VM_CHECKOUT, VM_RUN (the script to run), VM_SYSTEMD (non-empty: under systemd).
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export VM_CHECKOUT VM_RUN

mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mountpoint -q /dev || mount -t devtmpfs -o mode=755 devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
ln -sfn /proc/self/fd /dev/fd
ln -sfn pts/ptmx /dev/ptmx 2>/dev/null

# Checkout and script may lie below a directory that is about to be hidden: keep a hand on them.
exec 8<"$VM_RUN" 9<"$VM_CHECKOUT"
VM_RUN=/run/vm-run
for directory in /run /tmp /var/lib /var/tmp; do
    mount -t tmpfs -o mode=1777 tmpfs "$directory"
    case $VM_CHECKOUT/ in
    "$directory"/*)
        mkdir -p "$VM_CHECKOUT"
        mount -c --bind /proc/self/fd/9 "$VM_CHECKOUT"  # -c: do not look where the link points now
        ;;
    esac
done
cat <&8 >"$VM_RUN"
exec 8<&- 9<&-
# Where /lib/modules is missing a read-only root cannot be given one: tell the tools another place.
mkdir -p /run/vm/lib/modules
mount --bind /usr/lib/uml/modules /run/vm/lib/modules
printf '#!/bin/sh\nexec modprobe -d /run/vm "$@"\n' >/run/vm/modprobe
chmod 755 /run/vm/modprobe
echo /run/vm/modprobe >/proc/sys/kernel/modprobe
/run/vm/modprobe -a overlay veth bridge
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup
ip link set lo up
hostname vm

if [ -n "$VM_SYSTEMD" ]; then
    # Only our own unit is started: the host's units need a writable root. What it does not
    # want, systemd stops, and that includes the mounts above.
    mkdir -p /run/systemd/system
    cat >/run/systemd/system/vm-tests.service <<END
[Unit]
DefaultDependencies=no
Wants=tmp.mount var-lib.mount var-tmp.mount run-vm-lib-modules.mount dev-shm.mount
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
Environment=VM_CHECKOUT=$VM_CHECKOUT VM_RUN=$VM_RUN PATH=$PATH HOME=/root
ExecStart=/bin/bash -c 'exec >/dev/tty1 2>&1; source \$VM_RUN; echo "vm: exit \$?"; sync'
END
    exec /lib/systemd/systemd --unit=vm-tests.service --log-level=warning --show-status=no
fi

# A session of its own: the tests use a terminal.
setsid bash -c 'source "$VM_RUN"; echo "vm: exit $?"' </dev/tty1 >/dev/tty1 2>&1
sync
echo o >/proc/sysrq-trigger
sleep 60
