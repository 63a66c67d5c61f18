#!/usr/bin/env bash
# Build the newest PgBouncer that Debian's sources have into a folder, for `make bench`; nothing is installed.
#
#   tools/build_pgbouncer.sh FOLDER [SUITE...]     FOLDER/pgbouncer; suites are tried in turn (default: sid, trixie)
#
# The sources come from the mirror this machine's apt uses already, checked with Debian's keys, in a package list of our
# own: the system's lists and its sources.list are not touched. Built with Debian's own compiler flags against the
# libraries of this machine, so that both proxies run on the same OpenSSL.
# Ends with code 1 and a line that says why where it cannot be had.
set -euo pipefail

fail() {
    printf 'build_pgbouncer: %s\n' "$*" >&2
    exit 1
}

folder=$(realpath -m "${1:?usage: tools/build_pgbouncer.sh FOLDER [SUITE...]}")
shift
if [ $# -eq 0 ]; then set -- sid trixie; fi

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
for tool in apt-get dpkg-source dpkg-buildflags pkg-config cc make; do
    command -v "$tool" >/dev/null || fail "$tool is missing"
done
[ -e $keyring ] || fail "Debian's keys are missing ($keyring)"
pkg-config --exists libevent openssl || fail "headers are missing: libevent-dev, libssl-dev"
# shellcheck disable=SC2016  # apt-get expands these
mirror=$(apt-get indextargets --format '$(REPO_URI) $(CODENAME)' 'Created-By: Packages' |
    awk '$2 !~ /security|updates|backports/ { print $1; exit }')
[ -n "$mirror" ] || fail "apt has no mirror"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# In a subshell of its own for every suite: what one has not, the next may have.
fetch() {
    local suite=$1 here=$work/$1
    mkdir -p "$here/lists/partial" "$here/cache/archives/partial"
    : >"$here/status"
    echo "deb-src [signed-by=$keyring] $mirror $suite main" >"$here/sources.list"
    local options=(
        -q -oDir::Etc::SourceList="$here/sources.list" -oDir::Etc::SourceParts=/dev/null
        -oDir::State::Lists="$here/lists" -oDir::State::status="$here/status" -oDir::Cache="$here/cache"
        -oDebug::NoLocking=1 -oAPT::Sandbox::User="$(id -un)" -oAcquire::Retries=2 -oAcquire::http::Timeout=20
    )
    apt-get "${options[@]}" update && (cd "$here" && apt-get "${options[@]}" source pgbouncer)
}

for suite; do
    log=$work/$suite.log
    if ! fetch "$suite" >"$log" 2>&1; then
        tail -n 3 "$log" >&2
        continue
    fi
    source=$(find "$work/$suite" -maxdepth 1 -type d -name 'pgbouncer-*')
    if (
        cd "$source"
        flags=$(dpkg-buildflags --export=cmdline)
        eval ./configure "$flags" --with-cares=no --with-pam=no --with-systemd=no
        make -j"$(nproc)" pgbouncer
    ) >"$log" 2>&1; then
        mkdir -p "$folder"
        install -m 755 "$source/pgbouncer" "$folder/pgbouncer.new"
        "$folder/pgbouncer.new" -V >"$log"
        mv "$folder/pgbouncer.new" "$folder/pgbouncer"
        printf 'build_pgbouncer: %s, from %s\n' "$(head -n 1 "$log")" "$suite" >&2
        exit 0
    fi
    tail -n 5 "$log" >&2
done
fail "no source of PgBouncer could be fetched and built"
