#include <algorithm>
#include <cstring>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "index/kv_convert.h"
#include "io/check.h"
#include "runtime/context.h"
#include "runtime/runtime_core.h"

namespace terrace {
namespace {

// "keys of layer 3: token 17, KV head 2, element 5".
std::string Element(const ModelShape& shape, size_t layer, int64_t first_token,
                    const Tail::BadElement& bad) {
  const size_t row = bad.offset / shape.head_dim;
  return absl::StrCat(bad.in_keys ? "keys" : "values", " of layer ", layer, ": token ",
                      first_token + static_cast<int64_t>(row / shape.kv_heads), ", KV head ",
                      row % shape.kv_heads, ", element ", bad.offset % shape.head_dim);
}

// Whether some tier holds the blocks of all KV heads.
bool HasBlocks(RuntimeCore& core, ColumnIndex column, size_t layer) {
  absl::InlinedVector<BlockId, 32> ids;
  for (size_t head = 0; head < core.shape().kv_heads; ++head) {
    ids.push_back(core.columns().block(column, layer, head));
  }
  return core.tiers().CountLeading(ids) == ids.size();
}

}  // namespace

absl::Status Context::CheckInput(size_t layer, const KvInput& input) const {
  if (absl::Status status = CheckLayer(layer); !status.ok()) return status;
  if (input.keys == nullptr || input.values == nullptr || input.tokens == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", layer, ": no keys, no values or 0 tokens"));
  }
  if (input.tokens > core_.options().max_append_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "layer ", layer, ": ", input.tokens, " tokens at once are more than max_append_tokens, ",
        core_.options().max_append_tokens));
  }
  return absl::OkStatus();
}

absl::Status Context::Append(size_t layer, const KvInput& input) {
  const TimelineSpan span(core_.timeline(), "append", {"layer", layer}, {"tokens", input.tokens});
  if (absl::Status status = CheckInput(layer, input); !status.ok()) return status;
  absl::MutexLock lock(&mu_);
  if (absl::Status status = MakeReady(); !status.ok()) return status;
  const int64_t first = tail_.tokens(layer);
  // What not even the first of the new queries has in its window.
  if (absl::Status status = SealUpTo(layer, core_.WindowBegin(first)); !status.ok()) {
    return status;
  }
  const std::optional<Tail::BadElement> bad =
      tail_.Append(layer, input.keys, input.values, input.dtype, input.tokens);
  if (bad.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat(Element(core_.shape(), layer, first, *bad),
                                                   " is not finite as ",
                                                   KvDtypeName(core_.shape().dtype)));
  }
  stats_.appended_tokens += input.tokens;
  return absl::OkStatus();
}

