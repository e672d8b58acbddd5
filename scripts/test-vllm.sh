#!/bin/sh
# Tests vLLM's connector with real servers; ends with one line that counts. Arguments go to pytest: -k llama, say.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
target=${CARGO_TARGET_DIR:-$root/target}
where=$(sh "$root/scripts/vllm.sh") || exit 1
export KVLINK_TEST_DIR=$target/vllm
export KVLINK_LIBRARY=${KVLINK_LIBRARY:-$target/release/libkvlink.so}
KVLINK_ROUTER=$(sh "$root/scripts/vllm-router.sh")/bin/vllm-router || exit 1
KVLINK_VLLM_SOURCE=$(sh "$root/scripts/vllm-source.sh") || exit 1
KVLINK_MORI=$(sh "$root/scripts/setup.sh" mori >&2 && sh "$root/scripts/mori.sh") || exit 1
export KVLINK_ROUTER KVLINK_VLLM_SOURCE KVLINK_MORI
export PYTHONPATH=$root/bindings/python/src:$root/tests/tools
mkdir -p "$KVLINK_TEST_DIR"
report=$KVLINK_TEST_DIR/junit.xml
rm -f "$report"
"$where/bin/python" -m pytest -q -ra -p no:cacheprovider --junit-xml "$report" "$root/tests/vllm" "$@"
status=$?
# shellcheck disable=SC2046
set -- $(sed -n 's/.*<testsuite [^>]*errors="\([0-9]*\)" failures="\([0-9]*\)" skipped="\([0-9]*\)" tests="\([0-9]*\)".*/\1 \2 \3 \4/p' "$report")
[ $# = 4 ] && echo "vLLM: $(($4 - $1 - $2 - $3)) passed, $(($1 + $2)) failed, $3 skipped"
exit $status
