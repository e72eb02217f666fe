# Says what programs see of a directory: run in the guest on the share, and on the host
# on a directory of its own, it must print the same. "-" stands for an error.
#
# usage: differential.sh local|guest CHANGES
#
# Where CHANGES is yes, the host changes things in between: in the guest it is asked to by
# a file, here it is done at once. What it has changed is looked at when the guest has
# forgotten what it knew (--cache=auto: a second).
set -uo pipefail
where=$1 changes=$2
number=0

host() {
    [[ $changes == yes ]] || return 0
    if [[ $where == local ]]; then
        bash -c "$1"
        return
    fi
    number=$((number + 1))
    echo "$1" >".ask.$number.new"
    mv ".ask.$number.new" ".ask.$number"
    for ((i = 0; i < 3000; i++)); do
        [[ ! -e .done.$number ]] || break
        sleep 0.02
    done
    rm ".done.$number"
    sleep 1.2
}

# Runs a command; prints what it prints, or that it failed.
try() {
    local output
    if output=$("$@" 2>/dev/null); then
        printf '%s: %s\n' "$*" "$output"
    else
        printf '%s: -\n' "$*"
    fi
}

shape() {
    try stat -c '%F %a %s %h %u %g' "$1"
}

echo '# writing'
exec 5>>log
echo one >&5
host 'echo host >>log.other'
echo two >&5
exec 5>&-
try cat log
printf '%s' 0123456789 >file
printf 'AB' | dd of=file bs=1 seek=3 conv=notrunc status=none
try cat file
shape file
truncate -s 5000 file
shape file
try md5sum file
truncate -s 4 file
try cat file
printf x >>file
try cat file
fallocate -l 10000 file
shape file
fallocate -p -o 0 -l 4096 file
try md5sum file
dd if=/dev/zero of=sparse bs=1 count=1 seek=1M status=none
shape sparse
try md5sum sparse
cp sparse copied
cp --reflink=auto log log2
try cmp sparse copied
: >file
shape file

echo '# opened and gone'
exec 6<>gone
echo text >&6
rm gone
echo more >&6
shape gone
try cat /proc/self/fd/6
exec 7<log
mv log log.moved
try cat /proc/self/fd/7
exec 6>&- 7<&-
mv log.moved log

echo '# directories'
mkdir -p dir/sub dir/other
shape dir/sub
try rmdir dir
try mkdir dir
mv dir/sub dir/moved
try mv dir dir/other
touch dir/{c,a,b}
try ls dir
rm dir/b
try ls -A dir
ln dir/a hard
shape hard
rm dir/a
shape hard
ln -s dir/c soft
try readlink soft
ln -s nowhere dangling
try cat dangling
try ln dir dir2
mkfifo fifo
shape fifo
for ((i = 0; i < 300; i++)); do : >"dir/other/$i"; done
try bash -c 'ls dir/other | wc -l'
rm -r dir/other
try ls dir

echo '# rights'
umask 027
: >masked
shape masked
mkdir masked.dir
shape masked.dir
umask 022
chmod 4755 file
shape file
chown 1000:1000 file
shape file
chmod 6755 file
setpriv --reuid=1000 --regid=1000 --clear-groups sh -c 'echo x >>file'
shape file
chmod 600 hard
try setpriv --reuid=1000 --regid=1000 --clear-groups cat hard
chmod 1777 dir
setpriv --reuid=1000 --regid=1000 --clear-groups touch dir/users
try setpriv --reuid=1001 --regid=1001 --clear-groups rm -f dir/users
shape dir/users
mkdir -m 2775 setgid
chgrp 1000 setgid
chmod g+s setgid
mkdir setgid/below
shape setgid/below
touch -d '2001-02-03 04:05:06.789' file
try stat -c %y file
try touch -d '1969-12-31 23:59:59' file
try stat -c %Y file

echo '# locks'
exec 8<>file
try flock -n 8
try flock -n file true
exec 8>&-

echo '# replaced'
for ((i = 0; i < 50; i++)); do
    echo "$i" >new
    mv new current
    [[ $(cat current) == "$i" ]] || echo "read another than $i"
done
try cat current

if [[ $changes == yes ]]; then
    echo '# changed by the host'
    host 'echo changed >seen; chmod 640 seen'
    try cat seen
    shape seen
    host 'echo longer than before >seen.new; mv seen.new seen'
    try cat seen
    host 'mkdir -p made; echo x >made/x; rm -f hard'
    try ls made
    shape hard
    host 'mv made renamed'
    try ls renamed
    shape made
    host 'rm -r renamed'
    try ls renamed
    host 'rm dir/c; mkdir dir/c; touch dir/c/file'
    try ls dir/c
    host 'chmod 700 dir; chown 1000:1000 dir'
    shape dir
fi

echo '# the end'
find . -mindepth 1 -not -name '.*' -not -name 'log.*' -printf '%y %m %p\n' | sort
sync
