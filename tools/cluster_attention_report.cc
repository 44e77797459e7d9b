#include "tools/cluster_attention_report.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "tools/index_eval_report.h"
#include "tools/table.h"

namespace terrace {
namespace {

struct Figure {
  const char* name;
  double BudgetFigures::*value;
};
constexpr Figure kFigures[] = {{"read_share", &BudgetFigures::read_share},
                               {"mass", &BudgetFigures::mass},
                               {"mass_of_oracle", &BudgetFigures::mass_of_oracle},
                               {"error", &BudgetFigures::error},
                               {"error_without_estimate", &BudgetFigures::error_without}};

Distribution Spread(const std::vector<ClusterAttention>& heads, size_t budget,
                    double BudgetFigures::*figure) {
  std::vector<double> values;
  for (const ClusterAttention& head : heads) values.push_back(head.budgets[budget].*figure);
  return Distribution::Of(std::move(values));
}

Distribution Spread(const std::vector<ClusterAttention>& heads, double ClusterAttention::*figure) {
  std::vector<double> values;
  for (const ClusterAttention& head : heads) values.push_back(head.*figure);
  return Distribution::Of(std::move(values));
}

std::string Mass(double value) { return absl::StrFormat("%.3f", value); }

void AddRows(const IndexResult& index, Table& table) {
  for (size_t i = 0; i < std::size(kReadShares); ++i) {
    const Distribution mass = Spread(index.attention, i, &BudgetFigures::mass_of_oracle);
    const Distribution error = Spread(index.attention, i, &BudgetFigures::error);
    const Distribution without = Spread(index.attention, i, &BudgetFigures::error_without);
    table.AddRow({index.name, absl::StrFormat("%g %%", 100 * kReadShares[i]),
                  FormatPercent(Spread(index.attention, i, &BudgetFigures::read_share).median),
                  Mass(mass.min), Mass(mass.median), Mass(mass.max), FormatPercent(error.min),
                  FormatPercent(error.median), FormatPercent(error.max), FormatPercent(without.min),
                  FormatPercent(without.median), FormatPercent(without.max)});
  }
}

}  // namespace

nlohmann::ordered_json ClusterAttentionJson(const std::vector<ClusterAttention>& heads,
                                            const std::vector<std::string>& names) {
  nlohmann::ordered_json json;
  for (const auto& [name, figure] : {std::pair("build_seconds", &ClusterAttention::build_seconds),
                                     std::pair("bytes_per_key", &ClusterAttention::bytes_per_key),
                                     std::pair("kv_share", &ClusterAttention::kv_share)}) {
    for (const ClusterAttention& head : heads) json[name].push_back(head.*figure);
  }
  for (size_t i = 0; i < std::size(kReadShares); ++i) {
    nlohmann::ordered_json budget = {{"share", kReadShares[i]}};
    for (const Figure& figure : kFigures) {
      budget[figure.name] = DistributionJson(Spread(heads, i, figure.value));
    }
    for (size_t head = 0; head < heads.size(); ++head) {
      nlohmann::ordered_json one = {{"name", names[head]}};
      for (const Figure& figure : kFigures) {
        one[figure.name] = heads[head].budgets[i].*figure.value;
      }
      budget["heads"].push_back(std::move(one));
    }
    json["budgets"].push_back(std::move(budget));
  }
  return json;
}

std::string ClusterAttentionTable(const SweepResult& result) {
  Table table({{"index", Align::kLeft},
               {"budget"},
               {"read"},
               {"mass of oracle min"},
               {"median"},
               {"max"},
               {"error min"},
               {"median"},
               {"max"},
               {"without estimate min"},
               {"median"},
               {"max"}});
  std::string builds;
  for (const IndexResult& index : result.indexes) {
    if (index.attention.empty()) continue;
    AddRows(index, table);
    const double seconds = Spread(index.attention, &ClusterAttention::build_seconds).median;
    absl::StrAppend(
        &builds, index.name, " with values: ",
        FormatCount(static_cast<uint64_t>(static_cast<double>(result.head_keys[0]) /
                                          std::max(seconds, 1e-9))),
        absl::StrFormat(
            " keys/s built, %.1f bytes per key, %s of keys and values\n",
            Spread(index.attention, &ClusterAttention::bytes_per_key).median,
            FormatPercent(Spread(index.attention, &ClusterAttention::kv_share).median)));
  }
  if (builds.empty()) return "";
  return absl::StrCat(
      "\nAttention at a budget: clusters read, the rest estimated from their means\n",
      table.ToString(), builds,
      "Mass is that of the keys read, against that of as many as the budget allows that are best "
      "for the\ngroup; error is that of the output, against attention over all keys.\n");
}

}  // namespace terrace
