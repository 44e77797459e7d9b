#include "tools/weights_report.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "tools/byte_size.h"
#include "tools/table.h"

namespace terrace {
namespace {

// To that of the first policy, whose weights are in memory.
double Ratio(const EvalReport& report, const WeightsResult& result) {
  return std::exp(result.perplexity.nats_per_byte -
                  report.policies[0].text->perplexity.nats_per_byte);
}

double PerActive(const PagedFfnStats& stats) {
  return stats.firing == 0 ? 0 : stats.predicted_share() / stats.firing_share();
}

}  // namespace

std::string WeightsTable(const EvalReport& report) {
  if (report.weights.empty()) return "";
  Table table({{"predictor", Align::kLeft},
               {"nats per byte"},
               {"perplexity / in memory"},
               {"active"},
               {"predicted"},
               {"predicted / active"},
               {"false negatives"},
               {"not computed"},
               {"read a token"},
               {"time"}});
  bool prompts = false;
  for (const WeightsResult& result : report.weights) {
    const PagedFfnStats& stats = result.stats;
    prompts |= result.prompt_tokens > 0;
    table.AddRow({PredictorKindName(result.predictor),
                  absl::StrFormat("%.4f", result.perplexity.nats_per_byte),
                  absl::StrFormat("%.4f", Ratio(report, result)),
                  FormatPercent(stats.firing_share()), FormatPercent(stats.predicted_share()),
                  absl::StrFormat("%.2f", PerActive(stats)), FormatPercent(stats.missed_share()),
                  FormatPercent(stats.lost_share()), FormatByteSize(stats.read_bytes_per_token()),
                  FormatSeconds(result.seconds)});
  }
  const WeightsResult& first = report.weights[0];
  std::string text = absl::StrCat(
      "\nPaged weights, ", report.policies[0].label, ", ", FormatByteSize(first.ffn_bytes),
      " of feed-forward weights in ", FormatByteSize(first.dram_bytes), " of memory\n",
      table.ToString(),
      "False negatives are shares of the neurons that fire; those in a group with a predicted one "
      "are\ncomputed all the same.\n");
  if (prompts) {
    absl::StrAppend(&text,
                    "core: a quarter of each window is a prompt, computed whole, which tells its "
                    "neurons.\n");
  }
  return text;
}

nlohmann::ordered_json WeightsJson(const EvalReport& report) {
  nlohmann::ordered_json json = nlohmann::ordered_json::array();
  for (const WeightsResult& result : report.weights) {
    const PagedFfnStats& stats = result.stats;
    nlohmann::ordered_json of;
    of["predictor"] = PredictorKindName(result.predictor);
    of["nats_per_byte"] = result.perplexity.nats_per_byte;
    of["ratio"] = Ratio(report, result);
    of["active_share"] = stats.firing_share();
    of["predicted_share"] = stats.predicted_share();
    of["predicted_per_active"] = PerActive(stats);
    of["false_negative_share"] = stats.missed_share();
    of["not_computed_share"] = stats.lost_share();
    of["prompt_tokens"] = result.prompt_tokens;
    of["ffn_bytes"] = result.ffn_bytes;
    of["dram_bytes"] = result.dram_bytes;
    of["pager_bytes"] = stats.pager_bytes;
    of["directory_bytes"] = stats.directory_bytes;
    of["read_bytes"] = stats.pager.read_bytes;
    of["reads"] = stats.pager.reads;
    of["window_tokens"] = stats.pager.window_tokens;
    of["predict_seconds"] = stats.predict_seconds;
    of["io_wait_seconds"] = stats.pager.wait_seconds;
    of["management_seconds"] = stats.pager.management_seconds;
    of["compute_seconds"] = stats.pager.compute_seconds;
    of["seconds"] = result.seconds;
    json.push_back(std::move(of));
  }
  return json;
}

}  // namespace terrace
