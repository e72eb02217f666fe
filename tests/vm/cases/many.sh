# Runs in the guest: lists a directory in which the host made COUNT files,
# and makes CREATE files in another one.
#
# usage: many.sh COUNT CREATE
set -euo pipefail
(cd from-host && ls -f) | grep -v '^\.' >/tmp/names
[[ $(wc -l </tmp/names) == "$1" ]]
[[ $(sort -u /tmp/names | wc -l) == "$1" ]]
[[ $(find from-host -name 'file-*' -size 0 -printf '%i\n' | sort -u | wc -l) == "$1" ]]
mkdir from-guest
cd from-guest
seq -f 'file-%.0f' "$2" | xargs touch
[[ $(find . -type f | wc -l) == "$2" ]]
