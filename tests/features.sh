#!/usr/bin/env bash
# Checks, without a warning, builds that have one sink alone (or the engine), none, and the default ones: what stands behind a feature must
# not lean on what another one brings. Names of features choose among them; "none" and "default" are such names, too.
set -euo pipefail
cd "$(dirname "$0")/.."

all=(none default)
while read -r feature; do all+=("$feature"); done < <(sed -n '/^\[features\]/,/^\[/s/^\(sink-[a-z0-9]*\|engine-[a-z]*\) = .*/\1/p' Cargo.toml)

for feature in "${@:-${all[@]}}"; do
    case "$feature" in
        none) flags=(--no-default-features) ;;
        default) flags=() ;;
        *) flags=(--no-default-features --features "$feature") ;;
    esac
    echo "$feature" >&2
    cargo clippy --quiet --locked "${flags[@]}" -- -D warnings
done
