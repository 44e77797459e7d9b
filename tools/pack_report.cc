#include "tools/pack_report.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "tools/byte_size.h"
#include "tools/table.h"

namespace terrace {
namespace {

// Of the neurons of one layer, or expert.
struct FrequencySummary {
  double mean = 0;     // share of neurons that fire for a token
  double hottest = 0;  // share of all firing that the most frequent quarter has
};

FrequencySummary Summarize(absl::Span<const float> frequency) {
  std::vector<float> sorted(frequency.begin(), frequency.end());
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  const double all = std::accumulate(sorted.begin(), sorted.end(), 0.0);
  const auto quarter = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 4);
  FrequencySummary summary;
  summary.mean = all / static_cast<double>(sorted.size());
  summary.hottest = all > 0 ? std::accumulate(sorted.begin(), quarter, 0.0) / all : 0;
  return summary;
}

size_t PredictorBytes(const BundleFile& file) {
  size_t bytes = 0;
  for (const PredictorFactors& factors : file.tables().predictors) bytes += factors.bytes();
  return bytes;
}

double PredictorShare(const BundleFile& file) {
  return static_cast<double>(PredictorBytes(file)) /
         static_cast<double>(file.shape().weight_bytes());
}

std::string LayerTable(const PackReport& report) {
  const BundleFile& file = *report.file;
  const BundleShape& shape = file.shape();
  if (file.tables().frequency.empty()) return "";
  Table table({{"layer"},
               {"active"},
               {"of hottest 1/4"},
               {"rank"},
               {"false negatives"},
               {"predicted"},
               {"predicted / active"}});
  for (uint32_t unit = 0; unit < shape.units(); ++unit) {
    const FrequencySummary summary = Summarize(file.Frequency(unit));
    std::vector<std::string> cells = {
        shape.experts == 1 ? absl::StrCat(unit)
                           : absl::StrCat(unit / shape.experts, ", expert ", unit % shape.experts),
        FormatPercent(summary.mean), FormatPercent(summary.hottest),
        file.Predictor(unit) == nullptr ? "-" : absl::StrCat(file.Predictor(unit)->rank)};
    if (unit < report.calibrated.size()) {
      const CalibratedLayer& layer = report.calibrated[unit];
      cells.push_back(FormatPercent(layer.false_negatives));
      cells.push_back(FormatPercent(layer.predicted_share));
      cells.push_back(absl::StrFormat("%.2f", layer.predicted_share / layer.active_share));
    }
    table.AddRow(std::move(cells));
  }
  std::string text = table.ToString();
  if (!report.calibrated.empty()) {
    absl::StrAppend(&text, "Active is of ", FormatCount(report.fit_tokens),
                    " tokens, which factors were fitted to; what is predicted is of ",
                    FormatCount(report.threshold_tokens), " others.\n");
  }
  return absl::StrCat(text, "\n");
}

}  // namespace

