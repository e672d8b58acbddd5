// kvlink_mori.h over MoRI-IO.

#include "kvlink_mori.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <hip/hip_runtime_api.h>
#include <hsa/hsa.h>
#include <hsa/hsa_ext_amd.h>
#include <link.h>
#include <pthread.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "identity.hpp"
#include "kvlink_mori_build.h"
#include "mori/io/io.hpp"
#include "preflight.hpp"
#include "verbs.hpp"

namespace io = mori::io;
using kvlink_mori::Verbs;

struct kvlink_mori_transfer {
  io::TransferStatus status;
  kvlink_mori_engine *engine = nullptr;
};

struct kvlink_mori_session {
  io::IOEngineSession session;
  kvlink_mori_engine *engine;
};

struct kvlink_mori_engine {
  std::unique_ptr<io::IOEngine> engine;
  bool events = false;
  std::string devices;
  bool rdma = true;
  std::vector<uint8_t> desc;
  std::set<int> gpus;

  std::mutex lock;  // of what follows
  std::deque<io::MemoryDesc> memories;
  std::set<uint32_t> verified;  // memories that the devices have been asked for
  std::deque<std::vector<uint8_t>> memory_descs;
  // MoRI points to a status until it has ended, to one of a transfer that failed for longer, and from its own thread for a
  // moment after a success. So they are used again after a success, and freed when the engine is gone.
  std::deque<kvlink_mori_transfer> transfers;
  std::vector<kvlink_mori_transfer *> spare;
};

namespace {

thread_local std::string last_error;

int fail(const std::string &text) {
  last_error = text;
  return KVLINK_MORI_FAILED;
}

template <class F>
int guarded(F &&f) {
  try {
    f();
    return KVLINK_MORI_OK;
  } catch (const std::exception &e) {
    return fail(e.what());
  } catch (...) {
    return fail("a C++ exception that says nothing");
  }
}

template <class T>
std::vector<uint8_t> packed(const T &value) {
  msgpack::sbuffer buffer;
  msgpack::pack(buffer, value);
  const auto *data = reinterpret_cast<const uint8_t *>(buffer.data());
  return {data, data + buffer.size()};
}

// Of a peer, which may be anybody.
template <class T>
T unpacked(const uint8_t *data, size_t len, const char *what) {
  try {
    const msgpack::unpack_limit limit(32, 0, 4096, 4096, 0, 2);
    size_t end = 0;
    msgpack::object_handle handle =
        msgpack::unpack(reinterpret_cast<const char *>(data), len, end, nullptr, nullptr, limit);
    if (end != len) throw std::runtime_error("bytes behind it");
    return handle.get().as<T>();
  } catch (const std::exception &e) {
    throw std::runtime_error(std::string(what) + " of a peer is not one of MoRI " + KVLINK_MORI_VERSION + ": " + e.what());
  }
}

void check_address(const std::string &host) {
  in_addr at{};
  if (inet_pton(AF_INET, host.c_str(), &at) != 1) {
    throw std::runtime_error("the engine of a peer is at \"" + host + "\", which is not an IPv4 address");
  }
}

io::EngineDesc peer_engine(const char *key, const uint8_t *desc, size_t len) {
  auto peer = unpacked<io::EngineDesc>(desc, len, "the engine");
  if (peer.key != key) throw std::runtime_error("the engine \"" + peer.key + "\", announced as \"" + key + "\"");
  check_address(peer.host);
  return peer;
}

// The shim must see the classes of the MoRI that is loaded.
void check_build() {
  void *library = dlopen("libmori_io.so", RTLD_NOW | RTLD_NOLOAD);
  link_map *map = nullptr;
  if (library == nullptr || dlinfo(library, RTLD_DI_LINKMAP, &map) != 0) throw std::runtime_error("libmori_io.so is not loaded");
  std::string path = map->l_name;
  dlclose(library);
  if (kvlink_mori::identity(path.c_str()) != KVLINK_MORI_IDENTITY) {
    throw std::runtime_error(path + " is not the build of MoRI " KVLINK_MORI_VERSION
                                    " that libkvlink_mori.so was compiled for: build libkvlink_mori.so against it");
  }
}

// What would make MoRI do something else than it is asked for.
void check_environment() {
  const char *notify = std::getenv("MORI_IO_ENABLE_NOTIFICATION");
  if (notify != nullptr && *notify != '\0' && std::string(notify) != "0") {
    throw std::runtime_error(std::string("MORI_IO_ENABLE_NOTIFICATION is ") + notify +
                             ": kvlink does not use MoRI's notifications, and they fail transfers under load; unset it");
  }
  const char *automatic = std::getenv("MORI_DISABLE_AUTO_XGMI");
  if (automatic != nullptr && *automatic == '0') {
    throw std::runtime_error(
        "MORI_DISABLE_AUTO_XGMI is 0: MoRI would choose between RDMA and xGMI by itself; unset it, and choose a backend");
  }
}

// MoRI takes the choice of devices from the environment alone, while an engine is made.
class ChosenDevices {
 public:
  explicit ChosenDevices(const std::string &devices) : guard_(lock()), set_(!devices.empty()) {
    if (!set_) return;
    const char *before = std::getenv(kName);
    had_ = before != nullptr;
    before_ = had_ ? before : "";
    setenv(kName, devices.c_str(), 1);
  }
  ~ChosenDevices() {
    if (set_ && had_) setenv(kName, before_.c_str(), 1);
    if (set_ && !had_) unsetenv(kName);
  }

