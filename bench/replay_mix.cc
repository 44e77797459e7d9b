// How fast are the puts and gets of a replay by themselves? Repeats the block operations that a
// replay exported, without its work between them: blocks are stamped, not generated, and what is
// fetched is verified by its stamps. Prints one line of JSON; bench/replay_vs_fio compares it with
// fio.
//
//   terrace replay ... --export-ops OPS
//   replay_mix OPS DIR

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "bench/measure.h"
#include "bench/ops_file.h"
#include "nlohmann/json.hpp"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

constexpr size_t kBlockBytes = size_t{64} << 10;

// The tiers of the README's table.
TierManagerOptions Options(const std::string& dir) {
  TierManagerOptions options;
  options.block_bytes = kBlockBytes;
  options.hbm_bytes = uint64_t{64} << 20;
  options.dram_bytes = uint64_t{256} << 20;
  options.nvme_bytes = uint64_t{2} << 30;
  options.nvme_dir = dir;
  return options;
}

void Stamp(uint64_t id, std::vector<std::byte>& block) {
  for (size_t at = 0; at < block.size(); at += kPageBytes) {
    const uint64_t stamp = id * 0x9e3779b97f4a7c15 + at;
    std::memcpy(block.data() + at, &stamp, sizeof(stamp));
  }
}

bool HasStamps(uint64_t id, const LeasedBlock& block) {
  for (size_t at = 0; at < block.bytes; at += kPageBytes) {
    const uint64_t stamp = id * 0x9e3779b97f4a7c15 + at;
    if (std::memcmp(block.data + at, &stamp, sizeof(stamp)) != 0) return false;
  }
  return true;
}

int Run(const std::string& ops_path, const std::string& dir) {
  const std::vector<BlockOp> ops = OrDie(ReadBlockOps(ops_path));
  auto tiers = OrDie(TierManager::Open(Options(dir)));
  std::vector<std::byte> block(kBlockBytes);
  std::vector<BlockRead> reads;
  uint64_t served = 0;
  uint64_t missed = 0;
  const TierStats before = tiers->Stats();
  const double cpu = CpuSeconds();
  const absl::Time start = absl::Now();
  for (const BlockOp& op : ops) {
    if (op.put) {
      Stamp(op.ids[0], block);
      const BlockWrite write = {.id = {0, op.ids[0]}, .bytes = block};
      OrDie(tiers->Put({&write, 1}));
      continue;
    }
    reads.clear();
    for (uint64_t id : op.ids) reads.push_back({.id = {0, id}});
    const Lease lease = OrDie(tiers->Fetch(reads));
    for (size_t i = 0; i < lease.size(); ++i) {
      if (lease[i].outcome != BlockOutcome::kServed) {
        ++missed;
      } else if (HasStamps(op.ids[i], lease[i])) {
        ++served;
      } else {
        OrDie(absl::DataLossError(absl::StrCat("block ", op.ids[i], ": wrong bytes")));
      }
    }
  }
  OrDie(tiers->Flush());
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  const double cpu_seconds = CpuSeconds() - cpu;
  const TierStats after = tiers->Stats();
  const nlohmann::ordered_json json = {
      {"seconds", seconds},
      {"cpu_seconds", cpu_seconds},
      {"read_bytes", after.nvme_read_bytes - before.nvme_read_bytes},
      {"written_bytes", after.nvme_written_bytes - before.nvme_written_bytes},
      {"write_groups", after.placement.write_groups - before.placement.write_groups},
      {"block_bytes", kBlockBytes},
      {"served_blocks", served},
      {"missed_blocks", missed}};
  std::printf("%s\n", json.dump().c_str());
  tiers.reset();
  std::remove(absl::StrCat(dir, "/terrace.kv").c_str());
  return 0;
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: replay_mix OPS DIR\n");
    return 2;
  }
  return terrace::Run(argv[1], argv[2]);
}
