#include "bench/peers/mapped_read.h"

#include <sys/mman.h>

#include <cstdint>

#include "io/aligned_buffer.h"

namespace terrace::peers {
namespace {

void Advise(absl::Span<const std::byte> part, int advice) {
  if (part.empty()) return;
  const size_t before = reinterpret_cast<uintptr_t>(part.data()) % kPageBytes;
  ::madvise(const_cast<std::byte*>(part.data()) - before, part.size() + before, advice);
}

}  // namespace

void ReadMapped(absl::Span<const absl::Span<const std::byte>> parts) {
  for (absl::Span<const std::byte> part : parts) Advise(part, MADV_WILLNEED);
  // Maps a part in one call instead of one fault for each 64 KiB of it.
  for (absl::Span<const std::byte> part : parts) Advise(part, MADV_POPULATE_READ);
}

}  // namespace terrace::peers
