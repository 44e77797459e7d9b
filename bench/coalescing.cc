// What does it buy to read neighbouring blocks with one request? Fetches small blocks from
// NVMe to DRAM, a run of neighbours for each of 8 KV heads at once, with read coalescing and
// without it, in alternating passes over the same file.
//
//   coalescing DIR [PAIRS]

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/measure.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

constexpr uint64_t kNvmeBytes = uint64_t{512} << 20;
constexpr uint64_t kStoredBytes = uint64_t{384} << 20;
constexpr uint64_t kDramBytes = uint64_t{32} << 20;
constexpr uint64_t kPassBytes = uint64_t{192} << 20;
constexpr size_t kRun = 16;   // neighbouring blocks
constexpr size_t kHeads = 8;  // runs of one fetch

std::unique_ptr<TierManager> OpenTiers(const std::string& dir, size_t block_bytes, bool reuse,
                                       bool coalesce) {
  TierManagerOptions options;
  options.block_bytes = block_bytes;
  options.dram_bytes = kDramBytes;
  options.nvme_bytes = kNvmeBytes;
  options.nvme_dir = dir;
  options.reuse = reuse;
  if (!coalesce) options.coalesce_read_bytes = 0;
  return OrDie(TierManager::Open(options));
}

void Store(TierManager& tiers, size_t block_bytes) {
  std::vector<std::byte> bytes(block_bytes);
  std::mt19937_64 random(block_bytes);
  for (uint64_t id = 0; id < kStoredBytes / block_bytes; ++id) {
    for (size_t i = 0; i < block_bytes; i += 512) bytes[i] = static_cast<std::byte>(random());
    const BlockWrite write = {.id = {0, id}, .bytes = bytes};
    OrDie(tiers.Put({&write, 1}));
  }
  OrDie(tiers.Flush());
}

double BytesPerSecond(const std::string& dir, size_t block_bytes, bool coalesce, bool shuffled,
                      const std::vector<uint64_t>& starts) {
  const auto tiers = OpenTiers(dir, block_bytes, /*reuse=*/true, coalesce);
  std::vector<BlockRead> reads(kHeads * kRun);
  // The order in which a lookup names them: by position, or by score.
  std::vector<size_t> order(reads.size());
  std::iota(order.begin(), order.end(), size_t{0});
  if (shuffled) std::shuffle(order.begin(), order.end(), std::mt19937_64(2));
  const absl::Time start = absl::Now();
  for (size_t head = 0; head + kHeads <= starts.size(); head += kHeads) {
    for (size_t i = 0; i < reads.size(); ++i) {
      reads[order[i]] = {.id = {0, starts[head + i / kRun] + i % kRun}};
    }
    const Lease lease = OrDie(tiers->Fetch(reads));
    for (size_t i = 0; i < lease.size(); ++i) {
      if (lease[i].outcome == BlockOutcome::kServed && lease[i].hit_tier == Tier::kNvme) continue;
      OrDie(absl::InternalError("a block was not read from NVMe"));
    }
  }
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  return static_cast<double>(starts.size() * kRun * block_bytes) / seconds;
}

void Compare(const std::string& dir, size_t block_bytes, size_t pairs) {
  Store(*OpenTiers(dir, block_bytes, /*reuse=*/false, true), block_bytes);
  // Every run at most once a pass, so that none is found in DRAM.
  std::vector<uint64_t> starts;
  for (uint64_t first = 0; first + kRun <= kStoredBytes / block_bytes; first += kRun) {
    starts.push_back(first);
  }
  std::shuffle(starts.begin(), starts.end(), std::mt19937_64(1));
  starts.resize(std::min<size_t>(starts.size(), kPassBytes / (kRun * block_bytes)) / kHeads *
                kHeads);
  for (const bool shuffled : {false, true}) {
    std::vector<double> with, without;
    RunPairs(
        pairs, [&] { with.push_back(BytesPerSecond(dir, block_bytes, true, shuffled, starts)); },
        [&] { without.push_back(BytesPerSecond(dir, block_bytes, false, shuffled, starts)); });
    std::printf("%6zu bytes, %s  %.3f GB/s with, %.3f without, ratio %s\n", block_bytes,
                shuffled ? "by score   " : "by position", Quantile(with, 0.5) / 1e9,
                Quantile(without, 0.5) / 1e9, RatioText(with, without).c_str());
  }
  std::remove(absl::StrCat(dir, "/terrace.kv").c_str());
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  const int pairs = argc > 2 ? std::atoi(argv[2]) : 9;
  if (argc < 2 || argc > 3 || pairs < 1) {
    std::fprintf(stderr, "usage: coalescing DIR [PAIRS]\n");
    return 2;
  }
  std::printf("%s, fetches of %zu runs of %zu blocks, %d alternating pairs\n",
              terrace::SystemText().c_str(), terrace::kHeads, terrace::kRun, pairs);
  for (const size_t block_bytes : {4096, 8192, 16384, 65536}) {
    terrace::Compare(argv[1], block_bytes, static_cast<size_t>(pairs));
  }
  return 0;
}