 private:
  static constexpr const char *kName = "MORI_RDMA_DEVICES";
  static std::mutex &lock() {
    static std::mutex one;
    return one;
  }
  std::lock_guard<std::mutex> guard_;
  bool set_, had_ = false;
  std::string before_;
};

// MoRI's threads inherit the name of the thread that makes an engine: they poll, and should be recognised.
class Named {
 public:
  Named() {
    pthread_getname_np(pthread_self(), before_, sizeof before_);
    pthread_setname_np(pthread_self(), "mori");
  }
  ~Named() { pthread_setname_np(pthread_self(), before_); }

 private:
  char before_[16] = "";
};

// With completion events, MoRI 1.2.4 closes descriptor 0 of the process when an engine ends.
class DescriptorZero {
 public:
  explicit DescriptorZero(bool needed) : kept_(needed ? fcntl(0, F_DUPFD_CLOEXEC, 3) : -1) {}
  ~DescriptorZero() {
    if (kept_ < 0) return;
    if (fcntl(0, F_GETFD) < 0) dup2(kept_, 0);
    close(kept_);
  }

 private:
  int kept_;
};

// MoRI tells the devices of a memory when it is first read or reads, and aborts the process where one refuses.
void ask_devices(const kvlink_mori_engine &engine, const io::MemoryDesc &memory) {
  if (!engine.rdma) return;
  auto *addr = reinterpret_cast<void *>(memory.data);
  kvlink_mori::Dmabuf buffer{-1, 0};
  bool gpu = memory.loc == io::MemoryLocationType::GPU;
  if (gpu && hsa_amd_portable_export_dmabuf(addr, memory.size, &buffer.fd, &buffer.offset) != HSA_STATUS_SUCCESS) buffer.fd = -1;
  std::exception_ptr refused;
  try {
    Verbs verbs;
    for (const auto &device : verbs.devices(kvlink_mori::chosen_devices(engine.devices))) {
      verbs.try_memory(device, addr, memory.size, gpu ? &buffer : nullptr);
    }
  } catch (...) {
    refused = std::current_exception();
  }
  if (buffer.fd >= 0) close(buffer.fd);
  if (refused) std::rethrow_exception(refused);
}

std::string text_of(io::TransferStatus &status) {
  return status.Message() + " (MoRI's code " + std::to_string(static_cast<uint32_t>(status.Code())) + ")";
}

}  // namespace

