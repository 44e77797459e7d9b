#include "runtime/weight_reader.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "io/check.h"

namespace terrace {
namespace {

// Behind the KV tier, which has rank 0: what attention waits for was evicted for want of memory,
// while a step reads weights all the time.
constexpr uint8_t kShareRank = 1;

}  // namespace

absl::StatusOr<std::unique_ptr<WeightReader>> WeightReader::Create(
    std::unique_ptr<BlockDevice> device, const WeightReaderOptions& options,
    absl::Span<const iovec> memory) {
  absl::StatusOr<AlignedBuffer> gaps = AlignedBuffer::Create(PageAlignUp(options.gap_bytes));
  if (!gaps.ok()) return gaps.status();
  auto reader = std::unique_ptr<WeightReader>(new WeightReader(options, *std::move(gaps)));
  // Without, reads work as well, only at more CPU.
  static_cast<void>(device->RegisterBuffers(memory));
  IoSchedulerOptions scheduling;
  scheduling.class_depth = {options.depth, options.prefetch_depth, 1};
  scheduling.queue_capacity = options.max_reads;
  scheduling.share = options.share;
  scheduling.share_rank = kShareRank;
  scheduling.timeline = options.timeline;
  scheduling.timeline_name = "weights";
  reader->scheduler_ = std::make_unique<IoScheduler>(
      std::move(device), scheduling,
      [raw = reader.get()](absl::Span<IoRequest* const> done) { raw->OnDone(done); });
  return reader;
}

WeightReader::WeightReader(const WeightReaderOptions& options, AlignedBuffer gaps)
    : options_(options), gaps_(std::move(gaps)), reads_(options.max_reads) {
  free_.reserve(options_.max_reads);
  for (uint32_t i = 0; i < options_.max_reads; ++i) {
    free_.push_back(i);
    reads_[i].request.context = &reads_[i];
  }
  batch_.reserve(options_.max_reads);
  taken_.reserve(options_.max_reads);
  done_.reserve(options_.max_reads);
  arrivals_.reserve(options_.max_reads * kMaxFragments);
}

WeightReader::~WeightReader() { scheduler_.reset(); }

uint64_t WeightReader::MemoryBytes(const WeightReaderOptions& options) {
  return PageAlignUp(options.gap_bytes) +
         options.max_reads * (sizeof(Read) + 3 * sizeof(IoRequest*) + sizeof(uint32_t) +
                              kMaxFragments * sizeof(Arrival));
}

void WeightReader::Demand(absl::Span<Fragment> fragments) {
  std::sort(fragments.begin(), fragments.end(),
            [](const Fragment& a, const Fragment& b) { return a.offset < b.offset; });
  under_way_ += fragments.size();
  // What waits already goes first.
  const size_t taken = backlog_begin_ < backlog_.size() ? 0 : Submit(IoClass::kDemand, fragments);
  backlog_.insert(backlog_.end(), fragments.begin() + static_cast<ptrdiff_t>(taken),
                  fragments.end());
}

size_t WeightReader::PrefetchRoom() const {
  const size_t kept = options_.max_reads / 2;
  return backlog_begin_ < backlog_.size() || free_.size() < kept ? 0 : free_.size() - kept;
}

void WeightReader::Prefetch(absl::Span<Fragment> fragments) {
  TERRACE_CHECK(fragments.size() <= PrefetchRoom());
  std::sort(fragments.begin(), fragments.end(),
            [](const Fragment& a, const Fragment& b) { return a.offset < b.offset; });
  under_way_ += Submit(IoClass::kPrefetch, fragments);
}

void WeightReader::Raise(uint32_t read) {
  scheduler_->Raise(&reads_[read].request, IoClass::kDemand);
}

void WeightReader::RaiseTagged(uint64_t mask, uint64_t value) {
  for (uint32_t i = 0; i < reads_.size(); ++i) {
    const Read& read = reads_[i];
    const auto end = read.tags.begin() + read.fragments;
    if (std::any_of(read.tags.begin(), end, [&](uint64_t tag) { return (tag & mask) == value; })) {
      Raise(i);
    }
  }
}

bool WeightReader::Joins(const Read& read, const Fragment& fragment, uint64_t gap_budget) const {
  if (fragment.offset < read.end) return false;
  const uint64_t gap = fragment.offset - read.end;
  const uint64_t bytes = fragment.offset + fragment.bytes - read.request.offset;
  return gap <= options_.gap_bytes && gap <= gap_budget && bytes <= options_.request_bytes &&
         read.fragments < kMaxFragments;
}

void WeightReader::Add(Read& read, Fragment& fragment) {
  const auto add = [&read](std::byte* to, size_t bytes) {
    iovec* const last = read.vectors > 0 ? &read.buffers[read.vectors - 1] : nullptr;
    if (last != nullptr && static_cast<std::byte*>(last->iov_base) + last->iov_len == to) {
      last->iov_len += bytes;
    } else {
      read.buffers[read.vectors++] = {.iov_base = to, .iov_len = bytes};
    }
  };
  if (fragment.offset > read.end) add(gaps_.data(), fragment.offset - read.end);
  add(fragment.to, fragment.bytes);
  read.tags[read.fragments++] = fragment.tag;
  read.end = fragment.offset + fragment.bytes;
  fragment.read = static_cast<uint32_t>(&read - reads_.data());
}

size_t WeightReader::Submit(IoClass io_class, absl::Span<Fragment> fragments) {
  // Of what this call takes, not of all that waits: it is called again for the rest.
  uint64_t wanted = 0;
  uint64_t gaps = 0;
  const auto gap_budget = [&](const Fragment& fragment) {
    const auto allowed =
        static_cast<uint64_t>(static_cast<double>(wanted + fragment.bytes) * options_.max_overread);
    return allowed - std::min(allowed, gaps);
  };
  batch_.clear();
  size_t next = 0;
  while (next < fragments.size() && !free_.empty()) {
    Read& read = reads_[free_.back()];
    free_.pop_back();
    read.fragments = read.vectors = 0;
    read.end = read.request.offset = fragments[next].offset;
    do {
      gaps += fragments[next].offset - read.end;
      wanted += fragments[next].bytes;
      stats_.wanted_bytes += fragments[next].bytes;
      Add(read, fragments[next++]);
    } while (next < fragments.size() && Joins(read, fragments[next], gap_budget(fragments[next])));
    read.request.buffers = absl::MakeConstSpan(read.buffers).first(read.vectors);
    stats_.read_bytes += read.end - read.request.offset;
    batch_.push_back(&read.request);
  }
  if (batch_.empty()) return 0;
  stats_.reads += batch_.size();
  {
    absl::MutexLock lock(&mu_);
    if (in_flight_ == 0) busy_since_ = absl::Now();
    in_flight_ += batch_.size();
  }
  // The queue has room for all requests that there are.
  const absl::Status submitted = scheduler_->Submit(io_class, batch_);
  TERRACE_CHECK(submitted.ok());
  return next;
}

void WeightReader::OnDone(absl::Span<IoRequest* const> done) {
  absl::MutexLock lock(&mu_);
  done_.insert(done_.end(), done.begin(), done.end());
  in_flight_ -= done.size();
  if (in_flight_ == 0) busy_ += absl::Now() - busy_since_;
}

absl::Span<const WeightReader::Arrival> WeightReader::Collect() {
  arrivals_.clear();
  for (IoRequest* request : taken_) {
    Read& read = *static_cast<Read*>(request->context);
    const bool ok = request->error == 0;
    if (!ok) last_error_ = scheduler_->device().StatusOf(*request);
    for (uint32_t i = 0; i < read.fragments; ++i) {
      arrivals_.push_back({.tag = read.tags[i], .ok = ok});
    }
    under_way_ -= read.fragments;
    free_.push_back(static_cast<uint32_t>(&read - reads_.data()));
  }
  taken_.clear();
  if (backlog_begin_ < backlog_.size()) {
    backlog_begin_ += Submit(IoClass::kDemand, absl::MakeSpan(backlog_).subspan(backlog_begin_));
    if (backlog_begin_ == backlog_.size()) {
      backlog_.clear();
      backlog_begin_ = 0;
    }
  }
  return arrivals_;
}

absl::Span<const WeightReader::Arrival> WeightReader::Take() {
  {
    absl::MutexLock lock(&mu_);
    taken_.swap(done_);
  }
  return Collect();
}

absl::Span<const WeightReader::Arrival> WeightReader::Wait() {
  TERRACE_CHECK(under_way_ > 0);
  {
    absl::MutexLock lock(&mu_);
    const auto arrived = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return !done_.empty(); };
    mu_.Await(absl::Condition(&arrived));
    taken_.swap(done_);
  }
  return Collect();
}

WeightReaderStats WeightReader::Stats() const {
  WeightReaderStats stats = stats_;
  absl::MutexLock lock(&mu_);
  absl::Duration busy = busy_;
  if (in_flight_ > 0) busy += absl::Now() - busy_since_;
  stats.io_seconds = absl::ToDoubleSeconds(busy);
  return stats;
}

}  // namespace terrace
