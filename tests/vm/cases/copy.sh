# Runs in the guest: copies the tree in/ out of the share and back in as out/.
# Prints the checksums of what it read.
set -euo pipefail
cp -a in /tmp/copy
(cd /tmp/copy && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum)
cp -a /tmp/copy out
