#include "tools/generate_report.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "nlohmann/json.hpp"
#include "tools/attention_report.h"
#include "tools/byte_size.h"
#include "tools/table.h"

namespace terrace {
namespace {

double PerSecond(int64_t tokens, absl::Duration duration) {
  const double seconds = absl::ToDoubleSeconds(duration);
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

std::string SpeedTable(const GenerateReport& report) {
  Table table({{"", Align::kLeft}, {"tokens"}, {"time"}, {"attention"}, {"tokens/s"}});
  const auto add = [&](const char* name, int64_t tokens, absl::Duration time,
                       absl::Duration attention) {
    table.AddRow({name, FormatCount(static_cast<uint64_t>(tokens)),
                  FormatSeconds(absl::ToDoubleSeconds(time)),
                  FormatPercent(absl::FDivDuration(attention, time)),
                  absl::StrFormat("%.1f", PerSecond(tokens, time))});
  };
  add("prefill", report.prompt_tokens, report.result.prefill, report.prefill.attention);
  add("decode", report.decoded_tokens(), report.result.decode,
      report.all.attention - report.prefill.attention);
  return table.ToString();
}

nlohmann::ordered_json TiersJson(const GenerateTiers& tiers) {
  nlohmann::ordered_json json = LookupJson(tiers.lookups);
  const TierStats& stats = tiers.runtime.tiers;
  const auto capacity = [&](Tier tier) {
    return stats.tiers[static_cast<size_t>(tier)].capacity_bytes;
  };
  json["lost_tokens"] = tiers.lost_tokens;
  json["capacity_bytes"] = {{"hbm", capacity(Tier::kHbm)},
                            {"dram", capacity(Tier::kDram)},
                            {"nvme", capacity(Tier::kNvme)}};
  json["window_bytes"] = tiers.runtime.window_bytes;
  json["summary_bytes"] = tiers.runtime.summary_bytes;
  AddIndexJson(tiers.indexes, json);
  json["metadata_bytes"] = stats.metadata_bytes;
  json["staging_bytes"] = stats.staging_bytes;
  json["nvme_read_bytes"] = stats.nvme_read_bytes;
  json["nvme_written_bytes"] = stats.nvme_written_bytes;
  return json;
}

}  // namespace

std::string GenerateText(const GenerateReport& report) {
  std::string text = absl::StrCat("\n\n", SpeedTable(report));
  Table table({{"", Align::kLeft}, {"", Align::kLeft}});
  table.AddRow({"policy", report.policy});
  if (report.streaming_heads > 0) {
    table.AddRow({"streaming", absl::StrCat(FormatCount(report.streaming_heads), " of ",
                                            FormatCount(report.heads), " KV heads")});
  }
  if (report.loaded_tokens > 0) {
    table.AddRow({"loaded", absl::StrCat(FormatCount(static_cast<uint64_t>(report.loaded_tokens)),
                                         " tokens of a saved context")});
  }
  if (report.prefix_tokens > 0) {
    table.AddRow({"reused", absl::StrCat(FormatCount(static_cast<uint64_t>(report.prefix_tokens)),
                                         " tokens of the prompt from cached blocks")});
  }
  if (report.tiers.has_value()) {
    const GenerateTiers& tiers = *report.tiers;
    absl::StrAppend(&text, "\n", TierTable(tiers.runtime.tiers, tiers.lookups));
    table.AddRow({"fetched from NVMe", FormatByteSize(tiers.lookups.fetched_bytes)});
    table.AddRow({"missed attention (estimate)", MissedMassText(tiers.lookups)});
    table.AddRow({"lost blocks", FormatCount(tiers.lookups.lost_blocks)});
    table.AddRow(
        {"beside the tiers",
         absl::StrCat(FormatByteSize(tiers.runtime.window_bytes), " for sinks and window, ",
                      FormatByteSize(tiers.runtime.summary_bytes), " for summaries, ",
                      FormatByteSize(tiers.indexes.bytes), " for indexes")});
    if (tiers.indexes.seconds > 0) {
      table.AddRow({"indexes",
                    absl::StrCat("built in ", FormatSeconds(tiers.indexes.seconds), ", refused ",
                                 FormatCount(tiers.indexes.refusals), " times for want of room")});
    }
    if (tiers.lookups.late_blocks > 0) {
      table.AddRow({"late clusters, estimated", FormatCount(tiers.lookups.late_blocks)});
    }
  }
  table.AddRow({"weights", absl::StrCat(FormatByteSize(report.weight_bytes), " in fp32")});
  table.AddRow({"peak memory", FormatByteSize(report.peak_memory_bytes)});
  return absl::StrCat(text, "\n", table.ToString());
}

nlohmann::ordered_json GenerateJson(const GenerateReport& report) {
  const auto seconds = [](absl::Duration duration) { return absl::ToDoubleSeconds(duration); };
  nlohmann::ordered_json json;
  json["policy"] = report.policy;
  json["heads"] = report.heads;
  json["streaming_heads"] = report.streaming_heads;
  json["loaded_tokens"] = report.loaded_tokens;
  json["prefix_tokens"] = report.prefix_tokens;
  json["prompt_tokens"] = report.prompt_tokens;
  json["generated_tokens"] = report.result.generated_tokens;
  json["tokens"] = report.tokens;
  json["decoded_tokens"] = report.decoded_tokens();
  json["prefill_seconds"] = seconds(report.result.prefill);
  json["prefill_attention_seconds"] = seconds(report.prefill.attention);
  json["decode_seconds"] = seconds(report.result.decode);
  json["decode_attention_seconds"] = seconds(report.all.attention - report.prefill.attention);
  json["weight_bytes"] = report.weight_bytes;
  json["peak_memory_bytes"] = report.peak_memory_bytes;
  json["tiers"] =
      report.tiers.has_value() ? TiersJson(*report.tiers) : nlohmann::ordered_json(nullptr);
  return json;
}

}  // namespace terrace
