#include "tools/index_eval/eval_heads.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"

namespace terrace {
namespace {

// Those asked for, or all.
absl::StatusOr<std::vector<size_t>> Select(const std::vector<size_t>& wanted, size_t count,
                                           absl::string_view what) {
  std::vector<size_t> all = wanted;
  if (all.empty()) {
    all.resize(count);
    std::iota(all.begin(), all.end(), 0);
  }
  for (const size_t i : all) {
    if (i < count) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("has ", count, " ", what, "s, so no ", what, " ", i));
  }
  return all;
}

// `rows` of `from`, evenly spread over tokens [first, end), each of `width` numbers.
std::vector<float> Spread(const std::vector<float>& from, size_t width, size_t first, size_t end,
                          size_t rows) {
  rows = std::min(rows, end - first);
  std::vector<float> spread;
  spread.reserve(rows * width);
  for (size_t i = 0; i < rows; ++i) {
    const float* const row = from.data() + (first + i * (end - first) / rows) * width;
    spread.insert(spread.end(), row, row + width);
  }
  return spread;
}

EvalHead Take(QkvHead all, const QkvDump& dump, const DumpSelection& selection) {
  const auto dim = static_cast<ptrdiff_t>(dump.head_dim());
  const auto first = static_cast<ptrdiff_t>(selection.sinks) * dim;
  const auto end = static_cast<ptrdiff_t>(dump.prompt_tokens() - selection.window) * dim;
  const size_t width = dump.group() * dump.head_dim();
  EvalHead head;
  head.head_dim = dump.head_dim();
  head.group = dump.group();
  head.keys.assign(all.keys.begin() + first, all.keys.begin() + end);
  head.values.assign(all.values.begin() + first, all.values.begin() + end);
  const size_t sample_tokens = (selection.samples + dump.group() - 1) / dump.group();
  head.samples = Spread(all.queries, width, selection.sinks, dump.prompt_tokens(), sample_tokens);
  head.queries = Spread(all.queries, width, dump.prompt_tokens(), dump.tokens(), selection.steps);
  return head;
}

}  // namespace

absl::StatusOr<std::vector<EvalHead>> MakeSyntheticHeads(const SyntheticHeadOptions& options,
                                                         size_t count) {
  std::vector<EvalHead> heads;
  for (size_t i = 0; i < count; ++i) {
    SyntheticHeadOptions one = options;
    one.seed += i;
    auto made = MakeSyntheticHead(one);
    if (!made.ok()) return made.status();
    EvalHead head;
    head.name = absl::StrCat("seed ", one.seed);
    head.head_dim = made->head_dim;
    head.group = made->group;
    head.keys = std::move(made->keys);
    head.values = std::move(made->values);
    head.samples = std::move(made->sample_queries);
    head.queries = std::move(made->decode_queries);
    heads.push_back(std::move(head));
  }
  return heads;
}

absl::StatusOr<std::vector<EvalHead>> ReadDumpHeads(const QkvDump& dump, const std::string& path,
                                                    const DumpSelection& selection) {
  const auto bad = [&](const auto&... what) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", what...));
  };
  // Sums of sizes that a person gives may wrap around.
  const size_t prompt = dump.prompt_tokens();
  if (selection.sinks >= prompt || selection.window >= prompt - selection.sinks) {
    return bad("its prompt of ", prompt, " tokens has none beyond ", selection.sinks,
               " sinks and a window of ", selection.window);
  }
  if (dump.tokens() == prompt) {
    return bad("has no tokens after those of the prompt, whose queries the search is for");
  }
  const auto layers = Select(selection.layers, dump.layers(), "layer");
  if (!layers.ok()) return bad(layers.status().message());
  const auto kv_heads = Select(selection.kv_heads, dump.kv_heads(), "KV head");
  if (!kv_heads.ok()) return bad(kv_heads.status().message());
  std::vector<EvalHead> heads;
  for (const size_t layer : *layers) {
    for (const size_t kv_head : *kv_heads) {
      absl::StatusOr<QkvHead> all = dump.Read(layer, kv_head);
      if (!all.ok()) return all.status();
      heads.push_back(Take(*std::move(all), dump, selection));
      heads.back().name = absl::StrCat("layer ", layer, " head ", kv_head);
    }
  }
  return heads;
}

}  // namespace terrace
