#include "tiers/slot_memory.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace terrace {
namespace {

absl::Status Annotate(const absl::Status& status, absl::string_view what, size_t bytes) {
  return absl::Status(status.code(),
                      absl::StrCat(what, " of ", bytes, " bytes: ", status.message()));
}

}  // namespace

SlotMemory::SlotMemory(size_t block_bytes, std::unique_ptr<CopyEngine> copy_engine,
                       std::shared_ptr<Timeline> timeline)
    : block_bytes_(block_bytes),
      copy_engine_(std::move(copy_engine)),
      timeline_(std::move(timeline)) {
  if (timeline_ == nullptr) return;
  const bool is_host = copy_engine_->is_host();
  copy_tracks_ = {timeline_->Track(is_host ? "HBM up (emulated)" : "PCIe up"),
                  timeline_->Track(is_host ? "HBM down (emulated)" : "PCIe down")};
}

absl::StatusOr<std::unique_ptr<SlotMemory>> SlotMemory::Create(
    size_t block_bytes, const std::array<size_t, kPoolCount>& slots,
    std::unique_ptr<CopyEngine> copy_engine, std::shared_ptr<Timeline> timeline) {
  std::unique_ptr<SlotMemory> memory(
      new SlotMemory(block_bytes, std::move(copy_engine), std::move(timeline)));
  const auto bytes = [&](Pool pool) { return slots[static_cast<size_t>(pool)] * block_bytes; };

  if (bytes(Pool::kHbm) > 0) {
    auto hbm = memory->copy_engine_->Allocate(bytes(Pool::kHbm));
    if (!hbm.ok()) return Annotate(hbm.status(), "HBM tier", bytes(Pool::kHbm));
    memory->hbm_ = *std::move(hbm);
    memory->bases_[static_cast<size_t>(Pool::kHbm)] = memory->hbm_->data();
  }
  auto dram = AlignedBuffer::Create(bytes(Pool::kDram));
  if (!dram.ok()) return Annotate(dram.status(), "DRAM tier", bytes(Pool::kDram));
  auto transit = AlignedBuffer::Create(bytes(Pool::kTransit));
  if (!transit.ok()) return Annotate(transit.status(), "staging pool", bytes(Pool::kTransit));
  memory->dram_ = *std::move(dram);
  memory->transit_ = *std::move(transit);
  memory->bases_[static_cast<size_t>(Pool::kDram)] = memory->dram_.data();
  memory->bases_[static_cast<size_t>(Pool::kTransit)] = memory->transit_.data();
  if (bytes(Pool::kHbm) == 0) return memory;
  for (const auto& [pool, what] :
       {std::pair(Pool::kDram, "DRAM tier"), std::pair(Pool::kTransit, "staging pool")}) {
    auto pinned = memory->copy_engine_->Pin(memory->HostMemory(pool));
    if (!pinned.ok()) return Annotate(pinned.status(), what, bytes(pool));
    memory->pinned_[static_cast<size_t>(pool)] = *std::move(pinned);
  }
  return memory;
}

absl::Span<std::byte> SlotMemory::HostMemory(Pool pool) const {
  switch (pool) {
    case Pool::kHbm:
      return {};
    case Pool::kDram:
      return dram_.span();
    case Pool::kTransit:
      return transit_.span();
  }
  return {};
}

absl::Status SlotMemory::CopyAndWait(const Copy& copy) const {
  const int64_t begin = Timeline::Now();
  const absl::StatusOr<CopyTicket> ticket = copy_engine_->Submit({&copy, 1});
  const absl::Status status = ticket.ok() ? copy_engine_->Wait(*ticket) : ticket.status();
  RecordCopies(copy.direction, 1, copy.bytes, begin);
  return status;
}

void SlotMemory::RecordCopies(CopyDirection direction, size_t copies, size_t bytes,
                              int64_t begin) const {
  if (timeline_ == nullptr || copies == 0) return;
  timeline_->Record(copy_tracks_[static_cast<size_t>(direction)], "copy", begin, Timeline::Now(),
                    {"bytes", bytes}, {"copies", copies});
}

}  // namespace terrace
