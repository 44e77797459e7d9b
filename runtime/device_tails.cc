#include "runtime/device_tails.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "io/check.h"

namespace terrace {

absl::StatusOr<std::unique_ptr<DeviceTails>> DeviceTails::Create(CopyEngine& engine,
                                                                 absl::Span<std::byte> tails) {
  std::unique_ptr<DeviceTails> mirror(new DeviceTails(engine, tails));
  absl::StatusOr<std::unique_ptr<DeviceMemory>> memory = engine.Allocate(tails.size());
  if (!memory.ok()) {
    return absl::Status(
        memory.status().code(),
        absl::StrCat("windows in HBM of ", tails.size(), " bytes: ", memory.status().message()));
  }
  mirror->memory_ = *std::move(memory);
  absl::StatusOr<std::unique_ptr<PinnedMemory>> pinned = engine.Pin(tails);
  if (!pinned.ok()) return pinned.status();
  mirror->pinned_ = *std::move(pinned);
  return mirror;
}

absl::Status DeviceTails::Bring(Tail& tail, size_t layer, Scratch& scratch) const {
  scratch.changes.clear();
  scratch.copies.clear();
  tail.ListChanges(layer, scratch.changes);
  if (scratch.changes.empty()) return absl::OkStatus();
  const auto base = static_cast<size_t>(tail.memory() - tails_.data());
  for (const Tail::Range& range : scratch.changes) {
    scratch.copies.push_back({.source = tail.memory() + range.offset,
                              .destination = memory_->data() + base + range.offset,
                              .bytes = range.bytes,
                              .direction = CopyDirection::kHostToDevice});
  }
  const absl::StatusOr<CopyTicket> ticket = engine_.Submit(scratch.copies);
  if (!ticket.ok()) return ticket.status();
  if (absl::Status status = engine_.Wait(*ticket); !status.ok()) return status;
  tail.SetMirrored(layer);
  return absl::OkStatus();
}

KvRun DeviceTails::Mirrored(const KvRun& run) const {
  const auto on_device = [this](const void* host) -> const void* {
    const auto offset = static_cast<size_t>(static_cast<const std::byte*>(host) - tails_.data());
    TERRACE_CHECK(offset < tails_.size());
    return memory_->data() + offset;
  };
  KvRun mirrored = run;
  mirrored.keys = on_device(run.keys);
  mirrored.values = on_device(run.values);
  return mirrored;
}

}  // namespace terrace