std::string PackText(const PackReport& report) {
  const BundleFile& file = *report.file;
  const BundleShape& shape = file.shape();
  Table table({{"", Align::kLeft}, {"", Align::kLeft}});
  table.AddRow({"file", file.path()});
  table.AddRow({"shape", shape.ToString()});
  table.AddRow(
      {"model", absl::StrCat(absl::Hex(file.tables().model_fingerprint, absl::kZeroPad16))});
  table.AddRow({"bundle", absl::StrCat(FormatByteSize(shape.bundle_bytes()), ", ", shape.parts(),
                                       " parts of ", FormatByteSize(shape.part_bytes()))});
  table.AddRow(
      {"group", absl::StrCat(FormatByteSize(shape.group_bytes()), ", ", FormatCount(shape.groups()),
                             " a layer", shape.experts == 1 ? "" : " and expert")});
  table.AddRow({"weights", FormatByteSize(shape.weight_bytes())});
  table.AddRow(
      {"padding", absl::StrCat(FormatByteSize(shape.data_bytes() - shape.weight_bytes()), " (",
                               FormatPercent(shape.padding_share()), " of what is read)")});
  table.AddRow({"file size", FormatByteSize(file.file_bytes())});
  table.AddRow({"directory", absl::StrCat(FormatByteSize(file.memory_bytes()), " of memory")});
  table.AddRow({"order", file.tables().order.empty() ? "the model's" : "its own"});
  if (!file.tables().predictors.empty()) {
    table.AddRow(
        {"predictors",
         absl::StrCat("low-rank, ", FormatByteSize(PredictorBytes(file)), " (",
                      FormatPercent(PredictorShare(file)), " of the weights), to miss ",
                      FormatPercent(file.tables().false_negative_bound), " of firing neurons")});
  }
  if (report.calibrate_seconds > 0) {
    table.AddRow({"calibrated in", FormatSeconds(report.calibrate_seconds)});
  }
  if (report.write_seconds > 0) {
    table.AddRow({"packed in", FormatSeconds(report.write_seconds)});
    table.AddRow({"peak memory", FormatByteSize(report.peak_memory_bytes)});
  }
  if (report.verified_bytes.has_value()) {
    table.AddRow({"verified", absl::StrCat(FormatByteSize(*report.verified_bytes),
                                           " of groups, every page right")});
  }
  return absl::StrCat(LayerTable(report), table.ToString());
}

nlohmann::ordered_json PackJson(const PackReport& report) {
  const BundleFile& file = *report.file;
  const BundleShape& shape = file.shape();
  nlohmann::ordered_json json;
  json["file"] = file.path();
  json["shape"] = {{"layers", shape.layers},
                   {"experts", shape.experts},
                   {"neurons", shape.neurons},
                   {"width", shape.width},
                   {"parts", shape.parts()},
                   {"activation", ActivationName(shape.activation)},
                   {"dtype", KvDtypeName(shape.dtype)},
                   {"layout", BundleLayoutName(shape.layout)},
                   {"group_neurons", shape.group_neurons}};
  json["model_fingerprint"] =
      absl::StrCat(absl::Hex(file.tables().model_fingerprint, absl::kZeroPad16));
  json["bundle_bytes"] = shape.bundle_bytes();
  json["group_bytes"] = shape.group_bytes();
  json["weight_bytes"] = shape.weight_bytes();
  json["data_bytes"] = shape.data_bytes();
  json["padding_share"] = shape.padding_share();
  json["file_bytes"] = file.file_bytes();
  json["directory_bytes"] = file.memory_bytes();
  json["own_order"] = !file.tables().order.empty();
  json["predictor_bytes"] = PredictorBytes(file);
  json["predictor_share"] = PredictorShare(file);
  json["false_negative_bound"] = file.tables().false_negative_bound;
  json["layers"] = nlohmann::ordered_json::array();
  for (uint32_t unit = 0; unit < shape.units() && !file.tables().frequency.empty(); ++unit) {
    const FrequencySummary summary = Summarize(file.Frequency(unit));
    nlohmann::ordered_json layer;
    layer["active_share"] = summary.mean;
    layer["hottest_quarter_share"] = summary.hottest;
    if (file.Predictor(unit) != nullptr) layer["rank"] = file.Predictor(unit)->rank;
    if (unit < report.calibrated.size()) {
      layer["threshold_tokens"] = {{"false_negatives", report.calibrated[unit].false_negatives},
                                   {"predicted_share", report.calibrated[unit].predicted_share},
                                   {"active_share", report.calibrated[unit].active_share}};
    }
    json["layers"].push_back(std::move(layer));
  }
  json["calibrate_seconds"] = report.calibrate_seconds;
  json["write_seconds"] = report.write_seconds;
  json["peak_memory_bytes"] = report.peak_memory_bytes;
  json["verified_bytes"] = report.verified_bytes.has_value()
                               ? nlohmann::ordered_json(*report.verified_bytes)
                               : nlohmann::ordered_json(nullptr);
  return json;
}

}  // namespace terrace
