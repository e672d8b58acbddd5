#!/bin/sh
# What a call, an empty poll and a list of 4,096 blocks cost from every language: nanoseconds, and the ratio to C in the same
# run. Needs `make prefix`.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
prefix=$target/prefix
out=$target/bench-bindings
mkdir -p "$out"
export PKG_CONFIG_PATH="$prefix/lib/pkgconfig" LD_LIBRARY_PATH="$prefix/lib" KVLINK_LIBRARY="$prefix/lib/libkvlink.so"

# shellcheck disable=SC2046
cc -std=c99 -O2 "$root/benches/bindings/cost.c" $(pkg-config --cflags --libs kvlink) -o "$out/c"
# shellcheck disable=SC2046
c++ -std=c++17 -O2 "$root/benches/bindings/cost.cpp" $(pkg-config --cflags --libs kvlink) -o "$out/cpp"
go=$(sh "$root/scripts/find-go.sh")
(cd "$root/bindings/go" && GOTOOLCHAIN=local "$go" build -o "$out/go" ./internal/cost)
if ! "$out/venv/bin/python" -c 'import numpy' 2>/dev/null; then
    python3 -m venv "$out/venv"
    "$out/venv/bin/pip" install -q --disable-pip-version-check "$(grep '^numpy' "$root/bindings/python/requirements-test.txt")"
fi

"$out/c" | sed 's/^/C /' >"$out/figures"
"$out/cpp" | sed 's/^/C++ /' >>"$out/figures"
"$out/go" | sed 's/^/Go /' >>"$out/figures"
PYTHONPATH="$root/bindings/python/src" "$out/venv/bin/python" "$root/benches/bindings/cost.py" |
    sed 's/^blocks-numpy/numpy blocks/; t; s/^/Python /' >>"$out/figures"

awk '
    $1 == "C" { c[$2] = $3 }
    !($1 in seen) { seen[$1] = 1; names[++n] = $1 }
    { figure[$1, $2] = $3 }
    function cell(name, what) {
        if (!((name, what) in figure)) return sprintf("%20s", "")
        return sprintf("%11.0f (%5.1fx)", figure[name, what], figure[name, what] / c[what])
    }
    END {
        printf "%-8s%20s%20s%20s\n", "ns", "call", "empty poll", "4,096 blocks"
        for (i = 1; i <= n; i++)
            print sprintf("%-8s", names[i]) cell(names[i], "call") cell(names[i], "poll") cell(names[i], "blocks")
    }
' "$out/figures"
