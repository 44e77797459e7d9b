// Does TierManager read NVMe blocks as fast as the disk allows? Repeats the block operations of a
// replay to learn in which batches it fetches from NVMe, then reads the same batches, writes
// paused, in alternating passes: through TierManager::Fetch (verified, leased) into a DRAM tier and
// through BlockDevice alone into as much memory.
//
//   terrace replay ... --export-ops OPS
//   replay_fetch OPS DIR [PAIRS]

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/measure.h"
#include "bench/ops_file.h"
#include "io/aligned_buffer.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

constexpr size_t kBlockBytes = size_t{64} << 10;
constexpr uint64_t kNvmeBytes = uint64_t{2} << 30;
// Blocks of DRAM in the measured passes. A block is not asked for again while it may still be
// there.
constexpr size_t kDramBlocks = 1024;
constexpr size_t kPassBlocks = 12000;

struct PlacedBlock {
  BlockId id;
  uint64_t offset = 0;
};
using Batch = std::vector<PlacedBlock>;

TierManagerOptions Options(const std::string& dir, uint64_t hbm, uint64_t dram, bool reuse) {
  TierManagerOptions options;
  options.block_bytes = kBlockBytes;
  options.hbm_bytes = hbm;
  options.dram_bytes = dram;
  options.nvme_bytes = kNvmeBytes;
  options.nvme_dir = dir;
  options.reuse = reuse;
  return options;
}

// Repeats the operations and returns, fetch by fetch, the device offsets of what came from NVMe.
std::vector<std::vector<uint64_t>> RecordBatches(const std::string& ops, const std::string& dir,
                                                 std::vector<PlacedBlock>& at_the_end) {
  auto tiers = OrDie(
      TierManager::Open(Options(dir, uint64_t{64} << 20, uint64_t{256} << 20, /*reuse=*/false)));
  std::vector<std::vector<uint64_t>> batches;
  std::vector<std::byte> bytes(kBlockBytes);
  std::unordered_set<uint64_t> seen;
  for (const BlockOp& op : OrDie(ReadBlockOps(ops))) {
    if (op.put) {
      const uint64_t id = op.ids[0];
      seen.insert(id);
      std::memcpy(bytes.data(), &id, sizeof(id));
      const BlockWrite write = {.id = {0, id}, .bytes = bytes};
      OrDie(tiers->Put({&write, 1}));
      continue;
    }
    std::vector<BlockRead> reads;
    std::vector<uint64_t> offsets;
    for (uint64_t id : op.ids) {
      reads.push_back({.id = {0, id}});
      if (tiers->Find({0, id}) == Tier::kNvme) {
        offsets.push_back(tiers->NvmeOffset({0, id}).value_or(0));
      }
    }
    OrDie(tiers->Fetch(reads).status());
    if (!offsets.empty()) batches.push_back(offsets);
  }
  OrDie(tiers->Flush());
  for (uint64_t id : seen) {
    const std::optional<uint64_t> offset = tiers->NvmeOffset({0, id});
    if (offset) at_the_end.push_back({{0, id}, *offset});
  }
  return batches;
}

// The recorded batches in terms of what lies at those places now: each offset stands for the
// nearest block at or after it. Blocks that DRAM may still hold are left out, on both sides alike.
std::vector<Batch> Translate(const std::vector<std::vector<uint64_t>>& recorded,
                             const std::vector<PlacedBlock>& blocks) {
  std::map<uint64_t, BlockId> by_offset;
  for (const PlacedBlock& block : blocks) by_offset[block.offset] = block.id;
  std::unordered_map<uint64_t, size_t> last_use;
  std::vector<Batch> batches;
  size_t used = 0;
  for (const std::vector<uint64_t>& offsets : recorded) {
    Batch batch;
    for (uint64_t offset : offsets) {
      const auto found = by_offset.lower_bound(offset);
      if (found == by_offset.end()) continue;
      const auto [use, first] = last_use.try_emplace(found->first, used);
      if (!first && used - use->second < 2 * kDramBlocks) continue;
      use->second = used++;
      batch.push_back({found->second, found->first});
    }
    if (!batch.empty()) batches.push_back(std::move(batch));
    if (used >= kPassBlocks) break;
  }
  return batches;
}

struct PassResult {
  double bytes_per_second = 0;
  double cpu_seconds_per_gb = 0;
};

template <typename ReadBatch>
PassResult TimePass(const std::vector<Batch>& batches, ReadBatch read_batch) {
  const double cpu = CpuSeconds();
  const absl::Time start = absl::Now();
  double bytes = 0;
  for (const Batch& batch : batches) {
    read_batch(batch);
    bytes += static_cast<double>(batch.size() * kBlockBytes);
  }
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  return {bytes / seconds, (CpuSeconds() - cpu) / (bytes / 1e9)};
}

