#!/bin/sh
# Owns one cluster and outlives the harness: whatever ends the harness, its end of standard input closes, the cluster's
# init dies with every process, mount and network in its namespaces, and what the kernel keeps is removed here.
# Usage: janitor.sh STATE_FOLDER NAME; with "sweep" as the third argument it only removes.
state=$1
name=$2

# Held as long as the cluster lives; the next start tells a dead cluster's folder by the lock being free. The file gets
# its name once it is locked, so that no other cluster's start takes a new one for dead.
lock="$state/lock"
[ "$3" = sweep ] || lock="$state/unborn"
exec 9>"$lock" || exit 0
flock --nonblock 9 || exit 0
trap '' INT TERM HUP

if [ "$3" != sweep ]; then
    mv "$lock" "$state/lock"
    unshare --net --mount --uts --pid --fork --kill-child --mount-proc --propagation private \
        -- tini -- cat 9>&- >/dev/null
fi

# Killed processes leave their cgroups a moment later than their namespaces.
cgroups() {
    find /sys/fs/cgroup -mindepth 1 -maxdepth 2 -type d -name "$name"
}
tries=0
while [ -n "$(cgroups)" ]; do
    for cgroup in $(cgroups); do
        find "$cgroup" -depth -type d -exec rmdir {} \; 2>/dev/null
    done
    tries=$((tries + 1))
    if [ $tries -gt 100 ]; then
        echo "cannot remove the cgroups of $name" >&2
        exit 1
    fi
    [ -z "$(cgroups)" ] || sleep 0.1
done
rm -rf --one-file-system "$state"
