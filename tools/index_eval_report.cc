#include "tools/index_eval_report.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "tools/cluster_attention_report.h"
#include "tools/index_comparison_report.h"
#include "tools/table.h"

namespace terrace {
namespace {

struct Figure {
  const char* name;
  double FoundFigures::*value;
};
constexpr Figure kFigures[] = {{"recall", &FoundFigures::recall},
                               {"scanned_share", &FoundFigures::scanned_share},
                               {"distances", &FoundFigures::distances},
                               {"mass", &FoundFigures::mass},
                               {"mass_of_best", &FoundFigures::mass_of_best},
                               {"output_error", &FoundFigures::output_error}};

std::string Share(double value) { return absl::StrFormat("%.3f", value); }

std::string Microseconds(double value_us) {
  return FormatMicroseconds(static_cast<uint64_t>(std::llround(value_us)));
}

nlohmann::ordered_json Json(const Latency& latency) {
  return {{"p50", latency.p50_us}, {"p99", latency.p99_us}};
}

nlohmann::ordered_json EffortJson(const EffortResult& result, const SweepResult& all) {
  nlohmann::ordered_json json;
  json["effort"] = result.effort;
  json["search_us"] = Json(result.group_search);
  for (const Figure& figure : kFigures) {
    json[figure.name] = DistributionJson(Distribution::Of(result, figure.value));
  }
  json["heads"] = nlohmann::ordered_json::array();
  for (size_t i = 0; i < result.heads.size(); ++i) {
    nlohmann::ordered_json head = {{"name", all.heads[i]}};
    for (const Figure& figure : kFigures) head[figure.name] = result.heads[i].*figure.value;
    json["heads"].push_back(std::move(head));
  }
  return json;
}

std::string HeadsText(const SweepResult& result) {
  const Distribution mass = Distribution::Of(result.best_masses);
  return absl::StrFormat(
      "%s heads of %s keys x %d fp16, group of %d; %s samples, %s steps each; k = %s\n"
      "The best %g %% of the keys have %.3f of the attention (%.3f to %.3f)\n"
      "Exact scan for a group, one thread: p50 %s, p99 %s; row by row: p50 %s, p99 %s\n\n",
      FormatCount(result.heads.size()), FormatCount(result.head_keys[0]), result.head_dim,
      result.group, FormatCount(result.samples), FormatCount(result.steps), FormatCount(result.k),
      100 * kBestShare, mass.median, mass.min, mass.max, Microseconds(result.scan_group.p50_us),
      Microseconds(result.scan_group.p99_us), Microseconds(result.scan_rows.p50_us),
      Microseconds(result.scan_rows.p99_us));
}

std::string BuildTable(const SweepResult& result) {
  Table table(
      {{"index", Align::kLeft}, {"build, median"}, {"slowest"}, {"keys/s"}, {"bytes per key"}});
  for (const IndexResult& index : result.indexes) {
    const Distribution seconds = Distribution::Of(index.build_seconds);
    const double rate = static_cast<double>(result.head_keys[0]) / std::max(seconds.median, 1e-9);
    table.AddRow({index.name, FormatSeconds(seconds.median), FormatSeconds(seconds.max),
                  FormatCount(static_cast<uint64_t>(rate)),
                  absl::StrFormat("%.1f", Distribution::Of(index.bytes_per_key).median)});
  }
  return absl::StrCat("Building one head, ", result.threads, " threads\n", table.ToString(), "\n");
}

std::string SearchTable(const SweepResult& result) {
  Table table({{"index", Align::kLeft},
               {"effort"},
               {"recall min"},
               {"median"},
               {"max"},
               {"scanned median"},
               {"max"},
               {"distances"},
               {"mass of best min"},
               {"median"},
               {"error median"},
               {"max"},
               {"p50"},
               {"p99"}});
  for (const IndexResult& index : result.indexes) {
    for (const EffortResult& effort : index.efforts) {
      const auto of = [&](double FoundFigures::*figure) {
        return Distribution::Of(effort, figure);
      };
      const Distribution recall = of(&FoundFigures::recall);
      const Distribution scanned = of(&FoundFigures::scanned_share);
      const Distribution mass = of(&FoundFigures::mass_of_best);
      const Distribution error = of(&FoundFigures::output_error);
      const auto distances =
          static_cast<uint64_t>(std::llround(of(&FoundFigures::distances).median));
      table.AddRow({index.name, FormatCount(effort.effort), Share(recall.min), Share(recall.median),
                    Share(recall.max), FormatPercent(scanned.median), FormatPercent(scanned.max),
                    FormatCount(distances), Share(mass.min), Share(mass.median),
                    FormatPercent(error.median), FormatPercent(error.max),
                    Microseconds(effort.group_search.p50_us),
                    Microseconds(effort.group_search.p99_us)});
    }
  }
  return absl::StrCat("Searching, by one thread, the heads in turn\n", table.ToString(),
                      "Spread over heads of what each has as a mean over its queries. Scanned are "
                      "distinct keys scored\nfor a query, distances include centroids; mass is "
                      "that of the keys found, against that of\nthe best ",
                      absl::StrFormat("%g", 100 * kBestShare),
                      " % of all; p50 and p99 are of a search for a whole group.\n");
}

std::string HeadTable(const SweepResult& result) {
  Table table({{"index", Align::kLeft},
               {"effort"},
               {"head", Align::kLeft},
               {"recall"},
               {"scanned"},
               {"distances"},
               {"mass"},
               {"of best"},
               {"error"}});
  for (const IndexResult& index : result.indexes) {
    for (const EffortResult& effort : index.efforts) {
      for (size_t i = 0; i < effort.heads.size(); ++i) {
        const FoundFigures& head = effort.heads[i];
        table.AddRow({index.name, FormatCount(effort.effort), result.heads[i], Share(head.recall),
                      FormatPercent(head.scanned_share),
                      FormatCount(static_cast<uint64_t>(std::llround(head.distances))),
                      Share(head.mass), Share(head.mass_of_best),
                      FormatPercent(head.output_error)});
      }
    }
  }
  return absl::StrCat("\nHead by head\n", table.ToString());
}

}  // namespace

Distribution Distribution::Of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  const double median =
      values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
  return {values.front(), median, values.back()};
}

