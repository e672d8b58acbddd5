# Everything a person or CI runs. Each target does its own set-up.

CARGO ?= cargo
CC ?= cc
PROFILE_DIR := target/release
LIB := $(PROFILE_DIR)/libkvlink.so.0

.PHONY: all lib demo test bench fuzz header examples clean setup

all: lib examples

# The library as developers use it; packages link it from the static library (see cmake/).
lib:
	$(CARGO) build --release
	ln -sf libkvlink.so $(LIB)

header:
	KVLINK_BLESS=1 $(CARGO) test --test header

clean:
	$(CARGO) clean
