# Runs in the guest: one of everything that programs do with files, checked
# here; what the host checks too is left in kept/.
#
# usage: basic.sh mmap|no-mmap xattr|no-xattr
set -euo pipefail

is() { # WHAT ACTUAL EXPECTED
    [[ $2 == "$3" ]] || {
        echo "$1: got '$2', expected '$3'" >&2
        exit 1
    }
}

fails() { # WHAT COMMAND...
    local what=$1
    shift
    ! "$@" 2>/dev/null || {
        echo "$what: should have failed: $*" >&2
        exit 1
    }
}

# What the host put there.
is 'host file' "$(<from-host)" 'hello guest'
is 'host link' "$(readlink host-link)" from-host
is 'host mode' "$(stat -c %a from-host)" 640
fails 'missing file' cat no-such-file

mkdir kept
cd kept

# Contents.
echo one >file
echo two >>file
is 'append' "$(<file)" $'one\ntwo'
head -c 3000000 /dev/urandom >/tmp/random
cp /tmp/random big
cmp /tmp/random big
dd if=/tmp/random of=big bs=1000 seek=1 skip=7 count=3 conv=notrunc status=none
dd if=/tmp/random of=/tmp/random bs=1000 seek=1 skip=7 count=3 conv=notrunc status=none
cmp /tmp/random big
sha256sum <big >big.sha256
truncate -s 5 file
is 'truncate' "$(<file)" $'one\nt'
truncate -s 1M file
is 'grown size' "$(stat -c %s file)" 1048576
is 'grown content' "$(tr -d '\0' <file)" $'one\nt'
fallocate -l 200000 allocated
is 'allocated size' "$(stat -c %s allocated)" 200000
(($(stat -c %b allocated) * 512 >= 200000)) || { echo 'fallocate: no blocks' >&2; exit 1; }
: >file
is 'open with O_TRUNC' "$(stat -c %s file)" 0
sync file

# Names.
echo a >a
echo b >b
mv a b
is 'rename over a file' "$(<b)" a
fails 'renamed away' test -e a
mkdir -p dir/sub
mv b dir/sub/c
is 'rename into a directory' "$(<dir/sub/c)" a
mv dir moved
is 'rename of a directory' "$(<moved/sub/c)" a
fails 'rename over a full directory' mv -T moved/sub moved
ln -s moved/sub/c symlink
is 'through a symlink' "$(<symlink)" a
ln -s no-such-file dangling
fails 'dangling symlink' cat dangling
ln moved/sub/c hard
is 'links' "$(stat -c %h hard)" 2
is 'the same inode' "$(stat -c %i hard)" "$(stat -c %i moved/sub/c)"
echo more >>moved/sub/c
is 'through the other name' "$(<hard)" $'a\nmore'
mkdir empty
rmdir empty
fails 'removed directory' test -e empty
fails 'rmdir of a full directory' rmdir moved
fails 'mkdir twice' mkdir moved
long=$(printf '%0255d' 7)
echo long >"$long"
is 'a name of 255 bytes' "$(<"$long")" long
fails 'a name of 256 bytes' touch "${long}x"
mkfifo fifo
mknod device c 1 3
is 'device' "$(stat -c %t:%T device)" 1:3
is 'directory' "$(printf '%s\n' * | LC_ALL=C sort | tr '\n' ' ')" \
    "$long allocated big big.sha256 dangling device fifo file hard moved symlink "

# A file lives as long as it is open.
echo 'still here' >doomed
exec {fd}<doomed
rm doomed
fails 'removed file' test -e doomed
is 'removed but open' "$(<&"$fd" cat)" 'still here'
exec {fd}<&-

# Attributes.
chmod 4751 file
is 'chmod' "$(stat -c %a file)" 4751
chown 1234:5678 file
is 'chown' "$(stat -c %u:%g:%a file)" 1234:5678:751
touch -d '2001-02-03 04:05:06.789012345 UTC' file
is 'utimens' "$(TZ=UTC stat -c %y file)" '2001-02-03 04:05:06.789012345 +0000'
mkdir -m 2775 shared
chown 0:4321 shared
(umask 027 && touch shared/file && mkdir shared/dir)
is 'group of a set-gid directory' "$(stat -c %g:%a shared/file)" 4321:640
is 'set-gid passes on' "$(stat -c %g:%a shared/dir)" 4321:2750
mkdir -m 1777 sticky
touch sticky/of-root
as_user=(setpriv --reuid 1000 --regid 1001 --clear-groups)
"${as_user[@]}" touch sticky/of-user
is 'owner of a new file' "$(stat -c %u:%g sticky/of-user)" 1000:1001
fails 'sticky directory' "${as_user[@]}" rm -f sticky/of-root
fails 'no permission' "${as_user[@]}" cp /etc/passwd moved/passwd
[[ $(stat -f -c %T .) == fuseblk || $(stat -f -c %T .) == fuse ]]
(($(stat -f -c %b .) > 0)) || { echo 'statfs: no blocks' >&2; exit 1; }

# Locks are the guest's own.
exec {fd}>locked
flock -x "$fd"
fails 'lock held by another' flock -n locked true
exec {fd}>&-
flock -n locked true

if [[ $1 == mmap ]]; then
    fio --name=mmap --filename=mapped --size=1m --bs=4k --rw=randwrite --ioengine=mmap \
        --verify=crc32c --verify_fatal=1 --minimal >/dev/null
fi

if [[ $2 == xattr ]]; then
    setfattr -n user.color -v blue file
    is 'getxattr' "$(getfattr --only-values -n user.color file)" blue
    setfattr -n user.shape -v round file
    is 'listxattr' "$(getfattr --absolute-names file | grep ^user | sort | tr '\n' ' ')" 'user.color user.shape '
    setfattr -x user.color file
    fails 'removexattr' getfattr -n user.color file
else
    fails 'xattr switched off' setfattr -n user.color -v blue file
fi
