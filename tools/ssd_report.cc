#include "tools/ssd_report.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "tools/byte_size.h"
#include "tools/table.h"

namespace terrace {
namespace {

double Microseconds(const SsdRow& row, double share) {
  return static_cast<double>(row.latency.PercentileNs(share)) / 1000;
}

std::string RowName(const SsdRow& row) {
  return absl::StrCat(row.options.op.name, ", ", FormatByteSize(row.options.block_bytes),
                      " blocks, depth ", row.options.depth);
}

std::string RowTable(const SsdReport& report) {
  Table table({{"op", Align::kLeft},
               {"block"},
               {"depth"},
               {"bandwidth"},
               {"IOPS"},
               {"p50"},
               {"p99"},
               {"p99.9"},
               {"CPU s/GB"},
               {"steady"},
               {"errors"}});
  const auto latency = [](const SsdRow& row, double share) {
    return FormatMicroseconds(static_cast<uint64_t>(Microseconds(row, share) + 0.5));
  };
  for (const SsdRow& row : report.rows) {
    table.AddRow({row.options.op.name, FormatByteSize(row.options.block_bytes),
                  FormatCount(row.options.depth), FormatRate(row.bytes_per_second()),
                  FormatCount(static_cast<uint64_t>(row.iops())), latency(row, 0.5),
                  latency(row, 0.99), latency(row, 0.999),
                  absl::StrFormat("%.3f", row.cpu_seconds_per_gb()), row.steady ? "yes" : "no",
                  row.errors == 0 ? "" : FormatCount(row.errors)});
  }
  return table.ToString();
}

std::string PlaceText(const SsdReport& report) {
  const DeviceInfo& device = report.device;
  return absl::StrCat("Measured on ", report.source, ", filesystem ", report.filesystem, ", ",
                      report.kernel, ", ", FormatByteSize(report.size_bytes), ".\n", "Engine ",
                      IoEngineName(device.engine), " (", device.engine_reason, "; ",
                      device.engine_setup, "), ", device.direct_io ? "direct" : "NO direct",
                      " I/O (", device.direct_reason, ").\n");
}

// What weakens the figures.
std::string CaveatText(const SsdReport& report) {
  std::string text;
  if (!report.device.direct_io) {
    absl::StrAppend(&text, "The page cache serves these requests: this is no figure of a disk.\n");
  }
  if (!report.warning.empty()) absl::StrAppend(&text, "Warning: ", report.warning, ".\n");
  size_t limited = 0;
  for (const SsdRow& row : report.rows) limited += row.options.depth > report.device.depth;
  if (limited > 0) {
    absl::StrAppend(&text, "The engine has at most ", report.device.depth,
                    " requests in the kernel at once; deeper rows wait in front of it.\n");
  }
  if (report.interrupted()) {
    absl::StrAppend(&text, "Interrupted: only ", report.rows.size(), " of ", report.planned_rows,
                    " rows are complete, and the advice rests on them alone.\n");
  }
  return text;
}

std::string ErrorText(const SsdReport& report) {
  std::string text;
  for (const SsdRow& row : report.rows) {
    if (row.errors == 0) continue;
    absl::StrAppend(&text, RowName(row), ": ", FormatCount(row.errors), " requests failed, first ",
                    std::string(row.first_error.message()), "\n");
  }
  return text;
}

}  // namespace

uint64_t SsdReport::errors() const {
  uint64_t sum = 0;
  for (const SsdRow& row : rows) sum += row.errors;
  return sum;
}

nlohmann::ordered_json SsdJson(const SsdReport& report) {
  nlohmann::ordered_json results = nlohmann::ordered_json::array();
  for (const SsdRow& row : report.rows) {
    nlohmann::ordered_json item = {
        {"op", row.options.op.name},
        {"block_bytes", row.options.block_bytes},
        {"depth", row.options.depth},
        {"bytes_per_second", row.bytes_per_second()},
        {"iops", row.iops()},
        {"cpu_seconds_per_gb", row.cpu_seconds_per_gb()},
        {"latency_us",
         {{"p50", Microseconds(row, 0.5)},
          {"p99", Microseconds(row, 0.99)},
          {"p999", Microseconds(row, 0.999)}}},
        {"seconds", row.seconds},
        {"reads", row.reads},
        {"writes", row.writes},
        {"steady", row.steady},
        {"errors", row.errors},
    };
    if (row.errors > 0) item["first_error"] = std::string(row.first_error.message());
    results.push_back(std::move(item));
  }
  return {{"results", std::move(results)},
          {"engine", IoEngineName(report.device.engine)},
          {"engine_reason", report.device.engine_reason},
          {"engine_setup", report.device.engine_setup},
          {"direct_io", report.device.direct_io},
          {"direct_reason", report.device.direct_reason},
          {"device", report.source},
          {"filesystem", report.filesystem},
          {"kernel", report.kernel},
          {"size_bytes", report.size_bytes},
          {"warning", report.warning},
          {"interrupted", report.interrupted()}};
}

std::string SsdText(const SsdReport& report) {
  if (report.rows.empty() && report.interrupted()) {
    return absl::StrCat(PlaceText(report), "Interrupted before the first row was complete.\n");
  }
  return absl::StrCat(PlaceText(report), "\n", RowTable(report), "\n", CaveatText(report),
                      ErrorText(report), SsdAdvice(SsdProfile(report)));
}

std::string SsdAdvice(const DeviceProfile& profile) {
  std::set<uint64_t> sizes;
  std::set<size_t> depths;
  for (const DeviceProfile::Row& row : profile.rows) {
    if (row.op != "randread" || row.bytes_per_second <= 0) continue;
    sizes.insert(row.block_bytes);
    depths.insert(row.depth);
  }
  if (sizes.empty()) {
    return "No advice for KV blocks: it follows from random reads, so add --op randread.\n";
  }
  const uint64_t block = profile.AdvisedRequestBytes();
  const size_t depth = profile.AdvisedDepth(block);
  double reached = 0;
  for (const DeviceProfile::Row& row : profile.rows) {
    if (row.op == "randread" && row.block_bytes == block && row.depth == depth) {
      reached = row.bytes_per_second;
    }
  }
  std::string text = absl::StrCat("For KV blocks here: read at least ", FormatByteSize(block),
                                  " at a time with ", depth, depth == 1 ? " read" : " reads",
                                  " in flight, which gives ", FormatRate(reached), ", ",
                                  FormatPercent(reached / profile.BestReadBytesPerSecond()),
                                  " of the best random read bandwidth measured.");
  if (sizes.size() > 1) {
    const uint64_t gap = profile.CoalescingGapBytes();
    absl::StrAppend(&text,
                    gap == 0 ? std::string(" Do not read gaps along: separate requests cost less.")
                             : absl::StrCat(" Read gaps of up to ", FormatByteSize(gap),
                                            " along instead of splitting a request."));
  }
  absl::StrAppend(&text, "\n");
  if (sizes.size() < 2 || depths.size() < 2) {
    absl::StrAppend(&text, "Measure several block sizes and depths for better advice.\n");
  }
  return text;
}

DeviceProfile SsdProfile(const SsdReport& report) {
  DeviceProfile profile;
  profile.device = report.source;
  for (const SsdRow& row : report.rows) {
    profile.rows.push_back({row.options.op.name, row.options.block_bytes, row.options.depth,
                            row.bytes_per_second(), row.iops(), Microseconds(row, 0.5),
                            Microseconds(row, 0.99), Microseconds(row, 0.999)});
  }
  return profile;
}

}  // namespace terrace
