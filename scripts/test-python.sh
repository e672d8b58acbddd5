#!/bin/sh
# Builds the Python wheel, installs it into a new environment, and tests it there; ends with one line that counts.
#
#   test-python.sh          everything but torch
#   test-python.sh torch    what needs torch: PyPI's wheel brings CUDA along, some 5 GB, kept in the user's cache
#
# KVLINK_BUILD_LIBRARY names the library to put in (see bindings/python/hatch_build.py); left out, cargo builds it.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
package=$root/bindings/python
work=${CARGO_TARGET_DIR:-$root/target}/python
python=${PYTHON:-python3}
passed=0 failed=0 skipped=0
unset KVLINK_LIBRARY PYTHONPATH
mkdir -p "$work" || exit 1

stop() {
    echo "$*" >&2
    exit 1
}

# An environment with pinned tools, made anew when the pins change.
environment() {
    stamp=$("$python" -V; cat "$package/requirements-test.txt"; echo "$2")
    if [ "$(cat "$1/stamp" 2>/dev/null)" != "$stamp" ]; then
        rm -rf "$1"
        "$python" -m venv "$1" || stop "no virtual environment in $1: is python3-venv installed?"
        # shellcheck disable=SC2086
        "$1/bin/pip" install -q --disable-pip-version-check -r "$package/requirements-test.txt" $2 || stop "pip failed"
        printf '%s\n' "$stamp" >"$1/stamp"
    fi
}

# One check: its name, and a command whose success is one passed.
check() {
    name=$1
    shift
    if "$@" >"$work/check.log" 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: $name"
        cat "$work/check.log"
    fi
}

count() {
    # shellcheck disable=SC2086
    set -- $(sed -n 's/.*<testsuite [^>]*errors="\([0-9]*\)" failures="\([0-9]*\)" skipped="\([0-9]*\)" tests="\([0-9]*\)".*/\1 \2 \3 \4/p' "$1" 2>/dev/null)
    [ $# = 4 ] || { failed=$((failed + 1)); return; }
    failed=$((failed + $1 + $2)) skipped=$((skipped + $3)) passed=$((passed + $4 - $1 - $2 - $3))
}

tests() {
    rm -f "$work/junit.xml"
    (cd "$package" && "$venv/bin/python" -m pytest -q -p no:cacheprovider --junit-xml "$work/junit.xml" "$@") || true
    count "$work/junit.xml"
}

if [ "${1:-}" = torch ]; then
    venv=${XDG_CACHE_HOME:-$HOME/.cache}/kvlink/python-torch
    environment "$venv" torch==2.15.0
else
    venv=$work/venv
    environment "$venv" ""
fi
tools=$venv/bin

rm -rf "$work/wheel"
"$tools/pip" wheel -q --disable-pip-version-check --no-deps -w "$work/wheel" "$package" || stop "the wheel cannot be built"
wheel=$(echo "$work"/wheel/kvlink-*.whl)
"$tools/pip" install -q --disable-pip-version-check --no-deps --force-reinstall "$wheel" || stop "$wheel cannot be installed"

if [ "${1:-}" = torch ]; then
    tests tests/test_torch.py
    check "torch_hybrid.py" "$tools/python" "$package/examples/torch_hybrid.py"
else
    # The tag is what auditwheel finds, and nothing outside of what it promises is needed.
    tag=$(basename "$wheel" .whl | sed 's/.*-//')
    "$tools/auditwheel" show "$wheel" >"$work/audit.log" 2>&1
    check "auditwheel finds another tag than $tag: see $work/audit.log" grep -q "\"$tag\"" "$work/audit.log"
    tests --ignore=tests/test_torch.py
    linted=". ../../benches/bindings ../../benches/vllm ../../examples/router ../../tests/tools ../../tests/vllm"
    check "mypy" sh -c "cd '$package' && '$tools/mypy' --cache-dir '$work/mypy'"
    check "ruff check" sh -c "cd '$package' && '$tools/ruff' check --no-cache $linted"
    check "ruff format" sh -c "cd '$package' && '$tools/ruff' format --no-cache --check $linted"
    check "numpy_hybrid.py" "$tools/python" "$package/examples/numpy_hybrid.py"
fi
echo "Python: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
