#include "tools/runtime_flags.h"

#include <memory>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "io/block_device.h"
#include "io/check.h"
#include "tools/byte_size.h"
#include "tools/command.h"
#include "tools/engine/context_attention.h"
#include "tools/engine/cuda_products.h"

namespace terrace {
namespace {

constexpr absl::string_view kPlain = "plain";
constexpr absl::string_view kPublished = "infllm-published";
constexpr uint64_t kCudaHbmBytes = uint64_t{1} << 30;
constexpr size_t kRepresentatives = 8;
constexpr size_t kPublishedRepresentatives = 4;

KvDtype DtypeOf(absl::string_view name) {
  for (const KvDtype dtype : {KvDtype::kFloat16, KvDtype::kBfloat16, KvDtype::kFloat32}) {
    if (name == KvDtypeName(dtype)) return dtype;
  }
  TERRACE_CHECK(false);
  return KvDtype::kFloat16;
}

// Names flags where Validate names fields.
absl::Status NameFlags(const absl::Status& status) {
  constexpr std::pair<absl::string_view, absl::string_view> kFlags[] = {
      {"tokens_per_block", "--tokens-per-block"},
      {"sink_tokens", "--sinks"},
      {"window_tokens", "--window"},
      {"index_tail_tokens", "--index-tail"},
      {"lookup policy graph: keys", "--lookup-keys"},
      {"lookup policy graph: effort", "--graph-effort"},
      {"lookup policy cluster: share", "--cluster-share"},
      {"lookup policy cluster: min_share", "--cluster-min-share"},
      {"lookup policy cluster: patience", "--cluster-patience"},
      {"tiers.dram_bytes", "--dram"},
      {"dram_bytes", "--dram"},
      {"tiers.hbm_bytes", "--hbm"},
      {"hbm_bytes", "--hbm"},
      {"nvme_bytes", "--nvme"},
      {"nvme_dir", "--dir"}};
  absl::string_view message = status.message();
  for (const auto& [field, flag] : kFlags) {
    if (!absl::ConsumePrefix(&message, field)) continue;
    return absl::Status(status.code(), absl::StrCat(flag, message));
  }
  return status;
}

void AddLookupFlags(CLI::App& command, RuntimeFlags& flags) {
  const CLI::Validator is_unsigned(CheckUnsigned, "");
  command
      .add_option("--tokens-per-block", flags.tokens_per_block,
                  "Tokens of a KV block, which holds one layer and KV head")
      ->check(is_unsigned)
      ->check(CLI::Range(size_t{1}, size_t{4096}));
  command.add_option("--sinks", flags.sinks, "First tokens, which every query attends to")
      ->check(is_unsigned)
      ->check(CLI::Range(size_t{0}, size_t{4096}));
  command.add_option("--window", flags.window, "Newest tokens, which every query attends to")
      ->check(is_unsigned)
      ->check(CLI::Range(size_t{1}, size_t{1} << 20));
  command
      .add_option("--lookup-blocks", flags.lookup_blocks,
                  "infllm and quest: blocks that a step attends to beyond sinks and window")
      ->check(is_unsigned)
      ->check(CLI::Range(size_t{1}, size_t{1} << 20));
  command
      .add_option("--representatives", flags.representatives,
                  "infllm: keys that stand for a block; 8 unless given, 4 for infllm-published")
      ->check(is_unsigned)
      ->check(CLI::Range(size_t{1}, size_t{4096}));
  command.add_option("--page-tokens", flags.page_tokens, "quest: tokens whose keys share a bound")
      ->check(is_unsigned)
      ->check(CLI::Range(size_t{1}, size_t{4096}));
}

void AddIndexFlags(CLI::App& command, RuntimeFlags& flags) {
  const CLI::Validator is_unsigned(CheckUnsigned, "");
  const CLI::Validator is_not_nan(CheckNotNan, "");
  command
      .add_option("--lookup-keys", flags.lookup_keys,
                  "graph: tokens that each query attends to beyond sinks and window")
      ->check(is_unsigned)
      ->check(CLI::Range(size_t{1}, size_t{1} << 20));
  command
      .add_option("--graph-effort", flags.graph_effort,
                  "graph: width of the search's beam; 0 for two and a half times --lookup-keys")
      ->check(is_unsigned)
      ->check(CLI::Range(size_t{0}, size_t{1} << 20));
  command
      .add_option("--cluster-share", flags.cluster_share,
                  "cluster: share of the indexed tokens that a step attends to; the others are "
                  "estimated. With --nvme a cluster is a block: --tokens-per-block 16 suits it")
      ->check(is_not_nan)
      ->check(CLI::Range(1e-6, 1.0));
  command
      .add_option("--cluster-min-share", flags.cluster_min_share,
                  "cluster: tokens with less than this share of a query's attention are estimated "
                  "even where --cluster-share has room for them")
      ->check(is_not_nan)
      ->check(CLI::Range(0.0, 1.0));
  command
      .add_option("--cluster-patience", flags.cluster_patience_ms,
                  "cluster: milliseconds that a call waits for clusters it wants; what comes later "
                  "is estimated too; unlimited unless given")
      ->check(is_not_nan)
      ->check(CLI::Range(0.0, 1e9));
  command
      .add_option("--index-tail", flags.index_tail,
                  "graph and cluster: tokens beyond the window that are attended to one by one "
                  "before they are worth indexing")
      ->check(is_unsigned)
      ->check(CLI::Range(size_t{1}, size_t{1} << 20));
  AddByteSizeOption(command, "--index-memory", flags.index_memory,
                    "graph and cluster: memory for indexes, beside the tiers; 0 for a quarter of "
                    "the DRAM tier and a tenth of the NVMe tier");
}

}  // namespace

absl::Status RuntimeFlags::Check() const {
  if (nvme > 0 && dir.empty()) {
    return absl::InvalidArgumentError("--dir: needed when --nvme is not 0");
  }
  if (sinks > tokens_per_block) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--sinks: ", sinks, " is more than the --tokens-per-block of ", tokens_per_block));
  }
  return absl::OkStatus();
}

