#!/usr/bin/env bash
# Set up what a make target needs, and only what is missing of it. `make` calls this; it can be called by hand as well.
#
#   tools/setup.sh demo        compiler, headers of OpenSSL, zlib and zstd, .venv with what runs Turnout, the compiled parts
#   tools/setup.sh demo-mysql  the same and MariaDB's server
#   tools/setup.sh lint        the same as demo and what checks the code
#   tools/setup.sh test        the same as lint and the servers and clients the tests talk to; Chromium where it can be had
#   tools/setup.sh docs        the same as demo and what makes a site of the documentation
#   tools/setup.sh bench       the same as lint and the proxies Turnout is measured against: HAProxy and PgBouncer, the
#                              latter built from Debian's newest sources where apt has them, or else the system's
#
# System packages come from apt where we are root or sudo lets us; otherwise one line says which ones are missing.
# Nothing that is installed is started: no database cluster, no service. Python packages go to .venv only.
# PYTHON=/path/to/python3 picks the interpreter; otherwise the first complete one from 3.11 on is taken.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'set-up: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

# --- the interpreter -----------------------------------------------------------------------------------------------

# 3.11 or later, with venv and pip to begin with and headers to compile against.
is_complete() {
    "$1" - <<'PYTHON' >/dev/null 2>&1
import ensurepip, pathlib, sys, sysconfig, venv
assert sys.version_info >= (3, 11)
assert pathlib.Path(sysconfig.get_path("include"), "Python.h").exists()
PYTHON
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if is_complete "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# --- system packages -----------------------------------------------------------------------------------------------

missing=()

# want PACKAGE COMMAND...: PACKAGE is missing unless one of the commands is there.
want() {
    local package=$1 command
    shift
    for command in "$@"; do
        if compgen -G "$command" >/dev/null || command -v "$command" >/dev/null; then return; fi
    done
    missing+=("$package")
}

want_packages() {
    PATH=$PATH:/usr/sbin:/sbin # where Debian puts servers; not in every account's PATH
    want gcc gcc cc
    compgen -G '/usr/include/*/sys/types.h' >/dev/null || [ -e /usr/include/sys/types.h ] || missing+=(libc6-dev)
    want libssl-dev '/usr/include/openssl/ssl.h'
    want zlib1g-dev '/usr/include/zlib.h'
    want libzstd-dev '/usr/include/zstd.h'
    [ -x .venv/bin/python ] || find_python >/dev/null || missing+=(python3 python3-venv python3-dev)
    case $1 in
    demo-mysql | test | bench)
        want mariadb-server-core mariadbd
        want mariadb-client mariadb
        ;;
    esac
    case $1 in
    test)
        want postgresql '/usr/lib/postgresql/*/bin/postgres'
        want postgresql-client psql
        want sysbench sysbench
        want openssl openssl
        want pgbouncer pgbouncer # whose admin console ours is held against
        ;;
    bench)
        want sysbench sysbench
        want pgbouncer pgbouncer
        want haproxy haproxy
        want postgresql '/usr/lib/postgresql/*/bin/pgbench' # the one that can do TLS
        # To build a newer PgBouncer from Debian's sources.
        want dpkg-dev dpkg-source
        want pkg-config pkg-config
        want libevent-dev '/usr/include/event2/event.h'
        ;;
    esac
}

undo=()
undo_all() {
    local step
    for step in "${undo[@]}"; do eval "$step"; done
    undo=()
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

apt() {
    local log
    log=$(mktemp)
    if ! as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y "$@" >"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        fail "apt-get $1 failed; the last lines are above"
    fi
    rm -f "$log"
}

install_packages() {
    local list="${missing[*]}" service
    if ! command -v apt-get >/dev/null || ! as_root true 2>/dev/null; then
        fail "please install: $list (as root: apt-get install --no-install-recommends $list), then try again"
    fi
    say "installing with apt: $list"
    trap undo_all EXIT
    if [ ! -e /usr/sbin/policy-rc.d ]; then # services are not started while this file says so
        printf '#!/bin/sh\nexit 101\n' | as_root tee /usr/sbin/policy-rc.d >/dev/null
        undo+=("as_root rm -f /usr/sbin/policy-rc.d")
        as_root chmod 755 /usr/sbin/policy-rc.d
    fi
    apt update
    case " $list " in
    *" postgresql "*) # its first installation would create a cluster
        apt install --no-install-recommends postgresql-common
        local conf=/etc/postgresql-common/createcluster.conf
        as_root cp -p $conf $conf.turnout
        undo+=("as_root mv $conf.turnout $conf")
        echo 'create_main_cluster = false' | as_root tee -a $conf >/dev/null
        ;;
    esac
    apt install --no-install-recommends "${missing[@]}"
    for service in pgbouncer haproxy prometheus; do # installed to be measured, not to run at every boot
        case " $list " in
        *" $service "*)
            if [ -d /run/systemd/system ]; then as_root systemctl disable -q "$service"; fi
            ;;
        esac
    done
    undo_all
}

