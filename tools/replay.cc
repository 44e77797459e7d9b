#include "tools/replay.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tools/block_generator.h"

namespace terrace {
namespace {

// Blocks fetched at once: enough to keep a disk busy, few enough that a lease holds little of HBM.
constexpr size_t kMaxBatchBlocks = 128;

// A signal must be noticed while waiting for the next arrival.
constexpr absl::Duration kLongestNap = absl::Milliseconds(50);

absl::Status AppendToLog(const std::string& path, const std::string& text) {
  const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("flush log ", path, ": cannot open"));
  absl::Status status;
  for (size_t written = 0; written < text.size() && status.ok();) {
    const ssize_t result = write(fd, text.data() + written, text.size() - written);
    if (result >= 0) {
      written += static_cast<size_t>(result);
    } else if (errno != EINTR) {
      status = absl::ErrnoToStatus(errno, absl::StrCat("flush log ", path, ": cannot write"));
    }
  }
  close(fd);
  return status;
}

}  // namespace

void ReplayResult::Add(const ReplayResult& other) {
  requests += other.requests;
  block_refs += other.block_refs;
  reused_blocks += other.reused_blocks;
  computed_blocks += other.computed_blocks;
  for (size_t tier = 0; tier < kTierCount; ++tier) hits[tier] += other.hits[tier];
  corrupt_blocks += other.corrupt_blocks;
  unstored_blocks += other.unstored_blocks;
  failed_flushes += other.failed_flushes;
  flush_error.Update(other.flush_error);
  interrupted = interrupted || other.interrupted;
  wall_seconds += other.wall_seconds;
  fetch_seconds += other.fetch_seconds;
  fetch_latency.Merge(other.fetch_latency);
}

Replay::Replay(TierManager& tiers, const Trace& trace, const std::atomic<bool>& stop,
               ReplayOptions options)
    : tiers_(tiers),
      trace_(trace),
      stop_(stop),
      options_(std::move(options)),
      batch_blocks_(std::clamp<size_t>(tiers.max_fetch_blocks(), 1, kMaxBatchBlocks)),
      block_(tiers.block_bytes()) {}

absl::Status Replay::Run(const ProgressFunction& progress) {
  absl::Status status;
  if (!options_.export_ops.empty()) status = ops_.Open(options_.export_ops);
  // A path that cannot be written is better known before the work is done.
  if (status.ok() && !options_.flush_log.empty()) status = AppendToLog(options_.flush_log, "");
  if (!status.ok()) return status;
  const absl::Time start = absl::Now();
  status = RunRequests(progress, start);
  if (status.ok() && options_.flush_every > 0) status = Flush();
  result_.wall_seconds = absl::ToDoubleSeconds(absl::Now() - start);
  const absl::Status exported = ops_.Close();
  return status.ok() ? exported : status;
}

absl::Status Replay::RunRequests(const ProgressFunction& progress, absl::Time start) {
  for (const TraceRequest& request : trace_.requests()) {
    WaitForArrival(request, start);
    if (stop_.load(std::memory_order_relaxed)) {
      result_.interrupted = true;
      break;
    }
    absl::Status status = RunRequest(trace_.hash_ids(request));
    if (!status.ok()) return status;
    ++result_.requests;
    if (options_.flush_every > 0 && result_.requests % options_.flush_every == 0) status = Flush();
    if (!status.ok()) return status;
    result_.wall_seconds = absl::ToDoubleSeconds(absl::Now() - start);
    if (progress) progress(result_);
  }
  return absl::OkStatus();
}

void Replay::WaitForArrival(const TraceRequest& request, absl::Time start) const {
  if (options_.pace <= 0) return;
  const TimelineSpan span(options_.timeline.get(), "wait for arrival");
  const int64_t first_ms = trace_.requests().front().timestamp_ms;
  const absl::Time arrival =
      start + absl::Milliseconds(request.timestamp_ms - first_ms) / options_.pace;
  while (!stop_.load(std::memory_order_relaxed)) {
    const absl::Duration left = arrival - absl::Now();
    if (left <= absl::ZeroDuration()) return;
    absl::SleepFor(std::min(left, kLongestNap));
  }
}

