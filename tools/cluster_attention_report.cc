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
  double ReadFigures::*value;
};
constexpr Figure kFigures[] = {{"read_share", &ReadFigures::read_share},
                               {"mass", &ReadFigures::mass},
                               {"mass_of_oracle", &ReadFigures::mass_of_oracle},
                               {"error", &ReadFigures::error},
                               {"error_without_estimate", &ReadFigures::error_without}};

// What keys are chosen as.
struct Choice {
  const char* json_name;
  const char* name;
  ReadFigures BudgetFigures::*figures;
};
constexpr Choice kChoices[] = {{"whole_clusters", "clusters", &BudgetFigures::whole_clusters},
                               {"single_keys", "keys", &BudgetFigures::single_keys}};

Distribution Spread(const std::vector<ClusterAttention>& heads, size_t budget, const Choice& choice,
                    double ReadFigures::*figure) {
  std::vector<double> values;
  for (const ClusterAttention& head : heads) {
    values.push_back(head.budgets[budget].*choice.figures.*figure);
  }
  return Distribution::Of(std::move(values));
}

Distribution Spread(const std::vector<ClusterAttention>& heads, double ClusterAttention::*figure) {
  std::vector<double> values;
  for (const ClusterAttention& head : heads) values.push_back(head.*figure);
  return Distribution::Of(std::move(values));
}

std::string Mass(double value) { return absl::StrFormat("%.3f", value); }

void AddRow(const IndexResult& index, size_t budget, const Choice& choice, Table& table) {
  const auto of = [&](double ReadFigures::*figure) {
    return Spread(index.attention, budget, choice, figure);
  };
  const Distribution mass = of(&ReadFigures::mass_of_oracle);
  const Distribution error = of(&ReadFigures::error);
  const Distribution without = of(&ReadFigures::error_without);
  table.AddRow({index.name, absl::StrFormat("%g %%", 100 * kReadShares[budget]), choice.name,
                FormatPercent(of(&ReadFigures::read_share).median), Mass(mass.min),
                Mass(mass.median), Mass(mass.max), FormatPercent(error.min),
                FormatPercent(error.median), FormatPercent(error.max), FormatPercent(without.min),
                FormatPercent(without.median), FormatPercent(without.max)});
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
    for (const Choice& choice : kChoices) {
      nlohmann::ordered_json& figures = budget[choice.json_name];
      for (const Figure& figure : kFigures) {
        figures[figure.name] = DistributionJson(Spread(heads, i, choice, figure.value));
      }
      for (size_t head = 0; head < heads.size(); ++head) {
        nlohmann::ordered_json one = {{"name", names[head]}};
        for (const Figure& figure : kFigures) {
          one[figure.name] = heads[head].budgets[i].*choice.figures.*figure.value;
        }
        figures["heads"].push_back(std::move(one));
      }
    }
    json["budgets"].push_back(std::move(budget));
  }
  return json;
}

std::string ClusterAttentionTable(const SweepResult& result) {
  Table table({{"index", Align::kLeft},
               {"budget"},
               {"choice", Align::kLeft},
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
    for (const Choice& choice : kChoices) {
      for (size_t i = 0; i < std::size(kReadShares); ++i) AddRow(index, i, choice, table);
    }
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
      "\nAttention at a budget: whole clusters read, or single keys, and the rest estimated\n",
      table.ToString(), builds,
      "Mass is that of the keys read, against that of as many as the budget allows that are best "
      "for the\ngroup; error is that of the output, against attention over all keys.\n");
}

}  // namespace terrace
