#!/usr/bin/env bash
# What a run does when its disk fills up: it ends with exit code 1 and a line that names the file and the reason, its last
# checkpoint stays whole, and once there is room again `train --resume` ends with the bytes of a run that never failed.
# Usage: scripts/check_disk_full.sh [VPT]. Needs Linux and the superuser, for a small file system in memory.
set -euo pipefail
cd "$(dirname "$0")/.."
vpt=$(realpath "${1:-target/release/vpt}")

skip() { echo "skipped: $*"; exit 0; }
fail() { echo "FAILED: $*" >&2; exit 1; }
[ "$(uname)" = Linux ] || skip "mounts a tmpfs, which is Linux's"
[ "$(id -u)" = 0 ] || skip "mounting a tmpfs needs the superuser"

work=$(mktemp -d)
disk=$work/disk
mkdir "$disk"
mount -t tmpfs -o size=1m vpt-disk-full "$disk" 2>/dev/null || { rm -r "$work"; skip "no tmpfs can be mounted here"; }
cleanup() {
    [ -z "${run:-}" ] || kill "$run" 2>/dev/null || true
    umount "$disk" && rm -r "$work"
}
trap cleanup EXIT

train=("$vpt" train --backbone tests/fixtures/vit --data shapes --epochs "${EPOCHS:-200}" --threads 2)
"${train[@]}" --out "$work/whole" >/dev/null 2>&1

"${train[@]}" --out "$disk/run" >/dev/null 2>"$work/said" &
run=$!
for _ in $(seq 6000); do
    [ -e "$disk/run/checkpoint.safetensors" ] && break
    kill -0 "$run" 2>/dev/null || fail "the run was over before its disk was full; set EPOCHS higher: $(tail -n 1 "$work/said")"
    sleep 0.01
done
cat /dev/zero >"$disk/ballast" 2>/dev/null || true

# It ended as it should, and what it said last names a file of the run and the reason.
ends_for_want_of_room() {
    [ "$1" = 1 ] || fail "exit code $1 on a full disk: $(tail -n 1 "$work/said")"
    [ "$(grep -c '^error: ' "$work/said")" = 1 ] || fail "not one error: $(cat "$work/said")"
    tail -n 1 "$work/said" | grep -Eq "^error: $disk/run/[a-z_.]+: No space left on device" ||
        fail "says something else: $(tail -n 1 "$work/said")"
    [ -z "$(find "$disk/run" -name '.vpt-*')" ] || fail "half a file is left"
}
code=0
wait "$run" || code=$?
run=
ends_for_want_of_room "$code"
tail -n 1 "$work/said"
[ ! -e "$disk/run/results.json" ] || fail "the run was finished all the same"

# Nothing gets better by trying again, and nothing worse.
sum=$(sha256sum <"$disk/run/checkpoint.safetensors")
code=0
"$vpt" train --resume "$disk/run" >/dev/null 2>"$work/said" || code=$?
ends_for_want_of_room "$code"
[ "$sum" = "$(sha256sum <"$disk/run/checkpoint.safetensors")" ] || fail "the checkpoint has changed"

rm "$disk/ballast"
"$vpt" train --resume "$disk/run" >/dev/null 2>&1 || fail "it cannot be gone on with"
for file in best.safetensors last.safetensors; do
    cmp "$work/whole/$file" "$disk/run/$file" || fail "$file is another one than without the accident"
done

# A model file that does not fit leaves nothing, with its weights in it or beside.
"$vpt" train --data shapes --method linear --epochs 1 --quiet --out "$work/nano" >/dev/null 2>&1
for beside in "" --external-data; do
    code=0
    "$vpt" export --model "$work/nano" --out "$disk/model.onnx" $beside --quiet >/dev/null 2>"$work/said" || code=$?
    [ "$code" = 1 ] || fail "the export ended with exit code $code"
    grep -q "model.onnx.*No space left" "$work/said" || fail "it said: $(cat "$work/said")"
    [ -z "$(find "$disk" -name '.vpt-*' -o -name 'model.onnx*')" ] || fail "half a model is left"
done
echo "ok: a full disk ends a run in order, and it goes on to the same bytes"
