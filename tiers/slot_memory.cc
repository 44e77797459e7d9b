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

absl::Status SlotMemory::CopyAndWait(absl::Span<const Copy> batch) const {
  const int64_t begin = timeline_ == nullptr ? 0 : Timeline::Now();
  const absl::StatusOr<CopyTicket> ticket = copy_engine_->Submit(batch);
  const absl::Status status = ticket.ok() ? copy_engine_->Wait(*ticket) : ticket.status();
  if (timeline_ != nullptr) RecordCopies(batch, begin);
  return status;
}

// From Submit to the end of Wait, so time in which the batch was queued behind others is in it.
void SlotMemory::RecordCopies(absl::Span<const Copy> batch, int64_t begin) const {
  const int64_t end = Timeline::Now();
  for (const CopyDirection direction :
       {CopyDirection::kHostToDevice, CopyDirection::kDeviceToHost}) {
    uint64_t bytes = 0;
    size_t copies = 0;
    for (const Copy& copy : batch) {
      if (copy.direction != direction) continue;
      bytes += copy.bytes;
      ++copies;
    }
    if (copies == 0) continue;
    timeline_->Record(copy_tracks_[static_cast<size_t>(direction)], "copy", begin, end,
                      {"bytes", bytes}, {"copies", copies});
  }
}

}  // namespace terrace
