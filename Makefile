# Everything a person or CI runs. Each target does its own set-up.

CARGO ?= cargo
RELEASE := target/release
LIB := $(RELEASE)/libkvlink.so.0

.PHONY: all lib test tsan bench header setup clean

all: lib

setup:
	@sh scripts/setup.sh

# The library as developers use it.
lib: setup
	$(CARGO) build --release
	@ln -sf libkvlink.so $(LIB)

test:
	@sh scripts/setup.sh test
	@sh scripts/test.sh

# The agent under the thread sanitizer. Needs a nightly toolchain; its standard library is instrumented too.
TSAN_TARGET := x86_64-unknown-linux-gnu
tsan: setup
	rustup component add --toolchain nightly rust-src
	RUSTFLAGS=-Zsanitizer=thread TSAN_OPTIONS=halt_on_error=1 $(CARGO) +nightly test -Zbuild-std --target $(TSAN_TARGET) \
		--target-dir target/tsan --test agent_read --test agent_threads
	RUSTFLAGS=-Zsanitizer=thread TSAN_OPTIONS=halt_on_error=1 $(CARGO) +nightly test -Zbuild-std --target $(TSAN_TARGET) \
		--target-dir target/tsan --lib agent::

# Speed, every figure beside its reference from the same run.
bench: setup
	$(CARGO) bench

# Regenerates include/kvlink.h from the sources.
header: setup
	KVLINK_BLESS=1 $(CARGO) test --test header

clean:
	$(CARGO) clean
