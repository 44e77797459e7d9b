#include "tools/ssd_workload.h"

#include <sys/resource.h>
#include <sys/time.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "io/aligned_buffer.h"
#include "io/check.h"

namespace terrace {
namespace {

constexpr size_t kSteadyRates = 5;
// Intervals in one `duration`; the last kSteadyRates of them decide whether the rate is steady.
constexpr int kIntervals = 10;

// xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled".
class FastRandom {
 public:
  explicit FastRandom(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {
    if (state_ == 0) state_ = 1;
  }
  uint64_t Next() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545F4914F6CDD1Du;
  }
  // In [0, limit), without a division.
  uint64_t Below(uint64_t limit) {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(Next()) * limit) >> 64);
  }

 private:
  uint64_t state_;
};

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

double CpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

struct Slot {
  IoRequest request;
  iovec buffer = {};
  int64_t start_ns = 0;
};

// One row while it runs. Time is read once for each batch of finished requests, and the batch goes
// back to the device in one Submit, so that the loop costs little beside the I/O.
class RowRun {
 public:
  RowRun(BlockDevice& device, absl::Span<std::byte> memory, const SsdRowOptions& options)
      : device_(device),
        options_(options),
        blocks_(options.size_bytes / options.block_bytes),
        random_(options.seed),
        slots_(options.depth),
        batch_(options.depth) {
    TERRACE_CHECK(blocks_ > 0 && options.depth > 0);
    TERRACE_CHECK(memory.size() / options.block_bytes >= options.depth);
    for (size_t i = 0; i < slots_.size(); ++i) {
      Slot& slot = slots_[i];
      slot.buffer = {memory.data() + i * options.block_bytes, options.block_bytes};
      slot.request.buffers = absl::MakeConstSpan(&slot.buffer, 1);
      slot.request.context = &slot;
    }
    row_.options = options;
    recent_.reserve(kSteadyRates);
  }

  SsdRow Run(const std::atomic<bool>& stop) {
    const int64_t begin_ns = NowNs();
    for (size_t i = 0; i < slots_.size(); ++i) {
      Prepare(slots_[i], begin_ns);
      batch_[i] = &slots_[i].request;
    }
    ready_ = slots_.size();
    warm_until_ns_ = begin_ns + absl::ToInt64Nanoseconds(options_.warmup);
    if (warm_until_ns_ <= begin_ns) StartMeasuring(begin_ns);
    while (!finished_ && !stop.load(std::memory_order_relaxed)) Turn();
    if (!finished_) StopMeasuring(NowNs());
    size_t in_flight = slots_.size() - ready_;
    while (in_flight > 0) in_flight -= device_.Wait(absl::MakeSpan(batch_));
    return row_;
  }

 private:
  // Submits what is ready, takes what is finished, counts it and makes as many new requests ready.
  void Turn() {
    const size_t done =
        device_.SubmitAndWait(absl::MakeConstSpan(batch_).first(ready_), absl::MakeSpan(batch_));
    const int64_t now_ns = NowNs();
    for (size_t i = 0; i < done; ++i) {
      Slot& slot = *static_cast<Slot*>(batch_[i]->context);
      Count(slot, now_ns);
      Prepare(slot, now_ns);
    }
    if (measuring_ && now_ns >= interval_end_ns_) EndInterval(now_ns);
    if (!measuring_ && now_ns >= warm_until_ns_) StartMeasuring(now_ns);
    ready_ = done;
  }

  void Count(const Slot& slot, int64_t now_ns) {
    const IoRequest& request = slot.request;
    if (request.error != 0) {
      if (row_.errors++ == 0) row_.first_error = device_.StatusOf(request);
      return;
    }
    if (!measuring_) return;
    ++(request.op == IoOp::kRead ? row_.reads : row_.writes);
    row_.latency.RecordNanoseconds(now_ns - slot.start_ns);
  }

  void Prepare(Slot& slot, int64_t now_ns) {
    IoRequest& request = slot.request;
    request.offset = NextBlock() * options_.block_bytes;
    request.op = NextIsRead() ? IoOp::kRead : IoOp::kWrite;
    slot.start_ns = now_ns;
    if (request.op != IoOp::kWrite) return;
    // A new word in each page: no page is ever written twice, so nothing can be deduplicated.
    auto* bytes = static_cast<std::byte*>(slot.buffer.iov_base);
    uint64_t stamp = random_.Next();
    for (size_t at = 0; at < options_.block_bytes; at += kPageBytes, ++stamp) {
      std::memcpy(bytes + at, &stamp, sizeof(stamp));
    }
  }

  uint64_t NextBlock() {
    if (!options_.op.sequential) return random_.Below(blocks_);
    const uint64_t block = next_block_;
    next_block_ = next_block_ + 1 == blocks_ ? 0 : next_block_ + 1;
    return block;
  }

  bool NextIsRead() {
    const uint32_t percent = options_.op.read_percent;
    if (percent == 0 || percent == 100) return percent == 100;
    return random_.Below(100) < percent;
  }

