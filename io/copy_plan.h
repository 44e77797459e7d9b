#ifndef TERRACE_IO_COPY_PLAN_H_
#define TERRACE_IO_COPY_PLAN_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "absl/types/span.h"
#include "io/copy_engine.h"
#include "io/cuda_copy_engine.h"

namespace terrace {

// Ranges of memory that do not overlap, found by an address in them. Thread-compatible.
class MemoryRegions {
 public:
  struct Region {
    const std::byte* begin = nullptr;
    size_t bytes = 0;
    // Of pinned memory: kernels may use its host addresses.
    bool in_kernels = false;
  };

  // REQUIRES: `region` is not empty and overlaps no other.
  void Add(const Region& region);
  void Remove(const std::byte* begin);
  // The region that holds all of [begin, begin + bytes); nullptr when none does.
  const Region* Find(const std::byte* begin, size_t bytes) const;

 private:
  std::map<uintptr_t, Region> regions_;  // by where they begin
};

// Copies that go to a stream together.
struct CopyPiece {
  enum class Way : uint8_t {
    kKernel,  // one launch
    kBatch,   // one call that hands the copy engines all of them
    kSingle,  // a call each: memory that is not pinned
  };
  Way way = Way::kSingle;
  CopyDirection direction = CopyDirection::kHostToDevice;
  bool shares_bus = false;   // of a kernel: copy engines work on the rest of the batch meanwhile
  std::vector<Copy> copies;  // none is empty
};

// The most copies of a piece: what the parameters of a kernel hold, and few enough that the copy
// engines start on the first piece of a long batch while the driver is given the next.
inline constexpr size_t kKernelPieceCopies = 1024;
inline constexpr size_t kBatchPieceCopies = 256;
// The first pieces for the copy engines are shorter, each twice as long as the one before, so that
// the bus has something to do soon: the driver takes half a microsecond a copy.
inline constexpr size_t kFirstPieceCopies = 8;

// With kAuto the copies of at most so many bytes of a batch go by a kernel when they are at least
// so many. Driver and DMA engine spend more on starting a copy than these bytes take on the bus; a
// kernel costs a launch for all of them, but packs the bus less well than the DMA engines do.
inline constexpr size_t kKernelMaxBytes = size_t{24} << 10;
inline constexpr size_t kKernelMinCopies = 32;

// Down, copies of at most so many bytes, when they are at least so many, are shared out: three of
// five go by a kernel that leaves the copy engines room on the bus, which together fill it. Alone,
// an H100 carries 0.91 (copy engines) or 0.95 (a kernel) of what one large copy does in blocks of
// 64 KiB, and 0.96 this way; up, the copy engines alone come to 0.96.
inline constexpr size_t kSharedMaxBytes = size_t{128} << 10;
inline constexpr size_t kSharedMinCopies = 64;

// Decides how each copy of a batch travels. Copies that follow each other in the batch and in
// memory on both sides, within one region on each, become one; empty ones go. `pinned` has host
// memory, `device` allocations. Copies keep the order of the batch, as far as they have a
// direction and a way in common. Pieces of the two directions alternate, so that both begin at
// once, and those that Submit might have to wait for come last.
std::vector<CopyPiece> PlanCopies(absl::Span<const Copy> batch, const MemoryRegions& pinned,
                                  const MemoryRegions& device, CudaCopyMethod method);

}  // namespace terrace

#endif  // TERRACE_IO_COPY_PLAN_H_
