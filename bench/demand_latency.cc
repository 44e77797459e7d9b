// How long does demand wait while offload saturates the disk? One thread reads batches of blocks
// through an IoScheduler while 1 MiB writes are always queued: once with the limits of its classes,
// once with none, as if everybody sent requests to the device at will.
//
//   demand_latency DIR [PAIRS [SECONDS]]

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "bench/measure.h"
#include "io/aligned_buffer.h"
#include "io/io_scheduler.h"
#include "io/latency_histogram.h"

namespace terrace {
namespace {

constexpr uint64_t kFileBytes = uint64_t{1} << 30;
constexpr size_t kBlockBytes = size_t{64} << 10;
constexpr size_t kReads = 4;  // of one demand batch
constexpr size_t kWriteBytes = size_t{1} << 20;
constexpr size_t kWrites = 32;  // always queued or in flight

struct PassResult {
  double p99_us = 0;
  double written_bytes_per_second = 0;
};

// Requests of one kind, each with memory of its own.
class Requests {
 public:
  Requests(size_t count, size_t bytes, IoOp op, void* context)
      : memory_(OrDie(AlignedBuffer::Create(count * bytes))), vectors_(count), requests_(count) {
    std::memset(memory_.data(), 1, memory_.size());
    for (size_t i = 0; i < count; ++i) {
      vectors_[i] = {memory_.data() + i * bytes, bytes};
      requests_[i].op = op;
      requests_[i].buffers = absl::MakeConstSpan(&vectors_[i], 1);
      requests_[i].context = context;
      all_.push_back(&requests_[i]);
    }
  }
  const std::vector<IoRequest*>& all() const { return all_; }

 private:
  AlignedBuffer memory_;
  std::vector<iovec> vectors_;
  std::vector<IoRequest> requests_;
  std::vector<IoRequest*> all_;
};

class Contest {
 public:
  Contest(const std::string& path, bool limits)
      : reads_(kReads, kBlockBytes, IoOp::kRead, nullptr),
        writes_(kWrites, kWriteBytes, IoOp::kWrite, this) {
    IoSchedulerOptions options;
    if (!limits) {
      options.class_depth.fill(SIZE_MAX);
      options.class_bytes.fill(UINT64_MAX);
    }
    auto device = OrDie(OpenFileDevice({.path = path}));
    scheduler_ = std::make_unique<IoScheduler>(
        std::move(device), options, [this](absl::Span<IoRequest* const> done) { Ended(done); });
  }

  PassResult Run(absl::Duration pass) {
    for (IoRequest* write : writes_.all()) write->offset = NextWrite();
    OrDie(scheduler_->Submit(IoClass::kOffload, writes_.all()));
    absl::SleepFor(absl::Milliseconds(200));
    const uint64_t written = scheduler_->Stats().written_bytes;
    LatencyHistogram latency;
    std::mt19937_64 random(1);
    const absl::Time start = absl::Now();
    while (absl::Now() - start < pass) {
      for (IoRequest* read : reads_.all()) {
        read->offset = random() % (kFileBytes / kBlockBytes) * kBlockBytes;
      }
      const absl::Time submitted = absl::Now();
      {
        absl::MutexLock lock(&mu_);
        reads_left_ = kReads;
      }
      OrDie(scheduler_->Submit(IoClass::kDemand, reads_.all()));
      {
        absl::MutexLock lock(&mu_);
        mu_.Await(absl::Condition(
            +[](size_t* left) { return *left == 0; }, &reads_left_));
      }
      latency.Record(absl::Now() - submitted);
    }
    const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
    PassResult result;
    result.p99_us = static_cast<double>(latency.PercentileNs(0.99)) / 1e3;
    result.written_bytes_per_second =
        static_cast<double>(scheduler_->Stats().written_bytes - written) / seconds;
    stopping_ = true;
    scheduler_.reset();
    return result;
  }

 private:
  // On the I/O thread: a write that ended goes again elsewhere.
  void Ended(absl::Span<IoRequest* const> done) {
    for (IoRequest* request : done) {
      OrDie(request->error == 0 ? absl::OkStatus() : absl::InternalError("a transfer failed"));
      if (request->context == nullptr) {
        absl::MutexLock lock(&mu_);
        --reads_left_;
      } else if (!stopping_) {
        request->offset = NextWrite();
        OrDie(scheduler_->Submit(IoClass::kOffload, {&request, 1}));
      }
    }
  }
  uint64_t NextWrite() { return next_write_++ % (kFileBytes / kWriteBytes) * kWriteBytes; }

  Requests reads_;
  Requests writes_;
  std::atomic<uint64_t> next_write_ = 0;
  std::atomic<bool> stopping_ = false;
  absl::Mutex mu_;
  size_t reads_left_ = 0;
  std::unique_ptr<IoScheduler> scheduler_;
};

void MakeFile(const std::string& path) {
  const Requests writes(16, kWriteBytes, IoOp::kWrite, nullptr);
  const auto device = OrDie(
      OpenFileDevice({.path = path, .size_bytes = kFileBytes, .create = true, .truncate = true}));
  for (uint64_t at = 0; at < kFileBytes; at += 16 * kWriteBytes) {
    for (size_t i = 0; i < 16; ++i) writes.all()[i]->offset = at + i * kWriteBytes;
    OrDie(RunBatch(*device, writes.all()));
  }
}

int Run(const std::string& dir, size_t pairs, absl::Duration duration) {
  const std::string path = absl::StrCat(dir, "/demand_latency");
  MakeFile(path);
  std::vector<double> with_p99, without_p99, with_rate, without_rate;
  const auto pass = [&](bool limits, std::vector<double>& p99, std::vector<double>& rate) {
    const PassResult result = Contest(path, limits).Run(duration);
    p99.push_back(result.p99_us);
    rate.push_back(result.written_bytes_per_second);
  };
  RunPairs(
      pairs, [&] { pass(true, with_p99, with_rate); },
      [&] { pass(false, without_p99, without_rate); });
  std::remove(path.c_str());
  std::printf("%s, %zu reads of 64 KiB a batch among %zu writes of 1 MiB, %zu alternating pairs\n",
              SystemText().c_str(), kReads, kWrites, pairs);
  std::printf("with limits     demand p99 %.0f us, offload %.3f GB/s (medians)\n",
              Quantile(with_p99, 0.5), Quantile(with_rate, 0.5) / 1e9);
  std::printf("without         demand p99 %.0f us, offload %.3f GB/s\n", Quantile(without_p99, 0.5),
              Quantile(without_rate, 0.5) / 1e9);
  std::printf("ratio of p99    %s\n", RatioText(with_p99, without_p99).c_str());
  std::printf("ratio of offload %s\n", RatioText(with_rate, without_rate).c_str());
  return 0;
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  const int pairs = argc > 2 ? std::atoi(argv[2]) : 9;
  const double seconds = argc > 3 ? std::atof(argv[3]) : 2;
  if (argc < 2 || argc > 4 || pairs < 1 || seconds <= 0) {
    std::fprintf(stderr, "usage: demand_latency DIR [PAIRS [SECONDS of a pass]]\n");
    return 2;
  }
  return terrace::Run(argv[1], static_cast<size_t>(pairs), absl::Seconds(seconds));
}
