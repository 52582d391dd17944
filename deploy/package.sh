#!/usr/bin/env bash
# Builds the Debian package: closehook, its manual pages and completions (made by the binary itself), units, configuration.
#
#   deploy/package.sh                        builds a release and packs it: target/debian/closehook_*.deb
#   deploy/package.sh --binary FILE [ARGS]   packs a binary that is built already; ARGS go to `cargo deb`
#   TARGET=x86_64-unknown-linux-musl deploy/package.sh      a static binary, for any Linux of that architecture
#
# The maintainer is whoever builds it: DEBFULLNAME and DEBEMAIL, as for Debian's own tools, else the user on this machine.
#
# Needs `cargo install cargo-deb`; for a static binary also `rustup target add x86_64-unknown-linux-musl` and musl-tools, whose
# musl-gcc compiles ring and zstd. A static binary finds host names in /etc/hosts and by DNS only, whatever else
# /etc/nsswitch.conf names. With the GNU C library there is no honest static one (`-C target-feature=+crt-static`): it loads
# the modules that nsswitch.conf names, and the first name it looks up where that is `myhostname` ends it with SIGSEGV (tried
# with glibc 2.36 and systemd 252).
set -euo pipefail
cd "$(dirname "$0")/.."

binary=
if [ "${1-}" = --binary ]; then
    binary=$2
    shift 2
else
    if [[ ${RUSTFLAGS-} = *+crt-static* && ${TARGET-} != *-musl ]]; then
        echo "a static binary with the GNU C library crashes where nsswitch.conf names modules: use TARGET=x86_64-unknown-linux-musl" >&2
        exit 1
    fi
    # Said before anything is compiled in vain.
    if [ -n "${TARGET-}" ] && [ ! -d "$(rustc --print target-libdir --target "$TARGET")" ]; then
        echo "the standard library of $TARGET is not installed: run \`rustup target add $TARGET\`" >&2
        exit 1
    fi
    if [[ ${TARGET-} = *-musl ]] && ! command -v musl-gcc >/dev/null; then
        echo "musl-gcc is missing, which compiles ring and zstd for $TARGET: run \`apt-get install musl-tools\`" >&2
        exit 1
    fi
    cargo build --release --locked --all-features ${TARGET:+--target "$TARGET"}
    binary=${CARGO_TARGET_DIR:-target}/${TARGET:+$TARGET/}release/closehook
fi

# What the metadata in Cargo.toml packs, in one place whatever it was built as.
stage=target/package-stage
rm -rf "$stage"
mkdir -p "$stage"/{man,completions,units}
install -m 755 "$binary" "$stage/closehook"
"$stage/closehook" man --dir "$stage/man"
for shell in bash zsh fish; do
    "$stage/closehook" completions "$shell" >"$stage/completions/$shell"
done
for unit in deploy/closehook*.service deploy/closehook*.socket; do
    if [ -e "$unit" ]; then
        install -m 644 "$unit" "$stage/units/"
    fi
done

cargo deb --no-build --no-strip --maintainer "${DEBFULLNAME:-$(id -un)} <${DEBEMAIL:-$(id -un)@$(hostname)}>" "$@"
