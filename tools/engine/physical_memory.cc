#include "tools/engine/physical_memory.h"

#include <unistd.h>

#include "absl/strings/str_cat.h"

namespace terrace {

absl::Status CheckFitsMemory(absl::string_view what, uint64_t bytes) {
  const long pages = ::sysconf(_SC_PHYS_PAGES);
  const long page_bytes = ::sysconf(_SC_PAGESIZE);
  if (pages <= 0 || page_bytes <= 0) return absl::OkStatus();  // a system that does not say
  const uint64_t memory = static_cast<uint64_t>(pages) * static_cast<uint64_t>(page_bytes);
  if (bytes <= memory) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      what, ": needs ", bytes, " bytes of memory, of which this machine has ", memory, " in all"));
}

}  // namespace terrace
