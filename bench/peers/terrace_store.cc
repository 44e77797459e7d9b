#include <algorithm>
#include <utility>

#include "bench/peers/store_list.h"
#include "tiers/tier_manager.h"

namespace terrace::peers {
namespace {

class TerraceReader : public BlockReader {
 public:
  explicit TerraceReader(TierManager& tiers) : tiers_(tiers) {}

  absl::Status Get(absl::Span<const uint64_t> ids,
                   std::vector<absl::Span<const std::byte>>& blocks) override {
    reads_.clear();
    for (uint64_t id : ids) reads_.push_back({.id = {0, id}});
    absl::StatusOr<Lease> lease = tiers_.Fetch(reads_);
    if (!lease.ok()) return lease.status();
    lease_ = *std::move(lease);
    blocks.assign(ids.size(), {});
    for (size_t i = 0; i < ids.size(); ++i) {
      if (lease_[i].outcome == BlockOutcome::kServed) blocks[i] = {lease_[i].data, lease_[i].bytes};
    }
    return absl::OkStatus();
  }

  void Release() override { lease_.Release(); }

 private:
  TierManager& tiers_;
  std::vector<BlockRead> reads_;
  Lease lease_;
};

class TerraceStore : public BlockStore {
 public:
  explicit TerraceStore(std::unique_ptr<TierManager> tiers) : tiers_(std::move(tiers)) {}

  absl::Status Put(absl::Span<const StoredBlock> blocks) override {
    writes_.clear();
    for (const StoredBlock& block : blocks) {
      writes_.push_back({.id = {0, block.id}, .bytes = block.bytes});
    }
    return tiers_->Put(writes_);
  }

  absl::Status Flush() override { return tiers_->Flush(); }

  absl::StatusOr<std::unique_ptr<BlockReader>> NewReader() override {
    return std::make_unique<TerraceReader>(*tiers_);
  }

 private:
  const std::unique_ptr<TierManager> tiers_;
  std::vector<BlockWrite> writes_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BlockStore>> OpenTerraceStore(const StoreOptions& options) {
  TierManagerOptions tiers;
  tiers.block_bytes = options.block_bytes;
  // The rest of the budget is for staging memory, metadata and the process itself.
  tiers.dram_bytes = options.memory_bytes / 8 * 7;
  // Room for every block with its group headers and the reserve segment, so that none is evicted.
  const uint64_t data_bytes = uint64_t{options.max_blocks} * options.block_bytes;
  tiers.nvme_bytes = data_bytes + data_bytes / 8 + (uint64_t{512} << 20);
  tiers.nvme_dir = options.dir;
  absl::StatusOr<std::unique_ptr<TierManager>> manager = TierManager::Open(tiers);
  if (!manager.ok()) return manager.status();
  return std::make_unique<TerraceStore>(*std::move(manager));
}

}  // namespace terrace::peers
