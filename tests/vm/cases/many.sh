# Runs in the guest: lists a directory in which the host made COUNT files,
# and makes CREATE files in another one.
#
# usage: many.sh COUNT CREATE
set -euo pipefail
ls -f1i from-host | grep 'file-' >/tmp/entries
[[ $(wc -l </tmp/entries) == "$1" ]]
for field in 1 2; do
    [[ $(awk -v field=$field '{ print $field }' /tmp/entries | sort -u | wc -l) == "$1" ]]
done
mkdir from-guest
cd from-guest
seq -f 'file-%.0f' "$2" | xargs touch
[[ $(find . -type f | wc -l) == "$2" ]]
