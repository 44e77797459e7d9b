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

absl::StatusOr<std::unique_ptr<SlotMemory>> SlotMemory::Create(
    size_t block_bytes, const std::array<size_t, kPoolCount>& slots,
    std::unique_ptr<CopyEngine> copy_engine) {
  std::unique_ptr<SlotMemory> memory(new SlotMemory(block_bytes, std::move(copy_engine)));
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
  const absl::StatusOr<CopyTicket> ticket = copy_engine_->Submit(batch);
  return ticket.ok() ? copy_engine_->Wait(*ticket) : ticket.status();
}

}  // namespace terrace
