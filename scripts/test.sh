#!/bin/sh
# Runs every test and ends with one line that counts them all.
set -u

log="${CARGO_TARGET_DIR:-target}/test.log"
mkdir -p "$(dirname "$log")"
status="$log.status"
{ cargo test --no-fail-fast --lib --tests "$@" 2>&1; echo $? >"$status"; } | tee "$log"
code=$(cat "$status")

awk '
    /^test result: / {
        for (i = 1; i <= NF; i++) {
            if ($i ~ /^passed/) passed += $(i - 1)
            if ($i ~ /^failed/) failed += $(i - 1)
            if ($i ~ /^ignored/) ignored += $(i - 1)
        }
    }
    /^SKIPPED: / { skipped++; print }
    END { printf "%d passed, %d failed, %d skipped\n", passed, failed, ignored + skipped }
' "$log"
exit "$code"
