#ifndef TERRACE_IO_ALIGNED_BUFFER_H_
#define TERRACE_IO_ALIGNED_BUFFER_H_

#include <cstddef>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace terrace {

// The unit of direct I/O, of checksums and of the NVMe layout, in bytes. Every device offset,
// length and buffer address is a multiple of it.
inline constexpr size_t kPageBytes = 4096;

constexpr bool IsPageAligned(size_t value) { return value % kPageBytes == 0; }

// Rounds up to whole pages. REQUIRES: `bytes` + kPageBytes does not overflow.
constexpr size_t PageAlignUp(size_t bytes) {
  return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

// Page-aligned anonymous memory, zero until written and not resident until touched. Buffers of at
// least one huge page (2 MiB) are aligned to it and offered to the kernel as transparent huge
// pages, which spares a large arena most of its TLB misses and of the cost of pinning.
//
// Thread-compatible. Moves transfer ownership and leave the source empty.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  ~AlignedBuffer();
  AlignedBuffer(AlignedBuffer&& other) noexcept;
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept;
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;

  // Maps `bytes`, rounded up to whole pages; 0 gives an empty buffer.
  // kResourceExhausted when the kernel refuses the mapping.
  static absl::StatusOr<AlignedBuffer> Create(size_t bytes);

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  absl::Span<std::byte> span() const { return {data_, size_}; }

 private:
  AlignedBuffer(std::byte* data, size_t size) : data_(data), size_(size) {}

  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace terrace

#endif  // TERRACE_IO_ALIGNED_BUFFER_H_
