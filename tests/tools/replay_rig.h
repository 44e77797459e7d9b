#ifndef TERRACE_TESTS_TOOLS_REPLAY_RIG_H_
#define TERRACE_TESTS_TOOLS_REPLAY_RIG_H_

#include <atomic>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "io/memory_device.h"
#include "tests/support/faulty_device.h"
#include "tools/gentrace.h"
#include "tools/replay.h"
#include "tools/replay_report.h"

namespace terrace {

inline constexpr uint64_t kBlockBytes = kPageBytes;

inline Trace SyntheticTrace(uint64_t requests, uint64_t seed = 1) {
  GentraceOptions options;
  options.requests = requests;
  options.seed = seed;
  options.concurrent_sessions = 40;
  absl::StatusOr<TraceGenerator> generator = TraceGenerator::Create(options);
  EXPECT_TRUE(generator.ok()) << generator.status();
  Trace trace;
  TraceLine request;
  for (uint64_t i = 0; i < requests; ++i) {
    generator->Next(request);
    trace.Append(request);
  }
  return trace;
}

inline Trace TraceOf(const std::vector<std::vector<uint64_t>>& requests) {
  Trace trace;
  for (const std::vector<uint64_t>& ids : requests) {
    TraceLine line;
    line.hash_ids = ids;
    trace.Append(line);
  }
  return trace;
}

inline TierManagerOptions Tiers(uint64_t hbm_blocks, uint64_t dram_blocks, uint64_t nvme_bytes) {
  TierManagerOptions options;
  options.block_bytes = kBlockBytes;
  options.hbm_bytes = hbm_blocks * kBlockBytes;
  options.dram_bytes = dram_blocks * kBlockBytes;
  options.nvme_bytes = nvme_bytes;
  return options;
}

// Tiers on a memory device behind a FaultyDevice that does as it is told, and a replay over them.
class Rig {
 public:
  Rig(const TierManagerOptions& options, Trace trace, ReplayOptions replay = {})
      : trace_(std::move(trace)) {
    TierManager::Parts parts;
    if (options.nvme_bytes > 0) {
      MemoryDeviceOptions memory;
      memory.size_bytes = PlanNvmeGeometry(options.nvme_bytes, kBlockBytes)->total_bytes();
      auto device = std::make_unique<FaultyDevice>(*MemoryDevice::Create(memory), /*seed=*/1);
      device_ = device.get();
      parts.device = std::move(device);
    }
    absl::StatusOr<std::unique_ptr<TierManager>> tiers =
        TierManager::Open(options, std::move(parts));
    EXPECT_TRUE(tiers.ok()) << tiers.status();
    tiers_ = *std::move(tiers);
    replay_ = std::make_unique<Replay>(*tiers_, trace_, stop_, std::move(replay));
  }

  const ReplayResult& Run(const Replay::ProgressFunction& progress = {}) {
    const absl::Status status = replay_->Run(progress);
    EXPECT_TRUE(status.ok()) << status;
    return replay_->result();
  }

  std::string Text() const {
    ReplayReport report;
    report.result = replay_->result();
    report.tiers = tiers_->Stats();
    report.options.block_bytes = kBlockBytes;
    return ReplayText(report);
  }

  const Trace& trace() const { return trace_; }
  TierManager& tiers() { return *tiers_; }
  FaultyDevice& device() { return *device_; }
  Replay& replay() { return *replay_; }
  std::atomic<bool>& stop() { return stop_; }

 private:
  const Trace trace_;
  std::atomic<bool> stop_ = false;
  FaultyDevice* device_ = nullptr;  // owned by tiers_
  std::unique_ptr<TierManager> tiers_;
  std::unique_ptr<Replay> replay_;
};

inline uint64_t TotalHits(const ReplayResult& result) {
  return std::accumulate(result.hits.begin(), result.hits.end(), uint64_t{0});
}

// What holds for every replay, whatever became of its disk.
inline void ExpectConsistent(const Rig& rig, const ReplayResult& result) {
  EXPECT_EQ(result.requests, rig.trace().requests().size());
  EXPECT_EQ(result.block_refs, rig.trace().block_refs());
  EXPECT_EQ(result.block_refs, result.reused_blocks + result.computed_blocks);
  EXPECT_EQ(TotalHits(result), result.reused_blocks);
  EXPECT_EQ(result.corrupt_blocks, 0);
  EXPECT_FALSE(result.interrupted);
}

}  // namespace terrace

#endif  // TERRACE_TESTS_TOOLS_REPLAY_RIG_H_
