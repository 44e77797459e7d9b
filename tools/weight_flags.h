#ifndef TERRACE_TOOLS_WEIGHT_FLAGS_H_
#define TERRACE_TOOLS_WEIGHT_FLAGS_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tools/engine/paged_ffn.h"

namespace CLI {
class App;
}  // namespace CLI

namespace terrace {

// Whether --predictor takes one name, or several to compare.
enum class Predictors : uint8_t { kOne, kSeveral };

// The flags with which commands page feed-forward weights, with their defaults.
struct WeightFlags {
  std::string bundles;  // empty: weights are in memory
  uint64_t dram = 0;
  std::string predictors = "low-rank";
  size_t window = 0;
  bool prefetch = false;

  bool given() const { return !bundles.empty(); }
  // kInvalidArgument naming the flag.
  absl::Status Check(Predictors predictors) const;
  // Options for each predictor. REQUIRES: given, and Check passed.
  std::vector<PagedFfnOptions> Options(const std::string& model) const;
};

// `flags` outlives parsing.
void AddWeightFlags(CLI::App& command, WeightFlags& flags, Predictors predictors);

}  // namespace terrace

#endif  // TERRACE_TOOLS_WEIGHT_FLAGS_H_
