# Runs in the guest: lists a directory in which the host made COUNT files,
# looks at each of them, and makes CREATE files in another directory.
#
# The daemon holds a descriptor for every file that the guest knows, and the
# host may not allow 100,000. So the guest forgets between batches.
#
# usage: many.sh COUNT CREATE
set -euo pipefail

batch='"$@" && echo 2 >/proc/sys/vm/drop_caches'

ls -f from-host >/tmp/names
sed -i '/^\./d' /tmp/names
[[ $(wc -l </tmp/names) == "$1" ]]
[[ $(sort -u /tmp/names | wc -l) == "$1" ]]

echo 2 >/proc/sys/vm/drop_caches
cd from-host
xargs -n 5000 bash -c "$batch" - stat -c '%i %s %F' </tmp/names >/tmp/stats
[[ $(sort -u /tmp/stats | grep -c ' 0 regular empty file') == "$1" ]]

mkdir ../from-guest
cd ../from-guest
seq -f 'file-%.0f' "$2" | xargs -n 5000 bash -c "$batch" - touch
[[ $(find . -type f | wc -l) == "$2" ]]
