#include "tools/decode_eval_report.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "tools/table.h"

namespace terrace {
namespace {

std::string Milliseconds(double seconds) { return absl::StrFormat("%.2f ms", 1000 * seconds); }
std::string Times(double ratio) { return absl::StrFormat("%.1f", ratio); }
std::string Cold(const DecodePolicyResult& policy, std::string text) {
  return policy.cold_seconds.has_value() ? std::move(text) : "-";
}
nlohmann::ordered_json ColdJson(const DecodePolicyResult& policy, double value) {
  return policy.cold_seconds.has_value() ? nlohmann::ordered_json(value) : nullptr;
}

}  // namespace

std::string DecodeEvalText(const DecodeEvalResult& result) {
  const bool on_nvme = result.dram_share < 1;
  Table table({{"policy", Align::kLeft},
               {"step"},
               {"full / step"},
               {on_nvme ? "cold step" : ""},
               {on_nvme ? "full / cold" : ""},
               {"error, mean"},
               {"largest"},
               {"attended"},
               {on_nvme ? "NVMe MB a step" : ""},
               {on_nvme ? "degraded" : ""},
               {"index"},
               {"bytes per key"}});
  for (const DecodePolicyResult& policy : result.policies) {
    table.AddRow({policy.name, Milliseconds(policy.step_seconds), Times(policy.times_full),
                  on_nvme ? Cold(policy, Milliseconds(policy.cold_seconds.value_or(0))) : "",
                  on_nvme ? Cold(policy, Times(policy.cold_times_full)) : "",
                  FormatPercent(policy.error_mean), FormatPercent(policy.error_max),
                  FormatPercent(policy.attended_share),
                  on_nvme ? absl::StrFormat("%.1f", policy.fetched_bytes / 1e6) : "",
                  on_nvme ? FormatPercent(policy.degraded_share) : "",
                  FormatSeconds(policy.index_seconds),
                  absl::StrFormat("%.1f", policy.index_bytes_per_key)});
  }
  std::string text = absl::StrFormat(
      "Decode steps of a layer: %s tokens, %d KV heads x %d fp16, group of %d; %g %% of it in "
      "DRAM\nMedians of %s steps, which all policies take in turn\n\n%s",
      FormatCount(result.tokens), result.kv_heads, result.head_dim, result.group,
      100 * std::min(result.dram_share, 1.0), FormatCount(result.steps), table.ToString());
  if (result.hbm_share > 0) {
    absl::StrAppendFormat(&text, "%g %% of it in HBM: %s\n", 100 * result.hbm_share,
                          result.hbm_device);
  }
  for (const DecodePolicyResult& policy : result.policies) {
    if (policy.index_refusals == 0) continue;
    absl::StrAppend(&text, policy.name,
                    " found no room for its index and attended to everything\n");
  }
  return text;
}

nlohmann::ordered_json DecodeEvalJson(const DecodeEvalResult& result) {
  nlohmann::ordered_json json = {{"tokens", result.tokens},         {"kv_heads", result.kv_heads},
                                 {"head_dim", result.head_dim},     {"group", result.group},
                                 {"steps", result.steps},           {"threads", result.threads},
                                 {"dram_share", result.dram_share}, {"hbm_share", result.hbm_share},
                                 {"hbm_device", result.hbm_device}};
  json["policies"] = nlohmann::ordered_json::array();
  for (const DecodePolicyResult& policy : result.policies) {
    json["policies"].push_back(
        {{"name", policy.name},
         {"step_seconds", policy.step_seconds},
         {"times_full", policy.times_full},
         {"lookup_seconds", policy.lookup_seconds},
         {"wait_seconds", policy.wait_seconds},
         {"attend_seconds", policy.attend_seconds},
         {"cold_seconds", ColdJson(policy, policy.cold_seconds.value_or(0))},
         {"cold_times_full", ColdJson(policy, policy.cold_times_full)},
         {"output_error", {{"mean", policy.error_mean}, {"max", policy.error_max}}},
         {"missed_mass", policy.missed_mass},
         {"attended_share", policy.attended_share},
         {"fetched_bytes", policy.fetched_bytes},
         {"degraded_share", policy.degraded_share},
         {"index_seconds", policy.index_seconds},
         {"index_bytes_per_key", policy.index_bytes_per_key},
         {"index_refusals", policy.index_refusals}});
  }
  return json;
}

}  // namespace terrace
