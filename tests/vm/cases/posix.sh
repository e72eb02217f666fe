# Test suites of other projects and our own cases, in the guest on the share or
# on a local disk, or on the host. One line for each test, with tabs:
# SUITE TEST RESULT, where RESULT is ok, FAILED or skipped. What a test that
# failed has to say goes to standard error.
#
# usage: posix.sh share|local|DIR SUITE[=ARGUMENT,...]...
#
#   pjdfstest            all of it
#   cases[=ENTRIES]      tests/posix.rs, with a folder of so many entries
#   fsx=OPERATIONS,SEED...
#   fio                  verify, with and without O_DIRECT
#   stress=SECONDS,STRESSOR...   stress-ng with --verify; `all`: all that it has
#                        for file systems
#   overlay=VARIANT      overlayfs with its upper layer there: user, trusted, full
#   no-mmap              what comes after does without mmap
#
# In the guest the second disk has the suites; on the host they are in PATH.
set -euo pipefail

case $1 in
share) base=/mnt ;;
local) base=/disk ;;
*) base=$1 ;;
esac
shift
if [[ $base == /mnt || $base == /disk ]]; then
    mkdir -p /disk
    mount -t ext4 /dev/vdb /disk
    PATH=/disk/bin:$PATH
    # shellcheck source=overlay.sh
    source /disk/overlay.sh
fi
# With --writeback the guest stamps what it writes, and the host what is made.
# Two clocks that differ would show where a test compares the two.
if [[ $base == /mnt ]]; then
    here=$EPOCHREALTIME
    : >/mnt/clock
    there=$(stat -c %.9Z /mnt/clock)
    date -s "$(awk -v here="$here" -v there="$there" 'BEGIN { printf "%+.6f sec", there - here }')" >/dev/null
    rm /mnt/clock
fi
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

line() { # SUITE TEST RESULT
    printf '%s\t%s\t%s\n' "$1" "$2" "$3"
}

# Runs a command as one test.
one() { # SUITE TEST COMMAND...
    local suite=$1 name=$2
    shift 2
    if "$@" >"$tmp/output" 2>&1; then
        line "$suite" "$name" ok
    else
        line "$suite" "$name" FAILED
        { echo "--- $suite $name: $*"; tail -n 40 "$tmp/output"; } >&2
    fi
}

# A new folder for a suite; what it leaves there is of no interest.
fresh() { # SUITE
    rm -rf "${base:?}/$1"
    mkdir "$base/$1"
    chmod 755 "$base/$1"
}

run_pjdfstest() {
    local remount patterns
    fresh pjdfstest
    # Those that mount read-only come in a process of their own, since others
    # leave files open.
    for remount in false true; do
        patterns=()
        [[ $remount == false ]] || patterns=(::erofs)
        cat >"$tmp/pjdfstest.toml" <<EOF
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
secondary_fs = "/dev/shm"
[settings]
naptime = 0.02
allow_remount = $remount
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
EOF
        pjdfstest -c "$tmp/pjdfstest.toml" -p "$base/pjdfstest" "${patterns[@]}" >"$tmp/output" 2>&1 || true
        awk -v OFS='\t' -v remount="$remount" '
            remount == "false" && $1 ~ /::erofs/ { next }
            / (ok|FAILED|skipped)$/ { print "pjdfstest", $1, $2 }' "$tmp/output"
        grep -A4 ' FAILED$' "$tmp/output" >&2 || true
        grep '^Summary' "$tmp/output" >&2 || { tail "$tmp/output" >&2; line pjdfstest summary FAILED; }
    done
}

run_cases() { # [ENTRIES]
    fresh cases
    POSIX_DIR=$base/cases POSIX_ENTRIES=${1:-1000} RUST_BACKTRACE=0 \
        posix --test-threads=1 >"$tmp/output" 2>&1 || true
    awk -v OFS='\t' '/^test .* (ok|FAILED)$/ { print "cases", $2, $4 }' "$tmp/output"
    sed -n '/^failures:$/,$p' "$tmp/output" >&2
    grep -q '^test result' "$tmp/output" || { tail "$tmp/output" >&2; line cases summary FAILED; }
}

run_fsx() { # OPERATIONS SEED...
    local operations=$1 seed
    shift
    fresh fsx
    cat >"$tmp/fsx.toml" <<EOF
flen = 262144
[opsize]
max = 65536
[weights]
close_open = 1
invalidate = $mmap
mapread = $mmap
mapwrite = $mmap
read = 10
write = 10
truncate = 3
fsync = 0.5
fdatasync = 0.5
posix_fallocate = 2
punch_hole = 2
sendfile = 3
posix_fadvise = 1
copy_file_range = 3
EOF
    for seed; do
        one fsx "seed-$seed" fsx -f "$tmp/fsx.toml" -S "$seed" -N "$operations" -P "$tmp" "$base/fsx/$seed"
    done
}

run_fio() {
    local engine direct
    fresh fio
    for engine in psync mmap; do
        for direct in 0 1; do
            [[ $engine-$direct != mmap-1 ]] || continue
            [[ $engine != mmap || $mmap != 0 ]] || continue
            one fio "$engine-direct-$direct" fio --name=verify --directory="$base/fio" --numjobs=2 \
                --size=16m --bsrange=4k-256k --blockalign=4k --rw=randwrite --ioengine="$engine" \
                --direct="$direct" --fsync=64 --verify=crc32c --do_verify=1 --verify_fatal=1 \
                --group_reporting --minimal
        done
    done
}

stress-ng() {
    LD_LIBRARY_PATH=/disk/lib timeout -k 10 600 /disk/lib/stress-ng "$@"
}

run_stress() { # SECONDS STRESSOR...
    local seconds=$1 stressor code
    shift
    if [[ $1 == all ]]; then
        # shellcheck disable=SC2046 # names without spaces
        set -- $(stress-ng --class filesystem? 2>&1 | sed 's/.*://; s/ bind-mount / /')
    fi
    for stressor; do
        fresh stress
        code=0
        stress-ng --temp-path "$base/stress" --verify \
            --timeout "${seconds}s" --"$stressor" 2 >"$tmp/output" 2>&1 || code=$?
        case $code in
        0) line stress "$stressor" ok ;;
        3 | 4) line stress "$stressor" skipped ;;
        *)
            line stress "$stressor" FAILED
            { echo "--- stress-ng $stressor: $code"; grep -v 'dispatching\|setting to' "$tmp/output"; } >&2
            ;;
        esac
    done
}

mmap=1
for suite; do
    if [[ $suite == no-mmap ]]; then
        mmap=0
        continue
    fi
    name=${suite%%=*}
    arguments=()
    [[ $suite != *=* ]] || IFS=, read -ra arguments <<<"${suite#*=}"
    started=$SECONDS
    "run_$name" "${arguments[@]}"
    echo "--- $name took $((SECONDS - started)) s" >&2
done
cd /
! mountpoint -q /disk || umount /disk
