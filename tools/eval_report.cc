#include "tools/eval_report.h"

#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "tools/attention_report.h"
#include "tools/byte_size.h"
#include "tools/table.h"
#include "tools/weights_report.h"

namespace terrace {
namespace {

double ShareAnswered(const NeedleCell& cell) {
  return cell.asked == 0 ? 0 : static_cast<double>(cell.answered) / static_cast<double>(cell.asked);
}

// Two digits, or "-" where nothing was asked.
std::string ShareText(const NeedleCell& cell) {
  return cell.asked == 0 ? "-" : absl::StrFormat("%.2f", ShareAnswered(cell));
}

// How much more surprised than the baseline: the ratio of perplexities.
double PerplexityRatio(const PolicyResult& result, const PolicyResult& baseline) {
  return std::exp(result.text->perplexity.nats_per_byte - baseline.text->perplexity.nats_per_byte);
}

std::string PerplexityTable(const EvalReport& report) {
  Table table({{"policy", Align::kLeft},
               {"nats per byte"},
               {absl::StrCat("perplexity / ", report.policies[0].label)},
               {"time"},
               {"fetched"},
               {"lost blocks"}});
  for (const PolicyResult& result : report.policies) {
    table.AddRow({result.label, absl::StrFormat("%.4f", result.text->perplexity.nats_per_byte),
                  absl::StrFormat("%.4f", PerplexityRatio(result, report.policies[0])),
                  FormatSeconds(result.text->cost.seconds),
                  FormatByteSize(result.text->cost.lookups.fetched_bytes),
                  FormatCount(result.text->cost.lookups.lost_blocks)});
  }
  const Perplexity& first = report.policies[0].text->perplexity;
  return absl::StrCat("Perplexity over ", FormatCount(first.windows), " windows, ",
                      FormatCount(first.bytes), " bytes predicted\n", table.ToString(), "\n");
}

std::string NeedleGrid(const PolicyResult& result) {
  std::vector<TableColumn> columns = {{"tokens \\ depth"}};
  for (const NeedleCell& cell : result.needles[0].cells) {
    columns.push_back({absl::StrFormat("%.2f", cell.depth)});
  }
  columns.push_back({"all"});
  Table table(std::move(columns));
  for (const NeedleRow& row : result.needles) {
    std::vector<std::string> cells = {FormatCount(row.length_tokens)};
    for (const NeedleCell& cell : row.cells) cells.push_back(ShareText(cell));
    cells.push_back(ShareText(row.Total()));
    table.AddRow(std::move(cells));
  }
  return absl::StrCat("Needles answered, ", result.label, "\n", table.ToString(), "\n");
}

std::string NeedleTotals(const EvalReport& report) {
  Table table({{"policy", Align::kLeft},
               {"tokens"},
               {"answered"},
               {"share"},
               {"time"},
               {"fetched"},
               {"missed attention"},
               {"lost blocks"}});
  for (const PolicyResult& result : report.policies) {
    for (const NeedleRow& row : result.needles) {
      const NeedleCell total = row.Total();
      const LookupStats& lookups = row.cost.lookups;
      table.AddRow({result.label, FormatCount(row.length_tokens),
                    absl::StrCat(total.answered, " of ", total.asked), ShareText(total),
                    FormatSeconds(row.cost.seconds), FormatByteSize(lookups.fetched_bytes),
                    MissedMassText(lookups), FormatCount(lookups.lost_blocks)});
    }
  }
  return absl::StrCat(table.ToString(),
                      "Missed attention is an estimate; that of quest comes from upper "
                      "bounds and may be far too high,\nthat of cluster is what was attended to by "
                      "means.\n\n");
}

void AddBudgetRow(const std::string& policy, size_t tokens, const EvalBudget& budget,
                  Table& table) {
  if (budget.kv_bytes == 0) return;
  const auto with_share = [&](uint64_t bytes) {
    return absl::StrCat(
        FormatByteSize(bytes), " (",
        FormatPercent(static_cast<double>(bytes) / static_cast<double>(budget.kv_bytes)), ")");
  };
  table.AddRow({policy, FormatCount(tokens), FormatByteSize(budget.kv_bytes),
                with_share(budget.dram_bytes), with_share(budget.window_bytes),
                with_share(budget.summary_bytes),
                budget.lookup_blocks == 0 ? "-" : FormatCount(budget.lookup_blocks)});
}

// What is in fast memory, against the KV of one text.
std::string BudgetTable(const EvalReport& report) {
  Table table({{"policy", Align::kLeft},
               {"tokens"},
               {"KV of a text"},
               {"DRAM tier"},
               {"sinks and window"},
               {"summaries"},
               {"lookup blocks"}});
  bool any = false;
  for (const PolicyResult& result : report.policies) {
    if (result.text.has_value() && result.needles.empty()) {
      const Perplexity& perplexity = result.text->perplexity;
      const EvalBudget& budget = result.text->cost.budget;
      AddBudgetRow(result.label, perplexity.bytes / perplexity.windows + 1, budget, table);
      any |= budget.kv_bytes > 0;
    }
    for (const NeedleRow& row : result.needles) {
      AddBudgetRow(result.label, row.length_tokens, row.cost.budget, table);
      any |= row.cost.budget.kv_bytes > 0;
    }
  }
  if (!any) return "";
  return absl::StrCat(
      "Fast memory, and its part of the KV of a text\n", table.ToString(),
      "Sinks and window as reserved, which includes the chunk of ", kChunkTokens,
      " tokens that a prefill\nappends and, for infllm, keys as they are rotated.\n");
}

// Whether there was one to add.
bool AddIndexRow(const std::string& policy, size_t tokens, const EvalCost& cost, Table& table) {
  const EvalBudget& budget = cost.budget;
  if (budget.lookup_keys == 0 && budget.lookup_share == 0) return false;
  const bool graph = budget.lookup_keys > 0;
  table.AddRow({policy, FormatCount(tokens),
                graph ? FormatCount(budget.lookup_keys) : FormatPercent(budget.lookup_share),
                FormatByteSize(cost.indexes.bytes), FormatSeconds(cost.indexes.seconds),
                FormatCount(graph ? cost.lookups.tokens : cost.lookups.blocks),
                FormatCount(cost.lookups.late_blocks), FormatCount(cost.indexes.refusals)});
  return true;
}

// What the indexes of policies graph and cluster took and found.
std::string IndexTable(const EvalReport& report) {
  Table table({{"policy", Align::kLeft},
               {"tokens"},
               {"wanted"},
               {"memory"},
               {"build"},
               {"attended"},
               {"late"},
               {"refused"}});
  bool any = false;
  for (const PolicyResult& result : report.policies) {
    if (result.text.has_value()) {
      const Perplexity& perplexity = result.text->perplexity;
      any |= AddIndexRow(result.label, perplexity.bytes / perplexity.windows + 1, result.text->cost,
                         table);
    }
    for (const NeedleRow& row : result.needles) {
      any |= AddIndexRow(result.label, row.length_tokens, row.cost, table);
    }
  }
  if (!any) return "";
  return absl::StrCat("\nIndexes\n", table.ToString(),
                      "Attended are tokens for graph and blocks for cluster. What was refused, for "
                      "want of room, was\nattended to exactly.\n");
}

nlohmann::ordered_json CostJson(const EvalCost& cost) {
  nlohmann::ordered_json json;
  json["seconds"] = cost.seconds;
  json["lookups"] = LookupJson(cost.lookups);
  json["kv_bytes"] = cost.budget.kv_bytes;
  json["dram_bytes"] = cost.budget.dram_bytes;
  json["window_bytes"] = cost.budget.window_bytes;
  json["summary_bytes"] = cost.budget.summary_bytes;
  json["lookup_blocks"] = cost.budget.lookup_blocks;
  json["lookup_keys"] = cost.budget.lookup_keys;
  json["lookup_share"] = cost.budget.lookup_share;
  AddIndexJson(cost.indexes, json);
  return json;
}

void AddCell(const NeedleCell& cell, nlohmann::ordered_json& json) {
  json["asked"] = cell.asked;
  json["answered"] = cell.answered;
  json["share_answered"] = ShareAnswered(cell);
}

nlohmann::ordered_json NeedleJson(const PolicyResult& result) {
  nlohmann::ordered_json json;
  AddCell(result.NeedleTotal(), json);
  json["lengths"] = nlohmann::ordered_json::array();
  for (const NeedleRow& row : result.needles) {
    nlohmann::ordered_json of_length;
    of_length["tokens"] = row.length_tokens;
    AddCell(row.Total(), of_length);
    of_length["depths"] = nlohmann::ordered_json::array();
    for (const NeedleCell& cell : row.cells) {
      nlohmann::ordered_json of_depth;
      of_depth["depth"] = cell.depth;
      AddCell(cell, of_depth);
      of_length["depths"].push_back(std::move(of_depth));
    }
    of_length["cost"] = CostJson(row.cost);
    json["lengths"].push_back(std::move(of_length));
  }
  return json;
}

nlohmann::ordered_json PolicyJson(const PolicyResult& result, const PolicyResult& baseline) {
  nlohmann::ordered_json json;
  json["policy"] = result.policy;
  json["streaming_heads"] = result.streaming_heads;
  json["perplexity"] = nullptr;
  if (result.text.has_value()) {
    json["perplexity"] = {{"nats_per_byte", result.text->perplexity.nats_per_byte},
                          {"ratio", PerplexityRatio(result, baseline)},
                          {"windows", result.text->perplexity.windows},
                          {"bytes", result.text->perplexity.bytes},
                          {"cost", CostJson(result.text->cost)}};
  }
  json["needles"] = result.needles.empty() ? nlohmann::ordered_json(nullptr) : NeedleJson(result);
  json["seconds"] = result.Seconds();
  json["lookups"] = LookupJson(result.Lookups());
  return json;
}

}  // namespace

std::string EvalText(const EvalReport& report) {
  const PolicyResult& first = report.policies[0];
  std::string text;
  if (first.text.has_value()) text += PerplexityTable(report);
  if (!first.needles.empty()) {
    for (const PolicyResult& result : report.policies) text += NeedleGrid(result);
    text += NeedleTotals(report);
  }
  return absl::StrCat(text, BudgetTable(report), IndexTable(report), WeightsTable(report));
}

nlohmann::ordered_json EvalJson(const EvalReport& report) {
  nlohmann::ordered_json json;
  json["model"] = report.model;
  json["text"] = report.text;
  json["device"] = report.device;
  json["share"] = report.share.has_value() ? nlohmann::ordered_json(*report.share) : nullptr;
  json["keys_per_text"] = report.keys;
  json["heads"] = report.heads;
  json["policies"] = nlohmann::ordered_json::array();
  for (const PolicyResult& result : report.policies) {
    json["policies"].push_back(PolicyJson(result, report.policies[0]));
  }
  json["weights"] = WeightsJson(report);
  return json;
}

}  // namespace terrace