absl::Status Context::SealUpTo(size_t layer, int64_t tokens) {
  while (tail_.first(layer) < tokens) {
    if (absl::Status status = SealBlock(layer); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Context::SealBlock(size_t layer) {
  const TimelineSpan span(core_.timeline(), "seal", {"layer", layer});
  const size_t tokens = core_.block_tokens();
  const size_t index = static_cast<size_t>(tail_.first(layer)) / tokens;
  const absl::StatusOr<ColumnIndex> column = ColumnAt(index);
  if (!column.ok()) return column.status();
  const bool shared = sealed_layers_[index] == kShared;
  // What the tiers lost of a shared column comes back with whoever computed it anew.
  if (!shared || !HasBlocks(core_, *column, layer)) {
    if (absl::Status status = PutBlock(layer, *column); !status.ok()) {
      return absl::Status(status.code(),
                          absl::StrCat("layer ", layer, ": no room for tokens ", tail_.first(layer),
                                       " to ", tail_.first(layer) + static_cast<int64_t>(tokens),
                                       ", which leave the window: ", status.message()));
    }
  }
  if (shared) {
    stats_.shared_blocks += core_.shape().kv_heads;
  } else {
    Summarise(*column, layer);
    stats_.sealed_blocks += core_.shape().kv_heads;
    if (++sealed_layers_[index] == core_.shape().layers) {
      core_.columns().Complete(*column);
      sealed_layers_[index] = kShared;
    }
  }
  tail_.PopFront(layer, tokens);
  return absl::OkStatus();
}

// The column of a context's block: the first layer that seals it starts it, under the name of its
// tokens where they are known and nobody else is just building the same.
absl::StatusOr<ColumnIndex> Context::ColumnAt(size_t index) {
  if (index < columns_.size()) return columns_[index];
  TERRACE_CHECK(index == columns_.size());
  if (index < chain_.size()) {
    const ColumnKey& key = chain_[index];
    if (const std::optional<ColumnIndex> shared = core_.columns().AcquireToSeal(key)) {
      columns_.push_back(*shared);
      sealed_layers_.push_back(kShared);
      return *shared;
    }
    const size_t tokens = core_.block_tokens();
    const auto own =
        core_.columns().Begin(key, index == 0 ? core_.chain_root() : chain_[index - 1],
                              absl::MakeConstSpan(token_ids_).subspan(index * tokens, tokens));
    if (own.ok() || !absl::IsAlreadyExists(own.status())) {
      if (own.ok()) {
        columns_.push_back(*own);
        sealed_layers_.push_back(0);
      }
      return own;
    }
  }
  const auto own = core_.columns().Begin(core_.NewKey(), {}, {});
  if (own.ok()) {
    columns_.push_back(*own);
    sealed_layers_.push_back(0);
  }
  return own;
}

absl::Status Context::PutBlock(size_t layer, ColumnIndex column) {
  const int64_t first = tail_.first(layer);
  const size_t heads = core_.shape().kv_heads;
  const size_t bytes = core_.options().BlockBytes();
  // Behind the tail there is room for one block of each head.
  std::byte* const blocks = memory_ + core_.tail_layout().bytes();
  absl::InlinedVector<BlockWrite, 32> writes(heads);
  for (size_t head = 0; head < heads; ++head) {
    const KvRun run =
        tail_.Run(layer, head, first, first + static_cast<int64_t>(core_.block_tokens()));
    std::byte* const block = blocks + head * bytes;
    std::memcpy(block, run.keys, bytes / 2);
    std::memcpy(block + bytes / 2, run.values, bytes / 2);
    writes[head] = {.id = core_.columns().block(column, layer, head),
                    .bytes = {block, bytes},
                    .retention = Retention::kOwned};
  }
  return core_.tiers().Put(writes, {.lease_patience = RuntimeCore::kLeasePatience});
}

void Context::Summarise(ColumnIndex column, size_t layer) {
  const int64_t first = tail_.first(layer);
  const int64_t end = first + static_cast<int64_t>(core_.block_tokens());
  for (size_t head = 0; head < core_.shape().kv_heads; ++head) {
    const LookupPolicy& policy = core_.policy(layer, head);
    if (!policy.looks_up()) continue;
    const absl::Span<const float> masses = tail_.Masses(layer, head, first, end);
    // Tokens that no query saw since they came (back) have no mass at all, and say nothing.
    const bool known = std::any_of(masses.begin(), masses.end(), [](float m) { return m > 0; });
    policy.summary()->Summarise(
        tail_.Run(layer, head, first, end).keys, core_.shape().dtype,
        known ? masses : absl::Span<const float>(),
        core_.columns().summary(column, layer, head).first(policy.summary()->bytes()));
  }
}

absl::Status Context::Refill(size_t layer, int64_t first_token, const KvInput& input) {
  if (absl::Status status = CheckLayer(layer); !status.ok()) return status;
  const auto tokens = static_cast<int64_t>(core_.block_tokens());
  const int64_t end = first_token + static_cast<int64_t>(input.tokens);
  absl::MutexLock lock(&mu_);
  if (absl::Status status = MakeReady(); !status.ok()) return status;
  if (input.keys == nullptr || input.values == nullptr || input.tokens == 0 || first_token < 0 ||
      first_token % tokens != 0 || end % tokens != 0 || end > tail_.first(layer)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "layer ", layer, ": tokens ", first_token, " to ", end, " are not whole blocks of ", tokens,
        " tokens below the window, which begins at ", tail_.first(layer)));
  }
  std::vector<std::byte> block(core_.options().BlockBytes());
  for (int64_t first = first_token; first < end; first += tokens) {
    const ColumnIndex column = columns_[static_cast<size_t>(first / tokens)];
    for (uint32_t head = 0; head < core_.shape().kv_heads; ++head) {
      absl::Status status = EncodeBlock(
          layer, head, input, static_cast<size_t>(first - first_token), absl::MakeSpan(block));
      const BlockWrite write = {.id = core_.columns().block(column, layer, head),
                                .bytes = block,
                                .retention = Retention::kOwned};
      if (status.ok())
        status = core_.tiers().Put({&write, 1}, {.lease_patience = RuntimeCore::kLeasePatience});
      if (!status.ok()) return status;
      const LostTokens refilled = {static_cast<uint32_t>(layer), head, first, tokens};
      lost_.RemoveIf([&](const LostTokens& lost) { return lost == refilled; });
    }
  }
  return absl::OkStatus();
}

// Writes the rows of one KV head, from token `from` of the input on, as a block holds them.
absl::Status Context::EncodeBlock(size_t layer, size_t kv_head, const KvInput& input, size_t from,
                                  absl::Span<std::byte> block) const {
  const ModelShape& shape = core_.shape();
  const size_t row_bytes = core_.tail_layout().row_bytes();
  for (size_t token = 0; token < core_.block_tokens(); ++token) {
    const size_t element = ((from + token) * shape.kv_heads + kv_head) * shape.head_dim;
    for (const bool in_keys : {true, false}) {
      const auto* const rows = static_cast<const std::byte*>(in_keys ? input.keys : input.values);
      const std::optional<size_t> bad = EncodeKv(
          rows + element * KvDtypeBytes(input.dtype), input.dtype, shape.dtype, shape.head_dim,
          block.data() + (in_keys ? 0 : block.size() / 2) + token * row_bytes);
      if (bad.has_value()) {
        return absl::InvalidArgumentError(
            absl::StrCat(Element(shape, layer, 0, {in_keys, element + *bad}),
                         " of the input is not finite as ", KvDtypeName(shape.dtype)));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace terrace
