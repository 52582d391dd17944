#!/usr/bin/env bash
# Measures every figure that the project claims, each beside its peer or its limit, in one run on a release build.
# --check: fails where one falls short. Names of groups (core, log, http, tls, sinks, redis) choose among them. Takes some minutes; run it on
# an otherwise idle machine.
set -euo pipefail
cd "$(dirname "$0")/../.."

# What the default build leaves out is built, and measured, where it is named.
features=()
for name in "$@"; do
    case $name in
        redis) features+=(--features "sink-$name") ;;
    esac
done
exec cargo bench --quiet "${features[@]}" --bench figures -- "$@"
