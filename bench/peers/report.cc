#include "bench/peers/report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace terrace::peers {
namespace {

// Medians of one phase of one store.
struct Row {
  std::string name;
  double blocks_per_second = 0;
  double gb_per_second = 0;
  double p50_us = 0;
  double p99_us = 0;
  double p999_us = 0;
  double cpu_seconds_per_gb = 0;
  double peak_mib = 0;
};

template <typename Value>
double Median(const StoreRounds& store, size_t phase, Value value) {
  std::vector<double> values;
  for (const StoreResult& round : store.rounds) values.push_back(value(round.phases[phase]));
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// REQUIRES: the store has a round.
Row MakeRow(const StoreRounds& store, size_t phase, size_t block_bytes) {
  const auto blocks = [](const PhaseResult& result) {
    return static_cast<double>(result.put_blocks + result.got_blocks);
  };
  const double gb_per_block = static_cast<double>(block_bytes) / 1e9;
  Row row;
  row.name = store.name;
  row.blocks_per_second = Median(store, phase, [&](const PhaseResult& result) {
    return blocks(result) / std::max(result.seconds, 1e-9);
  });
  row.gb_per_second = row.blocks_per_second * gb_per_block;
  row.cpu_seconds_per_gb = Median(store, phase, [&](const PhaseResult& result) {
    return result.cpu_seconds / std::max(blocks(result) * gb_per_block, 1e-9);
  });
  const auto us = [](int64_t ns) { return static_cast<double>(ns) / 1e3; };
  row.p50_us = Median(store, phase, [&](const PhaseResult& r) { return us(r.p50_ns); });
  row.p99_us = Median(store, phase, [&](const PhaseResult& r) { return us(r.p99_ns); });
  row.p999_us = Median(store, phase, [&](const PhaseResult& r) { return us(r.p999_ns); });
  for (const StoreResult& round : store.rounds) {
    row.peak_mib = std::max(row.peak_mib, static_cast<double>(round.peak_bytes) / (1 << 20));
  }
  return row;
}

std::vector<Row> MakeRows(const ReportInput& input, size_t phase) {
  std::vector<Row> rows;
  for (const StoreRounds& store : input.stores) {
    if (!store.rounds.empty()) rows.push_back(MakeRow(store, phase, input.block_bytes));
  }
  return rows;
}

// The first store against the peer with the most throughput and the one with the least p99.
std::string Compare(absl::Span<const Row> rows) {
  if (rows.size() < 2) return "";
  const absl::Span<const Row> peers = rows.subspan(1);
  const Row& fastest = *std::max_element(peers.begin(), peers.end(), [](auto& a, auto& b) {
    return a.blocks_per_second < b.blocks_per_second;
  });
  const Row& steadiest = *std::min_element(peers.begin(), peers.end(),
                                           [](auto& a, auto& b) { return a.p99_us < b.p99_us; });
  return absl::StrFormat("  %s: %.2f times the throughput of %s, %.2f times the p99 of %s\n",
                         rows[0].name, rows[0].blocks_per_second / fastest.blocks_per_second,
                         fastest.name, rows[0].p99_us / steadiest.p99_us, steadiest.name);
}

}  // namespace

bool AllVerified(absl::Span<const StoreRounds> stores) {
  for (const StoreRounds& store : stores) {
    if (!store.error.empty()) return false;
    for (const StoreResult& round : store.rounds) {
      for (const PhaseResult& phase : round.phases) {
        if (!phase.verified()) return false;
      }
    }
  }
  return true;
}

std::string FormatTable(const ReportInput& input) {
  std::string text;
  for (size_t phase = 0; phase < input.phases.size(); ++phase) {
    absl::StrAppendFormat(&text, "%-24s %9s %7s %9s %9s %9s %8s %8s\n", input.phases[phase].Name(),
                          "blocks/s", "GB/s", "p50 us", "p99 us", "p99.9 us", "CPU s/GB",
                          "peak MiB");
    const std::vector<Row> rows = MakeRows(input, phase);
    for (const Row& row : rows) {
      absl::StrAppendFormat(&text, "  %-22s %9.0f %7.3f %9.0f %9.0f %9.0f %8.2f %8.0f\n", row.name,
                            row.blocks_per_second, row.gb_per_second, row.p50_us, row.p99_us,
                            row.p999_us, row.cpu_seconds_per_gb, row.peak_mib);
    }
    absl::StrAppend(&text, Compare(rows), "\n");
  }
  for (const StoreRounds& store : input.stores) {
    if (!store.error.empty()) absl::StrAppend(&text, store.name, " failed: ", store.error, "\n");
    uint64_t missing = 0, wrong = 0;
    for (const StoreResult& round : store.rounds) {
      for (const PhaseResult& phase : round.phases) {
        missing += phase.missing_blocks;
        wrong += phase.wrong_blocks;
      }
    }
    if (missing + wrong == 0) continue;
    absl::StrAppend(&text, store.name, ": ", missing, " blocks missing, ", wrong, " WRONG\n");
  }
  return text;
}

std::string FormatJson(const ReportInput& input) {
  std::string text = "[";
  const char* separator = "\n";
  for (size_t phase = 0; phase < input.phases.size(); ++phase) {
    for (const Row& row : MakeRows(input, phase)) {
      absl::StrAppendFormat(
          &text,
          "%s{\"phase\": \"%s\", \"store\": \"%s\", \"blocks_per_second\": %.1f, \"p50_us\": %.1f, "
          "\"p99_us\": %.1f, \"p999_us\": %.1f, \"cpu_seconds_per_gb\": %.4f, \"peak_mib\": %.1f}",
          separator, input.phases[phase].Name(), row.name, row.blocks_per_second, row.p50_us,
          row.p99_us, row.p999_us, row.cpu_seconds_per_gb, row.peak_mib);
      separator = ",\n";
    }
  }
  return text + "\n]\n";
}

}  // namespace terrace::peers
