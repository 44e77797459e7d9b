#include "tools/replay_run.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "io/memory_device.h"
#include "tiers/tier_file.h"
#include "tiers/tier_manager.h"
#include "tools/key_file.h"
#include "tools/output_file.h"
#include "tools/progress.h"
#include "tools/stop_signal.h"

namespace terrace {
namespace {

absl::StatusOr<std::unique_ptr<TierManager>> OpenTiers(const ReplaySetup& setup, bool reuse) {
  // First, because opening may discard what the directory holds.
  std::optional<CipherKey> key;
  if (!setup.key_file.empty()) {
    absl::StatusOr<CipherKey> read = ReadKeyFile(setup.key_file);
    if (!read.ok()) return read.status();
    key = *std::move(read);
  }
  TierManagerOptions options = setup.tiers;
  options.reuse = reuse;
  TierManager::Parts parts;
  parts.checksums = setup.checksums;
  if (setup.in_memory && options.nvme_bytes > 0) {
    const absl::StatusOr<NvmeGeometry> geometry =
        PlanNvmeGeometry(options.nvme_bytes, options.block_bytes);
    if (!geometry.ok()) return geometry.status();
    absl::StatusOr<std::unique_ptr<MemoryDevice>> device = MemoryDevice::Create(
        {.size_bytes = geometry->total_bytes(), .depth = options.io_depth, .transfer_hook = {}});
    if (!device.ok()) return device.status();
    parts.device = *std::move(device);
  }
  absl::StatusOr<std::unique_ptr<TierManager>> tiers = TierManager::Open(options, std::move(parts));
  if (!tiers.ok() || !key) return tiers;
  const absl::Status added = (*tiers)->AddKey(ReplaySetup::kSpace, *std::move(key));
  if (!added.ok()) return added;
  return tiers;
}

// The logs are written over what they name, which must not be what the run lives on. Called once
// the tiers are open, when their file is there.
absl::Status CheckLogs(const ReplaySetup& setup) {
  std::vector<std::string> used = {setup.trace_path, setup.key_file};
  if (!setup.tiers.nvme_dir.empty()) used.push_back(TierFilePath(setup.tiers.nvme_dir));
  const absl::Status flush_log = CheckNotUsed("--flush-log", setup.replay.flush_log, used);
  return flush_log.ok() ? CheckNotUsed("--export-ops", setup.replay.export_ops, used) : flush_log;
}

// One pass over the trace; adds to the report.
absl::Status RunPass(const ReplaySetup& setup, const Trace& trace, TierManager& tiers,
                     ReplayReport& report) {
  Replay replay(tiers, trace, StopOnSignals(), setup.replay);
  ProgressLine progress(stderr);
  const absl::Status status = replay.Run([&](const ReplayResult& so_far) {
    const absl::Time now = absl::Now();
    if (!progress.Due(now)) return;
    progress.Update(now,
                    ReplayProgressText(so_far, trace.requests().size(), setup.tiers.block_bytes));
  });
  progress.Clear();
  report.result.Add(replay.result());
  report.tiers = tiers.Stats();
  return status;
}

// Passes over the trace until the time is up, each on the tiers that the one before left, closed
// and opened again.
absl::Status Soak(const ReplaySetup& setup, const Trace& trace, absl::Time start,
                  std::unique_ptr<TierManager>& tiers, ReplayReport& report) {
  ReplayReport::Soak& soak = report.soak;
  soak.passes = 1;
  soak.lost_blocks = report.tiers.placement.lost_blocks;
  const bool reopens = setup.tiers.nvme_bytes > 0 && !setup.in_memory;
  while (absl::Now() - start < setup.soak && !report.result.interrupted) {
    if (reopens) {
      std::vector<BlockId> kept;
      for (uint64_t hash_id : trace.all_hash_ids()) {
        const BlockId id = {setup.replay.seed, hash_id};
        if (tiers->OnNvme(id)) kept.push_back(id);
      }
      tiers.reset();
      absl::StatusOr<std::unique_ptr<TierManager>> opened = OpenTiers(setup, /*reuse=*/true);
      if (!opened.ok()) return opened.status();
      tiers = *std::move(opened);
      for (const BlockId& id : kept) soak.missing_blocks += tiers->OnNvme(id) ? 0 : 1;
      soak.slowest_open_seconds =
          std::max(soak.slowest_open_seconds, tiers->Stats().recovery.seconds);
    }
    const uint64_t lost = tiers->Stats().placement.lost_blocks;
    const absl::Status status = RunPass(setup, trace, *tiers, report);
    if (!status.ok()) return status;
    ++soak.passes;
    soak.lost_blocks += report.tiers.placement.lost_blocks - lost;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ReplayReport> RunReplay(const ReplaySetup& setup) {
  TimelineSpan reading(setup.replay.timeline.get(), "read trace");
  const absl::StatusOr<Trace> trace = ReadTrace(setup.trace_path, setup.trace);
  reading.End();
  if (!trace.ok()) return trace.status();
  const absl::Time start = absl::Now();
  const ProcessUsage before = ProcessUsage::Now();
  absl::StatusOr<std::unique_ptr<TierManager>> tiers = OpenTiers(setup, setup.tiers.reuse);
  if (!tiers.ok()) return tiers.status();
  if (absl::Status logs = CheckLogs(setup); !logs.ok()) return logs;

  ReplayReport report;
  report.options = setup.tiers;
  absl::Status status = RunPass(setup, *trace, **tiers, report);
  if (status.ok() && setup.soak > absl::ZeroDuration()) {
    status = Soak(setup, *trace, start, *tiers, report);
  }
  if (!status.ok()) return status;
  report.usage = ProcessUsage::Now();
  report.usage.read_bytes -= before.read_bytes;
  report.usage.write_bytes -= before.write_bytes;
  report.usage.cpu_seconds -= before.cpu_seconds;
  report.skipped_lines = trace->skipped_lines();
  report.tokens_per_block = setup.tokens_per_block;
  report.model = setup.model;
  return report;
}

}  // namespace terrace
