#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "io/check.h"
#include "runtime/attend_pass.h"

namespace terrace {
// By column and then by head: the order in which they were written, and lie on NVMe.
void AttendPass::ListBlocks() {
  far_.clear();
  for (size_t kv_head = 0; kv_head < heads_.size(); ++kv_head) {
    const Head& head = heads_[kv_head];
    const bool all =
        head.policy->kind() == LookupKind::kFull || (head.policy->looks_up() && !NeedsScores(head));
    if (all) {
      for (size_t block = 0; block < blocks_; ++block) {
        far_.push_back({static_cast<uint32_t>(block), static_cast<uint32_t>(kv_head)});
      }
    } else {
      for (const uint32_t block : head.chosen) {
        far_.push_back({block, static_cast<uint32_t>(kv_head)});
      }
    }
  }
  std::sort(far_.begin(), far_.end(), [](const FarBlock& a, const FarBlock& b) {
    return a.column != b.column ? a.column < b.column : a.kv_head < b.kv_head;
  });
  // What is on its way takes at most three quarters of the room: other contexts want some as well.
  const size_t share = core_.tiers().max_fetch_blocks(Tier::kDram) * 3 / 4;
  round_blocks_ = std::clamp<size_t>(share / kRoundsAhead, 1, kMaxRoundBlocks);
  rounds_ahead_ = std::clamp<size_t>(share / round_blocks_, 1, kRoundsAhead);
}

BlockId AttendPass::IdOf(const FarBlock& block, size_t layer) const {
  return core_.columns().block(context_->columns_[block.column], layer, block.kv_head);
}

// Where there is no room it stops, and AwaitRound waits for some when it needs it.
absl::Status AttendPass::RequestRounds() {
  while (ticket_count_ < rounds_ahead_ && requested_ < far_.size()) {
    ListReads();
    absl::StatusOr<std::optional<Ticket>> ticket =
        core_.tiers().TryFetchAsync(reads_, {.target = Tier::kDram});
    if (!ticket.ok()) return ticket.status();
    if (!ticket->has_value()) break;
    tickets_[(first_ticket_ + ticket_count_) % kRoundsAhead] = **std::move(ticket);
    ++ticket_count_;
    requested_ += reads_.size();
  }
  return absl::OkStatus();
}

void AttendPass::ForgetRequests() {
  for (; ticket_count_ > 0; --ticket_count_) {
    tickets_[first_ticket_].Cancel();
    first_ticket_ = (first_ticket_ + 1) % kRoundsAhead;
  }
  requested_ = attended_;
}

void AttendPass::ListReads() {
  const size_t count = std::min(round_blocks_, far_.size() - requested_);
  reads_.clear();
  for (size_t i = requested_; i < requested_ + count; ++i) {
    reads_.push_back({.id = IdOf(far_[i], layer_)});
  }
}

absl::StatusOr<Lease> AttendPass::AwaitRound(absl::Span<AttendPass* const> batch) {
  if (ticket_count_ > 0) {
    Lease lease = tickets_[first_ticket_].Wait();
    first_ticket_ = (first_ticket_ + 1) % kRoundsAhead;
    --ticket_count_;
    return lease;
  }
  while (true) {
    ListReads();
    // What does not fit is made smaller. A single block is waited for, which is safe only where
    // nothing is held, by the rest of the batch neither.
    const bool waits = reads_.size() <= 1;
    if (waits) {
      for (AttendPass* const pass : batch) pass->ForgetRequests();
    }
    absl::StatusOr<Lease> lease = core_.tiers().Fetch(
        reads_, {.target = Tier::kDram,
                 .lease_patience = waits ? RuntimeCore::kLeasePatience : absl::ZeroDuration()});
    if (lease.ok()) {
      requested_ += reads_.size();
      return lease;
    }
    if (!absl::IsResourceExhausted(lease.status()) || waits) {
      return absl::Status(lease.status().code(),
                          absl::StrCat("layer ", layer_, ": ", lease.status().message()));
    }
    round_blocks_ = reads_.size() / 2;
  }
}

absl::Status AttendPass::AttendBlocks(absl::Span<AttendPass* const> batch) {
  while (attended_ < far_.size()) {
    const absl::Time start = absl::Now();
    absl::StatusOr<Lease> lease = AwaitRound(batch);
    const absl::Time arrived = absl::Now();
    wait_seconds_ += absl::ToDoubleSeconds(arrived - start);
    if (!lease.ok()) return lease.status();
    if (absl::Status status = RequestRounds(); !status.ok()) return status;
    AttendRound(*lease);
    attended_ += lease->size();
    attend_seconds_ += absl::ToDoubleSeconds(absl::Now() - arrived);
  }
  return absl::OkStatus();
}

void AttendPass::AttendRound(const Lease& lease) {
  const size_t head_dim = core_.shape().head_dim;
  const size_t tokens = core_.block_tokens();
  const size_t sinks = core_.options().sink_tokens;
  for (Head& head : heads_) head.parts.clear();
  for (size_t i = 0; i < lease.size(); ++i) {
    const FarBlock& block = far_[attended_ + i];
    CountBlock(block, lease[i]);
    if (lease[i].outcome != BlockOutcome::kServed) continue;
    const KvRun run = {.keys = lease[i].data,
                       .values = lease[i].data + lease[i].bytes / 2,
                       .tokens = tokens,
                       .dtype = core_.shape().dtype};
    const size_t skipped = block.column == 0 ? sinks : 0;  // they were attended to
    if (skipped == tokens) continue;
    heads_[block.kv_head].parts.push_back(
        {.run = run.WithStrides(head_dim).Slice(skipped, tokens - skipped)});
  }
  jobs_.clear();
  for (Head& head : heads_) {
    if (head.parts.empty()) continue;
    jobs_.push_back({.queries = FarQueries(head),
                     .parts = head.parts,
                     .out = absl::MakeSpan(head.part_out),
                     .lse = absl::MakeSpan(head.part_lse)});
  }
  attention_->Run(jobs_);
  for (Head& head : heads_) {
    if (head.parts.empty()) continue;
    MergePartials(head_dim, head.part_out, head.part_lse, absl::MakeSpan(head.out),
                  absl::MakeSpan(head.lse));
  }
}

void AttendPass::CountBlock(const FarBlock& block, const LeasedBlock& leased) {
  LookupStats& stats = heads_[block.kv_head].stats;
  if (leased.outcome == BlockOutcome::kServed) {
    ++stats.blocks;
    ++stats.hits[static_cast<size_t>(leased.hit_tier)];
    if (leased.hit_tier == Tier::kNvme) stats.fetched_bytes += leased.bytes;
    return;
  }
  ++stats.lost_blocks;
  const auto tokens = static_cast<int64_t>(core_.block_tokens());
  const LostTokens lost = {.layer = static_cast<uint32_t>(layer_),
                           .kv_head = block.kv_head,
                           .first = block.column * tokens,
                           .count = tokens};
  context_->lost_.Add(lost);
}

// A step goes through the layers in order and the next layer mostly wants what it wanted in the
// last step, or everything. A hint costs little where the blocks are in DRAM already.
void AttendPass::PrefetchNextLayer() {
  std::vector<FarBlock>& remembered = context_->last_blocks_[layer_];
  remembered.assign(far_.begin(),
                    far_.begin() + static_cast<ptrdiff_t>(std::min(far_.size(), round_blocks_)));
  const size_t next = (layer_ + 1) % core_.shape().layers;
  if (core_.options().tiers.nvme_bytes == 0 || next == layer_) return;
  const auto blocks = static_cast<uint32_t>(static_cast<size_t>(context_->tail_.first(next)) /
                                            core_.block_tokens());
  hints_.clear();
  for (const FarBlock& block : context_->last_blocks_[next]) {
    if (block.column < blocks) hints_.push_back(IdOf(block, next));
  }
  core_.tiers().Prefetch(hints_, Tier::kDram);
}

}  // namespace terrace
