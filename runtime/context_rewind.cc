#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/check.h"
#include "runtime/context.h"
#include "runtime/context_index.h"
#include "runtime/runtime_core.h"

namespace terrace {

absl::Status Context::Truncate(int64_t tokens) {
  absl::MutexLock lock(&mu_);
  if (absl::Status status = MakeReady(); !status.ok()) return status;
  if (tokens < 0 || tokens > TokensLocked()) {
    return absl::InvalidArgumentError(
        absl::StrCat("Truncate to ", tokens, " tokens of ", TokensLocked()));
  }
  // Blocks that stay blocks must be whole in all layers, also where a step ended in an error.
  if (absl::Status status = SealColumns(WindowBeginOf(tokens)); !status.ok()) return status;
  for (size_t layer = 0; layer < core_.shape().layers; ++layer) {
    if (tokens >= tail_.first(layer)) {
      tail_.Truncate(layer, tokens);
    } else {
      tail_.Restart(layer, tokens);
    }
  }
  return ReturnTo(tokens);
}

absl::StatusOr<std::unique_ptr<Context>> Context::Fork(int64_t tokens) {
  absl::MutexLock lock(&mu_);
  if (absl::Status status = MakeReady(); !status.ok()) return status;
  if (tokens < 0 || tokens > TokensLocked()) {
    return absl::InvalidArgumentError(
        absl::StrCat("Fork at ", tokens, " tokens of ", TokensLocked()));
  }
  if (absl::Status status = SealColumns(WindowBeginOf(tokens)); !status.ok()) return status;
  auto fork = std::unique_ptr<Context>(new Context(core_));
  absl::MutexLock fork_lock(&fork->mu_);
  if (absl::Status status = fork->MakeReady(); !status.ok()) return status;
  const size_t block = core_.block_tokens();
  const size_t shared =
      std::min(columns_.size(), (static_cast<size_t>(tokens) + block - 1) / block);
  fork->columns_.assign(columns_.begin(), columns_.begin() + static_cast<ptrdiff_t>(shared));
  fork->sealed_layers_.assign(shared, kShared);
  core_.columns().AddReference(fork->columns_);
  fork->token_ids_ = token_ids_;
  fork->chain_ = chain_;
  fork->lost_ = lost_;
  fork->index_->CopyFrom(*index_);
  fork->tail_.CopyFrom(tail_, tokens);
  fork->has_sinks_ = true;
  if (absl::Status status = fork->ReturnTo(tokens); !status.ok()) return status;
  return fork;
}

absl::Status Context::StartWith(std::vector<ColumnIndex> columns,
                                absl::Span<const int32_t> tokens) {
  absl::MutexLock lock(&mu_);
  columns_.assign(columns.begin(), columns.end());  // which keeps its room
  sealed_layers_.assign(columns_.size(), kShared);
  // Somebody who needed its memory may have parked it since it was made.
  if (absl::Status status = MakeReady(); !status.ok()) return status;
  token_ids_.assign(tokens.begin(), tokens.end());
  ExtendChain();
  has_sinks_ = false;
  stats_.prefix_tokens = tokens.size();
  const auto count = static_cast<int64_t>(tokens.size());
  for (size_t layer = 0; layer < core_.shape().layers; ++layer) tail_.Restart(layer, count);
  return ReturnTo(count);
}

absl::Status Context::ReturnTo(int64_t tokens) {
  ForgetTokenIds(tokens);
  lost_.RemoveIf([&](const LostTokens& lost) { return lost.first >= tokens; });
  rewind_to_ = tokens;
  const int64_t begin = WindowBeginOf(tokens);
  int64_t kept = 0;  // sealed tokens that stay blocks
  for (size_t layer = 0; layer < core_.shape().layers; ++layer) {
    absl::Status status = FetchFront(layer, begin);
    // Those of a fork were copied; a context that starts with a cached prefix has none yet.
    if (status.ok() && tail_.first(layer) > 0 && !has_sinks_) status = FetchSinks(layer);
    if (absl::IsDataLoss(status)) {
      state_ = State::kBroken;
      index_->Unpin();
      broken_ = absl::FailedPreconditionError(
          absl::StrCat("the context could not go back to ", tokens, " tokens: ", status.message()));
      core_.GiveTail(std::exchange(memory_, nullptr));
      tail_.Attach(nullptr);
    }
    if (!status.ok()) return status;
    kept = std::max(kept, tail_.first(layer));
  }
  has_sinks_ = true;
  rewind_to_.reset();
  const size_t columns = static_cast<size_t>(kept) / core_.block_tokens();
  index_->Truncate(columns);
  core_.columns().Release(absl::MakeConstSpan(columns_).subspan(columns));
  columns_.resize(columns);
  sealed_layers_.resize(columns);
  return absl::OkStatus();
}

int64_t Context::WindowBeginOf(int64_t tokens) const {
  return core_.WindowBegin(std::max<int64_t>(tokens - 1, 0));
}

absl::Status Context::SealColumns(int64_t tokens) {
  int64_t first = 0;
  for (size_t layer = 0; layer < core_.shape().layers; ++layer) {
    first = std::max(first, tail_.first(layer));
  }
  for (size_t layer = 0; layer < core_.shape().layers; ++layer) {
    if (absl::Status status = SealUpTo(layer, std::min(first, tokens)); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<Lease> Context::FetchRow(size_t layer, size_t column) {
  const size_t heads = core_.shape().kv_heads;
  std::vector<BlockRead> reads(heads);
  for (size_t head = 0; head < heads; ++head) {
    reads[head] = {.id = core_.columns().block(columns_[column], layer, head)};
  }
  absl::StatusOr<Lease> lease = core_.tiers().Fetch(
      reads, {.target = Tier::kDram, .lease_patience = RuntimeCore::kLeasePatience});
  if (!lease.ok()) return lease.status();
  for (size_t head = 0; head < heads; ++head) {
    if ((*lease)[head].outcome == BlockOutcome::kServed) continue;
    const size_t first = column * core_.block_tokens();
    return core_.NotServed(reads[head].id,
                           absl::StrCat("tokens ", first, " to ", first + core_.block_tokens(),
                                        " of layer ", layer, ", KV head ", head, " are lost"));
  }
  return lease;
}

// From the newest missing token backwards, block by block.
absl::Status Context::FetchFront(size_t layer, int64_t begin) {
  const auto block = static_cast<int64_t>(core_.block_tokens());
  const size_t row = core_.tail_layout().row_bytes();
  while (tail_.first(layer) > begin) {
    const int64_t column = (tail_.first(layer) - 1) / block;
    const absl::StatusOr<Lease> lease = FetchRow(layer, static_cast<size_t>(column));
    if (!lease.ok()) return lease.status();
    const auto count = static_cast<size_t>(tail_.first(layer) - column * block);
    tail_.OpenFront(layer, count);
    for (size_t head = 0; head < lease->size(); ++head) {
      const std::byte* const keys = (*lease)[head].data;
      tail_.FillFront(layer, head, 0, keys, keys + core_.block_tokens() * row, count);
    }
  }
  return absl::OkStatus();
}

absl::Status Context::FetchSinks(size_t layer) {
  if (core_.options().sink_tokens == 0) return absl::OkStatus();
  const absl::StatusOr<Lease> lease = FetchRow(layer, 0);
  if (!lease.ok()) return lease.status();
  const size_t row = core_.tail_layout().row_bytes();
  for (size_t head = 0; head < lease->size(); ++head) {
    const std::byte* const keys = (*lease)[head].data;
    tail_.FillSinks(layer, head, keys, keys + core_.block_tokens() * row);
  }
  return absl::OkStatus();
}

}  // namespace terrace
