// TierManager: what it tells about itself.

#include "tiers/tier_manager.h"

namespace terrace {

TierStats TierManager::Stats() const {
  TierStats stats;
  absl::MutexLock lock(&mu_);
  const std::array<uint64_t, kTierCount> blocks = placement_->CountBlocks();
  const NvmeTier* nvme = placement_->nvme();
  const uint64_t nvme_slots = nvme == nullptr
                                  ? 0
                                  : (nvme->geometry().segment_count - nvme->reserve_segments()) *
                                        nvme->geometry().blocks_per_segment();
  stats.tiers[0] = {options_.hbm_bytes, placement_->table(Pool::kHbm).size(), blocks[0]};
  stats.tiers[1] = {options_.dram_bytes, placement_->table(Pool::kDram).size(), blocks[1]};
  stats.tiers[2] = {options_.nvme_bytes, nvme_slots, blocks[2]};
  stats.placement = placement_->stats();
  stats.hbm_copied_bytes = hbm_copied_bytes_;
  if (nvme != nullptr) {
    const IoSchedulerStats io = scheduler_->Stats();
    stats.nvme_read_bytes = io.read_bytes + lane_read_bytes_;
    stats.nvme_written_bytes = io.written_bytes;
    stats.nvme_peak_bytes = nvme->peak_bytes();
    stats.nvme_accepts_writes = placement_->nvme_accepts();
    stats.nvme_error = nvme_error_;
    stats.nvme_health = Health();
    stats.nvme_faults = faults_;
    stats.recovery = recovery_;
    stats.nvme_read_error = nvme_read_error_;
  }
  stats.metadata_bytes = placement_->memory_bytes();
  stats.staging_bytes = placement_->table(Pool::kTransit).size() * options_.block_bytes +
                        headers_.size() + (coalescer_ == nullptr ? 0 : coalescer_->memory_bytes());
  for (const UpkeepWrite& write : upkeep_writes_) stats.staging_bytes += write.bytes.size();
  for (const GroupWrite& write : group_writes_) stats.staging_bytes += write.sealed.size();
  stats.device = device_info_;
  stats.copy_engine = memory_->copy_engine().name();
  return stats;
}

// How full memory is, at most once a millisecond.
void TierManager::RecordSlots() {
  if (timeline() == nullptr) return;
  constexpr int64_t kEveryNs = 1'000'000;
  const int64_t now = Timeline::Now();
  if (now - slots_recorded_ns_ < kEveryNs) return;
  slots_recorded_ns_ = now;
  const auto used = [this](Pool pool) {
    mu_.AssertHeld();
    const SlotTable& slots = placement_->table(pool);
    return static_cast<int64_t>(slots.size() - slots.free_count());
  };
  if (options_.hbm_bytes > 0) timeline()->Count("slots used in HBM", used(Pool::kHbm));
  if (options_.dram_bytes > 0) timeline()->Count("slots used in DRAM", used(Pool::kDram));
}

NvmeHealth TierManager::Health() const {
  if (nvme_abandoned_) return NvmeHealth::kOutOfService;
  if (!placement_->nvme_accepts()) return NvmeHealth::kReadOnly;
  const bool faults = faults_.failed_reads + faults_.corrupt_reads + faults_.unopened_blocks +
                          faults_.failed_writes + faults_.failed_syncs >
                      0;
  const bool damage =
      recovery_.damaged_pages + recovery_.damaged_manifests + recovery_.missing_bytes > 0;
  return faults || damage ? NvmeHealth::kDegraded : NvmeHealth::kHealthy;
}

}  // namespace terrace
