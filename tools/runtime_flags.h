#ifndef TERRACE_TOOLS_RUNTIME_FLAGS_H_
#define TERRACE_TOOLS_RUNTIME_FLAGS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/head_profile.h"
#include "runtime/lookup_policy.h"
#include "runtime/runtime_options.h"
#include "tools/engine/engine.h"
#include "tools/engine/weight_products.h"

namespace CLI {
class App;
}  // namespace CLI

namespace terrace {

// The flags with which commands open a runtime, with their defaults.
struct RuntimeFlags {
  size_t tokens_per_block = 64;
  size_t sinks = 4;
  size_t window = 512;
  size_t lookup_blocks = 16;
  std::optional<size_t> representatives;  // 8 for infllm; 4, as published, for infllm-published
  size_t page_tokens = 16;
  size_t lookup_keys = 100;
  size_t graph_effort = 0;
  double cluster_share = LookupOptions().share;
  double cluster_min_share = LookupOptions().min_share;
  std::optional<double> cluster_patience_ms;  // nullopt: unlimited
  size_t index_tail = 1024;
  uint64_t index_memory = 0;
  std::string kv_dtype = "fp16";
  std::string device = "cpu";   // or "cuda"
  std::optional<uint64_t> hbm;  // nullopt: none on the CPU, 1 GiB on CUDA
  uint64_t dram = uint64_t{256} << 20;
  uint64_t nvme = 0;
  std::string dir;
  std::string engine = "auto";
  size_t threads = 0;

  bool on_cuda() const { return device == "cuda"; }
  // kInvalidArgument naming the flags that do not go together.
  absl::Status Check() const;
};

// All but --policy, which commands take once or as a list. `flags` outlives parsing; `dir_help`
// says what the command does with --dir.
void AddRuntimeFlags(CLI::App& command, RuntimeFlags& flags, const std::string& dir_help);

// What a name given to --policy stands for.
struct AttentionPolicy {
  std::string name;
  std::optional<LookupOptions> lookup;  // nullopt: plain, the engine's own attention
  // The heads that stream instead, by how little they need else; nullopt: none.
  struct StreamingHeads {
    HeadProfile profile;
    double share = 0;  // of all heads, above 0
  };
  std::optional<StreamingHeads> streaming = std::nullopt;

  bool is_plain() const { return !lookup.has_value(); }
  // Of a model with `heads` KV heads in all layers together.
  size_t StreamingHeadCount(size_t heads) const;
  // The name and, where some heads stream, how many: "full, 4 of 8 heads streaming".
  std::string Label() const;
};

// What multiplies with the weights of `engine`, which has it do so from now on: the --device.
// Errors name the flag, and are those of MakeCudaProducts.
absl::StatusOr<std::unique_ptr<WeightProducts>> UseDevice(const RuntimeFlags& flags,
                                                          Engine& engine);

// "plain, full, streaming, infllm, infllm-published, quest, graph, cluster", for help texts.
std::string AttentionPolicyNames();
// kInvalidArgument naming the known ones.
absl::StatusOr<AttentionPolicy> ParseAttentionPolicy(absl::string_view name,
                                                     const RuntimeFlags& flags);

// Tokens that the engine runs at once, and that one Append brings.
inline constexpr size_t kChunkTokens = 512;

// The options of a runtime for the model of `engine` and so many contexts, which validate.
// kInvalidArgument naming the flag, its value and its limit, for a combination that this model does
// not allow, such as a head profile of another model. REQUIRES: not the plain policy.
absl::StatusOr<RuntimeOptions> MakeRuntimeOptions(const RuntimeFlags& flags,
                                                  const AttentionPolicy& policy,
                                                  const Engine& engine, size_t active_contexts);

}  // namespace terrace

#endif  // TERRACE_TOOLS_RUNTIME_FLAGS_H_
