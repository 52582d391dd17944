#!/usr/bin/env bash
# Measures every figure that the project claims, each beside its peer or its limit, in one run on a release build.
# --check: fails where one falls short. Names of groups (core, log, http, tls, page, sinks, size, amqp, kafka, nats, redis, lagging, jetstream) choose among them.
# Takes some minutes; run it on an otherwise idle machine.
set -euo pipefail
cd "$(dirname "$0")/../.."

# Groups that need what the default build does not have: they have a build with everything, for the default one's size is a figure, too.
beyond=(size amqp kafka nats redis lagging jetstream)

flags=() usual=() more=()
for argument in "$@"; do
    case "$argument" in
        -*) flags+=("$argument") ;;
        *) if [[ " ${beyond[*]} " == *" $argument "* ]]; then more+=("$argument"); else usual+=("$argument"); fi ;;
    esac
done
failed=0
if [ "${#usual[@]}" -gt 0 ] || [ "${#more[@]}" -eq 0 ]; then
    [ "${#usual[@]}" -gt 0 ] || more=("${beyond[@]}")
    cargo bench --quiet --bench figures -- "${flags[@]}" "${usual[@]}" || failed=1
fi
if [ "${#more[@]}" -gt 0 ]; then
    cargo bench --quiet --all-features --bench figures -- "${flags[@]}" "${more[@]}" || failed=1
fi
exit "$failed"
