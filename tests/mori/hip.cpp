// Stands in for libamdhip64.so.7 and libhsa-runtime64.so.1 on machines without an AMD GPU. The memory of its devices is memory
// of the host that other processes can map by its handle; copies are done when they are asked for.
//
// Environment: STANDIN_HIP_DEVICES (1).

#define __HIP_PLATFORM_AMD__ 1
#include <fcntl.h>
#include <hip/hip_runtime_api.h>
#include <hsa/hsa.h>
#include <hsa/hsa_ext_amd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace {

struct Allocation {
  size_t size;
  int fd;  // -1: another process's
  int device;
};

// What a handle between processes says.
struct Handle {
  pid_t pid;
  int fd;
  size_t size;
};
static_assert(sizeof(Handle) <= sizeof(hipIpcMemHandle_t));

std::mutex lock;
std::map<char *, Allocation> allocations;
thread_local int current = 0;

int devices() {
  const char *n = std::getenv("STANDIN_HIP_DEVICES");
  return n ? std::atoi(n) : 1;
}

bool known(int device) { return device >= 0 && device < devices(); }

// The allocation that an address lies in.
std::map<char *, Allocation>::iterator find(const void *at) {
  auto *address = const_cast<char *>(static_cast<const char *>(at));
  auto it = allocations.upper_bound(address);
  if (it == allocations.begin()) return allocations.end();
  --it;
  return address < it->first + it->second.size ? it : allocations.end();
}

hipError_t map(int fd, size_t size, int kept, void **out) {
  void *at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) return hipErrorOutOfMemory;
  std::lock_guard<std::mutex> guard(lock);
  allocations[static_cast<char *>(at)] = {size, kept, current};
  *out = at;
  return hipSuccess;
}

hipError_t unmap(void *at) {
  std::lock_guard<std::mutex> guard(lock);
  auto it = allocations.find(static_cast<char *>(at));
  if (it == allocations.end()) return hipErrorInvalidValue;
  munmap(at, it->second.size);
  if (it->second.fd >= 0) close(it->second.fd);
  allocations.erase(it);
  return hipSuccess;
}

}  // namespace

extern "C" {

hipError_t hipGetDeviceCount(int *n) {
  *n = devices();
  return *n > 0 ? hipSuccess : hipErrorNoDevice;
}
hipError_t hipGetDevice(int *device) {
  *device = current;
  return hipSuccess;
}
hipError_t hipSetDevice(int device) {
  if (!known(device)) return hipErrorInvalidDevice;
  current = device;
  return hipSuccess;
}
const char *hipGetErrorString(hipError_t e) { return e == hipSuccess ? "no error" : "an error of the stand-in for HIP"; }
hipError_t hipGetLastError() { return hipSuccess; }
hipError_t hipRuntimeGetVersion(int *version) {
  *version = 70200000;
  return hipSuccess;
}
hipError_t hipDeviceGetAttribute(int *value, hipDeviceAttribute_t, int) {
  *value = 0;
  return hipSuccess;
}
hipError_t hipDeviceGetPCIBusId(char *text, int size, int device) {
  if (!known(device)) return hipErrorInvalidDevice;
  std::snprintf(text, static_cast<size_t>(size), "0000:%02x:00.0", device + 1);
  return hipSuccess;
}
hipError_t hipDeviceCanAccessPeer(int *can, int, int) {
  *can = 1;
  return hipSuccess;
}
hipError_t hipDeviceEnablePeerAccess(int, unsigned) { return hipSuccess; }
hipError_t hipDeviceSynchronize() { return hipSuccess; }

hipError_t hipMalloc(void **out, size_t size) {
  int fd = memfd_create("standin-hip", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(size)) != 0) return hipErrorOutOfMemory;
  return map(fd, size, fd, out);
}
hipError_t hipExtMallocWithFlags(void **out, size_t size, unsigned) { return hipMalloc(out, size); }
hipError_t hipFree(void *at) { return unmap(at); }
hipError_t hipMemGetAddressRange(hipDeviceptr_t *base, size_t *size, hipDeviceptr_t at) {
  std::lock_guard<std::mutex> guard(lock);
  auto it = find(at);
  if (it == allocations.end()) return hipErrorInvalidValue;
  *base = it->first;
  *size = it->second.size;
  return hipSuccess;
}
hipError_t hipPointerGetAttributes(hipPointerAttribute_t *out, const void *at) {
  std::lock_guard<std::mutex> guard(lock);
  auto it = find(at);
  if (it == allocations.end()) return hipErrorInvalidValue;
  *out = {};
  out->type = hipMemoryTypeDevice;
  out->device = it->second.device;
  out->devicePointer = const_cast<void *>(at);
  return hipSuccess;
}
hipError_t hipIpcGetMemHandle(hipIpcMemHandle_t *out, void *base) {
  std::lock_guard<std::mutex> guard(lock);
  auto it = allocations.find(static_cast<char *>(base));
  if (it == allocations.end()) return hipErrorInvalidValue;
  Handle h{getpid(), it->second.fd, it->second.size};
  std::memset(out, 0, sizeof *out);
  std::memcpy(out, &h, sizeof h);
  return hipSuccess;
}
hipError_t hipIpcOpenMemHandle(void **out, hipIpcMemHandle_t handle, unsigned) {
  Handle h;
  std::memcpy(&h, &handle, sizeof h);
  if (h.pid == getpid()) return hipErrorInvalidContext;  // as HIP: a process does not import its own
  char path[64];
  std::snprintf(path, sizeof path, "/proc/%d/fd/%d", h.pid, h.fd);
  int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return hipErrorInvalidValue;
  hipError_t e = map(fd, h.size, -1, out);
  close(fd);
  return e;
}
hipError_t hipIpcCloseMemHandle(void *at) { return unmap(at); }