  void StartMeasuring(int64_t now_ns) {
    measuring_ = true;
    cpu_at_start_ = CpuSeconds();
    start_ns_ = now_ns;
    interval_start_ns_ = now_ns;
    interval_end_ns_ = now_ns + IntervalNs();
  }

  int64_t IntervalNs() const {
    return std::max<int64_t>(1, absl::ToInt64Nanoseconds(options_.duration) / kIntervals);
  }

  void EndInterval(int64_t now_ns) {
    const uint64_t requests = row_.reads + row_.writes;
    if (recent_.size() == kSteadyRates) recent_.erase(recent_.begin());
    recent_.push_back(static_cast<double>(requests - interval_requests_) /
                      static_cast<double>(now_ns - interval_start_ns_));
    interval_requests_ = requests;
    interval_start_ns_ = now_ns;
    interval_end_ns_ = now_ns + IntervalNs();
    const int64_t duration_ns = absl::ToInt64Nanoseconds(options_.duration);
    const int64_t elapsed_ns = now_ns - start_ns_;
    row_.steady = IsSteady(recent_);
    if (elapsed_ns < duration_ns - IntervalNs() / 2) return;
    if (row_.steady || elapsed_ns >= 2 * duration_ns - IntervalNs() / 2) StopMeasuring(now_ns);
  }

  void StopMeasuring(int64_t now_ns) {
    finished_ = true;
    if (!measuring_) return;
    row_.seconds = static_cast<double>(now_ns - start_ns_) * 1e-9;
    row_.cpu_seconds = CpuSeconds() - cpu_at_start_;
  }

  BlockDevice& device_;
  const SsdRowOptions options_;
  const uint64_t blocks_;
  FastRandom random_;
  std::vector<Slot> slots_;
  std::vector<IoRequest*> batch_;
  size_t ready_ = 0;  // requests at the front of batch_ that are not at the device
  uint64_t next_block_ = 0;

  int64_t warm_until_ns_ = 0;
  bool measuring_ = false;
  bool finished_ = false;
  int64_t start_ns_ = 0;
  int64_t interval_start_ns_ = 0;
  int64_t interval_end_ns_ = 0;
  uint64_t interval_requests_ = 0;
  std::vector<double> recent_;  // the last rates, in requests a nanosecond
  double cpu_at_start_ = 0;
  SsdRow row_;
};

}  // namespace

absl::StatusOr<SsdOp> ParseSsdOp(absl::string_view text) {
  SsdOp op;
  op.name = std::string(text);
  if (text == "randread") return op;
  op.sequential = text == "seqread" || text == "seqwrite";
  if (text == "seqread") return op;
  op.read_percent = 0;
  if (text == "randwrite" || text == "seqwrite") return op;
  absl::string_view percent = text;
  if (absl::ConsumePrefix(&percent, "mixed:") && absl::SimpleAtoi(percent, &op.read_percent) &&
      op.read_percent <= 100) {
    return op;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("\"", text, "\" is none of randread, seqread, randwrite, seqwrite and mixed:N ",
                   "with N from 0 to 100, the percentage of reads"));
}

double SsdRow::bytes_per_second() const {
  return seconds > 0 ? static_cast<double>(bytes()) / seconds : 0;
}

double SsdRow::iops() const {
  return seconds > 0 ? static_cast<double>(reads + writes) / seconds : 0;
}

double SsdRow::cpu_seconds_per_gb() const {
  return bytes() > 0 ? cpu_seconds / (static_cast<double>(bytes()) * 1e-9) : 0;
}

SsdRow RunSsdRow(BlockDevice& device, absl::Span<std::byte> memory, const SsdRowOptions& options,
                 const std::atomic<bool>& stop) {
  return RowRun(device, memory, options).Run(stop);
}

void FillRandom(absl::Span<std::byte> memory, uint64_t seed) {
  FastRandom random(seed);
  for (size_t at = 0; at + sizeof(uint64_t) <= memory.size(); at += sizeof(uint64_t)) {
    const uint64_t word = random.Next();
    std::memcpy(memory.data() + at, &word, sizeof(word));
  }
}

bool IsSteady(absl::Span<const double> rates) {
  if (rates.size() < kSteadyRates) return false;
  const absl::Span<const double> last = rates.last(kSteadyRates);
  double mean = 0;
  double slope = 0;  // a step, times the sum of squared distances from the middle, which is 10
  for (size_t i = 0; i < kSteadyRates; ++i) {
    mean += last[i] / kSteadyRates;
    slope += (static_cast<double>(i) - 2) * last[i];
  }
  const auto [low, high] = std::minmax_element(last.begin(), last.end());
  const double drift = slope / 10 * (kSteadyRates - 1);
  return mean > 0 && *high - *low <= 0.2 * mean && std::abs(drift) <= 0.1 * mean;
}

}  // namespace terrace