# Programs that a few tests need, and that are too large to refuse anybody for the want of them.
want_if_possible() {
    local package=$1 command
    shift
    for command in "$@"; do
        if command -v "$command" >/dev/null; then return; fi
    done
    if command -v apt-get >/dev/null && as_root true 2>/dev/null; then
        say "installing $package with apt, for a few of the tests"
        missing=("$package")
        if (install_packages); then return; fi
    fi
    say "no $package here: the tests that need it are left out (as root: apt-get install $package)"
}

# --- .venv ---------------------------------------------------------------------------------------------------------

# What the build itself needs, from pyproject.toml; installed beforehand, because the build is not isolated.
build_requires() {
    .venv/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")'
}

# Whether .venv has these extras already, or more, as pyproject.toml wants them now.
is_installed() {
    local have
    for have in ".venv/.installed-$1" ".venv/.installed-$1,dev"; do
        if [ "$have" -nt pyproject.toml ] && [ "$have" -nt setup.py ]; then return 0; fi
    done
    return 1
}

# Whether Turnout itself is in .venv, compiled, with whatever extras.
is_compiled() {
    local have
    for have in .venv/.installed-*; do
        if [ "$have" -nt pyproject.toml ] && [ "$have" -nt setup.py ]; then return 0; fi
    done
    return 1
}

# What these extras ask for, from pyproject.toml.
extras_require() {
    .venv/bin/python - "$1" <<'PYTHON'
import sys, tomllib
with open("pyproject.toml", "rb") as file:
    extras = tomllib.load(file)["project"]["optional-dependencies"]
print(*(one for name in sys.argv[1].split(",") for one in extras[name]), sep="\n")
PYTHON
}

make_venv() {
    local extras=$1 pip=(.venv/bin/python -m pip --disable-pip-version-check -q install --no-compile) requires
    if [ -x .venv/bin/python ] && is_installed "$extras"; then return; fi
    if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c '' 2>/dev/null; then
        local python
        python=$(find_python) || fail "no Python from 3.11 on with venv and headers; PYTHON=/path/to/python3 names one"
        say "making .venv with $python"
        rm -rf .venv
        "$python" -m venv .venv
    fi
    if is_compiled; then
        say "installing more Python packages into .venv"
        mapfile -t requires < <(extras_require "$extras")
        "${pip[@]}" "${requires[@]}"
    else
        say "installing Python packages into .venv and compiling (a minute or two the first time)"
        mapfile -t requires < <(build_requires)
        "${pip[@]}" "${requires[@]}"
        "${pip[@]}" --no-build-isolation -e ".[$extras]"
    fi
    touch ".venv/.installed-$extras"
}

# --- what was asked for --------------------------------------------------------------------------------------------

what=${1:-}
case $what in
demo | demo-mysql) extras=demo ;;
lint | test | bench) extras=demo,dev ;;
docs) extras=demo,docs ;;
*) fail "usage: tools/setup.sh demo|demo-mysql|lint|test|bench|docs" ;;
esac

want_packages "$what"
if [ ${#missing[@]} -gt 0 ]; then install_packages; fi
if [ "$what" = test ]; then
    want_if_possible chromium chromium chromium-browser google-chrome
    want_if_possible prometheus promtool
fi
make_venv "$extras"
if [ "$what" = bench ] && [ ! -x .venv/pgbouncer/pgbouncer ]; then
    say "building a newer PgBouncer from Debian's sources (less than a minute)"
    tools/build_pgbouncer.sh "$PWD/.venv/pgbouncer" || say "measuring against the installed one: $(pgbouncer -V | head -n 1)"
fi
