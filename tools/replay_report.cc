#include "tools/replay_report.h"

#include <sys/resource.h>

#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "tools/byte_size.h"
#include "tools/table.h"

namespace terrace {
namespace {

// The number behind `key` in a file of "key: number" lines.
uint64_t ReadProcNumber(const char* path, const std::string& key) {
  std::ifstream file(path);
  std::string word;
  uint64_t number = 0;
  while (file >> word) {
    if (word == key && file >> number) return number;
  }
  return 0;
}

uint64_t Microseconds(const LatencyHistogram& histogram, double share) {
  return static_cast<uint64_t>(histogram.PercentileNs(share)) / 1000;
}

double CpuSeconds() {
  struct rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double Share(uint64_t part, uint64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

std::string TierTable(const ReplayReport& report) {
  const ReplayResult& result = report.result;
  Table table(
      {{"tier", Align::kLeft}, {"capacity"}, {"blocks held"}, {"blocks reused"}, {"of all"}});
  for (Tier tier : {Tier::kHbm, Tier::kDram, Tier::kNvme}) {
    const TierStats::PerTier& stats = report.tiers.tiers[static_cast<size_t>(tier)];
    const uint64_t hits = result.hits[static_cast<size_t>(tier)];
    table.AddRow({TierName(tier), FormatByteSize(stats.capacity_bytes), FormatCount(stats.blocks),
                  FormatCount(hits), FormatPercent(Share(hits, result.block_refs))});
  }
  table.AddRow({"reused", "", "", FormatCount(result.reused_blocks),
                FormatPercent(Share(result.reused_blocks, result.block_refs))});
  table.AddRow({"computed", "", "", FormatCount(result.computed_blocks),
                FormatPercent(Share(result.computed_blocks, result.block_refs))});
  return table.ToString();
}

std::string DeviceText(const TierStats& tiers) {
  if (tiers.nvme_health == NvmeHealth::kAbsent) return "none";
  if (tiers.device.engine == IoEngine::kMemory) return "memory (NVMe emulated)";
  return absl::StrCat(IoEngineName(tiers.device.engine), " (", tiers.device.engine_reason, "; ",
                      tiers.device.engine_setup, "), ",
                      tiers.device.direct_io ? "direct I/O" : "page cache", " (",
                      tiers.device.direct_reason, ")");
}

std::string NvmeReadsText(const TierManagerOptions& options, size_t depth) {
  const std::string at_once = absl::StrCat("up to ", depth, " requests at once");
  if (options.coalesce_read_bytes == 0) return absl::StrCat(at_once, ", a block each");
  return absl::StrCat(at_once, "; gaps of up to ", FormatByteSize(options.coalesce_gap_bytes),
                      " are read along in requests of up to ",
                      FormatByteSize(options.coalesce_read_bytes));
}

std::string NvmeBytesText(const ReplayReport& report) {
  return absl::StrCat(FormatByteSize(report.tiers.nvme_read_bytes), " read, ",
                      FormatByteSize(report.tiers.nvme_written_bytes),
                      " written; the kernel counts ", FormatByteSize(report.usage.read_bytes),
                      " and ", FormatByteSize(report.usage.write_bytes));
}

std::string NvmeLogText(const PlacementStats& stats) {
  const uint64_t fresh = stats.written_blocks - stats.rewritten_blocks;
  std::string text = absl::StrFormat(
      "%s blocks written, %s of them again to keep them: write amplification %.2f",
      FormatCount(stats.written_blocks), FormatCount(stats.rewritten_blocks),
      fresh == 0 ? 1.0 : static_cast<double>(stats.written_blocks) / static_cast<double>(fresh));
  if (stats.budget_dropped > 0) {
    absl::StrAppend(&text, "; ", FormatCount(stats.budget_dropped), " not written for endurance");
  }
  return text;
}

std::string HealthText(const TierStats& tiers) {
  const NvmeFaults& faults = tiers.nvme_faults;
  std::string text = NvmeHealthName(tiers.nvme_health);
  if (tiers.nvme_health == NvmeHealth::kHealthy) return text;
  absl::StrAppend(&text, ": ", FormatCount(faults.failed_reads), " reads failed, ",
                  FormatCount(faults.corrupt_reads), " brought wrong bytes, ",
                  FormatCount(faults.mended_reads), " of these went well the second time; ",
                  FormatCount(faults.failed_writes), " writes and ",
                  FormatCount(faults.failed_syncs), " syncs failed");
  const bool damage = tiers.recovery.damaged_pages + tiers.recovery.missing_bytes > 0;
  return damage ? absl::StrCat(text, "; it was damaged when it was reopened") : text;
}

std::string RecoveryText(const RecoveryReport& recovery) {
  std::string text =
      absl::StrCat(FormatCount(recovery.blocks), " blocks in ", FormatSeconds(recovery.seconds),
                   " from ", FormatCount(recovery.sealed_segments), " footers and ",
                   FormatCount(recovery.unsealed_segments), " open segments");
  if (recovery.torn_groups > 0) {
    absl::StrAppend(&text, "; ", FormatCount(recovery.torn_groups), " unfinished writes discarded");
  }
  if (recovery.missing_bytes > 0) {
    absl::StrAppend(&text, "; the file had been CUT SHORT by ",
                    FormatByteSize(recovery.missing_bytes));
  }
  if (recovery.damaged_manifests > 0) {
    absl::StrAppend(&text, "; ", FormatCount(recovery.damaged_manifests),
                    " damaged manifest copies");
  }
  if (recovery.damaged_pages + recovery.damaged_manifests > 0) {
    absl::StrAppend(&text, "; DAMAGED, see terrace fsck");
  }
  return text;
}

std::string SoakText(const ReplayReport::Soak& soak) {
  return absl::StrCat(FormatCount(soak.passes), " passes: ", FormatCount(soak.lost_blocks),
                      " blocks lost, ", FormatCount(soak.missing_blocks),
                      " missing after reopening, which took ",
                      FormatSeconds(soak.slowest_open_seconds), " at most");
}

std::string DetailTable(const ReplayReport& report) {
  const ReplayResult& result = report.result;
  const TierStats& tiers = report.tiers;
  Table table({{"", Align::kLeft}, {"", Align::kLeft}});
  table.AddRow({"integrity",
                absl::StrCat(FormatCount(result.reused_blocks),
                             " blocks verified byte for byte: ", FormatCount(result.corrupt_blocks),
                             " corrupt, ", FormatCount(tiers.placement.lost_blocks), " lost")});
  table.AddRow({"wall time", absl::StrCat(FormatSeconds(result.wall_seconds), ", of which ",
                                          FormatSeconds(result.fetch_seconds), " fetching")});
  table.AddRow(
      {"fetch latency",
       absl::StrCat("p50 ", FormatMicroseconds(Microseconds(result.fetch_latency, 0.5)), ", p99 ",
                    FormatMicroseconds(Microseconds(result.fetch_latency, 0.99)), ", p99.9 ",
                    FormatMicroseconds(Microseconds(result.fetch_latency, 0.999)), " a batch")});
  table.AddRow({"NVMe bytes", NvmeBytesText(report)});
  table.AddRow(
      {"NVMe file", absl::StrCat("at most ", FormatByteSize(tiers.nvme_peak_bytes), " of ",
                                 FormatByteSize(tiers.tiers[2].capacity_bytes), " in use")});
  if (tiers.nvme_health != NvmeHealth::kAbsent) {
    table.AddRow({"NVMe log", NvmeLogText(tiers.placement)});
    table.AddRow({"NVMe health", HealthText(tiers)});
  }
  if (report.options.reuse) table.AddRow({"NVMe reopened", RecoveryText(tiers.recovery)});
  if (report.soak.passes > 0) table.AddRow({"soak", SoakText(report.soak)});
  table.AddRow({"NVMe engine", DeviceText(tiers)});
  if (!tiers.device.path.empty()) {
    table.AddRow({"NVMe requests", NvmeReadsText(report.options, tiers.device.depth)});
  }
  table.AddRow({"HBM", absl::StrCat(tiers.copy_engine, ", ", FormatByteSize(tiers.hbm_copied_bytes),
                                    " copied")});
  table.AddRow(
      {"memory",
       absl::StrCat("peak ", FormatByteSize(report.usage.peak_memory_bytes), " (tiers ",
                    FormatByteSize(tiers.tiers[0].capacity_bytes + tiers.tiers[1].capacity_bytes),
                    ", staging ", FormatByteSize(tiers.staging_bytes), ", directory ",
                    FormatByteSize(tiers.metadata_bytes), ")")});
  return table.ToString();
}

// What went wrong without stopping the run, a line each.
std::string Remarks(const ReplayReport& report) {
  const ReplayResult& result = report.result;
  std::string text;
  if (result.interrupted) absl::StrAppend(&text, "Interrupted: the figures are partial.\n");
  if (report.skipped_lines > 0) {
    absl::StrAppend(&text, FormatCount(report.skipped_lines), " bad trace lines were skipped.\n");
  }
  if (!report.tiers.nvme_error.ok()) {
    absl::StrAppend(
        &text, "The NVMe tier stopped taking blocks: ", report.tiers.nvme_error.message(), "\n");
  }
  if (!report.tiers.nvme_read_error.ok()) {
    absl::StrAppend(
        &text, "First read from NVMe that failed: ", report.tiers.nvme_read_error.message(), "\n");
  } else if (result.failed_flushes > 0) {
    absl::StrAppend(&text, FormatCount(result.failed_flushes),
                    " flushes failed, the first with: ", result.flush_error.message(), "\n");
  }
  if (result.unstored_blocks > 0) {
    absl::StrAppend(&text, FormatCount(result.unstored_blocks), " blocks found no room.\n");
  }
  return text;
}

std::string Meaning(const ReplayResult& result) {
  const double reused = Share(result.reused_blocks, result.block_refs);
  const uint64_t below_hbm =
      result.hits[static_cast<size_t>(Tier::kDram)] + result.hits[static_cast<size_t>(Tier::kNvme)];
  return absl::StrCat(
      FormatPercent(reused), " of the prompt blocks came out of a tier instead of being computed",
      " again (", FormatPercent(Share(below_hbm, result.block_refs)), " from below HBM), ",
      result.corrupt_blocks == 0 ? "every byte of them as it was stored." : "SOME OF THEM WRONG.");
}

}  // namespace

ProcessUsage ProcessUsage::Now() {
  return {.read_bytes = ReadProcNumber("/proc/self/io", "read_bytes:"),
          .write_bytes = ReadProcNumber("/proc/self/io", "write_bytes:"),
          .peak_memory_bytes = ReadProcNumber("/proc/self/status", "VmHWM:") * 1024,
          .cpu_seconds = CpuSeconds()};
}

nlohmann::ordered_json ReplayJson(const ReplayReport& report) {
  const ReplayResult& result = report.result;
  const TierStats& tiers = report.tiers;
  nlohmann::ordered_json json;
  json["requests"] = result.requests;
  json["block_refs"] = result.block_refs;
  json["reused_blocks"] = result.reused_blocks;
  json["computed_blocks"] = result.computed_blocks;
  json["hits"] = {{"hbm", result.hits[0]}, {"dram", result.hits[1]}, {"nvme", result.hits[2]}};
  json["corrupt_blocks"] = result.corrupt_blocks;
  json["lost_blocks"] = tiers.placement.lost_blocks;
  json["bytes"] = {{"nvme_read", tiers.nvme_read_bytes},
                   {"nvme_written", tiers.nvme_written_bytes},
                   {"hbm_copied", tiers.hbm_copied_bytes}};
  json["wall_seconds"] = result.wall_seconds;
  json["nvme_capacity_bytes"] = tiers.tiers[2].capacity_bytes;
  json["nvme_peak_bytes"] = tiers.nvme_peak_bytes;
  json["fetch_latency_us"] = {{"p50", Microseconds(result.fetch_latency, 0.5)},
                              {"p99", Microseconds(result.fetch_latency, 0.99)},
                              {"p999", Microseconds(result.fetch_latency, 0.999)}};
  json["engine"] =
      tiers.nvme_health == NvmeHealth::kAbsent ? "none" : IoEngineName(tiers.device.engine);
  json["engine_reason"] = tiers.device.engine_reason;
  json["engine_setup"] = tiers.device.engine_setup;
  json["io_depth"] = tiers.device.depth;
  json["coalesce_gap_bytes"] = report.options.coalesce_gap_bytes;
  json["coalesce_read_bytes"] = report.options.coalesce_read_bytes;
  json["direct_io"] = tiers.device.direct_io;
  json["copy_engine"] = tiers.copy_engine;
  json["block_bytes"] = report.options.block_bytes;
  json["tokens_per_block"] = report.tokens_per_block;
  json["model"] = report.model;
  json["fetch_seconds"] = result.fetch_seconds;
  json["interrupted"] = result.interrupted;
  json["skipped_lines"] = report.skipped_lines;
  json["unstored_blocks"] = result.unstored_blocks;
  json["failed_flushes"] = result.failed_flushes;
  json["nvme_error"] =
      tiers.nvme_error.ok() ? std::string() : std::string(tiers.nvme_error.message());
  json["nvme_read_error"] = std::string(tiers.nvme_read_error.message());
  json["evicted_blocks"] = tiers.placement.evicted_blocks;
  json["kernel_io"] = {{"read_bytes", report.usage.read_bytes},
                       {"write_bytes", report.usage.write_bytes}};
  json["peak_memory_bytes"] = report.usage.peak_memory_bytes;
  json["metadata_bytes"] = tiers.metadata_bytes;
  json["staging_bytes"] = tiers.staging_bytes;
  json["cpu_seconds"] = report.usage.cpu_seconds;
  json["written_blocks"] = tiers.placement.written_blocks;
  json["rewritten_blocks"] = tiers.placement.rewritten_blocks;
  json["budget_dropped"] = tiers.placement.budget_dropped;
  json["nvme_health"] = NvmeHealthName(tiers.nvme_health);
  json["nvme_faults"] = {{"failed_reads", tiers.nvme_faults.failed_reads},
                         {"corrupt_reads", tiers.nvme_faults.corrupt_reads},
                         {"mended_reads", tiers.nvme_faults.mended_reads},
                         {"unopened_blocks", tiers.nvme_faults.unopened_blocks},
                         {"failed_writes", tiers.nvme_faults.failed_writes},
                         {"failed_syncs", tiers.nvme_faults.failed_syncs}};
  json["recovery"] = {{"blocks", tiers.recovery.blocks},
                      {"sealed_segments", tiers.recovery.sealed_segments},
                      {"unsealed_segments", tiers.recovery.unsealed_segments},
                      {"torn_groups", tiers.recovery.torn_groups},
                      {"damaged_pages", tiers.recovery.damaged_pages},
                      {"damaged_manifests", tiers.recovery.damaged_manifests},
                      {"verified_bytes", tiers.recovery.verified_bytes},
                      {"missing_bytes", tiers.recovery.missing_bytes},
                      {"seconds", tiers.recovery.seconds}};
  json["soak"] = {{"passes", report.soak.passes},
                  {"lost_blocks", report.soak.lost_blocks},
                  {"missing_blocks", report.soak.missing_blocks},
                  {"slowest_open_seconds", report.soak.slowest_open_seconds}};
  return json;
}

std::string ReplayText(const ReplayReport& report) {
  std::string blocks = FormatByteSize(report.options.block_bytes);
  if (!report.model.empty()) absl::StrAppend(&blocks, ", ", report.model);
  return absl::StrCat(FormatCount(report.result.requests), " requests, ",
                      FormatCount(report.result.block_refs), " blocks of ",
                      FormatCount(report.tokens_per_block), " tokens (", blocks, ")\n\n",
                      TierTable(report), "\n", DetailTable(report), "\n", Remarks(report),
                      Meaning(report.result), "\n");
}

std::string ReplayProgressText(const ReplayResult& so_far, uint64_t total_requests,
                               uint64_t block_bytes) {
  const double seconds = so_far.wall_seconds;
  const double done = Share(so_far.requests, total_requests);
  const double left = done > 0 ? seconds / done - seconds : 0;
  const double bytes = static_cast<double>(so_far.block_refs * block_bytes);
  return absl::StrFormat("%s/%s requests  hits HBM %s DRAM %s NVMe %s  %.2f GB/s  %.0f s left",
                         FormatCount(so_far.requests), FormatCount(total_requests),
                         FormatPercent(Share(so_far.hits[0], so_far.block_refs)),
                         FormatPercent(Share(so_far.hits[1], so_far.block_refs)),
                         FormatPercent(Share(so_far.hits[2], so_far.block_refs)),
                         seconds > 0 ? bytes / seconds / 1e9 : 0.0, left);
}

}  // namespace terrace
