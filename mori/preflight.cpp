#include "preflight.hpp"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <vector>

#include "verbs.hpp"

namespace fs = std::filesystem;

namespace kvlink_mori {

namespace {

constexpr int kCapIpcLock = 14;

std::string joined(const std::vector<std::string> &list) {
  std::string out;
  for (const std::string &s : list) out += (out.empty() ? "" : ", ") + s;
  return out;
}

std::vector<std::string> entries(const fs::path &dir) {
  std::vector<std::string> out;
  std::error_code none;
  for (const auto &entry : fs::directory_iterator(dir, none)) out.push_back(entry.path().filename());
  return out;
}

std::string first_line(const fs::path &file) {
  std::ifstream in(file);
  std::string line;
  std::getline(in, line);
  return line;
}

// The standard error output goes to memory while this lives.
class Listening {
 public:
  Listening() : heard_(memfd_create("stderr", MFD_CLOEXEC)), before_(dup(2)) { dup2(heard_, 2); }
  ~Listening() {
    restore();
    close(heard_);
  }
  std::string text() {
    restore();
    char buffer[2048];
    ssize_t n = pread(heard_, buffer, sizeof buffer, 0);
    std::string out(buffer, n > 0 ? static_cast<size_t>(n) : 0);
    for (char &c : out) c = c == '\n' ? ' ' : c;
    while (!out.empty() && out.back() == ' ') out.pop_back();
    return out;
  }