absl::Status Replay::RunRequest(absl::Span<const uint64_t> hash_ids) {
  const TimelineSpan span(options_.timeline.get(), "request", {"number", result_.requests},
                          {"blocks", hash_ids.size()});
  result_.block_refs += hash_ids.size();
  const absl::StatusOr<size_t> reused = ReuseLeading(hash_ids);
  if (!reused.ok()) return reused.status();
  for (uint64_t hash_id : hash_ids.subspan(*reused)) {
    const absl::Status status = ComputeBlock(hash_id);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<size_t> Replay::ReuseLeading(absl::Span<const uint64_t> hash_ids) {
  ids_.clear();
  for (uint64_t hash_id : hash_ids) ids_.push_back(IdOf(hash_id));
  size_t reused = 0;
  for (;;) {
    const absl::Span<const BlockId> rest = absl::MakeConstSpan(ids_).subspan(reused, batch_blocks_);
    const size_t found = tiers_.CountLeading(rest);
    if (found == 0) return reused;
    const absl::StatusOr<size_t> served = ReuseBatch(hash_ids.subspan(reused, found));
    if (!served.ok()) return served.status();
    reused += *served;
    if (*served < batch_blocks_) return reused;
  }
}

absl::StatusOr<size_t> Replay::ReuseBatch(absl::Span<const uint64_t> hash_ids) {
  std::vector<BlockRead> reads;
  reads.reserve(hash_ids.size());
  for (uint64_t hash_id : hash_ids) reads.push_back({.id = IdOf(hash_id)});
  ops_.Get(hash_ids);

  const absl::Time start = absl::Now();
  const absl::StatusOr<Lease> lease = tiers_.Fetch(reads);
  const absl::Duration taken = absl::Now() - start;
  if (!lease.ok()) return lease.status();
  result_.fetch_latency.Record(taken);
  result_.fetch_seconds += absl::ToDoubleSeconds(taken);

  const TimelineSpan span(options_.timeline.get(), "compare bytes", {"blocks", lease->size()});
  for (size_t i = 0; i < lease->size(); ++i) {
    const LeasedBlock& block = (*lease)[i];
    // A prefix ends at its first miss: what the making of room for it evicted is one, too.
    if (block.outcome != BlockOutcome::kServed) return i;
    const absl::Status status = Verify(hash_ids[i], block);
    if (!status.ok()) return status;
    ++result_.reused_blocks;
    ++result_.hits[static_cast<size_t>(block.hit_tier)];
  }
  return lease->size();
}

absl::Status Replay::Verify(uint64_t hash_id, const LeasedBlock& block) {
  absl::Span<const std::byte> bytes(block.data, block.bytes);
  if (block.in_hbm) {
    const absl::Status status = tiers_.CopyToHost(block, absl::MakeSpan(block_));
    if (!status.ok()) return status;
    bytes = block_;
  }
  if (FirstWrongByte(options_.seed, hash_id, bytes)) ++result_.corrupt_blocks;
  return absl::OkStatus();
}

absl::Status Replay::ComputeBlock(uint64_t hash_id) {
  TimelineSpan span(options_.timeline.get(), "make block");
  GenerateBlock(options_.seed, hash_id, absl::MakeSpan(block_));
  span.End();
  const BlockWrite write = {.id = IdOf(hash_id), .bytes = block_, .space = options_.space};
  ++result_.computed_blocks;
  ops_.Put(hash_id);
  const absl::Status status = tiers_.Put({&write, 1});
  if (absl::IsResourceExhausted(status)) {
    ++result_.unstored_blocks;
    return absl::OkStatus();
  }
  if (status.ok() && !options_.flush_log.empty()) unflushed_.push_back(hash_id);
  return status;
}

absl::Status Replay::Flush() {
  const absl::Status status = tiers_.Flush();
  if (absl::IsFailedPrecondition(status)) return absl::OkStatus();  // no NVMe tier
  if (!status.ok()) {
    // The tier is degraded, which Stats reports; the replay goes on without it.
    if (result_.failed_flushes++ == 0) result_.flush_error = status;
    return absl::OkStatus();
  }
  if (options_.flush_log.empty()) return absl::OkStatus();
  std::string text;
  for (uint64_t hash_id : unflushed_) {
    if (tiers_.OnNvme(IdOf(hash_id))) absl::StrAppend(&text, hash_id, "\n");
  }
  unflushed_.clear();
  return AppendToLog(options_.flush_log, text);
}

}  // namespace terrace
