# What the scripts of this folder share: where things are, how the daemon is
# started, how a script gives up. Sourced, never run.
# shellcheck shell=bash disable=SC2034

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# Kernels, root file system and everything else that is slow to make.
cache=${VIRTIOFSD_TEST_CACHE:-$repo/target/vm}

# The daemon under test, and the options it always gets: root has it locked in,
# as it is used; an ordinary user cannot yet.
daemon=${VIRTIOFSD:-$repo/target/release/virtiofsd}
daemon_options=()
((EUID == 0)) || daemon_options=(--sandbox none)

kernels=(6.1 6.12)

program=${0#"$repo"/}

say() {
    printf '%s: %s\n' "$program" "$*" >&2
}

die() {
    say "$*"
    exit 125
}
