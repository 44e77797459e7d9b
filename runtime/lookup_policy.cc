#include "runtime/lookup_policy.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace terrace {
namespace {

constexpr size_t kMostKeys = size_t{1} << 20;

constexpr LookupKind kKinds[] = {LookupKind::kFull,  LookupKind::kStreaming, LookupKind::kInfllm,
                                 LookupKind::kQuest, LookupKind::kGraph,     LookupKind::kCluster};

bool Takes(LookupKind kind, KeyState state) {
  switch (kind) {
    case LookupKind::kFull:
    case LookupKind::kQuest:
    case LookupKind::kGraph:
    case LookupKind::kCluster:
      return state == KeyState::kAfterRope;
    case LookupKind::kInfllm:
      return state == KeyState::kBeforeRope;
    case LookupKind::kStreaming:
      return true;
  }
  return false;
}

absl::StatusOr<std::unique_ptr<BlockSummary>> MakeSummary(const LookupOptions& options,
                                                          size_t head_dim, size_t tokens) {
  switch (options.kind) {
    case LookupKind::kFull:
    case LookupKind::kStreaming:
    case LookupKind::kGraph:
    case LookupKind::kCluster:
      return nullptr;
    case LookupKind::kInfllm:
      return MakeRepresentatives({.head_dim = head_dim,
                                  .tokens = tokens,
                                  .count = options.representatives,
                                  .choice = options.choice,
                                  .averaged = options.pooled});
    case LookupKind::kQuest:
      return MakeKeyBounds(
          {.head_dim = head_dim, .tokens = tokens, .page_tokens = options.page_tokens});
  }
  return absl::InvalidArgumentError("lookup: no such kind");
}

absl::Status CheckIndexOptions(const LookupOptions& options) {
  if (options.kind == LookupKind::kGraph && (options.keys == 0 || options.keys > kMostKeys)) {
    return absl::InvalidArgumentError(
        absl::StrCat("lookup policy graph: keys: ", options.keys, " is not from 1 to ", kMostKeys));
  }
  if (options.kind == LookupKind::kGraph && options.effort > kMostKeys) {
    return absl::InvalidArgumentError(
        absl::StrCat("lookup policy graph: effort: ", options.effort, " is more than ", kMostKeys));
  }
  // NaN fails both comparisons.
  if (options.kind == LookupKind::kCluster && !(options.share > 0 && options.share <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("lookup policy cluster: share: ", options.share,
                                                   " is not above 0 and at most 1"));
  }
  if (options.kind == LookupKind::kCluster && !(options.min_share >= 0 && options.min_share <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "lookup policy cluster: min_share: ", options.min_share, " is not from 0 to 1"));
  }
  if (options.kind == LookupKind::kCluster && options.patience < absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("lookup policy cluster: patience: ", absl::FormatDuration(options.patience),
                     " is negative"));
  }
  return absl::OkStatus();
}

}  // namespace

const char* LookupKindName(LookupKind kind) {
  switch (kind) {
    case LookupKind::kFull:
      return "full";
    case LookupKind::kStreaming:
      return "streaming";
    case LookupKind::kInfllm:
      return "infllm";
    case LookupKind::kQuest:
      return "quest";
    case LookupKind::kGraph:
      return "graph";
    case LookupKind::kCluster:
      return "cluster";
  }
  return "unknown";
}

absl::StatusOr<LookupKind> ParseLookupKind(absl::string_view name) {
  for (const LookupKind kind : kKinds) {
    if (name == LookupKindName(kind)) return kind;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("lookup policy '", name, "' is not one of ",
                   absl::StrJoin(kKinds, ", ", [](std::string* text, LookupKind kind) {
                     absl::StrAppend(text, LookupKindName(kind));
                   })));
}

LookupOptions PublishedInfllm(size_t blocks, size_t representatives) {
  return {.kind = LookupKind::kInfllm,
          .blocks = blocks,
          .representatives = representatives,
          .choice = RepresentativeChoice::kMostMass,
          .pooled = true};
}

absl::StatusOr<std::unique_ptr<LookupPolicy>> LookupPolicy::Create(const LookupOptions& options,
                                                                   const ModelShape& shape,
                                                                   size_t tokens_per_block) {
  if (!Takes(options.kind, shape.key_state)) {
    return absl::InvalidArgumentError(absl::StrCat("lookup policy ", LookupKindName(options.kind),
                                                   " does not take keys ",
                                                   KeyStateName(shape.key_state)));
  }
  auto summary = MakeSummary(options, shape.head_dim, tokens_per_block);
  if (!summary.ok()) {
    return absl::Status(summary.status().code(),
                        absl::StrCat("lookup policy ", LookupKindName(options.kind), ": ",
                                     summary.status().message()));
  }
  if (*summary != nullptr && options.blocks == 0) {
    return absl::InvalidArgumentError(absl::StrCat("lookup policy ", LookupKindName(options.kind),
                                                   ": blocks: 0 is not at least 1; use streaming"));
  }
  if (absl::Status status = CheckIndexOptions(options); !status.ok()) return status;
  return std::unique_ptr<LookupPolicy>(new LookupPolicy(options, *std::move(summary)));
}

void LookupPolicy::Rank(absl::Span<const float> scores, absl::Span<const float> levels,
                        absl::Span<float> ranks) const {
  if (options_.pooled) {
    std::fill(ranks.begin(), ranks.end(), 0.0f);
  } else {
    std::fill(ranks.begin(), ranks.end(), -std::numeric_limits<float>::infinity());
  }
  for (size_t row = 0; row < levels.size(); ++row) {
    const absl::Span<const float> of_row = scores.subspan(row * ranks.size(), ranks.size());
    if (options_.pooled) {
      for (size_t block = 0; block < ranks.size(); ++block) ranks[block] += of_row[block];
    } else {
      for (size_t block = 0; block < ranks.size(); ++block) {
        ranks[block] = std::max(ranks[block], of_row[block] - levels[row]);
      }
    }
  }
}

void LookupPolicy::Choose(absl::Span<const float> ranks, std::vector<uint32_t>& chosen) const {
  chosen.resize(ranks.size());
  std::iota(chosen.begin(), chosen.end(), 0u);
  if (chosen.size() <= options_.blocks) return;
  const auto better = [&](uint32_t a, uint32_t b) {
    return ranks[a] != ranks[b] ? ranks[a] > ranks[b] : a < b;
  };
  const auto end = chosen.begin() + static_cast<ptrdiff_t>(options_.blocks);
  std::nth_element(chosen.begin(), end, chosen.end(), better);
  chosen.erase(end, chosen.end());
  std::sort(chosen.begin(), chosen.end());
}

}  // namespace terrace
