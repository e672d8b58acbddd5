// libibverbs as MoRI finds it: loaded at run time.
#pragma once

#include <infiniband/verbs.h>

#include <string>
#include <vector>

namespace kvlink_mori {

struct Device {
  std::string name;
  std::string path;  // in sysfs
  ibv_device *handle;
};

// Memory of a GPU, as other drivers may know it.
struct Dmabuf {
  int fd;  // -1: there is none
  uint64_t offset;
};

class Verbs {
 public:
  // Loads the library; throws std::runtime_error with the loader's reason.
  Verbs();
  ~Verbs();
  Verbs(const Verbs &) = delete;
  Verbs &operator=(const Verbs &) = delete;

  // All devices, or those of a list of names separated by commas, as MORI_RDMA_DEVICES says it ("^" excludes).
  std::vector<Device> devices(const std::string &chosen) const;
  // The numbers of the ports of a device, and which of them are active; throws where it cannot be opened or asked.
  std::vector<bool> ports(const Device &device) const;
  // Registers memory as MoRI does, and lets it go again; throws with the device's name and the reason where MoRI would abort.
  // Memory of a GPU that the kernel cannot reach by its address can be by a dma-buf, where there is one.
  void try_memory(const Device &device, void *addr, size_t size, const Dmabuf *gpu) const;

 private:
  void *library_;
  ibv_device **list_ = nullptr;
  decltype(&::ibv_get_device_list) get_device_list_;
  decltype(&::ibv_free_device_list) free_device_list_;
  decltype(&::ibv_open_device) open_device_;
  decltype(&::ibv_close_device) close_device_;
  decltype(&::ibv_query_device) query_device_;
  int (*query_port_)(ibv_context *, uint8_t, _compat_ibv_port_attr *);
  decltype(&::ibv_alloc_pd) alloc_pd_;
  decltype(&::ibv_dealloc_pd) dealloc_pd_;
  ibv_mr *(*reg_mr_)(ibv_pd *, void *, size_t, int);
  decltype(&::ibv_reg_dmabuf_mr) reg_dmabuf_mr_;
  decltype(&::ibv_dereg_mr) dereg_mr_;

  ibv_context *open(const Device &device) const;
};

// The names in a list separated by commas.
std::vector<std::string> names(const std::string &list);

}  // namespace kvlink_mori
