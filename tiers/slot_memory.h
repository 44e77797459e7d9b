#ifndef TERRACE_TIERS_SLOT_MEMORY_H_
#define TERRACE_TIERS_SLOT_MEMORY_H_

#include <array>
#include <cstddef>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "io/aligned_buffer.h"
#include "io/copy_engine.h"
#include "io/timeline.h"
#include "tiers/tier.h"

namespace terrace {

// The bytes of the DRAM tier, of the transit pool (both arenas in host memory) and of the HBM tier
// (an arena of the copy engine's device), cut into block-sized slots. Where there are slots in HBM
// the arenas are pinned, for copies at the speed of the bus. Says nothing about what they hold;
// SlotTable does. Immutable after Create, so thread-safe as far as callers keep to their slots.
class SlotMemory {
 public:
  // RecordCopies records in `timeline`, unless it is null. kResourceExhausted naming the tier whose
  // memory could not be had or pinned.
  static absl::StatusOr<std::unique_ptr<SlotMemory>> Create(
      size_t block_bytes, const std::array<size_t, kPoolCount>& slots,
      std::unique_ptr<CopyEngine> copy_engine, std::shared_ptr<Timeline> timeline = {});

  // A device address in kHbm, a host address otherwise.
  std::byte* Address(Place place) const {
    return bases_[static_cast<size_t>(place.pool)] + static_cast<size_t>(place.slot) * block_bytes_;
  }
  absl::Span<std::byte> HostSpan(Place place) const { return {Address(place), block_bytes_}; }
  // All of the memory of a pool on the host; empty for kHbm.
  absl::Span<std::byte> HostMemory(Pool pool) const;

  // Carries out a copy, of which one side is in HBM, and waits for it.
  absl::Status CopyAndWait(const Copy& copy) const;
  CopyEngine& copy_engine() const { return *copy_engine_; }
  // Records copies between host and HBM that were under way from `begin`, Timeline::Now() of then,
  // until now: time in which they were queued behind others is in it.
  void RecordCopies(CopyDirection direction, size_t copies, size_t bytes, int64_t begin) const;

 private:
  SlotMemory(size_t block_bytes, std::unique_ptr<CopyEngine> copy_engine,
             std::shared_ptr<Timeline> timeline);

  const size_t block_bytes_;
  const std::unique_ptr<CopyEngine> copy_engine_;
  const std::shared_ptr<Timeline> timeline_;
  // By CopyDirection; set where there is a timeline.
  std::array<TimelineTrack, 2> copy_tracks_ = {};
  std::unique_ptr<DeviceMemory> hbm_;
  AlignedBuffer dram_;
  AlignedBuffer transit_;
  // Ends before what it pins does.
  std::array<std::unique_ptr<PinnedMemory>, kPoolCount> pinned_;
  std::array<std::byte*, kPoolCount> bases_ = {};
};

}  // namespace terrace

#endif  // TERRACE_TIERS_SLOT_MEMORY_H_
