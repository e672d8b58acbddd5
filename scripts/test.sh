#!/bin/sh
# Runs every test and ends with one line that counts them all. The bindings are tested with what `make prefix` installed.
#
# Arguments go to cargo test, and leave the bindings out.
set -u

root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
log=$target/test.log
mkdir -p "$target"
: >"$log"
failed=0

# A pipe would hide the exit status.
part() {
    echo "== $1" | tee -a "$log"
    shift
    { "$@" 2>&1; echo $? >"$log.status"; } | tee -a "$log"
    [ "$(cat "$log.status")" = 0 ] || failed=1
}

part "Rust, C and C++" cargo test --no-fail-fast --lib --tests "$@"
if [ $# = 0 ]; then
    # Two of the cases of `make test-vllm`, where there is an environment for them, and in CI.
    if [ -n "${CI:-}" ] || sh "$root/scripts/vllm.sh" cached >/dev/null; then
        part vLLM env KVLINK_LIBRARY="$target/prefix/lib/libkvlink.so" sh "$root/scripts/test-vllm.sh" \
            -k "llama-tp1-tp1-read and not blocks and not chunked or granite-tp2-tp1-read"
    else
        echo "SKIPPED: vLLM's connector: \`make test-vllm\` makes its environment, of 3 GB" | tee -a "$log"
    fi
    part Python env KVLINK_BUILD_LIBRARY="$target/prefix/lib/libkvlink.so" sh "$root/scripts/test-python.sh"
    part Go env PKG_CONFIG_PATH="$target/prefix/lib/pkgconfig" sh "$root/scripts/test-go.sh"
fi

awk '
    /^test result: / || /^(Python|Go|vLLM): [0-9]+ passed, / {
        for (i = 2; i <= NF; i++) {
            if ($i ~ /^passed/) passed += $(i - 1)
            if ($i ~ /^failed/) failed += $(i - 1)
            if ($i ~ /^(ignored|skipped)/) skipped += $(i - 1)
        }
    }
    /^== (Python|Go|vLLM)$/ { own = 1 }
    /^SKIPPED: / { if (!own) skipped++; print }
    END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped }
' "$log"
exit $failed
