# Everything a person or CI runs. Each target does its own set-up.

CARGO ?= cargo
RELEASE := target/release
LIB := $(RELEASE)/libkvlink.so.0

.PHONY: all lib test bench header setup clean

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

# Speed, every figure beside its reference from the same run.
bench: setup
	$(CARGO) bench

# Regenerates include/kvlink.h from the sources.
header: setup
	KVLINK_BLESS=1 $(CARGO) test --test header

clean:
	$(CARGO) clean
