// Stands in for librocm_smi64.so.1, with the functions that MoRI looks up in it. Every status is 0, or 2 for "not supported".
//
// Environment: STANDIN_SMI_GPUS (1), the GPUs that it sees; STANDIN_SMI_ADDRESS, what asking for the address of one does: "exit"
// makes it fail, over which MoRI calls exit, "abort" aborts, "hang" does not return.

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>

extern "C" {

int rsmi_init(uint64_t) { return 0; }
int rsmi_shut_down() { return 0; }
int rsmi_status_string(int, const char **text) {
  *text = "a GPU has no address";
  return 0;
}
int rsmi_num_monitor_devices(uint32_t *n) {
  const char *gpus = std::getenv("STANDIN_SMI_GPUS");
  *n = gpus ? static_cast<uint32_t>(std::atoi(gpus)) : 1;
  return 0;
}
int rsmi_dev_pci_id_get(uint32_t i, uint64_t *bus) {
  const char *set = std::getenv("STANDIN_SMI_ADDRESS");
  std::string wanted = set ? set : "";
  if (wanted == "abort") std::abort();
  while (wanted == "hang") pause();
  *bus = static_cast<uint64_t>(i + 1) << 8;
  return wanted == "exit" ? 2 : 0;
}
int rsmi_is_P2P_accessible(uint32_t, uint32_t, bool *accessible) {
  *accessible = false;
  return 0;
}
int rsmi_topo_get_link_type(uint32_t, uint32_t, uint64_t *, int *) { return 2; }
int rsmi_topo_get_link_weight(uint32_t, uint32_t, uint64_t *) { return 2; }
}
