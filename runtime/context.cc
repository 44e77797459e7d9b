#include "runtime/context.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/kv_convert.h"
#include "io/check.h"
#include "runtime/attend_pass.h"
#include "runtime/context_index.h"
#include "runtime/prefix_cache.h"
#include "runtime/runtime_core.h"
#include "runtime/saved_contexts.h"

namespace terrace {

Context::Context(RuntimeCore& core)
    : core_(core),
      tail_(core.tail_layout(), core.rope()),
      index_(std::make_unique<ContextIndex>(core)) {
  absl::MutexLock lock(&mu_);
  // All that can be: sealing a block then allocates nothing.
  columns_.reserve(core.columns().options().columns);
  sealed_layers_.reserve(core.columns().options().columns);
  stats_.layers.resize(core.shape().layers);
  last_blocks_.resize(core.shape().layers);
  core.Register(*this);
}

Context::~Context() {
  Drop();
  core_.Unregister(*this);
}

int64_t Context::TokensLocked() const {
  int64_t tokens = tail_.tokens(0);
  for (size_t layer = 1; layer < core_.shape().layers; ++layer) {
    tokens = std::min(tokens, tail_.tokens(layer));
  }
  return tokens;
}

absl::Status Context::MakeReady() {
  switch (state_) {
    case State::kDropped:
      return absl::FailedPreconditionError("the context was dropped");
    case State::kBroken:
      return broken_;
    case State::kParked:
      if (absl::Status status = Unpark(); !status.ok()) return status;
      break;
    case State::kActive:
      break;
  }
  last_use_ = core_.NextUse();
  return rewind_to_.has_value() ? ReturnTo(*rewind_to_) : absl::OkStatus();
}

absl::Status Context::CheckLayer(size_t layer) const {
  if (layer < core_.shape().layers) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("layer ", layer, " is not below the ",
                                                 core_.shape().layers, " layers of the model"));
}

absl::Status Context::AddTokenIds(int64_t first, absl::Span<const int32_t> tokens) {
  absl::MutexLock lock(&mu_);
  if (absl::Status status = MakeReady(); !status.ok()) return status;
  int64_t appended = 0;
  for (size_t layer = 0; layer < core_.shape().layers; ++layer) {
    appended = std::max(appended, tail_.tokens(layer));
  }
  const auto named = static_cast<int64_t>(token_ids_.size());
  if (first < 0 || first > std::max(named, appended)) {
    return absl::InvalidArgumentError(absl::StrCat("token ids from position ", first, " on, where ",
                                                   named, " tokens are named and ", appended,
                                                   " appended"));
  }
  const auto id = [&](int64_t position) { return tokens[static_cast<size_t>(position - first)]; };
  const int64_t end = first + static_cast<int64_t>(tokens.size());
  for (int64_t i = first; i < std::min({end, named, appended}); ++i) {
    const int32_t before = token_ids_[static_cast<size_t>(i)];
    if (id(i) == before) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("token ", i, " was appended as ", before, ", not as ", id(i)));
  }
  // Tokens without names came: sharing ended there.
  if (named < appended) return absl::OkStatus();
  // What was named and not appended is named anew.
  const int64_t keep = std::max(first, appended);
  ForgetTokenIds(keep);
  for (int64_t i = keep; i < end; ++i) token_ids_.push_back(id(i));
  ExtendChain();
  return absl::OkStatus();
}

void Context::ExtendChain() {
  const size_t block = core_.block_tokens();
  while ((chain_.size() + 1) * block <= token_ids_.size()) {
    const ColumnKey parent = chain_.empty() ? core_.chain_root() : chain_.back();
    chain_.push_back(
        ChainNext(parent, absl::MakeConstSpan(token_ids_).subspan(chain_.size() * block, block)));
  }
}

void Context::ForgetTokenIds(int64_t tokens) {
  if (static_cast<int64_t>(token_ids_.size()) <= tokens) return;
  token_ids_.resize(static_cast<size_t>(tokens));
  chain_.resize(token_ids_.size() / core_.block_tokens());
}

absl::Status Context::EvenOut(absl::string_view what) {
  for (size_t layer = 0; layer < core_.shape().layers; ++layer) {
    if (tail_.tokens(layer) != tail_.tokens(0)) {
      return absl::FailedPreconditionError(
          absl::StrCat(what, " in the middle of a step: layer 0 has ", tail_.tokens(0),
                       " tokens, layer ", layer, " has ", tail_.tokens(layer)));
    }
  }
  return SealColumns(tail_.tokens(0));
}

