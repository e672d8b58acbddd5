#!/bin/sh
# Installs the real vllm-router, and libzmq's own Python binding to test against, into the user's cache; prints where.
set -eu
packages="vllm-router==0.1.17 pyzmq==27.3.0 msgpack==1.2.4 numpy==2.4.6"
where=${XDG_CACHE_HOME:-$HOME/.cache}/kvlink/vllm-router-0.1.17
if [ "$(cat "$where/stamp" 2>/dev/null)" != "$packages" ]; then
    rm -rf "$where"
    "${PYTHON:-python3}" -m venv "$where" >&2
    # shellcheck disable=SC2086
    "$where/bin/pip" install -q --disable-pip-version-check $packages >&2
    printf '%s\n' "$packages" >"$where/stamp"
fi
echo "$where"
