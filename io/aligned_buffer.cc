#include "io/aligned_buffer.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <limits>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "io/check.h"

namespace terrace {
namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;

void Unmap(std::byte* data, size_t bytes) {
  if (bytes == 0) return;
  TERRACE_CHECK_EQ(::munmap(data, bytes), 0);
}

}  // namespace

absl::StatusOr<AlignedBuffer> AlignedBuffer::Create(size_t bytes) {
  if (bytes == 0) return AlignedBuffer();
  if (bytes > std::numeric_limits<size_t>::max() - kHugePageBytes - kPageBytes) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot map ", bytes, " bytes of memory"));
  }
  const size_t size = PageAlignUp(bytes);
  // mmap aligns to pages only. One huge page too many leaves room to start on a huge page boundary,
  // and what lies around the buffer goes back at once.
  const bool huge = size >= kHugePageBytes;
  const size_t mapped = huge ? size + kHugePageBytes : size;
  void* const base =
      ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "cannot map ", size, " bytes of memory: ", std::generic_category().message(errno)));
  }
  std::byte* data = static_cast<std::byte*>(base);
  if (huge) {
    const size_t lead =
        (kHugePageBytes - reinterpret_cast<uintptr_t>(data) % kHugePageBytes) % kHugePageBytes;
    Unmap(data, lead);
    data += lead;
    Unmap(data + size, mapped - lead - size);
    // Best effort: a kernel without transparent huge pages serves small ones.
    ::madvise(data, size, MADV_HUGEPAGE);
  }
  return AlignedBuffer(data, size);
}

AlignedBuffer::~AlignedBuffer() { Unmap(data_, size_); }

AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
  if (this != &other) {
    Unmap(data_, size_);
    data_ = std::exchange(other.data_, nullptr);
    size_ = std::exchange(other.size_, 0);
  }
  return *this;
}

}  // namespace terrace
