#!/usr/bin/perl
# Works in the share until a file named `stop` is there, and checks all the while
# that everything is as it must be: what is open stays open at its position, a
# directory goes on where it was, a file that was written reads the same. The
# number of the last round is in `progress`.
#
# usage: migrate.pl [nameless]
#
# With `nameless` it also holds a file that was removed and one whose name is not
# UTF-8.
use strict;
use warnings;
use Fcntl qw(:DEFAULT :seek);

my $nameless = @ARGV && $ARGV[0] eq 'nameless';

sub put {
    my ($name, $content) = @_;
    open(my $file, '>', $name) or die "$name: $!";
    print $file $content or die "$name: $!";
    close($file) or die "$name: $!";
}

sub get {
    my ($name) = @_;
    open(my $file, '<', $name) or die "$name: $!";
    local $/;
    my $content = <$file>;
    return $content;
}

sub expect {
    my ($what, $found, $expected) = @_;
    die "$what: '$found' instead of '$expected'\n" unless $found eq $expected;
}

# Reads at most this many bytes from where the file is.
sub take {
    my ($file, $bytes) = @_;
    my $got = sysread($file, my $data, $bytes);
    die "read: $!" unless defined $got;
    return $data;
}

mkdir 'a' or die $!;
mkdir 'a/b' or die $!;
mkdir 'many' or die $!;
put("many/file-with-a-rather-long-name-$_", '') for 1 .. 3000;

my $pattern = join('', map { sprintf("%07d\n", $_) } 0 .. 99_999);
put('a/b/held', $pattern);
sysopen(my $held, 'a/b/held', O_RDWR) or die $!;
my $position = 8 * 100;
sysseek($held, $position, SEEK_SET) or die $!;

sysopen(my $log, 'log', O_RDWR | O_CREAT | O_APPEND) or die $!;
my $lines = '';

my ($gone, $strange);
if ($nameless) {
    sysopen($gone, 'gone', O_RDWR | O_CREAT) or die $!;
    syswrite($gone, 'still here') == 10 or die $!;
    unlink('gone') or die $!;
    sysopen($strange, "\xff\xfe", O_RDWR | O_CREAT) or die $!;
    syswrite($strange, 'strange') == 7 or die $!;
}

opendir(my $many, 'many') or die $!;
my @names = map { scalar readdir($many) } 1 .. 50;

my $round = 0;
until (-e 'stop') {
    $round++;
    # An open file keeps its position, and its data whatever is cached.
    expect('position', take($held, 8), sprintf("%07d\n", $position / 8));
    $position += 8;
    if ($position == length($pattern)) {
        sysseek($held, 0, SEEK_SET);
        $position = 0;
    }
    syswrite($log, "$round\n") or die $!;
    $lines .= "$round\n";
    # Files come, change their names and go; so do directories.
    my $content = "content of round $round\n" x ($round % 50 + 1);
    put("new-$round", $content);
    rename("new-$round", "a/moved-$round") or die $!;
    expect('moved', get("a/moved-$round"), $content);
    mkdir("dir-$round") or die $!;
    rename("a/moved-$round", "dir-$round/file") or die $!;
    rename("dir-$round", "a/b/dir-$round") or die $!;
    expect('in a moved directory', get("a/b/dir-$round/file"), $content);
    if ($round > 20) {
        my $old = $round - 20;
        unlink("a/b/dir-$old/file") or die $!;
        rmdir("a/b/dir-$old") or die $!;
    }
    put('progress.new', "$round\n");
    rename('progress.new', 'progress') or die $!;
    # The next look is at the daemon's, not at what the guest has cached.
    put('/proc/sys/vm/drop_caches', "3\n") if $round % 10 == 0;
}

put('/proc/sys/vm/drop_caches', "3\n");
expect('log', get('log'), $lines);
push @names, $_ while defined($_ = readdir($many));
my %once = map { $_ => 1 } @names;
expect('names', scalar(@names), 3002);
expect('different names', scalar(keys %once), 3002);
expect('held', get('a/b/held'), $pattern);
for my $old ($round - 19 .. $round) {
    my $content = "content of round $old\n" x ($old % 50 + 1);
    expect("round $old", get("a/b/dir-$old/file"), $content);
}
if ($nameless) {
    sysseek($gone, 0, SEEK_SET);
    expect('removed', take($gone, 100), 'still here');
    syswrite($gone, '!') or die $!;
    expect('size', -s $gone, 11);
    sysseek($strange, 0, SEEK_SET);
    expect('strange', take($strange, 100), 'strange');
}
print "$round rounds\n";
