#!/usr/bin/env bash
# Measures every figure that the project claims, each beside its peer or its limit, in one run on a release build.
# --check: fails where one falls short. Names of groups (core, log, http, tls, sinks, amqp, kafka) choose among them. Takes some minutes;
# run it on an otherwise idle machine.
set -euo pipefail
cd "$(dirname "$0")/../.."

exec cargo bench --quiet --features sink-kafka --bench figures -- "$@"
