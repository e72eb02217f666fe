# A part of posix.sh: overlayfs whose upper layer is on the share, or on a local
# disk, over a lower layer on the local disk.
# shellcheck shell=bash disable=SC2154

lower=/disk/lower
merged=/merged

# Lower files of every kind, the same for each variant.
make_lower() {
    rm -rf $lower
    mkdir -p $lower/dir/sub $lower/gone $merged
    echo lower >$lower/file
    chown 1000:1001 $lower/file
    chmod 640 $lower/file
    touch -d '2001-02-03 04:05:06.789012345' $lower/file
    setfattr -n user.note -v kept $lower/file
    ln $lower/file $lower/second-name
    ln -s file $lower/link
    mkfifo $lower/fifo
    head -c 3000000 /dev/urandom >$lower/big
    echo inner >$lower/dir/sub/inner
    touch $lower/dir/{1..100} $lower/gone/{1..10}
}

remount_overlay() { # OPTIONS
    ! mountpoint -q $merged || umount $merged
    mount -t overlay -o "lowerdir=$lower,upperdir=$upper,workdir=$work,$1" overlay $merged
}

lower_shines_through() {
    [[ $(<$merged/file) == lower ]] && cmp $lower/big $merged/big &&
        [[ $(ls $merged/dir | wc -l) == 101 && -p $merged/fifo && $(readlink $merged/link) == file ]]
}

copy_up_keeps_everything() {
    touch -a $merged/file
    chmod 644 $merged/second-name
    echo more >>$merged/big
    [[ $(stat -c '%u %g %a %.9Y' $merged/file) == '1000 1001 640 981173106.789012345' ||
        $(stat -c '%u %g %a %.9Y' $merged/file) == '1000 1001 644 981173106.789012345' ]] &&
        [[ $(getfattr --only-values -n user.note $merged/file) == kept ]] &&
        cmp -n 3000000 $lower/big $merged/big && [[ $(tail -c 5 $merged/big) == more ]] &&
        [[ -f $upper/file && $(<$lower/file) == lower ]]
}

links_are_copied_up() {
    chown -h 7:7 $merged/link $merged/fifo
    [[ $(stat -c %u $merged/link $merged/fifo | xargs) == '7 7' && -p $upper/fifo && -L $upper/link ]]
}

whiteouts_hide_what_was_removed() {
    rm $merged/dir/{1..50} && rm -r $merged/gone
    [[ $(ls $merged/dir | wc -l) == 51 && ! -e $merged/gone ]] &&
        [[ $(stat -c '%F %t %T' $upper/gone) == 'character special file 0 0' ]]
}

a_new_folder_is_opaque() {
    mkdir $merged/gone && [[ -z $(ls -A $merged/gone) ]] && touch $merged/gone/new &&
        [[ $(ls $merged/gone) == new ]]
}

files_are_renamed() {
    mv $merged/dir/60 $merged/dir/sub/renamed && mv $merged/dir/61 $merged/dir/62 &&
        [[ -e $merged/dir/sub/renamed && ! -e $merged/dir/60 && ! -e $merged/dir/61 ]]
}

folders_are_renamed() { # by `mv`, which copies where the kernel says EXDEV
    mv $merged/dir $merged/moved && [[ $(<$merged/moved/sub/inner) == inner && ! -e $merged/dir ]] &&
        mkdir $merged/dir && [[ -z $(ls -A $merged/dir) ]]
}

all_of_it_is_there_after_a_remount() { # OPTIONS
    find $merged -printf '%P %y %s %m %U %n\n' | LC_ALL=C sort >/tmp/overlay-before
    # What was cached is forgotten: only the layers know.
    remount_overlay "$1" && echo 3 >/proc/sys/vm/drop_caches
    find $merged -printf '%P %y %s %m %U %n\n' | LC_ALL=C sort | diff /tmp/overlay-before -
}

many_processes_work() {
    seq 200 | xargs -P 4 -I{} sh -c "echo {} >$merged/n{} && mv $merged/n{} $merged/m{} && rm $merged/m{}" &&
        [[ -z $(ls $merged | grep '^[nm][0-9]') ]]
}

run_overlay() { # VARIANT: trusted, user or full
    local options test
    case $1 in
    trusted) options=index=off ;;
    user) options=userxattr ;;
    full) options=index=on,redirect_dir=on,metacopy=on ;;
    esac
    fresh "overlay-$1"
    upper=$base/overlay-$1/upper work=$base/overlay-$1/work
    mkdir "$upper" "$work"
    make_lower
    one overlay "$1::mount" remount_overlay "$options"
    if mountpoint -q $merged; then
        for test in lower_shines_through copy_up_keeps_everything links_are_copied_up \
            whiteouts_hide_what_was_removed a_new_folder_is_opaque files_are_renamed \
            folders_are_renamed many_processes_work; do
            one overlay "$1::$test" $test
        done
        one overlay "$1::all_of_it_is_there_after_a_remount" \
            all_of_it_is_there_after_a_remount "$options"
        umount $merged
    fi
    dmesg | grep overlayfs: >&2 || true
}
