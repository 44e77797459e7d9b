#include "runtime/head_profile.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "io/check.h"

namespace terrace {
namespace {

// A share such as 0.3 of 10 heads is 3 of them, whatever the product rounds to.
constexpr double kRounding = 1e-9;

}  // namespace

absl::Status HeadProfile::CheckFits(const ModelShape& shape) const {
  const struct {
    const char* name;
    uint32_t measured;
    uint32_t wanted;
  } sizes[] = {{"layers", layers, shape.layers},
               {"query heads", query_heads, shape.query_heads},
               {"KV heads", kv_heads, shape.kv_heads},
               {"head_dim", head_dim, shape.head_dim}};
  for (const auto& size : sizes) {
    if (size.measured == size.wanted) continue;
    return absl::InvalidArgumentError(absl::StrCat("head profile: measured on a model whose ",
                                                   size.name, " come to ", size.measured,
                                                   ", this one has ", size.wanted));
  }
  if (model_id != 0 && shape.model_id != 0 && model_id != shape.model_id) {
    return absl::InvalidArgumentError(
        absl::StrFormat("head profile: measured on a model with other weights, fingerprint %016x, "
                        "this one has %016x",
                        model_id, shape.model_id));
  }
  return absl::OkStatus();
}

std::vector<HeadIndex> HeadsByNeed(const HeadProfile& profile) {
  std::vector<HeadIndex> order;
  order.reserve(profile.heads.size());
  for (uint32_t layer = 0; layer < profile.layers; ++layer) {
    for (uint32_t head = 0; head < profile.kv_heads; ++head) order.push_back({layer, head});
  }
  std::stable_sort(order.begin(), order.end(), [&](const HeadIndex& a, const HeadIndex& b) {
    const HeadProfile::Head& of_a = profile.head(a.layer, a.kv_head);
    const HeadProfile::Head& of_b = profile.head(b.layer, b.kv_head);
    return of_a.mean_outside != of_b.mean_outside ? of_a.mean_outside < of_b.mean_outside
                                                  : of_a.max_outside < of_b.max_outside;
  });
  return order;
}

std::vector<LookupOverride> StreamingOverrides(const HeadProfile& profile, double share) {
  TERRACE_CHECK(share >= 0 && share <= 1);
  const std::vector<HeadIndex> order = HeadsByNeed(profile);
  const auto count = static_cast<size_t>(share * static_cast<double>(order.size()) + kRounding);
  std::vector<LookupOverride> overrides;
  overrides.reserve(count);
  LookupOptions streaming;
  streaming.kind = LookupKind::kStreaming;
  for (size_t i = 0; i < count; ++i) {
    overrides.push_back(
        {.layer = order[i].layer, .kv_head = order[i].kv_head, .lookup = streaming});
  }
  return overrides;
}

}  // namespace terrace