Distribution Distribution::Of(const EffortResult& result, double FoundFigures::*figure) {
  std::vector<double> values;
  for (const FoundFigures& head : result.heads) values.push_back(head.*figure);
  return Of(std::move(values));
}

nlohmann::ordered_json DistributionJson(const Distribution& distribution) {
  return {{"min", distribution.min}, {"median", distribution.median}, {"max", distribution.max}};
}

nlohmann::ordered_json IndexEvalJson(const SweepResult& result) {
  nlohmann::ordered_json json;
  json["k"] = result.k;
  json["threads"] = result.threads;
  json["head_dim"] = result.head_dim;
  json["group"] = result.group;
  json["steps"] = result.steps;
  json["samples"] = result.samples;
  json["best_share"] = kBestShare;
  json["target_recall"] = kTargetRecall;
  json["heads"] = nlohmann::ordered_json::array();
  const std::vector<HeadComparison> comparisons = CompareOnHeads(result);
  for (size_t i = 0; i < result.heads.size(); ++i) {
    nlohmann::ordered_json head = {{"name", result.heads[i]},
                                   {"keys", result.head_keys[i]},
                                   {"best_mass", result.best_masses[i]}};
    head["at_target_recall"] = ComparisonJson(comparisons[i]);
    json["heads"].push_back(std::move(head));
  }
  json["scan_group_us"] = Json(result.scan_group);
  json["scan_rows_us"] = Json(result.scan_rows);
  json["indexes"] = nlohmann::ordered_json::array();
  for (const IndexResult& index : result.indexes) {
    nlohmann::ordered_json one;
    one["name"] = index.name;
    one["kind"] = index.kind;
    one["build_seconds"] = index.build_seconds;
    one["bytes_per_key"] = index.bytes_per_key;
    one["efforts"] = nlohmann::ordered_json::array();
    for (const EffortResult& effort : index.efforts) {
      one["efforts"].push_back(EffortJson(effort, result));
    }
    if (!index.attention.empty()) {
      one["attention"] = ClusterAttentionJson(index.attention, result.heads);
    }
    json["indexes"].push_back(std::move(one));
  }
  return json;
}

std::string IndexEvalText(const SweepResult& result, bool per_head) {
  return absl::StrCat(HeadsText(result), BuildTable(result), SearchTable(result),
                      ComparisonTable(result), ClusterAttentionTable(result),
                      per_head ? HeadTable(result) : "");
}

}  // namespace terrace
