#include "io/copy_plan.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <utility>

#include "io/check.h"

namespace terrace {
namespace {

using Way = CopyPiece::Way;

// Beyond this a kernel would count its work in more than 32 bits.
constexpr size_t kKernelLimitBytes = size_t{1} << 30;

const std::byte* HostSide(const Copy& copy) {
  return copy.direction == CopyDirection::kHostToDevice ? copy.source : copy.destination;
}
const std::byte* DeviceSide(const Copy& copy) {
  return copy.direction == CopyDirection::kHostToDevice ? copy.destination : copy.source;
}

constexpr size_t kWays = 3;
using PiecesByWay = std::array<std::vector<CopyPiece>, kWays>;

// A copy and where its sides lie; nullptr for memory that nobody told us of.
struct PlacedCopy {
  Copy copy;
  const MemoryRegions::Region* host = nullptr;
  const MemoryRegions::Region* device = nullptr;
};

// The driver refuses a copy that spans two allocations, even where they adjoin.
bool Follows(const PlacedCopy& first, const PlacedCopy& second) {
  return first.host != nullptr && first.host == second.host && first.device != nullptr &&
         first.device == second.device && first.copy.direction == second.copy.direction &&
         first.copy.source + first.copy.bytes == second.copy.source &&
         first.copy.destination + first.copy.bytes == second.copy.destination;
}

std::vector<PlacedCopy> Join(absl::Span<const Copy> batch, const MemoryRegions& pinned,
                             const MemoryRegions& device) {
  std::vector<PlacedCopy> joined;
  joined.reserve(batch.size());
  for (const Copy& copy : batch) {
    if (copy.bytes == 0) continue;
    const PlacedCopy placed = {.copy = copy,
                               .host = pinned.Find(HostSide(copy), copy.bytes),
                               .device = device.Find(DeviceSide(copy), copy.bytes)};
    if (!joined.empty() && Follows(joined.back(), placed)) {
      joined.back().copy.bytes += copy.bytes;
    } else {
      joined.push_back(placed);
    }
  }
  return joined;
}

// Of so many copies that are shared out, so many go by a kernel.
constexpr size_t kSharedOf = 5;
constexpr size_t kSharedByKernel = 3;

bool KernelMay(const PlacedCopy& placed) {
  return placed.host != nullptr && placed.host->in_kernels &&
         placed.copy.bytes <= kKernelLimitBytes;
}

// Whether a kernel moves it in its widest words, and it is small enough to gain by that.
bool KernelSuits(const PlacedCopy& placed, size_t max_bytes = kKernelMaxBytes) {
  constexpr uintptr_t kWordBytes = 16;
  const uintptr_t addresses = reinterpret_cast<uintptr_t>(placed.copy.source) |
                              reinterpret_cast<uintptr_t>(placed.copy.destination);
  return KernelMay(placed) && placed.copy.bytes <= max_bytes && addresses % kWordBytes == 0;
}

// How many copies the piece of this number of a way and direction takes.
size_t PieceLimit(Way way, size_t number) {
  if (way == Way::kKernel) return kKernelPieceCopies;
  if (way == Way::kSingle) return kBatchPieceCopies;
  size_t limit = kFirstPieceCopies;
  while (number-- > 0 && limit < kBatchPieceCopies) limit *= 2;
  return limit;
}

// Gives out copies of one direction in pieces.
void AddPieces(absl::Span<const PlacedCopy> copies, CopyDirection direction, CudaCopyMethod method,
               PiecesByWay& by_way) {
  size_t suited = 0;
  size_t shared = 0;
  const bool shares = direction == CopyDirection::kDeviceToHost;
  for (const PlacedCopy& placed : copies) {
    if (placed.copy.direction != direction) continue;
    if (KernelSuits(placed)) {
      ++suited;
    } else if (shares && KernelSuits(placed, kSharedMaxBytes)) {
      ++shared;
    }
  }
  const bool many = suited >= kKernelMinCopies;
  const bool many_shared = shared >= kSharedMinCopies;
  size_t shared_out = 0;
  const auto way_of = [&](const PlacedCopy& placed) {
    if (placed.host == nullptr) return Way::kSingle;
    switch (method) {
      case CudaCopyMethod::kAuto:
        if (KernelSuits(placed)) return many ? Way::kKernel : Way::kBatch;
        if (!many_shared || !KernelSuits(placed, kSharedMaxBytes)) return Way::kBatch;
        return shared_out++ % kSharedOf < kSharedByKernel ? Way::kKernel : Way::kBatch;
      case CudaCopyMethod::kCopyEngine:
        return Way::kBatch;
      case CudaCopyMethod::kKernel:
        return KernelMay(placed) ? Way::kKernel : Way::kBatch;
    }
    return Way::kBatch;
  };
  std::array<CopyPiece*, kWays> open = {};
  for (const PlacedCopy& placed : copies) {
    if (placed.copy.direction != direction) continue;
    const Way way = way_of(placed);
    CopyPiece*& piece = open[static_cast<size_t>(way)];
    std::vector<CopyPiece>& pieces = by_way[static_cast<size_t>(way)];
    if (piece == nullptr || piece->copies.size() == PieceLimit(way, pieces.size() - 1)) {
      pieces.push_back(
          {.way = way,
           .direction = direction,
           .shares_bus = method == CudaCopyMethod::kAuto && way == Way::kKernel && many_shared,
           .copies = {}});
      piece = &pieces.back();
      piece->copies.reserve(std::min(PieceLimit(way, pieces.size() - 1), copies.size()));
    }
    piece->copies.push_back(placed.copy);
  }
}

}  // namespace

void MemoryRegions::Add(const Region& region) {
  TERRACE_CHECK(region.bytes > 0);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(region.begin);
  const auto [added, is_new] = regions_.emplace(begin, region);
  TERRACE_CHECK(is_new);
  const auto next = std::next(added);
  TERRACE_CHECK(next == regions_.end() || begin + region.bytes <= next->first);
  TERRACE_CHECK(added == regions_.begin() ||
                std::prev(added)->first + std::prev(added)->second.bytes <= begin);
}

void MemoryRegions::Remove(const std::byte* begin) {
  const size_t removed = regions_.erase(reinterpret_cast<uintptr_t>(begin));
  TERRACE_CHECK_EQ(removed, 1u);
}

const MemoryRegions::Region* MemoryRegions::Find(const std::byte* begin, size_t bytes) const {
  const uintptr_t address = reinterpret_cast<uintptr_t>(begin);
  const auto after = regions_.upper_bound(address);
  if (after == regions_.begin()) return nullptr;
  const auto& [start, region] = *std::prev(after);
  const size_t offset = address - start;
  return offset < region.bytes && bytes <= region.bytes - offset ? &region : nullptr;
}

std::vector<CopyPiece> PlanCopies(absl::Span<const Copy> batch, const MemoryRegions& pinned,
                                  const MemoryRegions& device, CudaCopyMethod method) {
  const std::vector<PlacedCopy> copies = Join(batch, pinned, device);
  PiecesByWay up;
  PiecesByWay down;
  AddPieces(copies, CopyDirection::kHostToDevice, method, up);
  AddPieces(copies, CopyDirection::kDeviceToHost, method, down);
  std::vector<CopyPiece> plan;
  for (size_t way = 0; way < kWays; ++way) {
    for (size_t i = 0; i < std::max(up[way].size(), down[way].size()); ++i) {
      if (i < up[way].size()) plan.push_back(std::move(up[way][i]));
      if (i < down[way].size()) plan.push_back(std::move(down[way][i]));
    }
  }
  return plan;
}

}  // namespace terrace
