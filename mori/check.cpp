// kvlink-mori-check: finds out, in a process of its own, whether MoRI-IO can be used on this machine. kvlink runs it with
// --preflight before it loads MoRI; without, it also moves bytes between two processes.
//
// The last line of its output begins with "passed", "refused: " and the cause, or "ended: " and what MoRI was doing when it
// ended or hung the process.

#include <dlfcn.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "kvlink_mori.h"
#include "preflight.hpp"

namespace {

constexpr size_t kProbe = 64 << 10;
constexpr size_t kMoved = 64 << 20;
constexpr size_t kBlock = 64 << 10;
constexpr unsigned kSeconds = 60;

const char *const kUsage =
    "usage: kvlink-mori-check [--preflight] [--backend rdma|xgmi] [--host IPV4] [--port N] [--devices A,B]\n"
    "                         [--qp-per-transfer N] [--post-batch-size N] [--num-workers N] [--poll polling|event]\n"
    "                         [--bytes N] [--memory host|gpu] [--seconds N] [--sysfs DIR] [--help]\n"
    "\n"
    "Checks whether MoRI-IO can be used here and moves 64 MiB between two processes; with --preflight, only the former.\n"
    "--bytes: memory that will have to be locked; --sysfs: look there instead of in /sys.\n";

// What is being done, for whoever ends this process.
const char *doing = "reading the options";
bool over = false;

void say_ended(const char *how) {
  const char *parts[] = {"ended: ", how, " while ", doing, "\n"};
  for (const char *part : parts) {
    if (write(STDOUT_FILENO, part, std::strlen(part)) < 0) return;
  }
}

void on_signal(int number) {
  const char *how = number == SIGALRM ? "has not come back" : number == SIGABRT ? "aborted" : "crashed";
  say_ended(how);
  _exit(1);
}

void on_exit_of_others() {
  if (!over) say_ended("called exit");
}

void begin(const char *what) {
  doing = what;
  std::printf("checking: %s\n", what);
  std::fflush(stdout);
}

struct Options {
  bool preflight = false, gpu = false;
  uint32_t backend = KVLINK_MORI_RDMA, port = 0, qps = 1, workers = 1, events = 0;
  int32_t batch = -1;
  uint64_t bytes = 0;
  unsigned seconds = kSeconds;
  std::string host = "127.0.0.1", devices, sysfs = "/sys";
};

uint64_t number(const std::string &name, const std::string &text, uint64_t most) {
  char *end = nullptr;
  uint64_t n = std::strtoull(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || text[0] == '-' || n > most) {
    throw std::runtime_error(name + " " + text + ": not a number up to " + std::to_string(most));
  }
  return n;
}

uint32_t one_of(const std::string &name, const std::string &text, const char *first, const char *second) {
  if (text == first) return 0;
  if (text == second) return 1;
  throw std::runtime_error(name + " " + text + ": " + first + " or " + second);
}

Options parse(int argc, char **argv) {
  Options o;
  for (int i = 1; i < argc; i++) {
    std::string name = argv[i];
    if (name == "--help") {
      std::printf("%s", kUsage);
      std::exit(0);
    }
    if (name == "--preflight") {
      o.preflight = true;
      continue;
    }
    if (i + 1 == argc) throw std::runtime_error(name + " needs a value, or is unknown\n" + kUsage);
    std::string value = argv[++i];
    auto count = [&](uint64_t most) { return static_cast<uint32_t>(number(name, value, most)); };
    if (name == "--backend") o.backend = one_of(name, value, "rdma", "xgmi");
    else if (name == "--memory") o.gpu = one_of(name, value, "host", "gpu") == 1;
    else if (name == "--poll") o.events = one_of(name, value, "polling", "event");
    else if (name == "--host") o.host = value;
    else if (name == "--port") o.port = count(65535);
    else if (name == "--devices") o.devices = value;
    else if (name == "--qp-per-transfer") o.qps = count(1024);
    else if (name == "--num-workers") o.workers = count(1024);
    else if (name == "--post-batch-size") o.batch = value == "-1" ? -1 : static_cast<int32_t>(count(1 << 20));
    else if (name == "--bytes") o.bytes = number(name, value, UINT64_MAX);
    else if (name == "--seconds") o.seconds = count(3600);
    else if (name == "--sysfs") o.sysfs = value;
    else throw std::runtime_error(name + " is unknown\n" + kUsage);
  }
  return o;
}

#define KVLINK_MORI_FUNCTIONS(F)                                                                                   \
  F(abi) F(version) F(error) F(engine_create) F(engine_destroy) F(engine_desc) F(peer_add) F(memory_register)      \
  F(session_open) F(session_close) F(read) F(transfer_state) F(transfer_release)

// libkvlink_mori.so, and HIP through it.
struct Shim {
  void *library = nullptr;
#define MEMBER(name) decltype(&kvlink_mori_##name) name = nullptr;
  KVLINK_MORI_FUNCTIONS(MEMBER)
#undef MEMBER
  int (*hip_malloc)(void **, size_t) = nullptr;
  int (*hip_memcpy)(void *, const void *, size_t, int) = nullptr;

