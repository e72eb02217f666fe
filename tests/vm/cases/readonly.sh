# Runs in the guest: lists a folder of a share that is only read, twice, looks at
# its flags, and tries to write. Prints the names.
set -euo pipefail
ls -f folder >/run/once
ls -f folder >/run/twice
cmp /run/once /run/twice
# FS_IOC_GETFLAGS, as lsattr(1) asks for them.
perl -e 'sysopen my $folder, "folder", 0 or die $!;
    ioctl $folder, 0x80086601, my $flags = "\0" x 8 or die "flags: $!"'
sync folder
if { : >>folder/file-1; } 2>/run/refused; then
    echo "a file was opened for writing" >&2
    exit 1
fi
grep -q 'Read-only file system' /run/refused
sort /run/once
