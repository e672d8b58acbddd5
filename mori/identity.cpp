// Prints the identity of a file as a C++ constant, while the shim is being built.

#include "identity.hpp"

#include <cinttypes>
#include <cstdio>

int main(int argc, char **argv) {
  uint64_t id = argc == 2 ? kvlink_mori::identity(argv[1]) : 0;
  if (id == 0) {
    std::fprintf(stderr, "usage: %s libmori_io.so\n", argv[0]);
    return 1;
  }
  std::printf("#define KVLINK_MORI_IDENTITY 0x%" PRIx64 "u\n", id);
  return 0;
}