absl::Status Context::Attend(size_t layer, const AttendInput& input, const AttendOutput& output) {
  absl::MutexLock lock(&mu_);
  if (absl::Status status = MakeReady(); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<AttendPass>> pass = core_.TakePass();
  if (!pass.ok()) return pass.status();
  const absl::Status status = (*pass)->RunOne(*this, layer, input, output);
  core_.GivePass(*std::move(pass));
  return status;
}

absl::Span<const ColumnIndex> Context::SealedColumns(size_t layer) const {
  return absl::MakeConstSpan(columns_).first(static_cast<size_t>(tail_.first(layer)) /
                                             core_.block_tokens());
}

absl::Status Context::ObserveQueries(size_t layer, const AttendInput& input) {
  if (absl::Status status = CheckLayer(layer); !status.ok()) return status;
  if (input.queries == nullptr || input.positions.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", layer, ": no queries"));
  }
  const size_t heads = core_.shape().kv_heads;
  const size_t rows = size_t{core_.shape().group()} * core_.shape().head_dim;  // of a KV head
  std::vector<float> token(heads * rows);
  absl::MutexLock lock(&mu_);
  for (size_t i = 0; i < input.positions.size(); ++i) {
    const auto* const from =
        static_cast<const std::byte*>(input.queries) + i * token.size() * KvDtypeBytes(input.dtype);
    DecodeKv(from, input.dtype, token.size(), token.data());
    for (size_t head = 0; head < heads; ++head) {
      index_->AddQueries(layer, head, absl::MakeConstSpan(token).subspan(head * rows, rows));
    }
  }
  return absl::OkStatus();
}

absl::Status Context::BuildIndex(size_t layer) {
  if (absl::Status status = CheckLayer(layer); !status.ok()) return status;
  absl::MutexLock lock(&mu_);
  if (absl::Status status = MakeReady(); !status.ok()) return status;
  return index_->Build(layer, SealedColumns(layer));
}

absl::Status Context::Save(absl::string_view name) {
  const TimelineSpan span(core_.timeline(), "save context");
  absl::MutexLock lock(&mu_);
  if (absl::Status status = MakeReady(); !status.ok()) return status;
  if (absl::Status status = EvenOut("Save"); !status.ok()) return status;
  return core_.saved().Save(name, *this);
}

void Context::Drop() {
  absl::MutexLock lock(&mu_);
  ReleaseAll();
}

void Context::ReleaseAll() {
  if (state_ == State::kDropped) return;
  if (memory_ != nullptr) core_.GiveTail(std::exchange(memory_, nullptr));
  tail_.Attach(nullptr);
  if (parked_.has_value()) core_.tiers().Drop(ParkedBlocks());
  parked_.reset();
  index_->Clear();
  core_.columns().Release(columns_);
  columns_.clear();
  sealed_layers_.clear();
  state_ = State::kDropped;
}

Context* Context::LockIdlest(const absl::flat_hash_set<Context*>& contexts) {
  Context* idlest = nullptr;
  for (Context* const context : contexts) {
    if (!context->mu_.TryLock()) continue;
    const bool better = context->state_ == State::kActive &&
                        (idlest == nullptr || context->last_use_ < idlest->last_use_);
    Context* const rest = better ? std::exchange(idlest, context) : context;
    if (rest != nullptr) rest->mu_.Unlock();
  }
  return idlest;
}

absl::Status Context::ParkAndUnlock(Context& context) {
  absl::Status status = context.ParkLocked();
  context.mu_.Unlock();
  return status;
}

int64_t Context::tokens() const {
  absl::MutexLock lock(&mu_);
  return state_ == State::kDropped ? 0 : TokensLocked();
}

int64_t Context::tokens(size_t layer) const {
  absl::MutexLock lock(&mu_);
  return state_ == State::kDropped || layer >= core_.shape().layers ? 0 : tail_.tokens(layer);
}

std::vector<int32_t> Context::TokenIds() const {
  absl::MutexLock lock(&mu_);
  return token_ids_;
}

std::vector<LostTokens> Context::Lost() const {
  absl::MutexLock lock(&mu_);
  return lost_.list();
}

ContextStats Context::Stats() const {
  absl::MutexLock lock(&mu_);
  ContextStats stats = stats_;
  stats.index_refusals = index_->refusals();
  return stats;
}

}  // namespace terrace
