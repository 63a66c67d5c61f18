#!/usr/bin/env bash
# Check the Dockerfile without a container engine: its RUN and COPY lines in clean roots, then its entry point.
#
#   tools/check_image.sh [DIR]      as root, with debootstrap installed; DIR (default: a new one) takes about 1 GB
#
# `EXTRA_ENV="A=b C=d"` is added to the environment of the steps (a certificate bundle, say); `EXTRA_FILES="/x /y"` are
# copied into both roots to the same place.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
top=$PWD
dir=${1:-$(mktemp -d)}
[ "$(id -u)" = 0 ] || { echo "check_image: chroot needs root" >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "check_image: please install debootstrap" >&2; exit 1; }

mounted=()
unmount_all() {
    local place
    for place in "${mounted[@]}"; do umount -l "$place"; done
    mounted=()
}
trap unmount_all EXIT

# One clean root per stage, both from one debootstrap.
make_root() {
    local root=$1 file
    [ -d "$dir/base" ] || debootstrap --variant=minbase bookworm "$dir/base" >"$dir/debootstrap.log"
    rm -rf "$root"
    cp -a "$dir/base" "$root"
    cp /etc/resolv.conf "$root/etc/"
    for file in ${EXTRA_FILES:-}; do install -D "$file" "$root$file"; done
    mount -t proc proc "$root/proc" && mounted+=("$root/proc")
    mount --bind /dev "$root/dev" && mounted+=("$root/dev")
}

# The build context is what .dockerignore lets in.
copy_context() {
    local target=$1
    mkdir -p "$target"
    tar -C "$top" --exclude='*.c' --exclude='*.so' --exclude=__pycache__ -c LICENSE pyproject.toml setup.py protocols proxy |
        tar -C "$target" -x --no-same-owner
    [ ! -e "$top/README.md" ] || cp "$top/README.md" "$target/"
}

inside() {
    local root=$1
    shift
    # shellcheck disable=SC2086  # EXTRA_ENV is a list of words
    chroot "$root" /usr/bin/env -i PATH=/opt/turnout/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin HOME=/tmp ${EXTRA_ENV:-} "$@"
}

stage=
while IFS= read -r line; do
    case $line in
    FROM*" AS build") stage=$dir/build && make_root "$stage" ;;
    FROM*) stage=$dir/run && make_root "$stage" ;;
    RUN*)
        echo "check_image: ${line#RUN }"
        if ! inside "$stage" sh -ec "${line#RUN }" >"$dir/step.log" 2>&1; then
            tail -n 20 "$dir/step.log" >&2
            exit 1
        fi
        ;;
    "COPY . "*) copy_context "$stage${line#COPY . }" ;;
    "COPY --from=build "*)
        read -r _ _ from to <<<"$line"
        mkdir -p "$stage$to"
        cp -a "$dir/build$from/." "$stage$to/"
        ;;
    esac
done < <(sed -e ':join' -e '/\\$/{N;s/\\\n *//;bjoin' -e '}' Dockerfile)

echo "check_image: the entry point, as the image's user"
chroot --userspec=65532:65532 "$stage" /usr/bin/env -i PATH=/opt/turnout/bin:/usr/bin:/bin HOME=/var/lib/turnout turnout --help >"$dir/help.txt"
head -n 5 "$dir/help.txt"
chroot --userspec=65532:65532 "$stage" /usr/bin/env -i PATH=/opt/turnout/bin:/usr/bin:/bin \
    python -c 'import proxy.dataplane.relay as relay, protocols.wire as wire; print("compiled:", relay.__file__, wire.__file__)'
echo "check_image: ok, $(du -sh "$stage" --exclude="$stage/proc" --exclude="$stage/dev" | cut -f1) for the image"
