# Runs in the guest: programs append to a file that the host appends to meanwhile, and
# to one that can only be appended to.
set -euo pipefail
exec 5>>log
echo from the guest >&5
touch ready
for ((i = 0; i < 600; i++)); do
    [[ ! -e go ]] || break
    sleep 0.1
done
echo from the guest again >&5
exec 5>&-
echo second >>appended
sync
echo third >>appended
sync
# Where the page cache writes pages it could only append them.
if echo over >appended; then exit 1; fi
if dd if=/dev/zero of=appended bs=4 count=1 conv=notrunc status=none; then exit 1; fi
cat appended
