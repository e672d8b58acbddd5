#!/bin/bash
# Builds the Debian packages in a copy of the tree, less what git ignores; puts them into the given directory.
set -eu
out="$1"
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/kvlink"
cd "$root"
if git ls-files >/dev/null 2>&1; then
    # A file that is deleted but not yet committed as such is listed too.
    git ls-files -z --cached --others --exclude-standard | while IFS= read -r -d '' f; do
        [ -e "$f" ] && printf '%s\0' "$f"
    done | tar -c --null -T - | tar -x -C "$work/kvlink"
else
    tar -c --exclude=./target --exclude=./.git . | tar -x -C "$work/kvlink"
fi
[ -d vendor ] && cp -a vendor "$work/kvlink/"

profiles="${DEB_BUILD_PROFILES:-}"
# Debian's cargo may be absent or too old; then rustup's is taken, which dpkg does not know.
packaged=$(dpkg-query -W -f '${Version}' cargo 2>/dev/null || echo 0)
dpkg --compare-versions "$packaged" ge 1.89 || profiles="$profiles pkg.kvlink.rustup"
(cd "$work/kvlink" && DEB_BUILD_PROFILES="$profiles" dpkg-buildpackage --build=full --no-sign)
mkdir -p "$out"
cp "$work"/kvlink_* "$work"/*.deb "$out/"
