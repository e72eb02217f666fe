# What a local file system does: locks that the host's processes meet, files
# without a name, birth times, flags of inodes, and with the argument "idmap" a
# mount with other ids. The test beside it, on the host, holds `record` and `whole`
# locked, lets go of `wait` once somebody waits for it, and meets `mine` locked.
# Prints "done" at the end.
exec perl - "$@" <<'PERL'
use strict;
use warnings;
use Errno;
use Fcntl qw(:DEFAULT :flock :seek);

sub check { my ($what, $good) = @_; die "$what: $!\n" unless $good }
sub fails { my ($what, $name, $result) = @_; check("$what does not fail with $name", !$result && $!{$name}) }

sub opened { my ($name, $flags) = @_; sysopen(my $file, $name, $flags // O_RDWR | O_CREAT, 0644) or die "$name: $!\n"; $file }

# struct flock of 64-bit machines
sub record_lock { my ($file, $command, $kind, $start, $len) = @_;
    my $lock = pack 's s x4 q q i x4', $kind, SEEK_SET, $start // 0, $len // 0, 0;
    fcntl($file, $command, $lock) or return;
    return (unpack 's s x4 q q i x4', $lock)[0] + 1;
}

# Runs a process; gives how to wait for it to end well.
sub process { my ($what, $run) = @_;
    my $pid = fork // die "fork: $!\n";
    unless ($pid) { eval { $run->(); 1 } or print(STDERR $@), exit 1; exit 0 }
    return sub { waitpid $pid, 0; die "$what: status $?\n" if $? };
}

sub wait_for_file { my ($name) = @_;
    for (1 .. 600) { return if -e $name; select undef, undef, undef, 0.05 }
    die "$name did not come\n";
}

# ---- locks of the host's processes
my $record = opened('record');
fails('a record lock', 'EAGAIN', record_lock($record, F_SETLK, F_RDLCK));
check('what is in the way', record_lock($record, F_GETLK, F_RDLCK) == F_WRLCK + 1);
my $whole = opened('whole');
fails('flock', 'EWOULDBLOCK', flock $whole, LOCK_SH | LOCK_NB);
my $wait = opened('wait');
my $waiter = process('waiting for the host', sub {
    check('a lock of the host that ends', record_lock($wait, F_SETLKW, F_WRLCK));
});
check('beside it', -e 'record');
$waiter->();
my $mine = opened('mine');
check('a lock of ours', record_lock($mine, F_SETLK, F_WRLCK, 10, 10));
check('flock of ours', flock $mine, LOCK_EX);
close opened('mine-is-locked');
wait_for_file('mine-was-met');

# ---- locks among processes of the guest
my $file = opened('file');
check('a lock', record_lock($file, F_SETLK, F_WRLCK, 0, 10));
process('another process', sub {
    fails('its lock', 'EAGAIN', record_lock($file, F_SETLK, F_WRLCK, 5, 10));
    check('its lock beside ours', record_lock($file, F_SETLK, F_WRLCK, 10, 10));
})->();
check('a lock that ended with its process', record_lock($file, F_SETLK, F_WRLCK, 0, 0));
close opened('file');
process('after a copy was closed', sub {
    check('all locks have ended', record_lock($file, F_SETLK, F_WRLCK, 0, 0));
})->();
pipe my $theirs, my $locked or die;
check('the first lock', record_lock($file, F_SETLK, F_WRLCK, 0, 1));
my $other = process('the other side of a circle', sub {
    check('the second lock', record_lock($file, F_SETLK, F_WRLCK, 1, 1));
    syswrite $locked, 'x';
    record_lock($file, F_SETLKW, F_WRLCK, 0, 1) or $!{EDEADLK} or die "SETLKW: $!\n";
    record_lock($file, F_SETLK, F_UNLCK);
});
sysread $theirs, my $byte, 1;
record_lock($file, F_SETLKW, F_WRLCK, 1, 1) or $!{EDEADLK} or die "SETLKW: $!\n";
record_lock($file, F_SETLK, F_UNLCK);
$other->();

# ---- files without a name
use constant { O_TMPFILE => 020200000, AT_FDCWD => -100, AT_SYMLINK_FOLLOW => 0x400 };
my $unnamed = opened('.', O_TMPFILE | O_RDWR);
syswrite $unnamed, "text\n";
check('no name', (stat $unnamed)[3] == 0);
my ($from, $to) = ('/proc/self/fd/' . fileno $unnamed, 'named');
check('a name', syscall(265, AT_FDCWD, $from, AT_FDCWD, $to, AT_SYMLINK_FOLLOW) == 0);
check('its content', `cat named` eq "text\n");

# ---- birth times
chomp(my $born = `stat -c %W named`);
chomp(my $knows = `uname -r`);
my ($major, $minor) = $knows =~ /^(\d+)\.(\d+)/;
# Linux asks for it since 6.6.
check("born at $born", $born > 0) if $major > 6 || $minor >= 6;

# ---- flags of inodes: FS_IOC_GETFLAGS, FS_IOC_SETFLAGS; FS_IMMUTABLE_FL
sub flags { my ($file) = @_; my $flags = pack 'L x4', 0; ioctl $file, 0x80086601, $flags or die "GETFLAGS: $!\n"; unpack 'L', $flags }
sub set_flags { my ($file, $flags) = @_; my $argument = pack 'L x4', $flags; ioctl $file, 0x40086602, $argument }
my $fixed = opened('named', O_RDONLY);
my $plain = flags($fixed);
check('immutable', set_flags($fixed, $plain | 0x10));
check('is immutable', flags($fixed) & 0x10);
fails('writing to it', 'EPERM', sysopen my $refused, 'named', O_WRONLY);
fails('removing it', 'EPERM', unlink 'named');
check('mutable', set_flags($fixed, $plain));
fails('an unknown command', 'ENOTTY', ioctl $fixed, 0x1234, my $nothing = '');

# ---- a mount with other ids
if (($ARGV[0] // '') eq 'idmap') {
    mkdir '/tmp/idmapped';
    mkdir 'owned';
    # A user namespace of a child's: 0 there is 100000 here.
    pipe my $ready, my $made or die;
    pipe my $end, my $ended or die;
    my $holder = fork // die;
    unless ($holder) {
        close $ended;
        syscall(272, 0x10000000) == 0 or die "unshare: $!\n";
        syswrite $made, 'x';
        sysread $end, my $byte, 1;
        exit 0;
    }
    close $made;
    sysread $ready, $byte, 1 or die "no user namespace\n";
    for my $map ('uid_map', 'gid_map') {
        my $written = opened("/proc/$holder/$map", O_WRONLY);
        syswrite $written, '0 100000 1000' or die "$map: $!\n";
    }
    my $namespace = opened("/proc/$holder/ns/user", O_RDONLY);
    my ($owned, $empty, $target) = ('owned', '', '/tmp/idmapped');
    my $tree = syscall 428, AT_FDCWD, $owned, 1;
    check('open_tree', $tree >= 0);
    my $attributes = pack 'Q Q Q Q', 0x100000, 0, 0, fileno $namespace;
    check('mount_setattr', syscall(442, $tree, $empty, 0x1000, $attributes, 32) == 0);
    check('move_mount', syscall(429, $tree, $empty, AT_FDCWD, $target, 4) == 0);
    check('its owner', (stat $target)[4] == 100000);
    process('a user of the mount', sub {
        $) = '100007 100007';
        $> = 100000;
        my $written = opened("$target/theirs");
        syswrite $written, "text\n";
        check('whose it is', (stat $written)[4] == 100000);
        mkdir "$target/folder" or die "mkdir: $!\n";
        rename "$target/folder", "$target/moved" or die "rename: $!\n";
        chmod 0600, "$target/theirs" or die "chmod: $!\n";
    })->();
    check('whose it is without the mount', (stat 'owned/theirs')[4] == 0 && (stat _)[5] == 7);
    check('chown', chown 100003, 100004, "$target/theirs");
    check('whose it is then', (stat 'owned/theirs')[4] == 3 && (stat _)[5] == 4);
    fails('what has no id there', 'EOVERFLOW', mkdir "$target/mine");
    close $ended;
    waitpid $holder, 0;
    system 'umount', $target;
}
print "done\n";
PERL
