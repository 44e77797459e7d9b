#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "io/check.h"
#include "runtime/attend_pass.h"
#include "runtime/context_index.h"

namespace terrace {

// By column and then by head: the order in which they were written, and lie on NVMe.
void AttendPass::ListBlocks() {
  far_.clear();
  for (uint32_t kv_head = 0; kv_head < heads_.size(); ++kv_head) {
    const Head& head = heads_[kv_head];
    const bool has_index = head.policy->has_index();
    const bool all = head.policy->kind() == LookupKind::kFull || has_index ||
                     (head.policy->looks_up() && !NeedsScores(head));
    if (all) {
      // All that no index answers for.
      for (uint32_t block = 0; block < blocks_; ++block) {
        if (block == 0 || block >= head.indexed) far_.push_back({false, block, kv_head});
      }
    }
    if (!all || has_index) {
      for (const uint32_t block : head.chosen) far_.push_back({has_index, block, kv_head});
    }
  }
  std::sort(far_.begin(), far_.end());
  // What is on its way takes at most three quarters of the room: other contexts want some as well.
  const size_t share = core_.tiers().max_fetch_blocks(core_.far_tier()) * 3 / 4;
  const size_t most_bytes = device_ != nullptr ? kMaxDeviceRoundBytes : kMaxRoundBytes;
  const size_t most =
      std::clamp<size_t>(most_bytes / core_.options().BlockBytes(), 1, kMaxRoundBlocks);
  const size_t most_ahead = device_ != nullptr ? kDeviceRoundsAhead : kRoundsAhead;
  round_blocks_ = std::clamp<size_t>(share / most_ahead, 1, most);
  rounds_ahead_ = std::clamp<size_t>(share / round_blocks_, 1, most_ahead);
}

BlockId AttendPass::IdOf(const FarBlock& block, size_t layer) const {
  if (block.is_cluster) {
    return context_->index_->cluster_block(block.column, layer, block.kv_head);
  }
  return core_.columns().block(context_->columns_[block.column], layer, block.kv_head);
}

// Where there is no room it stops, and AwaitRound waits for some when it needs it.
absl::Status AttendPass::RequestRounds() {
  const TimelineSpan span(core_.timeline(), "request rounds", {"layer", layer_});
  while (ticket_count_ < rounds_ahead_ && requested_ < far_.size()) {
    ListReads();
    absl::StatusOr<std::optional<Ticket>> ticket = core_.tiers().TryFetchAsync(
        reads_, {.target = core_.far_tier(), .deadline = RoundDeadline()});
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
    if (far_[i].is_cluster != far_[requested_].is_cluster) break;
    reads_.push_back({.id = IdOf(far_[i], layer_)});
  }
}

absl::StatusOr<Lease> AttendPass::AwaitRound(absl::Span<AttendPass* const> batch) {
  const TimelineSpan span(core_.timeline(), "wait for blocks", {"layer", layer_});
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
    const absl::Duration patience = std::clamp(RoundDeadline() - absl::Now(), absl::ZeroDuration(),
                                               RuntimeCore::kLeasePatience);
    absl::StatusOr<Lease> lease =
        core_.tiers().Fetch(reads_, {.target = core_.far_tier(),
                                     .deadline = RoundDeadline(),
                                     .lease_patience = waits ? patience : absl::ZeroDuration()});
    if (lease.ok()) {
      requested_ += reads_.size();
      return lease;
    }
    if (absl::IsResourceExhausted(lease.status()) && RoundDeadline() <= absl::Now()) {
      return absl::DeadlineExceededError("no room for clusters in time");
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
    if (absl::IsDeadlineExceeded(lease.status())) {
      SkipLateRound();
      continue;
    }
    if (!lease.ok()) return lease.status();
    if (absl::Status status = RequestRounds(); !status.ok()) return status;
    if (absl::Status status = AttendRound(*lease); !status.ok()) return status;
    attended_ += lease->size();
    attend_seconds_ += absl::ToDoubleSeconds(absl::Now() - arrived);
  }
  return absl::OkStatus();
}

// Only rounds of clusters have a deadline. DRAM had no room for this one in time, so nothing of it
// was fetched: it is estimated.
void AttendPass::SkipLateRound() {
  for (size_t i = 0; i < reads_.size(); ++i) {
    ++heads_[far_[attended_ + i].kv_head].stats.late_blocks;
  }
  attended_ += reads_.size();
  requested_ = attended_;
}

absl::Status AttendPass::AttendRound(const Lease& lease) {
  const size_t head_dim = core_.shape().head_dim;
  const size_t tokens = core_.block_tokens();
  const size_t sinks = core_.options().sink_tokens;
  const TimelineSpan span(core_.timeline(), "attend blocks", {"layer", layer_},
                          {"blocks", lease.size()});
  for (Head& head : heads_) head.parts.clear();
  for (size_t i = 0; i < lease.size(); ++i) {
    const FarBlock& block = far_[attended_ + i];
    // Nothing is lost that did not make it to HBM alone, so leaving it out would be a wrong answer
    // to a question that can be asked again.
    if (device_ != nullptr && lease[i].outcome == BlockOutcome::kLost) {
      const absl::Status status = core_.NotServed(
          IdOf(block, layer_),
          absl::StrCat("layer ", layer_, ": a block of KV head ", block.kv_head, " is lost"));
      if (!absl::IsDataLoss(status)) return status;
    }
    if (block.is_cluster) {
      CountCluster(block, lease[i]);
    } else {
      CountBlock(block, lease[i]);
    }
    if (lease[i].outcome != BlockOutcome::kServed) continue;
    const KvRun run = {.keys = lease[i].data,
                       .values = lease[i].data + lease[i].bytes / 2,
                       .tokens = tokens,
                       .dtype = core_.shape().dtype};
    // Sinks were attended to.
    const size_t skipped = block.column == 0 && !block.is_cluster ? sinks : 0;
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
  if (device_ != nullptr) {
    absl::Status status = StartOnDevice();
    if (status.ok()) status = FinishOnDevice();
    if (!status.ok()) return status;
  } else {
    attention_->Run(jobs_);
  }
  for (Head& head : heads_) {
    if (head.parts.empty()) continue;
    MergePartials(head_dim, head.part_out, head.part_lse, absl::MakeSpan(head.out),
                  absl::MakeSpan(head.lse));
  }
  return absl::OkStatus();
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

// A cluster that is not there is estimated.
void AttendPass::CountCluster(const FarBlock& block, const LeasedBlock& leased) {
  Head& head = heads_[block.kv_head];
  switch (leased.outcome) {
    case BlockOutcome::kServed:
      ++head.stats.blocks;
      ++head.stats.hits[static_cast<size_t>(leased.hit_tier)];
      if (leased.hit_tier == Tier::kNvme) head.stats.fetched_bytes += leased.bytes;
      head.read.push_back(block.column);
      return;
    case BlockOutcome::kLate:
      ++head.stats.late_blocks;
      return;
    case BlockOutcome::kMiss:
    case BlockOutcome::kLost:
      ++head.stats.lost_blocks;
      context_->index_->NoteLost(layer_, block.kv_head, block.column);
      return;
  }
}

// A step goes through the layers in order and the next layer mostly wants what it wanted in the
// last step, or everything. A hint costs little where the blocks are in DRAM already.
void AttendPass::PrefetchNextLayer() {
  std::vector<FarBlock>& remembered = context_->last_blocks_[layer_];
  remembered.assign(far_.begin(),
                    far_.begin() + static_cast<ptrdiff_t>(std::min(far_.size(), round_blocks_)));
  const size_t next = (layer_ + 1) % core_.shape().layers;
  const bool one_tier = core_.options().tiers.nvme_bytes == 0 && device_ == nullptr;
  if (one_tier || next == layer_) return;
  const size_t blocks = context_->SealedColumns(next).size();
  const ClusterLookup* const lookup = context_->index_->clusters(next);
  const size_t clusters = lookup != nullptr ? lookup->columns() : 0;
  hints_.clear();
  for (const FarBlock& block : context_->last_blocks_[next]) {
    if (block.column < (block.is_cluster ? clusters : blocks)) hints_.push_back(IdOf(block, next));
  }
  core_.tiers().Prefetch(hints_, core_.far_tier());
}

}  // namespace terrace
