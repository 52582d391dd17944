#!/usr/bin/env bash
# Lays out the root of a container that holds closehook and what it needs, and nothing else: no shell, no package manager.
#
#   deploy/rootfs.sh BINARY DIRECTORY
#
# The directory gets the binary, the shared libraries it asks for (none if it is static), certificates of the public
# authorities for sinks and Close's API, a user without privileges (65532), a configuration, and an empty data directory.
set -euo pipefail
binary=$1
root=$2
cd "$(dirname "$0")/.."

install -D -m 755 "$binary" "$root/usr/bin/closehook"
# Lines of ldd that name a file; a static binary has none.
ldd "$binary" 2>/dev/null | grep -o '/[^ ]*' | while read -r library; do
    install -D -m 755 "$(readlink -f "$library")" "$root$library"
done || true
install -D -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
install -D -m 644 config/container.toml "$root/etc/closehook/closehook.toml"
echo 'closehook:x:65532:65532:closehook:/var/lib/closehook:/usr/sbin/nologin' >"$root/etc/passwd"
echo 'closehook:x:65532:' >"$root/etc/group"
install -d -m 1777 "$root/tmp"
install -d -m 700 -o 65532 -g 65532 "$root/var/lib/closehook"
