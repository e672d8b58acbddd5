#!/bin/sh
# Installs what building and testing need beside Rust: a C compiler with its sanitizers, and valgrind.
set -eu

missing=""
command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
command -v c++ >/dev/null 2>&1 || missing="$missing g++"
command -v nm >/dev/null 2>&1 || missing="$missing binutils"
if [ "${1:-}" = test ]; then
    command -v valgrind >/dev/null 2>&1 || missing="$missing valgrind"
    # valgrind needs the symbols of the loader.
    [ -d /usr/lib/debug/.build-id ] || missing="$missing libc6-dbg"
    # What NIXL's wheel is installed with, and what makes it crash at exit unless it is loaded with care.
    [ -n "$(find /usr/lib* -name libefa.so.1 2>/dev/null)" ] || missing="$missing ibverbs-providers"
    python3 -m pip --version >/dev/null 2>&1 || missing="$missing python3-pip"
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
