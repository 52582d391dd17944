#!/usr/bin/env bash
# Installs what the tests need (where it is missing and this user may) and runs every test.
set -euo pipefail
cd "$(dirname "$0")/.."

need=()
command -v cc >/dev/null || need+=(gcc libc6-dev)
command -v openssl >/dev/null || need+=(openssl)
command -v pebble >/dev/null || need+=(pebble)
command -v systemd-analyze >/dev/null || need+=(systemd)
command -v mount >/dev/null || need+=(mount)
command -v mkfs.ext4 >/dev/null || need+=(e2fsprogs)
command -v perl >/dev/null || need+=(perl-base)
compgen -G "/usr/lib/*/faketime/libfaketimeMT.so.1" >/dev/null || need+=(libfaketime)
command -v script >/dev/null || need+=(bsdutils)
command -v strip >/dev/null || need+=(binutils)
command -v podman >/dev/null || need+=(podman)
command -v runc >/dev/null || need+=(runc)
# Its programs only: tests start servers of their own, and need none that runs.
compgen -G "/usr/lib/postgresql/*/bin/initdb" >/dev/null || need+=(postgresql)
command -v dpkg-shlibdeps >/dev/null || need+=(dpkg-dev)
[ -e /etc/ssl/certs/ca-certificates.crt ] || need+=(ca-certificates)
if [ "${#need[@]}" -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
    else
        echo "These packages are missing, and the tests that need them are skipped or fail: ${need[*]}" >&2
    fi
fi

# The package's test: about a minute to build, once.
export PATH="$PWD/target/tools/bin:$PATH"
if ! command -v cargo-deb >/dev/null; then
    cargo install cargo-deb --version 3.8.0 --locked --quiet --root target/tools \
        || echo "cargo-deb can't be installed, and the test of the package is skipped" >&2
fi

# Close's own client, which the fake Close is tried with.
if [ ! -e target/tools/closeio/closeio_api ] && command -v python3 >/dev/null; then
    python3 -m pip install --quiet --target target/tools/closeio --disable-pip-version-check --root-user-action ignore closeio==2.1 \
        || echo "Close's client for Python can't be installed, and the test with it is skipped" >&2
fi

exec cargo test --locked --workspace --all-features "$@"
