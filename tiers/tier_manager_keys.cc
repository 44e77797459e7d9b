// TierManager: encryption at rest.

#include <utility>

#include "tiers/tier_manager.h"

namespace terrace {

struct TierManager::SealJob {
  size_t block = 0;  // in the group
  std::shared_ptr<const BlockCipher> cipher;
  BlockAssociation association;
  absl::Span<const std::byte> plain;
  absl::Span<std::byte> sealed;
  absl::Span<PageChecksum> checksums;
  BlockSeal seal;
};

absl::Status TierManager::AddKey(uint64_t space, CipherKey key) {
  if (scheduler_ == nullptr) {
    return absl::FailedPreconditionError("add key: there is no NVMe tier to encrypt");
  }
  absl::StatusOr<std::unique_ptr<BlockCipher>> cipher = BlockCipher::Create(std::move(key));
  if (!cipher.ok()) return cipher.status();
  absl::MutexLock lock(&mu_);
  const NvmeGeometry& geometry = placement_->nvme()->geometry();
  for (GroupWrite& write : group_writes_) {
    if (write.sealed.size() > 0) continue;
    absl::StatusOr<AlignedBuffer> buffer =
        AlignedBuffer::Create(geometry.group_blocks * options_.block_bytes);
    if (!buffer.ok()) return buffer.status();
    write.sealed = *std::move(buffer);
  }
  const absl::StatusOr<KeyNumber> added = keys_.Add(space, *std::move(cipher));
  if (!added.ok()) return added.status();
  placement_->SetKeyReady(*added, true);
  return absl::OkStatus();
}

void TierManager::DropKey(uint64_t space) {
  absl::MutexLock lock(&mu_);
  keys_.Drop(space, [this](KeyNumber key) {
    mu_.AssertHeld();
    placement_->SetKeyReady(key, false);
    placement_->DropKey(key);
  });
}

bool TierManager::NeedsSealing(size_t group) const {
  for (const WriteGroup::Block& block : placement_->group(group).blocks) {
    const bool encrypted =
        block.entry != kNoEntry && placement_->directory()[block.entry].key != kNoKey;
    if (encrypted && !block.rewrites()) return true;
  }
  return false;
}

bool TierManager::SealGroup() {
  if (unsealed_groups_.empty()) return false;
  const size_t index = unsealed_groups_.back();
  unsealed_groups_.pop_back();
  NvmeTier& nvme = *placement_->nvme();
  GroupWrite& write = group_writes_[index];
  absl::InlinedVector<SealJob, 16> jobs;
  const WriteGroup& group = placement_->group(index);
  for (size_t i = 0; i < group.blocks.size(); ++i) {
    const WriteGroup::Block& block = group.blocks[i];
    if (block.entry == kNoEntry || block.rewrites()) continue;
    const BlockEntry& entry = placement_->directory()[block.entry];
    if (entry.key == kNoKey) continue;
    SealJob job;
    job.block = i;
    job.cipher = keys_.cipher(entry.key);
    job.association = {entry.id, keys_.name(entry.key).space, nvme.epoch()};
    job.plain = absl::MakeConstSpan(memory_->Address(block.source), options_.block_bytes);
    job.sealed = write.sealed.span().subspan(i * options_.block_bytes, options_.block_bytes);
    job.checksums = nvme.checksums(block.page, placement_->pages_per_block());
    jobs.push_back(std::move(job));
  }
  // The sources are pinned, and nobody looks at the checksums of a place that is being written.
  mu_.Unlock();
  TimelineSpan span(timeline(), "encrypt", {"blocks", jobs.size()});
  absl::Status status;
  for (SealJob& job : jobs) {
    status.Update(job.cipher->Seal(job.association.bytes(), job.plain, job.sealed, job.seal));
    ChecksumPages(job.sealed, job.checksums);
  }
  mu_.Lock();
  if (!status.ok()) {
    StopNvmeWrites(status);
    placement_->GroupWritten(index, /*written=*/false);
    return true;
  }
  for (const SealJob& job : jobs) {
    nvme.seal(placement_->group(index).blocks[job.block].page) = job.seal;
    write.is_sealed[job.block] = true;
  }
  sealed_groups_.push_back(index);
  return true;
}

void TierManager::PrepareToOpen(Flight& flight, const Fill& fill) {
  flight.cipher.reset();
  flight.unopened = false;
  flight.sealed = fill.key != kNoKey && !fill.raw;
  if (!flight.sealed) return;
  flight.cipher = keys_.cipher(fill.key);
  flight.seal = placement_->nvme()->seal(fill.page);
  flight.association = {fill.id, keys_.name(fill.key).space, placement_->nvme()->epoch()};
}

bool TierManager::OpenBlock(const Flight& flight) {
  if (flight.cipher == nullptr) return false;
  const absl::Span<std::byte> bytes(static_cast<std::byte*>(flight.bytes.iov_base),
                                    flight.bytes.iov_len);
  return flight.cipher->Open(flight.association.bytes(), bytes, flight.seal, bytes).ok();
}

}  // namespace terrace
