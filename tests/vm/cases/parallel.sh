# Runs in the guest: several writers at once, each with a file of its own, with
# a region of a file they share, with lines appended to a file they share and
# with names in a directory they share. Then checks all of it.
#
# usage: parallel.sh CPUS QUEUES
set -euo pipefail

[[ $(nproc) == "$1" ]]
# One interrupt for each request queue.
queues=$(grep -c 'virtio[0-9]*-requests\.' /proc/interrupts)
[[ $queues == "$2" ]] || {
    echo "$queues request queues instead of $2" >&2
    exit 1
}

writers=8 rounds=10
mkdir names
truncate -s $((writers * rounds * 4096)) regions
: >lines

write() { # WRITER
    local round
    head -c 4096 /dev/zero | tr '\0' "$1" >"/tmp/block-$1"
    for ((round = 0; round < rounds; round++)); do
        cat "/tmp/block-$1" >>"own-$1"
        dd if="/tmp/block-$1" of=regions bs=4096 count=1 seek=$((round * writers + $1)) \
            conv=notrunc status=none
        echo "writer $1 round $round" >>lines
        echo "$1" >"names/$1-$round.new"
        mv "names/$1-$round.new" "names/$1-$round"
    done
}

pids=()
for ((writer = 0; writer < writers; writer++)); do
    write "$writer" &
    pids+=($!)
done
for pid in "${pids[@]}"; do
    wait "$pid"
done

# As the host will see it, not as the guest's cache has it.
sync
echo 3 >/proc/sys/vm/drop_caches

for ((writer = 0; writer < writers; writer++)); do
    [[ $(stat -c %s "own-$writer") == $((rounds * 4096)) ]]
    [[ $(tr -d "$writer" <"own-$writer" | wc -c) == 0 ]]
    [[ $(grep -c "^writer $writer round" lines) == "$rounds" ]]
done
[[ $(sort -u lines | wc -l) == $((writers * rounds)) ]]
[[ $(wc -l <lines) == $((writers * rounds)) ]]
[[ $(find names -type f | wc -l) == $((writers * rounds)) ]]
for ((round = 0; round < rounds; round++)); do
    expected+=(/tmp/block-{0..7})
done
cat "${expected[@]}" | cmp - regions
