#ifndef TERRACE_TESTS_SUPPORT_INDEXED_CONTEXT_H_
#define TERRACE_TESTS_SUPPORT_INDEXED_CONTEXT_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "tests/support/context_rig.h"

// Contexts of a rig whose policies have an index.
namespace terrace {

inline constexpr int64_t kTokens = 1000;
inline constexpr size_t kChunk = 50;
inline constexpr uint64_t kNvmeBytes = 16 << 20;
inline constexpr size_t kSealed = 27;  // columns, of kTokens

inline RuntimeOptions Options(LookupKind kind) {
  RuntimeOptions options = SmallRuntime();
  options.lookup = {.kind = kind};
  options.lookup.keys = 64;
  options.lookup.share = 0.25;
  options.lookup.min_share = 0;
  options.index_tail_tokens = 64;
  return options;
}

// With room in DRAM for the keys of all graphs, or for a segment of a head that is clustered.
inline RuntimeOptions OnNvme(RuntimeOptions options) {
  const size_t blocks = options.lookup.kind == LookupKind::kGraph ? 160 : 48;
  options.tiers.dram_bytes = blocks * options.BlockBytes();
  options.tiers.nvme_bytes = kNvmeBytes;
  return options;
}

inline std::unique_ptr<Context> Filled(ContextRig& rig, int64_t tokens = kTokens) {
  auto context = *rig.runtime().NewContext();
  EXPECT_TRUE(rig.Prefill(*context, tokens, kChunk).ok());
  return context;
}

inline std::vector<std::vector<float>> Decode(const ContextRig& rig, Context& context) {
  std::vector<std::vector<float>> out;
  for (size_t layer = 0; layer < rig.shape().layers; ++layer) {
    out.push_back(*rig.Attend(context, layer, context.tokens(layer) - 1, 1));
  }
  return out;
}

// Of the output of a decode step, the largest over the layers.
inline double ErrorOf(const ContextRig& rig, Context& context) {
  const auto out = Decode(rig, context);
  double error = 0;
  for (size_t layer = 0; layer < out.size(); ++layer) {
    const int64_t position = context.tokens(layer) - 1;
    error = std::max(
        error,
        ContextRig::Error(out[layer], rig.Expected(layer, position, [](int64_t) { return true; })));
  }
  return error;
}

inline LookupStats StatsOf(const Context& context, LookupKind kind) {
  return context.Stats().Total().lookups[static_cast<size_t>(kind)];
}

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_INDEXED_CONTEXT_H_