  Shim() {
    std::string path = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "libkvlink_mori.so";
    library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw std::runtime_error(std::string("libkvlink_mori.so cannot be loaded: ") + dlerror());
#define FIND(name) find("kvlink_mori_" #name, &name);
    KVLINK_MORI_FUNCTIONS(FIND)
#undef FIND
    find("hipMalloc", &hip_malloc);
    find("hipMemcpy", &hip_memcpy);
    if (abi() != KVLINK_MORI_ABI) {
      throw std::runtime_error(path + " has interface " + std::to_string(abi()) + ", this program " +
                               std::to_string(KVLINK_MORI_ABI));
    }
  }

  void must(int status) const {
    if (status == KVLINK_MORI_FAILED) throw std::runtime_error(error());
  }

  kvlink_mori_engine_t *start(const Options &o, const char *key, uint32_t port) const {
    kvlink_mori_config_t config{};
    config.key = key;
    config.host = o.host.c_str();
    config.port = port;
    config.backend = o.backend;
    config.qp_per_transfer = o.qps;
    config.post_batch_size = o.batch;
    config.num_workers = o.workers;
    config.poll_event = o.events;
    config.devices = o.devices.c_str();
    kvlink_mori_engine_t *engine = nullptr;
    must(engine_create(&config, &engine));
    return engine;
  }

 private:
  template <class F>
  void find(const char *name, F *out) {
    *out = reinterpret_cast<F>(dlsym(library, name));
    if (*out == nullptr) throw std::runtime_error(std::string("libkvlink_mori.so lacks ") + name);
  }
};

using Bytes = std::vector<uint8_t>;

// Memory of the kind that was asked for, with this content.
struct Memory {
  void *at = nullptr;
  uint32_t id = 0;
  Bytes desc;

  Memory(const Shim &shim, const Options &o, kvlink_mori_engine_t *engine, const Bytes &content) {
    if (o.gpu && shim.hip_malloc(&at, content.size()) != 0) throw std::runtime_error("hipMalloc fails");
    if (!o.gpu && posix_memalign(&at, 4096, content.size()) != 0) throw std::runtime_error("out of memory");
    copy(shim, o, at, content.data(), content.size());
    const uint8_t *data = nullptr;
    size_t len = 0;
    shim.must(shim.memory_register(engine, at, content.size(), 1, &id, &data, &len));
    desc.assign(data, data + len);
  }

