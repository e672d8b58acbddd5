#!/bin/sh
# Installs what a part of the work needs beside Rust: nothing named: building; install: CMake; mori: MoRI over stand-ins; deb: the
# packages; router: the demonstration behind a router; vllm: a real vLLM; test: all but vLLM.
set -eu

missing=""
command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
command -v c++ >/dev/null 2>&1 || missing="$missing g++"
command -v nm >/dev/null 2>&1 || missing="$missing binutils"
case "${1:-}" in install | mori | deb | test)
    command -v cmake >/dev/null 2>&1 || missing="$missing cmake make"
esac
case "${1:-}" in mori | test)
    # What MoRI's wheel and headers need.
    for file in libpci.so.3:libpci3 libdrm_amdgpu.so.1:libdrm-amdgpu1 libnuma.so.1:libnuma1 libibverbs.so:libibverbs-dev; do
        [ -n "$(find /usr/lib* -name "${file%:*}" 2>/dev/null)" ] || missing="$missing ${file#*:}"
    done
    python3 -m pip --version >/dev/null 2>&1 || missing="$missing python3-pip"
esac
case "${1:-}" in deb | test)
    command -v git >/dev/null 2>&1 || missing="$missing git"
    # dpkg asks for the packages, not for the programs.
    for package in build-essential debhelper cmake \
        dh-python pybuild-plugin-pyproject python3 python3-hatchling python3-pyelftools; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
    done
esac
case "${1:-}" in router | test)
    command -v pkg-config >/dev/null 2>&1 || missing="$missing pkg-config"
    for package in libcpp-httplib-dev libssl-dev nlohmann-json3-dev; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
    done
esac
if [ "${1:-}" = vllm ]; then
    [ -n "$(find /usr/lib* -name 'libnuma.so.1' 2>/dev/null)" ] || missing="$missing libnuma1"
    { command -v python3 && python3 -c 'import ensurepip, venv'; } >/dev/null 2>&1 || missing="$missing python3-venv"
fi
if [ "${1:-}" = test ]; then
    command -v lintian >/dev/null 2>&1 || missing="$missing lintian"
    command -v mmdebstrap >/dev/null 2>&1 || missing="$missing mmdebstrap"
    command -v abidw >/dev/null 2>&1 || missing="$missing abigail-tools"
    command -v man >/dev/null 2>&1 || missing="$missing man-db"
    command -v g++ >/dev/null 2>&1 || missing="$missing g++"
    command -v clang++ >/dev/null 2>&1 || missing="$missing clang"
    command -v mandoc >/dev/null 2>&1 || missing="$missing mandoc"
    command -v valgrind >/dev/null 2>&1 || missing="$missing valgrind"
    { command -v python3 && python3 -c 'import ensurepip, venv'; } >/dev/null 2>&1 || missing="$missing python3-venv"
    # valgrind needs the symbols of the loader.
    [ -d /usr/lib/debug/.build-id ] || missing="$missing libc6-dbg"
    # What makes NIXL's wheel crash at exit unless it is loaded with care.
    [ -n "$(find /usr/lib* -name libefa.so.1 2>/dev/null)" ] || missing="$missing ibverbs-providers"
    # A second UCX, which NIXL's does not tolerate in every process.
    [ -n "$(find /usr/lib* -name libucp.so.0 2>/dev/null)" ] || missing="$missing libucx0"
fi
if ! command -v cargo >/dev/null 2>&1; then
    echo "kvlink needs Rust: cargo was not found (https://rustup.rs, or apt-get install rustup)" >&2
    exit 1
fi
[ -n "$missing" ] || exit 0

if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    echo "installing:$missing"
    apt-get update -qq
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
    echo "please install:$missing" >&2
    exit 1
fi