 private:
  void restore() {
    if (before_ < 0) return;
    dup2(before_, 2);
    close(before_);
    before_ = -1;
  }
  int heard_, before_;
};

// "0000:8c:00.0", as MoRI looks for it.
bool is_pci(const std::string &name) {
  const std::string form = "xxxx:xx:xx.x";
  if (name.size() != form.size()) return false;
  for (size_t i = 0; i < form.size(); i++) {
    bool fits = form[i] == 'x' ? std::isxdigit(static_cast<unsigned char>(name[i])) != 0 : name[i] == form[i];
    if (!fits) return false;
  }
  return true;
}

bool has_pci_address(const std::string &path) {
  std::error_code error;
  fs::path real = fs::canonical(path, error);
  for (const auto &part : real) {
    if (is_pci(part)) return true;
  }
  return false;
}

// A device of the kernel's that libibverbs does not know.
std::string unknown(const std::string &name, const fs::path &sys, const std::string &warnings) {
  std::error_code none;
  std::string driver = fs::read_symlink(sys / "class/infiniband" / name / "device/driver", none).filename();
  std::string abi;
  for (const std::string &uverbs : entries(sys / "class/infiniband_verbs")) {
    fs::path dir = sys / "class/infiniband_verbs" / uverbs;
    if (first_line(dir / "ibdev") == name) abi = first_line(dir / "abi_version");
  }
  std::string text = "the kernel has the RDMA device " + name + " (driver " + (driver.empty() ? "unknown" : driver) +
                     ", kernel ABI " + (abi.empty() ? "unknown" : abi) +
                     "), which libibverbs does not know: the driver's user-space library is missing, or is not the one that "
                     "belongs to the kernel's driver (in a container: install the same release as on the host)";
  return warnings.empty() ? text : text + "; libibverbs says: " + warnings;
}

struct Library {
  void *handle;
  ~Library() { dlclose(handle); }
};

}  // namespace

void check_port(const std::string &host, uint32_t port) {
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_port = htons(static_cast<uint16_t>(port));
  if (inet_pton(AF_INET, host.c_str(), &at.sin_addr) != 1) {
    throw std::runtime_error("host \"" + host + "\" is not an IPv4 address, and MoRI knows no others");
  }
  int probe = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int one = 1;
  setsockopt(probe, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  bool bound = probe >= 0 && bind(probe, reinterpret_cast<sockaddr *>(&at), sizeof at) == 0 && listen(probe, 1) == 0;
  int error = errno;
  if (probe >= 0) close(probe);
  if (!bound) {
    throw std::runtime_error("the control port " + host + ":" + std::to_string(port) +
                             " cannot be used: " + std::strerror(error));
  }
}

std::string chosen_devices(const std::string &devices) {
  const char *variable = std::getenv("MORI_RDMA_DEVICES");
  return !devices.empty() || variable == nullptr ? devices : variable;
}

void check_gpu_library() {
  const char *named = std::getenv("MORI_ROCM_SMI_PATH");
  void *handle = nullptr;
  for (const char *name : {named, "librocm_smi64.so.1", "librocm_smi64.so", "/opt/rocm/lib/librocm_smi64.so.1"}) {
    if (handle == nullptr && name != nullptr && *name != '\0') handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  if (handle == nullptr) {
    throw std::runtime_error(std::string("the GPU library librocm_smi64 cannot be loaded: ") + dlerror() +
                             " (part of ROCm; MORI_ROCM_SMI_PATH names it elsewhere)");
  }
  Library library{handle};
  auto init = reinterpret_cast<int (*)(uint64_t)>(dlsym(handle, "rsmi_init"));
  auto count = reinterpret_cast<int (*)(uint32_t *)>(dlsym(handle, "rsmi_num_monitor_devices"));
  auto end = reinterpret_cast<int (*)()>(dlsym(handle, "rsmi_shut_down"));
  if (init == nullptr || count == nullptr || end == nullptr) {
    throw std::runtime_error("the GPU library librocm_smi64 lacks functions: it is not ROCm-SMI");
  }
  uint32_t gpus = 0;
  int status = init(0);
  if (status == 0) {
    status = count(&gpus);
    end();
  }
  if (status != 0) {
    throw std::runtime_error("the GPU library librocm_smi64 does not start: status " + std::to_string(status) +
                             " (is the kernel's driver amdgpu loaded, may /dev/kfd be opened?)");
  }
  if (gpus == 0) throw std::runtime_error("the GPU library librocm_smi64 sees no AMD GPU, and MoRI does not start without");
}

void check_devices(const std::string &chosen, const std::string &sysfs) {
  std::optional<Verbs> verbs;
  std::string warnings;
  {
    Listening listening;
    verbs.emplace();
    warnings = listening.text();
  }
  fs::path sys = sysfs;
  std::vector<std::string> known;
  for (const Device &d : verbs->devices("")) known.push_back(d.name);
  std::vector<std::string> missing = entries(sys / "class/infiniband");
  for (const std::string &name : known) std::erase(missing, name);
  if (known.empty() && !missing.empty()) throw std::runtime_error(unknown(missing.front(), sys, warnings));
  if (known.empty()) {
    throw std::runtime_error("there is no RDMA device: " + (sys / "class/infiniband").string() + " has none" +
                             (warnings.empty() ? "" : "; libibverbs says: " + warnings));
  }
  bool excludes = !chosen.empty() && chosen[0] == '^';
  for (const std::string &name : names(excludes ? "" : chosen)) {
    if (!verbs->devices(name).empty()) continue;
    for (const std::string &m : missing) {
      if (m == name) throw std::runtime_error(unknown(name, sys, warnings));
    }
    throw std::runtime_error("there is no RDMA device " + name + ", there are: " + joined(known));
  }
  std::vector<Device> devices = verbs->devices(chosen);
  if (devices.empty()) throw std::runtime_error("\"" + chosen + "\" leaves no RDMA device of: " + joined(known));
  bool active = false;
  std::vector<std::string> asked;
  for (const Device &d : devices) {
    asked.push_back(d.name);
    for (bool port : verbs->ports(d)) active = active || port;
    if (!has_pci_address(d.path)) {
      throw std::runtime_error("the RDMA device " + d.name + " has no PCI address (" + d.path +
                               "), and MoRI would look for it for ever: software devices (rxe, siw) cannot be used; "
                               "choose others, or leave it out with \"^" + d.name + "\"");
    }
  }
  if (!active) {
    throw std::runtime_error("no port of the RDMA devices " + joined(asked) +
                             " is active: see ibv_devinfo, the cable and the network's interface");
  }
}

void check_locked_memory(uint64_t bytes) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    const std::string key = "CapEff:";
    if (line.compare(0, key.size(), key) == 0 &&
        ((std::stoull(line.substr(key.size()), nullptr, 16) >> kCapIpcLock) & 1) != 0) {
      return;
    }
  }
  rlimit limit{};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur >= bytes) return;
  throw std::runtime_error(std::to_string(bytes) + " bytes have to be locked in memory, and RLIMIT_MEMLOCK is " +
                           std::to_string(limit.rlim_cur) +
                           " (ulimit -l unlimited, LimitMEMLOCK=infinity, docker --ulimit memlock=-1)");
}

}  // namespace kvlink_mori
