#!/bin/sh
# Prints a directory with the transport `mori` built over AMD's own MoRI-IO, for the tests and the demo, and with stand-ins for
# the libraries of the hardware that it needs (tests/mori). The wheel, and HIP's headers, are kept in the user's cache.
set -eu

version=1.2.4
triton=3.9.0
root=$(cd "$(dirname "$0")/.." && pwd)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/kvlink/mori-$version"
out="${CARGO_TARGET_DIR:-$root/target}/mori"
CC=${CC:-cc} CXX=${CXX:-c++}

fetch() {
    if ! python3 -m pip --version >/dev/null 2>&1; then
        echo "MoRI needs python3 with pip to be fetched" >&2
        exit 1
    fi
    echo "fetching amd_mori $version to $cache" >&2
    mkdir -p "$(dirname "$cache")"
    new=$(mktemp -d "$cache.XXXXXX")
    # Whatever Python is here: only libraries and headers are wanted, without what they depend on.
    wheel() {
        python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
            -d "$new/wheels" "$@" >&2
    }
    wheel --python-version 3.10 --platform manylinux_2_35_x86_64 "amd_mori==$version"
    # HIP's headers without ROCm: Triton's wheel has them, beside 280 MB that are thrown away.
    wheel --python-version 3.11 --platform manylinux_2_28_x86_64 "triton==$triton"
    python3 - "$new" <<'PYTHON'
import pathlib, sys, zipfile

new = pathlib.Path(sys.argv[1])
mori = ("mori/libmori_io.so", "mori/libmori_application.so", "mori/_version.py", "mori/_jit-sources/include/",
        "mori/_jit-sources/3rdparty/")
hip = "triton/backends/amd/include/"
for wheel in (new / "wheels").iterdir():
    with zipfile.ZipFile(wheel) as z:
        for name in z.namelist():
            if name.startswith(mori):
                z.extract(name, new)
            elif name.startswith(hip) and not name.endswith("/"):
                to = new / "hip" / name[len(hip):]
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_bytes(z.read(name))
PYTHON
    rm -rf "$new/wheels" "$cache"
    mv "$new" "$cache"
}

[ -f "$cache/hip/hip/hip_runtime_api.h" ] && [ -f "$cache/mori/libmori_io.so" ] || fetch

# Where libmori_io.so lies, it looks for the libraries of the hardware.
here="$root/tests/mori"
package="$out/package"
mkdir -p "$package" "$package/0000:00:1e.0"
for file in libmori_io.so libmori_application.so _version.py; do
    cmp -s "$cache/mori/$file" "$package/$file" || cp "$cache/mori/$file" "$package/$file"
done
ln -sfn "$cache/mori/_jit-sources" "$package/_jit-sources"
newest() {
    target=$1
    shift
    [ -f "$target" ] && [ -z "$(find "$@" -newer "$target")" ]
}
newest "$package/libibverbs.so" "$here/verbs.c" ||
    "$CC" -std=gnu11 -O2 -Wall -Wextra -Werror -shared -fPIC -fvisibility=hidden "$here/verbs.c" -o "$package/libibverbs.so" \
        -lpthread -Wl,-soname,libibverbs.so
hip() {
    newest "$package/$1" "$here/hip.cpp" "$here/$2" ||
        "$CXX" -std=c++17 -O2 -Wall -Wextra -Werror -shared -fPIC -isystem "$cache/hip" "$here/hip.cpp" \
            -o "$package/$1" -Wl,--version-script="$here/$2",-soname,"$1"
}
hip libamdhip64.so.7 hip.map
hip libhsa-runtime64.so.1 hsa.map
newest "$package/librocm_smi64.so.1" "$here/smi.cpp" ||
    "$CXX" -std=c++17 -O2 -Wall -Wextra -Werror -shared -fPIC "$here/smi.cpp" -o "$package/librocm_smi64.so.1"

{
    [ -f "$out/build/CMakeCache.txt" ] || cmake -S "$root" -B "$out/build" -DCMAKE_BUILD_TYPE=Release \
        -DKVLINK_MORI="$package" -DKVLINK_HIP_INCLUDE="$cache/hip"
    cmake --build "$out/build" --target kvlink_mori kvlink_mori_check
} >"$out/build.log" 2>&1 || {
    cat "$out/build.log" >&2
    exit 1
}
echo "$out/build/mori"
