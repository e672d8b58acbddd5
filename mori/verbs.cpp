#include "verbs.hpp"

#include <dlfcn.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace kvlink_mori {

namespace {

// What MoRI asks for: see MR_DEFAULT_ACCESS_FLAG in its rdma.hpp.
constexpr int kAccess = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC;

void *load() {
  for (const char *name : {"libibverbs.so", "libibverbs.so.1"}) {
    if (void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return library;
  }
  throw std::runtime_error(std::string("libibverbs cannot be loaded: ") + dlerror());
}

// The version of the interface that this was compiled for, where the library tells them apart.
template <class F>
void find(void *library, const char *name, F *out) {
  void *at = dlvsym(library, name, "IBVERBS_1.1");
  if (at == nullptr) at = dlsym(library, name);
  if (at == nullptr) throw std::runtime_error(std::string("libibverbs lacks ") + name);
  *out = reinterpret_cast<F>(at);
}

std::string limit() {
  rlimit l{};
  if (getrlimit(RLIMIT_MEMLOCK, &l) != 0) return "unknown";
  return l.rlim_cur == RLIM_INFINITY ? "unlimited" : std::to_string(l.rlim_cur) + " bytes";
}

}  // namespace

Verbs::Verbs() : library_(load()) {
  find(library_, "ibv_get_device_list", &get_device_list_);
  find(library_, "ibv_free_device_list", &free_device_list_);
  find(library_, "ibv_open_device", &open_device_);
  find(library_, "ibv_close_device", &close_device_);
  find(library_, "ibv_query_device", &query_device_);
  find(library_, "ibv_query_port", &query_port_);
  find(library_, "ibv_alloc_pd", &alloc_pd_);
  find(library_, "ibv_dealloc_pd", &dealloc_pd_);
  find(library_, "ibv_reg_mr", &reg_mr_);
  find(library_, "ibv_reg_dmabuf_mr", &reg_dmabuf_mr_);
  find(library_, "ibv_dereg_mr", &dereg_mr_);
  list_ = get_device_list_(nullptr);
}

// The library stays: providers leave threads and handlers behind.
Verbs::~Verbs() {
  if (list_ != nullptr) free_device_list_(list_);
}

std::vector<Device> Verbs::devices(const std::string &chosen) const {
  bool excludes = !chosen.empty() && chosen[0] == '^';
  std::vector<std::string> listed = names(excludes ? chosen.substr(1) : chosen);
  std::vector<Device> out;
  for (ibv_device **at = list_; at != nullptr && *at != nullptr; at++) {
    std::string name = (*at)->name;
    bool found = std::find(listed.begin(), listed.end(), name) != listed.end();
    if (listed.empty() || found != excludes) out.push_back({name, (*at)->ibdev_path, *at});
  }
  return out;
}

ibv_context *Verbs::open(const Device &device) const {
  ibv_context *context = open_device_(device.handle);
  if (context == nullptr) {
    throw std::runtime_error(device.name + " cannot be opened: " + std::strerror(errno));
  }
  return context;
}

std::vector<bool> Verbs::ports(const Device &device) const {
  ibv_context *context = open(device);
  ibv_device_attr attr{};
  int error = query_device_(context, &attr);
  std::vector<bool> out;
  for (int i = 1; error == 0 && i <= attr.phys_port_cnt; i++) {
    ibv_port_attr port{};
    error = query_port_(context, static_cast<uint8_t>(i), reinterpret_cast<_compat_ibv_port_attr *>(&port));
    out.push_back(port.state == IBV_PORT_ACTIVE);
  }
  close_device_(context);
  if (error != 0) throw std::runtime_error(device.name + " does not answer: " + std::strerror(error));
  return out;
}

void Verbs::try_memory(const Device &device, void *addr, size_t size, const Dmabuf *gpu) const {
  ibv_context *context = open(device);
  ibv_pd *domain = alloc_pd_(context);
  ibv_mr *region = domain != nullptr ? reg_mr_(domain, addr, size, kAccess) : nullptr;
  int error = errno;
  if (region == nullptr && domain != nullptr && gpu != nullptr && gpu->fd >= 0) {
    region = reg_dmabuf_mr_(domain, gpu->offset, size, reinterpret_cast<uint64_t>(addr), gpu->fd, kAccess);
  }
  if (region != nullptr) dereg_mr_(region);
  if (domain != nullptr) dealloc_pd_(domain);
  close_device_(context);
  if (region != nullptr) return;
  std::string text = device.name + " cannot register " + std::to_string(size) + " bytes of " +
                     (gpu != nullptr ? "GPU memory" : "memory") + ": " + std::strerror(error);
  if (gpu != nullptr) {
    text += ", neither by its address (is the kernel's peer memory support loaded?) nor as a dma-buf";
  } else {
    text += "; memory has to be locked for it, and RLIMIT_MEMLOCK is " + limit() + " (ulimit -l)";
  }
  throw std::runtime_error(text);
}

std::vector<std::string> names(const std::string &list) {
  std::vector<std::string> out;
  for (size_t at = 0; at <= list.size();) {
    size_t end = std::min(list.find(',', at), list.size());
    if (end > at) out.push_back(list.substr(at, end - at));
    at = end + 1;
  }
  return out;
}

}  // namespace kvlink_mori
