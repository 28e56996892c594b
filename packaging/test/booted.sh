# A Debian root booted with systemd as PID 1 by systemd-nspawn, in the network name space
# of the caller. Sourced by the tests.

CACHE=${AMQPROXYSVC_TEST_CACHE:-/var/cache/amqproxysvc-test}

# drop_root DIR: removes a root, and first what is mounted below it: deleting through a mount
# of /proc or /sys would reach this machine.
drop_root() {
    local at
    while read -r _ at _; do
        [[ $at != "$1"/* ]] || umount -l "$at"
    done < <(tac /proc/self/mounts)
    rm -rf --one-file-system "$1"
}

# base_root SUITE NAME PACKAGES: prints the tar of a minimal root, made once.
base_root() {
    local suite=$1 tar=$CACHE/$2.tar packages=$3 new
    mkdir -p "$CACHE"
    (
        flock -w 1200 9 || die "waited 20 minutes for $tar.lock"
        [ ! -s "$tar" ] || exit 0
        # What a killed one left, which may still be mounted into: the lock says that nobody is at it.
        for new in "$CACHE/$2".??????; do
            [ ! -d "$new" ] || drop_root "$new" || die "cannot remove $new"
        done
        need debootstrap=debootstrap >&2
        say "debootstrap $suite (once)"
        new=$(mktemp -d "$CACHE/$2.XXXXXX")
        chmod 755 "$new" # the root directory: its users must get in
        nice debootstrap --variant=minbase --include="$packages" "$suite" "$new" \
            ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$tar.log" 2>&1 ||
            { tail -n 20 "$tar.log" >&2; drop_root "$new"; die "debootstrap $suite failed, see $tar.log"; }
        rm -rf "$new"/var/cache/apt/archives/*.deb "$new"/var/lib/apt/lists/*
        # In this place "set -e" is not in force.
        tar -C "$new" --numeric-owner -cf "$tar.new" . || { drop_root "$new"; rm -f "$tar.new"; die "could not write $tar.new"; }
        drop_root "$new"
        rm -f "$tar.log"
        mv "$tar.new" "$tar"
    ) 9>"$tar.lock" || return 1
    echo "$tar"
}

# boot TAR ROOT: unpacks TAR into ROOT and boots it; sets NSPAWN, INIT and CGROUPS. End it with halt.
boot() {
    mkdir -p "$2"
    tar -C "$2" --numeric-owner -xf "$1"
    # Only what the test brings is installed, and nothing waits for a network.
    rm -f "$2"/etc/apt/sources.list "$2"/etc/apt/sources.list.d/*
    tr -d - </proc/sys/kernel/random/uuid >"$2/etc/machine-id" # none: a first boot, which asks questions
    ln -sf /dev/null "$2/etc/systemd/system/systemd-networkd-wait-online.service"
    echo booted >"$2/etc/hostname"
    echo "127.0.0.1 localhost booted" >"$2/etc/hosts"
    reboot_root "$2"
}

reboot_root() {
    # A cgroup of its own: two machines in one would end each other's services. A hybrid
    # host has two hierarchies, and nspawn takes its place from the unified one.
    local top
    CGROUPS=()
    for top in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
        [ ! -e $top/cgroup.procs ] || CGROUPS+=("$top/amqproxysvc-packages-$$")
    done
    [ ${#CGROUPS[@]} -gt 0 ] || CGROUPS=("/sys/fs/cgroup/amqproxysvc-packages-$$")
    mkdir -p "${CGROUPS[@]}"
    # shellcheck disable=SC2016 # for the inner shell
    sh -c 'while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs" || exit; shift; done; shift; exec "$@"' sh "${CGROUPS[@]}" -- \
        systemd-nspawn -D "$1" --boot --register=no --keep-unit --quiet --console=pipe --link-journal=no \
            --resolv-conf=off --timezone=off </dev/null >"$1.console" 2>&1 &
    NSPAWN=$!
    INIT=
    local i state=
    for i in $(seq 900); do
        [ -n "$INIT" ] || INIT=$(pgrep -P "$NSPAWN" -x systemd) || true
        if [ -n "$INIT" ]; then
            state=$(inside systemctl is-system-running 2>/dev/null) || true
            case $state in running | degraded) return 0 ;; esac
        fi
        kill -0 "$NSPAWN" 2>/dev/null || break
        sleep 0.2
    done
    tail -n 30 "$1.console" >&2
    die "the root $1 did not boot (state \"$state\")"
}

# remember FILE, recall FILE: a booted root in a file, for who was not its parent shell.
remember() { echo "$NSPAWN $INIT ${CGROUPS[*]}" >"$1"; }
recall() {
    local cgroups
    read -r NSPAWN INIT cgroups <"$1"
    read -ra CGROUPS <<<"$cgroups"
}

# inside COMMAND: runs it in the booted root.
inside() {
    nsenter --target "$INIT" --mount --uts --ipc --pid --cgroup --root \
        env -i -C / PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"
}

# halt ROOT: ends it; PID 1 ignores TERM, and a hanging one is killed.
halt() {
    [ -n "${NSPAWN:-}" ] || return 0
    inside systemctl --force --force poweroff >/dev/null 2>&1 || true
    timeout 20 tail --pid="$NSPAWN" -f /dev/null || kill -KILL "$INIT" "$NSPAWN" 2>/dev/null || true
    wait "$NSPAWN" 2>/dev/null || true
    [ -z "${CGROUPS[*]:-}" ] || find "${CGROUPS[@]}" -depth -type d -exec rmdir {} + 2>/dev/null || true
    NSPAWN='' INIT=''
}
