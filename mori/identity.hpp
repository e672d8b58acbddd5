// Which build of a library a file is: MoRI's C++ interface has no version that could be asked for.
#pragma once

#include <cstdint>
#include <fstream>

namespace kvlink_mori {

// A number that follows from every byte of a file (FNV-1a); 0 where it cannot be read.
inline uint64_t identity(const char *path) {
  std::ifstream file(path, std::ios::binary);
  uint64_t hash = 0xcbf29ce484222325;
  char buffer[1 << 16];
  bool any = false;
  while (file.read(buffer, sizeof buffer), file.gcount() > 0) {
    any = true;
    for (std::streamsize i = 0; i < file.gcount(); i++) hash = (hash ^ static_cast<unsigned char>(buffer[i])) * 0x100000001b3;
  }
  return any ? hash : 0;
}

}  // namespace kvlink_mori
