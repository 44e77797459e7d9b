#include "tools/engine/plain_attention.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/kv_convert.h"
#include "io/check.h"
#include "tools/engine/engine_threads.h"
#include "tools/engine/matrix_product.h"
#include "tools/engine/physical_memory.h"

namespace terrace {
namespace {

// Queries of one head that are scored together. Their scores of all keys are held at once: a thread
// has 4 * kTileTokens bytes of scratch a key.
constexpr size_t kTileTokens = 64;

// Queries that see the keys of one KV head, and where their outputs go: [rows, head_dim], the rows
// `stride` elements apart. Row i sees `first_visible` + i keys, or all the same number.
struct Tile {
  const float* query;
  float* out;
  size_t rows;
  size_t stride;
  size_t first_visible;
  bool causal;  // else every row sees first_visible keys

  size_t visible(size_t row) const { return first_visible + (causal ? row : 0); }
};

// Scores to weights that add up to 1.
void Softmax(absl::Span<float> scores) {
  const float largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (float& score : scores) {
    score = std::exp(score - largest);
    sum += score;
  }
  const float scale = static_cast<float>(1 / sum);
  for (float& score : scores) score *= scale;
}

// keys, values: [visible(rows - 1), head_dim].
void AttendTile(const Tile& tile, const float* keys, const float* values, size_t head_dim,
                std::vector<float>& scratch) {
  const size_t key_count = tile.visible(tile.rows - 1);
  scratch.resize(std::max(scratch.size(), tile.rows * key_count));
  const Rows scores = {scratch.data(), tile.rows, key_count, key_count};
  MultiplyTransposed(1 / std::sqrt(static_cast<float>(head_dim)),
                     {tile.query, tile.rows, head_dim, tile.stride},
                     {keys, key_count, head_dim, head_dim}, scores);
  for (size_t row = 0; row < tile.rows; ++row) {
    const absl::Span<float> all(scores.data + row * key_count, key_count);
    const size_t visible = tile.visible(row);
    Softmax(all.first(visible));
    std::fill(all.begin() + static_cast<ptrdiff_t>(visible), all.end(), 0.0f);
  }
  Multiply({scores.data, tile.rows, key_count, key_count}, {values, key_count, head_dim, head_dim},
           {tile.out, tile.rows, head_dim, tile.stride});
}

}  // namespace

PlainAttention::PlainAttention(const ModelConfig& config, const Options& options)
    : query_heads_(config.query_heads),
      kv_heads_(config.kv_heads),
      head_dim_(config.head_dim),
      options_(options),
      layers_(config.layers) {
  const size_t elements = static_cast<size_t>(options.max_tokens) * config.kv_width();
  for (Layer& layer : layers_) {
    layer.keys.resize(elements);
    layer.values.resize(elements);
  }
}

absl::StatusOr<std::unique_ptr<PlainAttention>> PlainAttention::Create(const ModelConfig& config,
                                                                       const Options& options) {
  // A product inside counts keys in 31 bits.
  constexpr int64_t kMaxTokens = (int64_t{1} << 31) - 1;
  if (options.max_tokens < 1 || options.max_tokens > kMaxTokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "plain attention: max_tokens: ", options.max_tokens, " is not from 1 to ", kMaxTokens));
  }
  const uint64_t token_bytes = 2 * sizeof(float) * config.layers * config.kv_width();
  const absl::Status fits =
      CheckFitsMemory(absl::StrCat("plain attention over ", options.max_tokens, " tokens"),
                      token_bytes * static_cast<uint64_t>(options.max_tokens));
  if (!fits.ok()) return fits;
  return std::unique_ptr<PlainAttention>(new PlainAttention(config, options));
}

