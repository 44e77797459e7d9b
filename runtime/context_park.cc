#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "io/check.h"
#include "runtime/context.h"
#include "runtime/context_index.h"
#include "runtime/runtime_core.h"

namespace terrace {
namespace {

// Blocks that a window comes back in at a time: enough to keep a disk busy.
constexpr size_t kUnparkBlocks = 64;

}  // namespace

std::vector<BlockId> Context::ParkedBlocks() const {
  const size_t bytes = core_.options().BlockBytes();
  std::vector<BlockId> ids((core_.tail_layout().bytes() + bytes - 1) / bytes);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = ColumnBlockId(*parked_, i, 0);
  return ids;
}

absl::Status Context::Park() {
  absl::MutexLock lock(&mu_);
  switch (state_) {
    case State::kActive:
      return ParkLocked();
    case State::kParked:
      return absl::OkStatus();
    case State::kDropped:
      return absl::FailedPreconditionError("the context was dropped");
    case State::kBroken:
      return broken_;
  }
  return absl::OkStatus();
}

// Writes the memory of the tail as blocks; the last is filled up with what lies behind the tail.
absl::Status Context::ParkLocked() {
  TERRACE_CHECK(state_ == State::kActive);
  index_->Unpin();
  // A layer that is ahead of the others, in the middle of a step, counts too.
  bool any = false;
  for (size_t layer = 0; layer < core_.shape().layers; ++layer) any |= tail_.tokens(layer) > 0;
  if (any) {
    parked_ = core_.NewKey();
    const std::vector<BlockId> ids = ParkedBlocks();
    const size_t bytes = core_.options().BlockBytes();
    for (size_t i = 0; i < ids.size(); ++i) {
      const BlockWrite write = {
          .id = ids[i], .bytes = {memory_ + i * bytes, bytes}, .retention = Retention::kOwned};
      if (absl::Status status =
              core_.tiers().Put({&write, 1}, {.lease_patience = RuntimeCore::kLeasePatience});
          !status.ok()) {
        core_.tiers().Drop(ids);
        parked_.reset();
        return absl::Status(status.code(),
                            absl::StrCat("no room to move the window of an idle context to the "
                                         "tiers: ",
                                         status.message()));
      }
    }
  }
  tail_.Attach(nullptr);
  core_.GiveTail(std::exchange(memory_, nullptr));
  state_ = State::kParked;
  ++stats_.parks;
  return absl::OkStatus();
}

absl::Status Context::Unpark() {
  absl::StatusOr<std::byte*> memory = core_.TakeTail();
  if (!memory.ok()) return memory.status();
  if (parked_.has_value()) {
    const std::vector<BlockId> ids = ParkedBlocks();
    const size_t bytes = core_.options().BlockBytes();
    const size_t batch = std::clamp<size_t>(core_.UnpinnedBlocks() / 4, 1, kUnparkBlocks);
    std::vector<BlockRead> reads;
    for (size_t first = 0; first < ids.size(); first += batch) {
      reads.clear();
      for (size_t i = first; i < std::min(ids.size(), first + batch); ++i) {
        reads.push_back({.id = ids[i]});
      }
      absl::StatusOr<Lease> lease = core_.tiers().Fetch(
          reads, {.target = Tier::kDram, .lease_patience = RuntimeCore::kLeasePatience});
      if (!lease.ok()) {
        core_.GiveTail(*memory);
        return lease.status();
      }
      for (size_t i = 0; i < lease->size(); ++i) {
        if ((*lease)[i].outcome != BlockOutcome::kServed) {
          core_.GiveTail(*memory);
          state_ = State::kBroken;
          broken_ = absl::FailedPreconditionError(
              "the window of this context was lost while it was idle; drop it and start again");
          return absl::DataLossError(broken_.message());
        }
        std::memcpy(*memory + (first + i) * bytes, (*lease)[i].data, bytes);
      }
    }
    core_.tiers().Drop(ids);
    parked_.reset();
  }
  memory_ = *memory;
  tail_.Attach(memory_);
  state_ = State::kActive;
  return absl::OkStatus();
}

}  // namespace terrace
