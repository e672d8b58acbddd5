# Everything a person or CI runs. Each target does its own set-up.

CARGO ?= cargo
CC ?= cc
PROFILE_DIR := target/release
LIB := $(PROFILE_DIR)/libkvlink.so.0

.PHONY: all lib demo cc test bench fuzz header examples clean setup

all: lib examples

# The library as developers use it; packages link it from the static library (see cmake/).
lib: cc
	$(CARGO) build --release
	ln -sf libkvlink.so $(LIB)

# The C examples, built with nothing but a compiler, the header and the library.
CEX := target/c
CWARN := -std=c99 -O2 -Wall -Wextra -Wpedantic -Werror
CLINK := -Iinclude -L$(PROFILE_DIR) -lkvlink -Wl,-rpath,'$$ORIGIN/../release'

examples: cc lib
	mkdir -p $(CEX)
	$(CC) $(CWARN) examples/c/prefill.c examples/c/common.c $(CLINK) -o $(CEX)/prefill
	$(CC) $(CWARN) examples/c/decode.c examples/c/common.c $(CLINK) -o $(CEX)/decode
	$(CC) $(CWARN) examples/c/minimal.c $(CLINK) -o $(CEX)/minimal

# Real processes move a request and every byte is checked: make demo [MODEL=.. P_TP=.. D_TP=.. MODE=.. TRANSPORT=.. TOKENS=..]
DEMO_OPTIONS = $(foreach v,MODEL P_TP D_TP MODE TRANSPORT TOKENS,$(if $($(v)),$(v)="$($(v))"))

demo: examples
	$(CARGO) build --release --example demo
	$(PROFILE_DIR)/examples/demo $(CEX) $(DEMO_OPTIONS)

# Rust needs a C compiler to link, too.
cc:
	@command -v $(CC) >/dev/null 2>&1 || { \
	  if command -v apt-get >/dev/null 2>&1 && [ "$$(id -u)" = 0 ]; then \
	    echo "installing gcc: no C compiler ($(CC)) was found"; \
	    apt-get update -qq && apt-get install -y -qq gcc libc6-dev; \
	  else \
	    echo "a C compiler is needed ($(CC) was not found): install gcc and libc6-dev, or set CC" >&2; exit 1; \
	  fi; }
	@command -v $(CARGO) >/dev/null 2>&1 || { echo "Rust is needed ($(CARGO) was not found): see https://rustup.rs" >&2; exit 1; }

header:
	KVLINK_BLESS=1 $(CARGO) test --test header

clean:
	$(CARGO) clean