void AddRuntimeFlags(CLI::App& command, RuntimeFlags& flags, const std::string& dir_help) {
  AddLookupFlags(command, flags);
  AddIndexFlags(command, flags);
  command.add_option("--kv-dtype", flags.kv_dtype, "How elements of keys and values are stored")
      ->check(CLI::IsMember({"fp16", "bf16", "fp32"}));
  command
      .add_option(
          "--device", flags.device,
          "What multiplies with the weights, and what the HBM tier lies in: on the cpu that "
          "is host memory, which stands in for HBM")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  AddByteSizeOption(command, "--hbm", flags.hbm,
                    "Capacity of the HBM tier, 0 for none; unless given, none on the cpu and 1 GiB "
                    "on cuda");
  AddByteSizeOption(command, "--dram", flags.dram,
                    "Capacity of the DRAM tier; sinks, windows and summaries come on top");
  AddByteSizeOption(command, "--nvme", flags.nvme,
                    "Capacity of the NVMe tier, everything in its file included; 0 for none");
  command.add_option("--dir", flags.dir, dir_help)->type_name("DIR");
  command.add_option("--engine", flags.engine, "I/O engine of the NVMe tier")
      ->check(CLI::IsMember({"auto", "io_uring", "threads"}));
  command
      .add_option("--threads", flags.threads,
                  "Threads that compute attention over tiers; 0 for as many as processors")
      ->check(CLI::Validator(CheckUnsigned, ""))
      ->check(CLI::Range(size_t{0}, size_t{1024}));
}

absl::StatusOr<std::unique_ptr<WeightProducts>> UseDevice(const RuntimeFlags& flags,
                                                          Engine& engine) {
  std::unique_ptr<WeightProducts> products = std::make_unique<CpuProducts>();
  if (flags.on_cuda()) {
    auto on_cuda = MakeCudaProducts(engine.weights());
    if (!on_cuda.ok()) {
      return absl::Status(on_cuda.status().code(),
                          absl::StrCat("--device cuda: ", on_cuda.status().message()));
    }
    products = *std::move(on_cuda);
  }
  engine.UseProducts(products.get());
  return products;
}