PassResult TierPass(const std::string& dir, const std::vector<Batch>& batches) {
  auto tiers = OrDie(TierManager::Open(Options(dir, 0, kDramBlocks * kBlockBytes, /*reuse=*/true)));
  std::vector<BlockRead> reads;
  const PassResult result = TimePass(batches, [&](const Batch& batch) {
    reads.clear();
    for (const PlacedBlock& block : batch) reads.push_back({.id = block.id});
    const Lease lease = OrDie(tiers->Fetch(reads));
    for (size_t i = 0; i < lease.size(); ++i) {
      if (lease[i].outcome == BlockOutcome::kServed && lease[i].hit_tier == Tier::kNvme) continue;
      std::fprintf(stderr, "replay_fetch: a block was not read from NVMe\n");
      std::exit(1);
    }
  });
  return result;
}

PassResult DevicePass(const std::string& dir, const std::vector<Batch>& batches) {
  FileDeviceOptions options;
  options.path = absl::StrCat(dir, "/terrace.kv");
  options.read_only = true;
  auto device = OrDie(OpenFileDevice(options));
  AlignedBuffer memory = OrDie(AlignedBuffer::Create(kDramBlocks * kBlockBytes));
  const iovec all = {memory.data(), memory.size()};
  static_cast<void>(device->RegisterBuffers({&all, 1}));  // as a TierManager does
  size_t largest = 0;
  for (const Batch& batch : batches) largest = std::max(largest, batch.size());
  std::vector<iovec> vectors(largest);
  std::vector<IoRequest> requests(largest);
  std::vector<IoRequest*> submitted;
  size_t slot = 0;
  return TimePass(batches, [&](const Batch& batch) {
    submitted.clear();
    for (size_t i = 0; i < batch.size(); ++i) {
      // All of the memory in turn, as in a tier: a few buffers would stay in the processor's cache.
      vectors[i] = {memory.data() + slot++ % kDramBlocks * kBlockBytes, kBlockBytes};
      requests[i].offset = batch[i].offset;
      requests[i].buffers = absl::MakeConstSpan(&vectors[i], 1);
      submitted.push_back(&requests[i]);
    }
    OrDie(RunBatch(*device, submitted));
  });
}

int Run(const std::string& ops, const std::string& dir, size_t pairs) {
  std::vector<PlacedBlock> blocks;
  const std::vector<std::vector<uint64_t>> recorded = RecordBatches(ops, dir, blocks);
  const std::vector<Batch> batches = Translate(recorded, blocks);
  size_t total = 0;
  for (const Batch& batch : batches) total += batch.size();
  if (total == 0) OrDie(absl::NotFoundError("the operations fetch nothing from NVMe"));

  std::vector<double> tier_rates, device_rates, tier_cpu, device_cpu;
  RunPairs(
      pairs,
      [&] {
        const PassResult tier = TierPass(dir, batches);
        tier_rates.push_back(tier.bytes_per_second);
        tier_cpu.push_back(tier.cpu_seconds_per_gb);
      },
      [&] {
        const PassResult device = DevicePass(dir, batches);
        device_rates.push_back(device.bytes_per_second);
        device_cpu.push_back(device.cpu_seconds_per_gb);
      });
  std::printf("%s, %zu batches of %.1f blocks of 64 KiB on average, %zu alternating pairs\n",
              SystemText().c_str(), batches.size(),
              static_cast<double>(total) / static_cast<double>(batches.size()), pairs);
  std::printf("TierManager  %.3f GB/s median, %.3f CPU seconds per GB\n",
              Quantile(tier_rates, 0.5) / 1e9, Quantile(tier_cpu, 0.5));
  std::printf("BlockDevice  %.3f GB/s median, %.3f CPU seconds per GB, verifying nothing\n",
              Quantile(device_rates, 0.5) / 1e9, Quantile(device_cpu, 0.5));
  std::printf("bandwidth    %s\n", RatioText(tier_rates, device_rates).c_str());
  std::printf("CPU per GB   %s\n", RatioText(tier_cpu, device_cpu).c_str());
  std::remove(absl::StrCat(dir, "/terrace.kv").c_str());
  return 0;
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  const int pairs = argc > 3 ? std::atoi(argv[3]) : 9;
  if (argc < 3 || argc > 4 || pairs < 1) {
    std::fprintf(stderr, "usage: replay_fetch OPS DIR [PAIRS]\n");
    return 2;
  }
  return terrace::Run(argv[1], argv[2], static_cast<size_t>(pairs));
}