  static void copy(const Shim &shim, const Options &o, void *to, const void *from, size_t n) {
    constexpr int kDefault = 4;  // hipMemcpyDefault
    if (!o.gpu) std::memcpy(to, from, n);
    else if (shim.hip_memcpy(to, from, n, kDefault) != 0) throw std::runtime_error("hipMemcpy fails");
  }
};

Bytes pattern() {
  Bytes out(kMoved);
  uint32_t x = 1;
  for (uint8_t &b : out) b = static_cast<uint8_t>((x = x * 1664525 + 1013904223) >> 24);
  return out;
}

void send(int to, const Bytes &bytes) {
  uint32_t n = static_cast<uint32_t>(bytes.size());
  if (write(to, &n, sizeof n) != sizeof n || write(to, bytes.data(), n) != static_cast<ssize_t>(n)) {
    throw std::runtime_error("the other process is gone");
  }
}

Bytes receive(int from) {
  uint32_t n = 0;
  if (recv(from, &n, sizeof n, MSG_WAITALL) != sizeof n) throw std::runtime_error("the other process is gone");
  Bytes out(n);
  if (recv(from, out.data(), n, MSG_WAITALL) != static_cast<ssize_t>(n)) throw std::runtime_error("the other process is gone");
  return out;
}

// The other process: is read from. Begins when it is told that the checks have passed.
void serve(const Options &o, int peer) {
  char byte = 0;
  if (read(peer, &byte, 1) != 1) return;
  Shim shim;
  auto *engine = shim.start(o, "kvlink-mori-check-source", 0);
  Memory memory(shim, o, engine, pattern());
  const uint8_t *desc = nullptr;
  size_t len = 0;
  shim.must(shim.engine_desc(engine, &desc, &len));
  send(peer, Bytes(desc, desc + len));
  send(peer, memory.desc);
  (void)!read(peer, &byte, 1);
}

void move(const Shim &shim, const Options &o, kvlink_mori_engine_t *engine, int peer) {
  begin("reading 64 MiB from another process");
  if (write(peer, "", 1) != 1) throw std::runtime_error("the other process is gone");
  Bytes desc = receive(peer), memory = receive(peer), wanted = pattern();
  const char *key = "kvlink-mori-check-source";
  shim.must(shim.peer_add(engine, key, desc.data(), desc.size()));
  Memory own(shim, o, engine, Bytes(kMoved));
  kvlink_mori_session_t *session = nullptr;
  shim.must(shim.session_open(engine, own.id, key, memory.data(), memory.size(), kMoved, &session));
  // The last block first.
  std::vector<uint64_t> local, remote, sizes(kMoved / kBlock, kBlock);
  for (size_t at = 0; at < kMoved; at += kBlock) {
    local.push_back(at);
    remote.push_back(kMoved - kBlock - at);
  }
  auto start = std::chrono::steady_clock::now();
  kvlink_mori_transfer_t *transfer = nullptr;
  shim.must(shim.read(session, local.data(), remote.data(), sizes.data(), sizes.size(), &transfer));
  int state = 0;
  while ((state = shim.transfer_state(transfer)) == KVLINK_MORI_RUNNING) usleep(20);
  shim.must(state);
  std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  shim.transfer_release(transfer);
  Bytes have(kMoved);
  Memory::copy(shim, o, have.data(), own.at, kMoved);
  for (size_t i = 0; i < local.size(); i++) {
    if (std::memcmp(&have[local[i]], &wanted[remote[i]], kBlock) != 0) throw std::runtime_error("bytes that were read are wrong");
  }
  shim.session_close(session);
  std::printf("read %zu bytes in %zu pieces in %.1f ms (%.2f GB/s)\n", kMoved, local.size(), took.count() * 1e3,
              static_cast<double>(kMoved) / took.count() / 1e9);
}

void check(const Options &o, int peer) {
  begin("the control port");
  kvlink_mori::check_port(o.host, o.port);
  if (o.backend == KVLINK_MORI_RDMA) {
    begin("the GPU library");
    kvlink_mori::check_gpu_library();
    begin("the RDMA devices");
    kvlink_mori::check_devices(kvlink_mori::chosen_devices(o.devices), o.sysfs);
    begin("the limit of locked memory");
    kvlink_mori::check_locked_memory(o.bytes);
  }
  begin("loading MoRI");
  Shim shim;
  begin("starting MoRI");
  auto *engine = shim.start(o, "kvlink-mori-check", o.port);
  if (o.preflight) {
    begin("registering memory");
    if (o.backend == KVLINK_MORI_RDMA || o.gpu) Memory(shim, o, engine, Bytes(kProbe));
  } else {
    move(shim, o, engine, peer);
  }
  begin("ending MoRI");
  shim.engine_destroy(engine);
  std::printf("passed: MoRI %s\n", shim.version());
}

}  // namespace

int main(int argc, char **argv) {
  int status = 1;
  try {
    Options o = parse(argc, argv);
    int ends[2] = {-1, -1};
    pid_t source = -1;
    if (!o.preflight) {
      // Before MoRI is loaded, for it does not survive a fork.
      if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) throw std::runtime_error("socketpair fails");
      source = fork();
      close(ends[source == 0 ? 0 : 1]);
    }
    for (int s : {SIGALRM, SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL}) signal(s, on_signal);
    std::atexit(on_exit_of_others);
    alarm(o.seconds);
    if (source == 0) {
      serve(o, ends[1]);
    } else {
      check(o, ends[0]);
    }
    status = 0;
  } catch (const std::exception &e) {
    std::printf("refused: %s\n", e.what());
  }
  over = true;
  std::fflush(stdout);
  _exit(status);
}