absl::Status PlainAttention::Store(const AttentionStep& step, Layer& layer) const {
  const size_t stride = kv_heads_ * head_dim_;
  const auto round_row = [&](const float* from, float* to) {
    if (options_.rounding == KvDtype::kFloat32) {
      std::copy_n(from, head_dim_, to);
      return true;
    }
    uint16_t rounded[kMaxHeadDim];
    if (EncodeKv(from, KvDtype::kFloat32, options_.rounding, head_dim_, rounded).has_value()) {
      return false;
    }
    DecodeKv(rounded, options_.rounding, head_dim_, to);
    return true;
  };
  for (size_t head = 0; head < kv_heads_; ++head) {
    const size_t first =
        head * static_cast<size_t>(options_.max_tokens) + static_cast<size_t>(step.position);
    for (size_t token = 0; token < step.tokens; ++token) {
      const size_t from = token * stride + head * head_dim_;
      const size_t to = (first + token) * head_dim_;
      if (round_row(step.key.data() + from, layer.keys.data() + to) &&
          round_row(step.value.data() + from, layer.values.data() + to)) {
        continue;
      }
      return absl::InvalidArgumentError(absl::StrCat(
          "plain attention: layer ", step.layer, ", token ", step.position + token, ", KV head ",
          head, ": key or value is not finite as ", KvDtypeName(options_.rounding)));
    }
  }
  layer.tokens = step.position + static_cast<int64_t>(step.tokens);
  return absl::OkStatus();
}

absl::Status PlainAttention::Attend(const AttentionStep& step) {
  TERRACE_CHECK(step.layer < layers_.size() && step.tokens > 0);
  TERRACE_CHECK_EQ(step.query.size(), step.tokens * query_heads_ * head_dim_);
  TERRACE_CHECK_EQ(step.out.size(), step.query.size());
  TERRACE_CHECK_EQ(step.key.size(), step.tokens * kv_heads_ * head_dim_);
  TERRACE_CHECK_EQ(step.value.size(), step.key.size());
  Layer& layer = layers_[step.layer];
  if (step.position != layer.tokens) {
    return absl::InvalidArgumentError(absl::StrCat("plain attention: layer ", step.layer, " has ",
                                                   layer.tokens, " tokens, so position ",
                                                   step.position, " is not the next"));
  }
  if (step.tokens > static_cast<uint64_t>(options_.max_tokens - layer.tokens)) {
    return absl::ResourceExhaustedError(absl::StrCat("plain attention: no room for ", step.tokens,
                                                     " tokens after ", layer.tokens,
                                                     ", max_tokens is ", options_.max_tokens));
  }
  if (absl::Status status = Store(step, layer); !status.ok()) return status;

  const size_t position = static_cast<size_t>(step.position);
  const size_t group = query_heads_ / kv_heads_;
  const size_t panel = static_cast<size_t>(options_.max_tokens) * head_dim_;
  std::vector<std::vector<float>> scratch(EngineThreads().threads());
  const auto attend = [&](size_t kv_head, const Tile& tile, size_t worker) {
    AttendTile(tile, layer.keys.data() + kv_head * panel, layer.values.data() + kv_head * panel,
               head_dim_, scratch[worker]);
  };
  if (step.tokens == 1) {
    // The heads of a group share their keys, so those are read once for all of them.
    EngineThreads().ForEach(kv_heads_, [&](size_t kv_head, size_t worker) {
      const size_t at = kv_head * group * head_dim_;
      attend(kv_head,
             {step.query.data() + at, step.out.data() + at, group, head_dim_, position + 1,
              /*causal=*/false},
             worker);
    });
    return absl::OkStatus();
  }
  const size_t tiles = (step.tokens + kTileTokens - 1) / kTileTokens;
  EngineThreads().ForEach(tiles * query_heads_, [&](size_t task, size_t worker) {
    const size_t head = task % query_heads_;
    const size_t first = task / query_heads_ * kTileTokens;
    const size_t at = (first * query_heads_ + head) * head_dim_;
    attend(
        head / group,
        {step.query.data() + at, step.out.data() + at, std::min(kTileTokens, step.tokens - first),
         query_heads_ * head_dim_, position + first + 1, /*causal=*/true},
        worker);
  });
  return absl::OkStatus();
}

absl::Span<const float> PlainAttention::keys(size_t layer, size_t kv_head) const {
  TERRACE_CHECK(layer < layers_.size() && kv_head < kv_heads_);
  const size_t panel = static_cast<size_t>(options_.max_tokens) * head_dim_;
  return absl::MakeConstSpan(layers_[layer].keys)
      .subspan(kv_head * panel, static_cast<size_t>(layers_[layer].tokens) * head_dim_);
}

absl::Status PlainAttention::Truncate(int64_t tokens) {
  if (tokens < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("plain attention: cannot truncate to ", tokens, " tokens"));
  }
  for (Layer& layer : layers_) layer.tokens = std::min(layer.tokens, tokens);
  return absl::OkStatus();
}

}  // namespace terrace