std::string AttentionPolicyNames() {
  return absl::StrCat(kPlain, ", full, streaming, infllm, ", kPublished, ", quest, graph, cluster");
}

absl::StatusOr<AttentionPolicy> ParseAttentionPolicy(absl::string_view name,
                                                     const RuntimeFlags& flags) {
  AttentionPolicy policy = {.name = std::string(name), .lookup = std::nullopt};
  if (name == kPlain) return policy;
  if (name == kPublished) {
    policy.lookup = PublishedInfllm(flags.lookup_blocks,
                                    flags.representatives.value_or(kPublishedRepresentatives));
    return policy;
  }
  const absl::StatusOr<LookupKind> kind = ParseLookupKind(name);
  if (!kind.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--policy: \"", name, "\" is not one of ", AttentionPolicyNames()));
  }
  policy.lookup = LookupOptions();
  policy.lookup->kind = *kind;
  policy.lookup->blocks = flags.lookup_blocks;
  policy.lookup->representatives = flags.representatives.value_or(kRepresentatives);
  policy.lookup->page_tokens = flags.page_tokens;
  policy.lookup->keys = flags.lookup_keys;
  policy.lookup->effort = flags.graph_effort;
  policy.lookup->share = flags.cluster_share;
  policy.lookup->min_share = flags.cluster_min_share;
  if (flags.cluster_patience_ms.has_value()) {
    policy.lookup->patience = absl::Milliseconds(*flags.cluster_patience_ms);
  }
  return policy;
}

size_t AttentionPolicy::StreamingHeadCount(size_t heads) const {
  if (is_plain()) return 0;
  if (lookup->kind == LookupKind::kStreaming) return heads;
  return streaming.has_value() ? StreamingOverrides(streaming->profile, streaming->share).size()
                               : 0;
}

std::string AttentionPolicy::Label() const {
  if (!streaming.has_value()) return name;
  const size_t heads = streaming->profile.heads.size();
  return absl::StrCat(name, ", ", StreamingHeadCount(heads), " of ", heads, " heads streaming");
}

absl::StatusOr<RuntimeOptions> MakeRuntimeOptions(const RuntimeFlags& flags,
                                                  const AttentionPolicy& policy,
                                                  const Engine& engine, size_t active_contexts) {
  TERRACE_CHECK(!policy.is_plain());
  absl::StatusOr<ModelShape> shape =
      ShapeOf(engine.config(), DtypeOf(flags.kv_dtype), policy.lookup->kind);
  if (!shape.ok()) return shape.status();
  RuntimeOptions options;
  options.shape = *shape;
  options.shape.model_id = Fingerprint(engine.weights());
  options.tiers.hbm_bytes = flags.hbm.value_or(flags.on_cuda() ? kCudaHbmBytes : 0);
  if (flags.on_cuda() && options.tiers.hbm_bytes > 0) {
    options.tiers.hbm_device = HbmDevice::kCuda;
  }
  options.tiers.dram_bytes = flags.dram;
  options.tiers.nvme_bytes = flags.nvme;
  options.tiers.nvme_dir = flags.dir;
  options.tiers.engine = *ParseIoEngine(flags.engine);
  options.tokens_per_block = flags.tokens_per_block;
  options.sink_tokens = flags.sinks;
  options.window_tokens = flags.window;
  options.active_contexts = active_contexts;
  options.max_append_tokens = kChunkTokens;
  options.index_tail_tokens = flags.index_tail;
  options.index_bytes = flags.index_memory;
  options.lookup = *policy.lookup;
  if (policy.streaming.has_value()) {
    const HeadProfile& profile = policy.streaming->profile;
    if (absl::Status status = profile.CheckFits(options.shape); !status.ok()) {
      return absl::Status(status.code(), absl::StrCat("--head-profile: ", status.message()));
    }
    options.overrides = StreamingOverrides(profile, policy.streaming->share);
  }
  options.threads = flags.threads;
  if (absl::Status status = options.Validate(); !status.ok()) return NameFlags(status);
  const absl::Status lookup =
      LookupPolicy::Create(options.lookup, options.shape, options.tokens_per_block).status();
  if (!lookup.ok()) return NameFlags(lookup);
  return options;
}

}  // namespace terrace
