#!/usr/bin/env bash
# Runs every fuzz target (or those named) for so many seconds each: FUZZ_SECONDS, 600 if unset. Ends at the first crash and
# says where its input is. Works with the stable toolchain.
set -euo pipefail
cd "$(dirname "$0")/../.."

command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
targets=("$@")
[ "${#targets[@]}" -gt 0 ] || targets=(verify filter envelope recovery config query request)
for target in "${targets[@]}"; do
    seeds=()
    case "$target" in
        envelope | request) seeds=(tests/fixtures/close/examples) ;;
        config) seeds=(config) ;;
    esac
    mkdir -p "tests/fuzz/corpus/$target"
    # Coverage instrumentation is unstable; sanitizers would need another toolchain, and this is safe Rust.
    RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir tests/fuzz --sanitizer none "$target" "tests/fuzz/corpus/$target" "${seeds[@]}" \
        -- -dict=tests/fuzz/json.dict -max_total_time="${FUZZ_SECONDS:-600}" -rss_limit_mb=4096 -timeout=120 -print_final_stats=1
done
