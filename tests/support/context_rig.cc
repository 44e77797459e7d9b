#include "tests/support/context_rig.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <utility>

#include "index/kv_convert.h"
#include "tests/support/reference_attention.h"

namespace terrace {
namespace {

constexpr size_t kDefaultBlocks = 4096;

std::unique_ptr<Runtime> OpenOrDie(const RuntimeOptions& options, TierManager::Parts parts = {}) {
  auto runtime = Runtime::Open(options, std::move(parts));
  if (!runtime.ok()) {
    std::fprintf(stderr, "ContextRig: %s\n", runtime.status().ToString().c_str());
    std::abort();
  }
  return *std::move(runtime);
}

}  // namespace

RuntimeOptions SmallRuntime() {
  RuntimeOptions options;
  options.shape = {
      .layers = 2, .query_heads = 4, .kv_heads = 2, .head_dim = 32, .dtype = KvDtype::kFloat16};
  options.tokens_per_block = 32;  // 4 KiB
  options.sink_tokens = 4;
  options.window_tokens = 64;
  options.max_append_tokens = 96;
  options.tiers.dram_bytes = kDefaultBlocks * options.BlockBytes();
  options.threads = 2;
  return options;
}

ContextRig::ContextRig(RuntimeOptions options, uint64_t seed, TierManager::Parts parts)
    : options_(std::move(options)), seed_(seed) {
  if (options_.tiers.nvme_bytes > 0 && options_.tiers.nvme_dir.empty()) {
    options_.tiers.nvme_dir = directory_.path();
  }
  runtime_ = OpenOrDie(options_, std::move(parts));
}

void ContextRig::ReopenWith(const std::function<void()>& in_between,
                            const std::function<void(RuntimeOptions&)>& change) {
  runtime_.reset();
  in_between();
  options_.tiers.reuse = true;
  change(options_);
  runtime_ = OpenOrDie(options_);
}

std::vector<float> ContextRig::Row(int kind, size_t layer, int64_t position,
                                   size_t elements) const {
  std::seed_seq seed{static_cast<uint64_t>(kind), seed_, uint64_t{layer},
                     static_cast<uint64_t>(position)};
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> row(elements);
  for (float& element : row) element = normal(random);
  return row;
}

std::vector<float> ContextRig::Queries(size_t layer, int64_t position) const {
  std::vector<float> queries = Row(0, layer, position, shape().query_heads * shape().head_dim);
  for (float& element : queries) element *= 2;  // attention that prefers some tokens
  return queries;
}

std::vector<float> ContextRig::Keys(size_t layer, int64_t position) const {
  return Row(1, layer, position, size_t{shape().kv_heads} * shape().head_dim);
}

std::vector<float> ContextRig::Values(size_t layer, int64_t position) const {
  return Row(2, layer, position, size_t{shape().kv_heads} * shape().head_dim);
}

absl::Status ContextRig::Append(Context& context, size_t layer, size_t tokens) const {
  const int64_t first = context.tokens(layer);
  std::vector<float> keys;
  std::vector<float> values;
  for (size_t i = 0; i < tokens; ++i) {
    for (const bool is_key : {true, false}) {
      const int64_t position = first + static_cast<int64_t>(i);
      const std::vector<float> row = is_key ? Keys(layer, position) : Values(layer, position);
      std::vector<float>& to = is_key ? keys : values;
      to.insert(to.end(), row.begin(), row.end());
    }
  }
  return context.Append(layer, {.keys = keys.data(), .values = values.data(), .tokens = tokens});
}

absl::StatusOr<std::vector<float>> ContextRig::Attend(Context& context, size_t layer,
                                                      int64_t first_position, size_t positions,
                                                      std::vector<float>* lse) const {
  std::vector<float> queries;
  std::vector<int64_t> at;
  for (size_t i = 0; i < positions; ++i) {
    at.push_back(first_position + static_cast<int64_t>(i));
    const std::vector<float> row = Queries(layer, at.back());
    queries.insert(queries.end(), row.begin(), row.end());
  }
  std::vector<float> out(queries.size());
  std::vector<float> sums(positions * shape().query_heads);
  const absl::Status status =
      context.Attend(layer, {.queries = queries.data(), .positions = at},
                     {.out = absl::MakeSpan(out), .lse = absl::MakeSpan(sums)});
  if (!status.ok()) return status;
  if (lse != nullptr) *lse = std::move(sums);
  return out;
}

absl::StatusOr<std::vector<std::vector<float>>> ContextRig::Step(Context& context,
                                                                 size_t tokens) const {
  std::vector<std::vector<float>> outputs;
  for (size_t layer = 0; layer < shape().layers; ++layer) {
    const int64_t first = context.tokens(layer);
    if (absl::Status status = Append(context, layer, tokens); !status.ok()) return status;
    auto out = Attend(context, layer, first, tokens);
    if (!out.ok()) return out.status();
    outputs.push_back(*std::move(out));
  }
  return outputs;
}

absl::Status ContextRig::Prefill(Context& context, int64_t tokens, size_t chunk) const {
  while (context.tokens() < tokens) {
    const auto left = static_cast<size_t>(tokens - context.tokens());
    const auto outputs = Step(context, std::min(chunk, left));
    if (!outputs.ok()) return outputs.status();
  }
  return absl::OkStatus();
}

std::vector<double> ContextRig::Expected(size_t layer, int64_t position,
                                         const std::function<bool(int64_t)>& sees) const {
  const size_t head_dim = shape().head_dim;
  const std::vector<float> queries = Queries(layer, position);
  std::vector<double> expected;
  for (size_t head = 0; head < shape().kv_heads; ++head) {
    std::vector<float> keys;
    std::vector<float> values;
    for (int64_t token = 0; token <= position; ++token) {
      if (!sees(token)) continue;
      for (const bool is_key : {true, false}) {
        const std::vector<float> row = is_key ? Keys(layer, token) : Values(layer, token);
        // Through the dtype that it is stored in.
        std::vector<std::byte> stored(head_dim * KvDtypeBytes(shape().dtype));
        EncodeKv(row.data() + head * head_dim, KvDtype::kFloat32, shape().dtype, head_dim,
                 stored.data());
        std::vector<float>& to = is_key ? keys : values;
        to.resize(to.size() + head_dim);
        DecodeKv(stored.data(), shape().dtype, head_dim, to.data() + to.size() - head_dim);
      }
    }
    const ReferenceRun run = {.run = {.keys = keys.data(),
                                      .values = values.data(),
                                      .tokens = keys.size() / head_dim,
                                      .dtype = KvDtype::kFloat32}};
    const size_t rows = shape().group() * head_dim;
    const ReferenceResult result = ReferenceAttention(
        head_dim, absl::MakeConstSpan(queries).subspan(head * rows, rows), {&run, 1});
    expected.insert(expected.end(), result.out.begin(), result.out.end());
  }
  return expected;
}

double ContextRig::Error(absl::Span<const float> got, absl::Span<const double> expected) {
  double error = got.size() == expected.size() ? 0 : INFINITY;
  double largest = 0;
  for (size_t i = 0; i < std::min(got.size(), expected.size()); ++i) {
    error = std::max(error, std::abs(got[i] - expected[i]));
    largest = std::max(largest, std::abs(expected[i]));
  }
  return error / largest;
}

}  // namespace terrace
