# Everything a person or CI runs. Each target does its own set-up.

CARGO ?= cargo
CC ?= cc
CXX ?= c++
RELEASE := target/release
EXAMPLES := target/c
INSTALLED := target/prefix
CWARN := -std=c99 -O2 -Wall -Wextra -Wpedantic -Werror
CLINK := -Iinclude -L$(RELEASE) -lkvlink -Wl,-rpath,'$$ORIGIN/../release'
FUZZ_SECONDS ?= 600

.PHONY: all demo demo-router test test-python test-python-torch test-vllm test-go tsan bench bench-vllm fuzz lib examples header abi install prefix deb
.PHONY: setup clean

all: lib examples

# Real processes move a request and every byte is checked.
# Options: MODEL=.. P_TP=.. D_TP=.. MODE=read|write TRANSPORT=shm|cma|tcp|nixl|mori TOKENS=..
DEMO_OPTIONS = $(foreach v,MODEL P_TP D_TP MODE TRANSPORT TOKENS,$(if $($(v)),$(v)="$($(v))"))

demo: examples
	$(CARGO) build --release --example demo
	@$(if $(filter mori,$(TRANSPORT)),sh scripts/setup.sh mori)
	@$(RELEASE)/examples/demo $(EXAMPLES) $(DEMO_OPTIONS) $(if $(filter nixl,$(TRANSPORT)),NIXL="$$(sh scripts/nixl.sh)") \
		$(if $(filter mori,$(TRANSPORT)),MORI="$$(sh scripts/mori.sh)")

# Instances in C++ and Python behind the real vllm-router join, leave and crash, and every answer is checked.
# Options: MODES="read write"
demo-router: lib
	@sh scripts/setup.sh router
	@mkdir -p $(EXAMPLES)
	$(CXX) -std=c++17 -O2 -Wall -Wextra -Wpedantic -Werror examples/router/instance.cpp $(CLINK) \
		$$(pkg-config --cflags --libs cpp-httplib libcrypto) -pthread -o $(EXAMPLES)/instance
	@where=$$(sh scripts/vllm-router.sh) && KVLINK_LIBRARY=$(CURDIR)/$(RELEASE)/libkvlink.so \
		PYTHONPATH=$(CURDIR)/bindings/python/src:$(CURDIR)/tests/tools "$$where/bin/python" examples/router/demo.py $(EXAMPLES)/instance $(MODES)

test: prefix
	@sh scripts/setup.sh test
	@sh scripts/nixl.sh >/dev/null || [ -z "$$CI" ]
	@sh scripts/mori.sh >/dev/null || [ -z "$$CI" ]
	@sh scripts/vllm-router.sh >/dev/null || [ -z "$$CI" ]
	@sh scripts/vllm-source.sh >/dev/null || [ -z "$$CI" ]
	@sh scripts/test.sh

# The Python package: wheel, tests, types, lint, examples.
test-python: prefix
	@KVLINK_BUILD_LIBRARY=$(CURDIR)/$(INSTALLED)/lib/libkvlink.so sh scripts/test-python.sh

# What needs torch: PyPI's wheel brings CUDA along, some 5 GB, which are kept in the user's cache.
test-python-torch: prefix
	@KVLINK_BUILD_LIBRARY=$(CURDIR)/$(INSTALLED)/lib/libkvlink.so sh scripts/test-python.sh torch

# The connector in real vLLM servers on this CPU: some minutes, and an environment of 3 GB in the user's cache.
# Options: ONLY=llama (a pytest expression)
test-vllm: lib
	@sh scripts/test-vllm.sh $(if $(ONLY),-k "$(ONLY)")

# NixlConnector and KVLinkConnector in real vLLM servers on this CPU. Options: MODELS="llama granite"
bench-vllm: lib
	@where=$$(sh scripts/vllm.sh) && mkdir -p target/vllm && KVLINK_TEST_DIR=$(CURDIR)/target/vllm \
		PYTHONPATH=$(CURDIR)/bindings/python/src:$(CURDIR)/tests/tools:$(CURDIR)/tests/vllm "$$where/bin/python" benches/vllm/bench.py $(MODELS)

# The Go binding. Fetches Go where it is missing or too old.
test-go: prefix
	@PKG_CONFIG_PATH=$(CURDIR)/$(INSTALLED)/lib/pkgconfig sh scripts/test-go.sh

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
bench: prefix
	$(CARGO) bench
	@sh scripts/bench-bindings.sh

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

# Regenerates include/kvlink.h from the sources, and the manual's pages of section 3 from it.
header: setup
	KVLINK_BLESS=1 $(CARGO) test --test header
	KVLINK_BLESS=1 $(CARGO) test --test man -- the_committed_pages
	$(CARGO) test --test man

# Writes today's ABI down in abi/kvlink.abi; look at the difference before it is committed.
abi:
	@sh scripts/setup.sh test
	KVLINK_BLESS=1 $(CARGO) test --test abi

# Installs headers, libraries, manual and package files with CMake. Options: PREFIX=.. DESTDIR=..
PREFIX ?= /usr/local
install:
	@sh scripts/setup.sh install
	cmake -S . -B target/cmake -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX='$(PREFIX)'
	cmake --build target/cmake
	DESTDIR='$(DESTDIR)' cmake --install target/cmake

# What the bindings are tested with.
prefix:
	@mkdir -p $(dir $(INSTALLED))
	@$(MAKE) --no-print-directory install PREFIX='$(CURDIR)/$(INSTALLED)' DESTDIR= >$(INSTALLED).log 2>&1 || { cat $(INSTALLED).log; exit 1; }

# Builds the Debian packages into target/deb, in a clean copy of the tree.
deb:
	@sh scripts/setup.sh deb
	@bash scripts/deb.sh target/deb

setup:
	@sh scripts/setup.sh

clean:
	$(CARGO) clean
