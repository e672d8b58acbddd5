# Everything a person or CI runs. Each target does its own set-up.

CARGO ?= cargo
CC ?= cc
RELEASE := target/release
EXAMPLES := target/c
CWARN := -std=c99 -O2 -Wall -Wextra -Wpedantic -Werror
CLINK := -Iinclude -L$(RELEASE) -lkvlink -Wl,-rpath,'$$ORIGIN/../release'
FUZZ_SECONDS ?= 600

.PHONY: all demo test tsan bench fuzz lib examples header setup clean

all: lib examples

# Real processes move a request and every byte is checked.
# Options: MODEL=.. P_TP=.. D_TP=.. MODE=read|write TRANSPORT=shm|cma|tcp|nixl TOKENS=..
DEMO_OPTIONS = $(foreach v,MODEL P_TP D_TP MODE TRANSPORT TOKENS,$(if $($(v)),$(v)="$($(v))"))

demo: examples
	$(CARGO) build --release --example demo
	@$(RELEASE)/examples/demo $(EXAMPLES) $(DEMO_OPTIONS) $(if $(filter nixl,$(TRANSPORT)),NIXL="$$(sh scripts/nixl.sh)")

test:
	@sh scripts/setup.sh test
	@sh scripts/nixl.sh >/dev/null || [ -z "$$CI" ]
	@sh scripts/test.sh

# The agent under the thread sanitizer. Needs a nightly toolchain; its standard library is instrumented too.
TSAN_TARGET := x86_64-unknown-linux-gnu
tsan: setup
	rustup component add --toolchain nightly rust-src
	RUSTFLAGS=-Zsanitizer=thread TSAN_OPTIONS=halt_on_error=1 $(CARGO) +nightly test -Zbuild-std --target $(TSAN_TARGET) \
		--target-dir target/tsan --test agent_threads
	RUSTFLAGS=-Zsanitizer=thread TSAN_OPTIONS=halt_on_error=1 $(CARGO) +nightly test -Zbuild-std --target $(TSAN_TARGET) \
		--target-dir target/tsan --test conformance -- data::hybrid
	RUSTFLAGS=-Zsanitizer=thread TSAN_OPTIONS=halt_on_error=1 $(CARGO) +nightly test -Zbuild-std --target $(TSAN_TARGET) \
		--target-dir target/tsan --lib agent::

# Speed, every figure beside its reference from the same run.
bench: setup
	$(CARGO) bench

# Coverage-guided fuzzing of every decoder; needs a nightly toolchain and cargo-fuzz. A short run is part of `make test`.
fuzz: setup
	sh scripts/fuzz.sh $(FUZZ_SECONDS)

# The library as developers use it.
lib: setup
	$(CARGO) build --release
	@ln -sf libkvlink.so $(RELEASE)/libkvlink.so.0

# The C examples, built with nothing but a compiler, the header and the library.
examples: lib
	@mkdir -p $(EXAMPLES)
	$(CC) $(CWARN) examples/c/prefill.c examples/c/common.c $(CLINK) -o $(EXAMPLES)/prefill
	$(CC) $(CWARN) examples/c/decode.c examples/c/common.c $(CLINK) -o $(EXAMPLES)/decode
	$(CC) $(CWARN) examples/c/minimal.c $(CLINK) -o $(EXAMPLES)/minimal

# Regenerates include/kvlink.h from the sources.
header: setup
	KVLINK_BLESS=1 $(CARGO) test --test header

setup:
	@sh scripts/setup.sh

clean:
	$(CARGO) clean
