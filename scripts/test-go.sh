#!/bin/sh
# Tests the Go binding against an installed kvlink (PKG_CONFIG_PATH) and ends with one line that counts the tests.
set -u

root=$(cd "$(dirname "$0")/.." && pwd)
out=${CARGO_TARGET_DIR:-$root/target}/go
staticcheck=honnef.co/go/tools/cmd/staticcheck@v0.8.2

go=$(sh "$root/scripts/find-go.sh") || exit 1
# One toolchain for everything; what it needs is beside it.
PATH=$(dirname "$go"):$PATH
export PATH GOTOOLCHAIN=local
if ! pkg-config --exists --print-errors kvlink; then
    echo "install kvlink, and let PKG_CONFIG_PATH name the folder of its kvlink.pc" >&2
    exit 1
fi
lib=$(pkg-config --libs-only-L kvlink | sed 's/-L//; s/ .*//')
export LD_LIBRARY_PATH="$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
mkdir -p "$out"
log=$out/test.log
: >"$log"
cd "$root/bindings/go" || exit 1

failed=0
check() { # name command...
    echo "== $1"
    shift
    "$@" || failed=1
}
skip() { # what and why
    echo "SKIPPED: $1"
    echo "SKIPPED" >>"$log"
    [ -z "${CI:-}" ] || failed=1
}
# A pipe would hide go's exit status.
tests() {
    go test -count=1 -v "$@" >"$log.part" 2>&1
    code=$?
    cat "$log.part" >>"$log"
    grep -v -e '^=== ' -e '^ *--- PASS' -e '^PASS$' -e 'no test files' "$log.part"
    return $code
}
formatted() {
    list=$(gofmt -l .)
    [ -z "$list" ] || { echo "gofmt would change: $list"; return 1; }
}
check gofmt formatted
check vet go vet ./...
if GOBIN="$out" go install "$staticcheck"; then
    check staticcheck "$out/staticcheck" ./...
else
    skip "staticcheck: $staticcheck cannot be fetched"
fi
export GODEBUG=cgocheck=1
check "tests with the race detector" tests -race ./...
unset GODEBUG
export GOEXPERIMENT=cgocheck2
check "tests with every store of a Go pointer checked" tests ./...
unset GOEXPERIMENT
check "cost program" go run ./internal/cost

awk '
    /^ *--- PASS/ { passed++ }
    /^ *--- FAIL/ { failed++ }
    /^ *--- SKIP/ || /^SKIPPED/ { skipped++ }
    END { printf "Go: %d passed, %d failed, %d skipped\n", passed, failed, skipped; exit passed == 0 }
' "$log" || failed=1
exit $failed
