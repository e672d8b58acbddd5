// What MoRI would exit, abort or loop over, found before it does. Each function throws std::runtime_error with the cause.
#pragma once

#include <cstdint>
#include <string>

namespace kvlink_mori {

// `host` is an IPv4 address of this machine, and the port is free; 0: any.
void check_port(const std::string &host, uint32_t port);

// The devices that MoRI would take: those that were chosen, or what its environment says.
std::string chosen_devices(const std::string &devices);

// ROCm-SMI loads and sees a GPU, which MoRI needs for memory of the host, too.
void check_gpu_library();

// libibverbs, and among the chosen devices each can be opened and has a PCI address, and one has an active port. `sysfs` is
// "/sys". What libibverbs writes meanwhile is part of the cause.
void check_devices(const std::string &chosen, const std::string &sysfs);

// So much memory may be locked.
void check_locked_memory(uint64_t bytes);

}  // namespace kvlink_mori
