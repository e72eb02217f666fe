# Runs in the guest: random writes of many sizes, read back and checked.
#
# usage: fio.sh DIRECT, which is 0 or 1 and says whether O_DIRECT is used
set -euo pipefail
fio --name=verify --directory=. --numjobs=2 --size=16m --bsrange=4k-256k --blockalign=4k \
    --rw=randwrite --ioengine=psync --direct="$1" --fsync=64 \
    --verify=crc32c --do_verify=1 --verify_fatal=1 --group_reporting --minimal >/dev/null
