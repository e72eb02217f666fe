# Runs in the guest: each way in which a program asks for its data to be on the
# disk, once.
set -euo pipefail
echo text >file
sync file
sync --data file
mkdir dir
sync dir
sync --file-system file
echo text | dd of=synchronous oflag=sync status=none
sync
