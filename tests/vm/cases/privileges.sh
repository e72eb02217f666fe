# Runs in the guest: set-id bits, capabilities, access control lists and extended
# attributes. What is expected is what ext4 does, on which this script succeeds, too.
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

# A user without privileges, in one more group.
user() { # COMMAND...
    setpriv --reuid 1000 --regid 1000 --groups 2000 --inh-caps -all "$@"
}

chmod 777 .

# Set-id bits and capabilities.

capability=0x0100000200100000000000000000000000000000

privileges() { # FILE
    local mode
    # With --killpriv-v2 the guest's kernel learns of it when it looks at something
    # else of a file that was cut.
    mode=$(stat -c '%a %b' "$1")
    mode=${mode% *}
    if getfattr -n security.capability "$1" >/dev/null 2>&1; then
        echo "$mode and capabilities"
    else
        echo "$mode"
    fi
}

fresh() { # [OWNER MODE]
    rm -f f
    echo 'some text' >f
    chown "${1:-1000}:${1:-1000}" f
    setfattr -n security.capability -v $capability f
    chmod "${2:-6777}" f
    is 'before' "$(privileges f)" "${2:-6777} and capabilities"
}

echo 'other text' >other

declare -A changes=(
    [write]='echo x 1<>f'
    [append]='echo x >>f'
    [direct write]='dd if=/dev/zero of=f bs=4096 count=1 conv=notrunc oflag=direct status=none'
    [truncate]='truncate -s 2 f'
    [cut]=': >f'
    [fallocate]='fallocate -l 20000 f'
    [punch]='fallocate -p -o 0 -l 4096 f'
    [copy_file_range]='perl -e "
        open(I, q(<), q(other)) && open(O, q(+<), q(f)) or die;
        syscall(326, fileno I, 0, fileno O, 0, 4, 0) == 4 or die"'
)
for what in "${!changes[@]}"; do
    fresh
    user bash -c "${changes[$what]}" 2>/tmp/why || {
        # Not every file system takes direct writes.
        [[ $what == 'direct write' ]] && grep -q 'Invalid argument' /tmp/why && continue
        cat /tmp/why >&2
        exit 1
    }
    is "$what by a user" "$(privileges f)" 777
    fresh 0 6755
    bash -c "${changes[$what]}"
    is "$what by root" "$(privileges f)" 6755
done
fresh
user chgrp 2000 f
is 'chgrp by a user' "$(privileges f)" 777
fresh
chown 1001 f
is 'chown by root' "$(privileges f)" 777
fresh
user touch f
is 'times alone' "$(privileges f)" '6777 and capabilities'
# Bits that are no privilege: nobody of the group may execute it.
fresh
chmod 2767 f
user bash -c 'echo x >>f'
is 'mandatory lock bit' "$(privileges f)" 2767

# Extended attributes.

mkdir folder
for file in f folder; do
    setfattr -n user.text -v value "$file"
    setfattr -n user.binary -v 0x00ff00 "$file"
    is "value of $file" "$(getfattr --only-values -n user.text "$file")" value
    is "bytes of $file" "$(getfattr -e hex -n user.binary "$file" | grep =)" user.binary=0x00ff00
    is "names of $file" "$(getfattr "$file" | grep ^user | sort | tr '\n' ' ')" 'user.binary user.text '
    setfattr -x user.text "$file"
    fails "removed from $file" getfattr -n user.text "$file"
done
long=$(printf '%02000d' 7)
setfattr -n user.long -v "$long" f
is 'a long value' "$(getfattr --only-values -n user.long f)" "$long"

# Access control lists.

acl() { # FILE
    getfacl -cpnE "$1" | grep -v '^$' | tr '\n' ' '
}

echo secret >listed
chmod 600 listed
setfacl -m u:3000:r,g:4000:rw listed
is 'a list' "$(acl listed)" 'user::rw- user:3000:r-- group::--- group:4000:rw- mask::rw- other::--- '
is 'its mode' "$(stat -c %a listed)" 660
chmod 640 listed
is 'the mask follows' "$(acl listed | grep -o 'mask::...')" mask::r--
setfacl -m m::rwx listed
is 'the mode follows' "$(stat -c %a listed)" 670
chmod 660 listed
as() { # UID GROUPS COMMAND...
    setpriv --reuid "$1" --regid "$1" --groups "$2" --inh-caps -all "${@:3}"
}
is 'a user that is named' "$(as 3000 3000 cat listed)" secret
fails 'beyond what is named' as 3000 3000 bash -c 'echo x >>listed'
as 1000 4000 bash -c 'echo more >>listed'
fails 'nobody' as 1000 1000 cat listed
setfacl -b listed
is 'no list' "$(acl listed)" 'user::rw- group::--- other::--- '
fails 'a list that is gone' as 3000 3000 cat listed

mkdir lists plain
chmod 700 lists
setfacl -m u:3000:x,g:4000:rwx lists
setfacl -d -m u:3000:rwx,g::rx,o::- lists
as 1000 4000 bash -c 'umask 077; echo x >lists/file; mkdir lists/dir; mkfifo lists/fifo'
is 'an inherited list' "$(acl lists/file)" 'user::rw- user:3000:rwx group::r-x mask::rw- other::--- '
is 'its owner' "$(stat -c %u:%g lists/file)" 1000:1000
is 'a fifo' "$(acl lists/fifo)" "$(acl lists/file)"
is 'a folder' "$(acl lists/dir)" 'user::rwx user:3000:rwx group::r-x mask::rwx other::--- default:user::rwx default:user:3000:rwx default:group::r-x default:mask::rwx default:other::--- '
as 3000 3000 touch lists/dir/by-user
is 'made where a list allows' "$(stat -c %u:%g:%a lists/dir/by-user)" 3000:3000:660
(umask 077; echo x >plain/file; mkdir plain/dir; mkfifo plain/fifo)
is 'the umask' "$(stat -c %a plain/{file,dir,fifo} | tr '\n' ' ')" '600 700 600 '
(umask 002; mkdir plain/open)
is 'another umask' "$(stat -c %a plain/open)" 775

touch lent
chown 1000:5000 lent
chmod 2755 lent
as 1000 1000 setfacl -m u:3000:rx lent
is 'a list of who is not in the group' "$(stat -c %a lent)" 755
chmod 2755 lent
setfacl -m u:3000:r lent
is 'a list of root' "$(stat -c %a lent)" 2755
fails 'a list of who does not own it' as 3000 3000 setfacl -m u:3000:rwx lent
