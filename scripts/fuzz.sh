#!/bin/sh
# Fuzzes every decoder and the protocol's state machine, each for the given number of seconds.
set -eu
seconds="${1:-600}"
if ! rustup toolchain list 2>/dev/null | grep -q nightly; then
    echo "cargo-fuzz needs a nightly toolchain: rustup toolchain install nightly" >&2
    exit 1
fi
command -v cargo-fuzz >/dev/null 2>&1 || cargo install --locked cargo-fuzz
for target in frames message preamble ticket layout zmtp moriio worker endpoint; do
    echo "fuzzing $target for $seconds s"
    cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -rss_limit_mb=4096
done