extern "C" {

uint32_t kvlink_mori_abi(void) { return KVLINK_MORI_ABI; }
const char *kvlink_mori_version(void) { return KVLINK_MORI_VERSION; }
const char *kvlink_mori_error(void) { return last_error.c_str(); }

int kvlink_mori_engine_create(const kvlink_mori_config_t *config, kvlink_mori_engine_t **out) {
  return guarded([&] {
    check_build();
    check_environment();
    // MoRI ends the process where it cannot bind.
    kvlink_mori::check_port(config->host, config->port);
    auto made = std::make_unique<kvlink_mori_engine>();
    made->rdma = config->backend == KVLINK_MORI_RDMA;
    made->events = config->poll_event != 0;
    made->devices = config->devices != nullptr ? config->devices : "";
    Named named;
    ChosenDevices chosen(made->devices);
    io::IOEngineConfig where;
    where.host = config->host;
    where.port = static_cast<uint16_t>(config->port);
    made->engine = std::make_unique<io::IOEngine>(config->key, where);
    if (made->rdma) {
      io::RdmaBackendConfig rdma;
      rdma.qpPerTransfer = static_cast<int>(config->qp_per_transfer);
      rdma.postBatchSize = config->post_batch_size;
      rdma.numWorkerThreads = static_cast<int>(config->num_workers);
      rdma.pollCqMode = made->events ? io::PollCqMode::EVENT : io::PollCqMode::POLLING;
      rdma.enableNotification = false;
      made->engine->CreateBackend(io::BackendType::RDMA, rdma);
    } else {
      made->engine->CreateBackend(io::BackendType::XGMI, io::XgmiBackendConfig());
    }
    made->desc = packed(made->engine->GetEngineDesc());
    *out = made.release();
  });
}

void kvlink_mori_engine_destroy(kvlink_mori_engine_t *engine) {
  DescriptorZero zero(engine->rdma && engine->events);
  (void)guarded([&] {
    // Copies that were queued before an error are not of any status.
    int before = 0;
    bool known = !engine->rdma && hipGetDevice(&before) == hipSuccess;
    for (int gpu : engine->gpus) {
      if (!engine->rdma && hipSetDevice(gpu) == hipSuccess) (void)hipDeviceSynchronize();
    }
    if (known) (void)hipSetDevice(before);
    for (const io::MemoryDesc &m : engine->memories) engine->engine->DeregisterMemory(m);
    engine->engine.reset();
  });
  delete engine;
}

int kvlink_mori_engine_desc(kvlink_mori_engine_t *engine, const uint8_t **desc, size_t *len) {
  *desc = engine->desc.data();
  *len = engine->desc.size();
  return KVLINK_MORI_OK;
}

int kvlink_mori_peer_check(const char *key, const uint8_t *desc, size_t len) {
  return guarded([&] { peer_engine(key, desc, len); });
}

int kvlink_mori_peer_add(kvlink_mori_engine_t *engine, const char *key, const uint8_t *desc, size_t len) {
  return guarded([&] { engine->engine->RegisterRemoteEngine(peer_engine(key, desc, len)); });
}

int kvlink_mori_memory_register(kvlink_mori_engine_t *engine, void *addr, uint64_t size, uint32_t verify, uint32_t *memory,
                                const uint8_t **desc, size_t *len) {
  return guarded([&] {
    hipPointerAttribute_t found{};
    bool gpu = hipPointerGetAttributes(&found, addr) == hipSuccess && found.type == hipMemoryTypeDevice;
    if (!gpu) (void)hipGetLastError();
    if (!gpu && !engine->rdma) {
      throw std::runtime_error("xGMI joins GPUs, and this is memory of the host");
    }
    int device = gpu ? found.device : -1;
    auto location = gpu ? io::MemoryLocationType::GPU : io::MemoryLocationType::CPU;
    io::MemoryDesc made = engine->engine->RegisterMemory(addr, size, device, location);
    if (verify != 0) {
      try {
        ask_devices(*engine, made);
      } catch (...) {
        engine->engine->DeregisterMemory(made);
        throw;
      }
    }
    std::lock_guard<std::mutex> guard(engine->lock);
    if (gpu) engine->gpus.insert(device);
    engine->memories.push_back(made);
    engine->memory_descs.push_back(packed(made));
    *memory = static_cast<uint32_t>(engine->memories.size() - 1);
    if (verify != 0) engine->verified.insert(*memory);
    *desc = engine->memory_descs.back().data();
    *len = engine->memory_descs.back().size();
  });
}

int kvlink_mori_session_open(kvlink_mori_engine_t *engine, uint32_t memory, const char *key, const uint8_t *desc, size_t len,
                             uint64_t size, kvlink_mori_session_t **out) {
  return guarded([&] {
    auto remote = unpacked<io::MemoryDesc>(desc, len, "a memory");
    if (remote.engineKey != key || remote.size != size) {
      throw std::runtime_error("a memory of " + std::to_string(remote.size) + " bytes of engine \"" + remote.engineKey +
                               "\", announced as " + std::to_string(size) + " bytes of \"" + key + "\"");
    }
    io::MemoryDesc local;
    bool verified = false;
    {
      std::lock_guard<std::mutex> guard(engine->lock);
      local = engine->memories.at(memory);
      verified = engine->verified.count(memory) != 0;
    }
    if (!verified) ask_devices(*engine, local);
    {
      std::lock_guard<std::mutex> guard(engine->lock);
      engine->verified.insert(memory);
    }
    std::optional<io::IOEngineSession> made = engine->engine->CreateSession(local, remote);
    if (!made) {
      throw std::runtime_error(engine->rdma ? "MoRI finds no way to the peer"
                                            : "MoRI finds no xGMI way to the peer: another node, another hive, or not memory of a GPU");
    }
    *out = new kvlink_mori_session{std::move(*made), engine};
  });
}

void kvlink_mori_session_close(kvlink_mori_session_t *session) { delete session; }

int kvlink_mori_read(kvlink_mori_session_t *session, const uint64_t *local, const uint64_t *remote, const uint64_t *sizes,
                     size_t n, kvlink_mori_transfer_t **out) {
  return guarded([&] {
    kvlink_mori_engine *engine = session->engine;
    io::SizeVec at(local, local + n), from(remote, remote + n), len(sizes, sizes + n);
    kvlink_mori_transfer *transfer = nullptr;
    {
      std::lock_guard<std::mutex> guard(engine->lock);
      if (engine->spare.empty()) {
        engine->transfers.emplace_back();
        engine->spare.push_back(&engine->transfers.back());
      }
      transfer = engine->spare.back();
      engine->spare.pop_back();
    }
    transfer->engine = engine;
    transfer->status.SetCode(io::StatusCode::INIT);
    session->session.BatchRead(at, from, len, &transfer->status, session->session.AllocateTransferUniqueId());
    *out = transfer;
  });
}

int kvlink_mori_transfer_state(kvlink_mori_transfer_t *transfer) {
  io::StatusCode code = transfer->status.WaitFor(0);
  if (code == io::StatusCode::SUCCESS) return KVLINK_MORI_OK;
  if (code == io::StatusCode::INIT || code == io::StatusCode::IN_PROGRESS) return KVLINK_MORI_RUNNING;
  return fail(text_of(transfer->status));
}

void kvlink_mori_transfer_release(kvlink_mori_transfer_t *transfer) {
  if (transfer->status.WaitFor(0) != io::StatusCode::SUCCESS) return;
  std::lock_guard<std::mutex> guard(transfer->engine->lock);
  transfer->engine->spare.push_back(transfer);
}

}  // extern "C"
