#!/bin/sh
# Fetches vLLM's own MoRIIOConnector, its example proxy and NixlConnector's toy proxy out of vLLM's source package, and the packages
# that the first two import, into the user's cache; prints where. The toy proxy imports what vLLM itself needs: scripts/vllm.sh.
set -eu
version=0.33.0
url=https://files.pythonhosted.org/packages/f7/25/aa5684e9c59d6fc75f78926b7f15e8d9adc7de2d9e6e7575b80776ad8169/vllm-$version.tar.gz
sum=f4c33c2503d52bb411146afa9618a4f48bed68912f617e6803ac8d76e4c74112
packages="aiohttp==3.14.5 hypercorn==0.18.0 msgpack==1.2.4 msgspec==0.22.0 numpy==2.4.6 pyzmq==27.3.0 quart==0.22.0 regex==2026.11.15"
files="examples/disaggregated/disaggregated_serving/moriio_toy_proxy_server.py
tests/v1/kv_connector/nixl_integration/toy_proxy_server.py
vllm/distributed/kv_transfer/kv_connector/v1/moriio"
where=${XDG_CACHE_HOME:-$HOME/.cache}/kvlink/vllm-source-$version
stamp="$packages
$files"
if [ "$(cat "$where/stamp" 2>/dev/null)" != "$stamp" ]; then
    rm -rf "$where"
    "${PYTHON:-python3}" -m venv "$where" >&2
    # shellcheck disable=SC2086
    "$where/bin/pip" install -q --disable-pip-version-check $packages >&2
    "$where/bin/python" - "$url" "$sum" "$where/vllm.tar.gz" <<'END'
import hashlib, sys, urllib.request
url, wanted, path = sys.argv[1:]
data = urllib.request.urlopen(url, timeout=300).read()
got = hashlib.sha256(data).hexdigest()
if got != wanted:
    sys.exit(f"{url}: SHA-256 {got}, must be {wanted}")
open(path, "wb").write(data)
END
    mkdir "$where/src"
    echo "$files" | sed "s|^|vllm-$version/|" | tar xzf "$where/vllm.tar.gz" -C "$where/src" --strip-components=1 -T -
    rm "$where/vllm.tar.gz"
    printf '%s\n' "$stamp" >"$where/stamp"
fi
echo "$where"
