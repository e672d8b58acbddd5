#!/bin/sh
# Prints a directory with NIXL's wheel for the tests and the demo; installs it there first if need be. Nothing else uses it.
set -eu

version=1.5.1
dir="${XDG_CACHE_HOME:-$HOME/.cache}/kvlink/nixl-$version"
if [ ! -f "$dir/.nixl_cu12.mesonpy.libs/libnixl_capi.so" ]; then
    if ! python3 -m pip --version >/dev/null 2>&1; then
        echo "NIXL needs python3 with pip to be installed" >&2
        exit 1
    fi
    echo "installing nixl-cu12 $version in $dir" >&2
    mkdir -p "$(dirname "$dir")"
    new=$(mktemp -d "$dir.XXXXXX")
    # Without its dependencies, which are large: only the library is wanted.
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$new" "nixl-cu12==$version" >&2
    rm -rf "$dir"
    mv "$new" "$dir"
fi
echo "$dir"
