#!/bin/sh
# Prints the path of a go command that is new enough for bindings/go; fetches one if there is none.
#
# Debian's Go is older. It can fetch a current one as a module, golang.org/toolchain, which it checks against Go's
# checksum database; GOTOOLCHAIN does the same for those who have Go 1.21 or later.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
fetched=1.26.8
needed=$(awk '$1 == "go" { print $2 }' "$root/bindings/go/go.mod")

new_enough() {
    have=$(GOTOOLCHAIN=local "$1" env GOVERSION 2>/dev/null) || return 1
    [ "$(printf '%s\n%s\n' "$needed" "${have#go}" | sort -V | head -n 1)" = "$needed" ]
}

case $(uname -m) in
x86_64) arch=amd64 ;;
aarch64) arch=arm64 ;;
*) arch=$(uname -m) ;;
esac

for go in "${GO:-go}" /usr/local/go/bin/go; do
    if command -v "$go" >/dev/null 2>&1 && new_enough "$go"; then
        command -v "$go"
        exit 0
    fi
done

old=${GO:-go}
if ! command -v "$old" >/dev/null 2>&1; then
    if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
        echo "please install Go $needed or later" >&2
        exit 1
    fi
    echo "installing: golang-go" >&2
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends golang-go >/dev/null
    old=go
fi
echo "fetching Go $fetched" >&2
toolchain="golang.org/toolchain@v0.0.1-go$fetched.linux-$arch"
# Outside of any module: a go.mod that asks for a newer Go would stop the old one.
dir=$(cd / && GO111MODULE=on GOFLAGS=-mod=mod GOTOOLCHAIN=local "$old" mod download -json "$toolchain" |
    sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
[ -n "$dir" ] || { echo "$toolchain cannot be fetched" >&2; exit 1; }
# Modules are unpacked without the right to be run.
find "$dir/bin" "$dir/pkg/tool" -type f -exec chmod 755 {} +
new_enough "$dir/bin/go" || { echo "$dir/bin/go does not run, or is older than $needed" >&2; exit 1; }
echo "$dir/bin/go"
