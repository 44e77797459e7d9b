#include "tools/generate_report.h"

#include <algorithm>

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

// What the time of decoding went to. The parts add up to it.
struct DecodeParts {
  double io = 0;          // waiting for weights
  double management = 0;  // of the pager: windows, slots, plans of reads
  double compute = 0;     // of feed-forward networks
  double prediction = 0;
  double attention = 0;
  double rest = 0;
  double all = 0;
};

DecodeParts PartsOf(const GenerateReport& report) {
  const PagedFfnStats& before = report.weights->prefill;
  const PagedFfnStats& after = report.weights->all;
  DecodeParts parts;
  parts.io = after.pager.wait_seconds - before.pager.wait_seconds;
  parts.management = after.pager.management_seconds - before.pager.management_seconds;
  parts.compute = after.pager.compute_seconds - before.pager.compute_seconds;
  parts.prediction = after.predict_seconds - before.predict_seconds;
  parts.attention = absl::ToDoubleSeconds(report.all.attention - report.prefill.attention);
  parts.all = absl::ToDoubleSeconds(report.result.decode);
  parts.rest =
      parts.all - parts.io - parts.management - parts.compute - parts.prediction - parts.attention;
  return parts;
}

std::string WeightsText(const GenerateReport& report) {
  const GenerateWeights& weights = *report.weights;
  const DecodeParts parts = PartsOf(report);
  const auto tokens = static_cast<double>(std::max<int64_t>(report.decoded_tokens(), 1));
  Table times({{"decode", Align::kLeft}, {"time"}, {"a token"}, {"share"}});
  const auto add = [&](const char* name, double seconds) {
    times.AddRow({name, FormatSeconds(seconds), FormatSeconds(seconds / tokens),
                  FormatPercent(parts.all > 0 ? seconds / parts.all : 0)});
  };
  add("I/O, waiting for weights", parts.io);
  add("memory management", parts.management);
  add("feed-forward compute", parts.compute);
  add("prediction", parts.prediction);
  add("attention", parts.attention);
  add("other compute", parts.rest);

  const PagedFfnStats& stats = weights.all;
  const uint64_t read_bytes =
      stats.pager.read_bytes - std::min(stats.pager.read_bytes, weights.prefill.pager.read_bytes);
  Table table({{"", Align::kLeft}, {"", Align::kLeft}});
  table.AddRow({"paged weights", absl::StrCat(FormatByteSize(weights.ffn_bytes), " in a file of ",
                                              FormatByteSize(weights.file_bytes))});
  table.AddRow({"their memory",
                absl::StrCat(FormatByteSize(stats.pager_bytes), " for rows, ",
                             FormatByteSize(stats.directory_bytes), " for the file's directory")});
  if (stats.measuring_bytes > 0) {
    table.AddRow(
        {"beside it", absl::StrCat(FormatByteSize(stats.measuring_bytes), " for the predictor")});
  }
  table.AddRow({"predictor", absl::StrCat(weights.predictor, ", ",
                                          FormatPercent(stats.predicted_share()), " of neurons")});
  table.AddRow(
      {"read in decode",
       absl::StrCat(FormatByteSize(read_bytes), ", ",
                    FormatByteSize(static_cast<uint64_t>(static_cast<double>(read_bytes) / tokens)),
                    " a token")});
  table.AddRow({"window", absl::StrFormat("%.1f tokens", stats.pager.window_tokens)});
  if (stats.pager.rereads > 0) {
    table.AddRow({"read again after errors", FormatCount(stats.pager.rereads)});
  }
  return absl::StrCat("\n", times.ToString(), "\n", table.ToString());
}

nlohmann::ordered_json WeightsJson(const GenerateReport& report) {
  const GenerateWeights& weights = *report.weights;
  const PagedFfnStats& stats = weights.all;
  const DecodeParts parts = PartsOf(report);
  nlohmann::ordered_json json;
  json["predictor"] = weights.predictor;
  json["ffn_bytes"] = weights.ffn_bytes;
  json["pager_bytes"] = stats.pager_bytes;
  json["directory_bytes"] = stats.directory_bytes;
  json["predictor_bytes"] = stats.measuring_bytes;
  json["predicted_share"] = stats.predicted_share();
  json["decode_read_bytes"] = stats.pager.read_bytes - weights.prefill.pager.read_bytes;
  json["reads"] = stats.pager.reads;
  json["rereads"] = stats.pager.rereads;
  json["hit_rows"] = stats.pager.hit_rows;
  json["missed_rows"] = stats.pager.missed_rows;
  json["window_tokens"] = stats.pager.window_tokens;
  json["decode_seconds"] = {{"io", parts.io},
                            {"management", parts.management},
                            {"ffn_compute", parts.compute},
                            {"prediction", parts.prediction},
                            {"attention", parts.attention},
                            {"other", parts.rest}};
  return json;
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
  json["device_neighbours"] = {{"searches", tiers.runtime.neighbours.searches},
                               {"failures", tiers.runtime.neighbours.failures}};
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
  table.AddRow(
      {"device", report.device_bytes == 0
                     ? report.device
                     : absl::StrCat(report.device, ", ", FormatByteSize(report.device_bytes),
                                    " of it for weights and their buffers")});
  table.AddRow({report.weights.has_value() ? "other weights" : "weights",
                absl::StrCat(FormatByteSize(report.weight_bytes), " in fp32")});
  table.AddRow({"peak memory", FormatByteSize(report.peak_memory_bytes)});
  if (report.weights.has_value()) text += WeightsText(report);
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
  json["device"] = report.device;
  json["device_bytes"] = report.device_bytes;
  json["weight_bytes"] = report.weight_bytes;
  json["peak_memory_bytes"] = report.peak_memory_bytes;
  json["weights"] =
      report.weights.has_value() ? WeightsJson(report) : nlohmann::ordered_json(nullptr);
  json["tiers"] =
      report.tiers.has_value() ? TiersJson(*report.tiers) : nlohmann::ordered_json(nullptr);
  return json;
}

}  // namespace terrace
