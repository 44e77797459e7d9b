// The least an embedding engine does: open tiers, put a block, make it durable, fetch it back.
//
//   embed DIR

#include <iostream>
#include <vector>

#include "tiers/tier_manager.h"

namespace {

absl::Status Run(const char* directory) {
  terrace::TierManagerOptions options;
  options.block_bytes = 64 << 10;
  options.dram_bytes = 16 << 20;
  options.nvme_bytes = 64 << 20;
  options.nvme_dir = directory;
  auto tiers = terrace::TierManager::Open(options);
  if (!tiers.ok()) return tiers.status();

  const std::vector<std::byte> kv(options.block_bytes, std::byte{42});
  const terrace::BlockWrite write = {.id = {0, 7}, .bytes = kv};
  if (absl::Status status = (*tiers)->Put({&write, 1}); !status.ok()) return status;
  if (absl::Status status = (*tiers)->Flush(); !status.ok()) return status;

  const terrace::BlockRead reads[] = {{.id = {0, 7}}, {.id = {0, 8}}};
  auto lease = (*tiers)->Fetch(reads);  // pinned until the lease goes
  if (!lease.ok()) return lease.status();
  if ((*lease)[0].outcome != terrace::BlockOutcome::kServed || (*lease)[0].data[0] != kv[0]) {
    return absl::DataLossError("the block fetched is not the block put");
  }
  if ((*lease)[1].outcome != terrace::BlockOutcome::kMiss) {
    return absl::DataLossError("a block was served that nobody put");
  }
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: embed DIR\n";
    return 2;
  }
  const absl::Status status = Run(argv[1]);
  if (!status.ok()) {
    std::cerr << status << "\n";
    return 1;
  }
  std::cout << "one block put, flushed, fetched and compared; one miss\n";
  return 0;
}