hipError_t hipMemcpy(void *to, const void *from, size_t size, hipMemcpyKind) {
  std::memcpy(to, from, size);
  return hipSuccess;
}
hipError_t hipMemcpyAsync(void *to, const void *from, size_t size, hipMemcpyKind kind, hipStream_t) {
  return hipMemcpy(to, from, size, kind);
}
hipError_t hipMemcpyPeerAsync(void *to, int, const void *from, int, size_t size, hipStream_t) {
  return hipMemcpy(to, from, size, hipMemcpyDefault);
}
hipError_t hipMemset(void *at, int value, size_t size) {
  std::memset(at, value, size);
  return hipSuccess;
}

// Nothing is ever behind: streams and events are but names.
hipError_t hipStreamCreateWithFlags(hipStream_t *out, unsigned) {
  *out = reinterpret_cast<hipStream_t>(1);
  return hipSuccess;
}
hipError_t hipStreamDestroy(hipStream_t) { return hipSuccess; }
hipError_t hipEventCreateWithFlags(hipEvent_t *out, unsigned) {
  *out = reinterpret_cast<hipEvent_t>(1);
  return hipSuccess;
}
hipError_t hipEventDestroy(hipEvent_t) { return hipSuccess; }
hipError_t hipEventRecord(hipEvent_t, hipStream_t) { return hipSuccess; }
hipError_t hipEventQuery(hipEvent_t) { return hipSuccess; }
hipError_t hipEventSynchronize(hipEvent_t) { return hipSuccess; }

// What MoRI links against and does not need here.
#define ABSENT(name, ...) \
  hipError_t name(__VA_ARGS__) { return hipErrorNotSupported; }
ABSENT(hipHostRegister, void *, size_t, unsigned)
ABSENT(hipHostUnregister, void *)
ABSENT(hipHostGetDevicePointer, void **, void *, unsigned)
ABSENT(hipMemAddressFree, void *, size_t)
ABSENT(hipMemAddressReserve, void **, size_t, size_t, void *, unsigned long long)
ABSENT(hipMemCreate, hipMemGenericAllocationHandle_t *, size_t, const hipMemAllocationProp *, unsigned long long)
ABSENT(hipMemExportToShareableHandle, void *, hipMemGenericAllocationHandle_t, hipMemAllocationHandleType, unsigned long long)
ABSENT(hipMemGetAllocationGranularity, size_t *, const hipMemAllocationProp *, hipMemAllocationGranularity_flags)
ABSENT(hipMemGetHandleForAddressRange, void *, hipDeviceptr_t, size_t, hipMemRangeHandleType, unsigned long long)
ABSENT(hipMemImportFromShareableHandle, hipMemGenericAllocationHandle_t *, void *, hipMemAllocationHandleType)
ABSENT(hipMemMap, void *, size_t, size_t, hipMemGenericAllocationHandle_t, unsigned long long)
ABSENT(hipMemRelease, hipMemGenericAllocationHandle_t)
ABSENT(hipMemRetainAllocationHandle, hipMemGenericAllocationHandle_t *, void *)
ABSENT(hipMemSetAccess, void *, size_t, const hipMemAccessDesc *, size_t)
ABSENT(hipMemUnmap, void *, size_t)
ABSENT(hipModuleGetFunction, hipFunction_t *, hipModule_t, const char *)
ABSENT(hipModuleLaunchKernel, hipFunction_t, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, hipStream_t,
       void **, void **)
ABSENT(hipModuleLoad, hipModule_t *, const char *)
ABSENT(hipModuleUnload, hipModule_t)

hsa_status_t hsa_shut_down() { return HSA_STATUS_SUCCESS; }
hsa_status_t hsa_status_string(hsa_status_t, const char **text) {
  *text = "an error of the stand-in for HSA";
  return HSA_STATUS_SUCCESS;
}
#define NO_HSA(name, ...) \
  hsa_status_t name(__VA_ARGS__) { return HSA_STATUS_ERROR; }
NO_HSA(hsa_init)
NO_HSA(hsa_iterate_agents, hsa_status_t (*)(hsa_agent_t, void *), void *)
NO_HSA(hsa_agent_get_info, hsa_agent_t, hsa_agent_info_t, void *)
NO_HSA(hsa_amd_agent_iterate_memory_pools, hsa_agent_t, hsa_status_t (*)(hsa_amd_memory_pool_t, void *), void *)
NO_HSA(hsa_amd_memory_pool_get_info, hsa_amd_memory_pool_t, hsa_amd_memory_pool_info_t, void *)
NO_HSA(hsa_amd_memory_lock_to_pool, void *, size_t, hsa_agent_t *, int, hsa_amd_memory_pool_t, uint32_t, void **)
NO_HSA(hsa_amd_portable_export_dmabuf, const void *, size_t, int *, uint64_t *)

}  // extern "C"
