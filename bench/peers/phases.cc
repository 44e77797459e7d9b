#include "bench/peers/phases.h"

#include <sys/resource.h>

#include <thread>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "io/aligned_buffer.h"
#include "io/latency_histogram.h"

namespace terrace::peers {
namespace {

// REQUIRES: `who` is RUSAGE_SELF or RUSAGE_THREAD.
double CpuSeconds(int who) {
  rusage usage = {};
  ::getrusage(who, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Gets batches and verifies them. Owned by one thread.
class Getter {
 public:
  Getter(const Workload& workload, std::unique_ptr<BlockReader> reader)
      : workload_(workload), reader_(std::move(reader)) {}

  // The time of a get ends when every byte was hashed where the store serves it. Stores that map
  // files may deliver bytes that are still to be read, so verification cannot be left out of it; it
  // is the same work for all.
  void Get(const Batch& ids) {
    if (!status_.ok()) return;
    const absl::Time start = absl::Now();
    status_ = reader_->Get(ids, blocks_);
    if (!status_.ok()) return;
    for (size_t i = 0; i < ids.size(); ++i) {
      if (blocks_[i].empty()) {
        ++result_.missing_blocks;
      } else if (workload_.IsRight(ids[i], blocks_[i])) {
        ++result_.got_blocks;
      } else {
        ++result_.wrong_blocks;
      }
    }
    reader_->Release();
    latencies_.Record(absl::Now() - start);
  }

  const absl::Status& status() const { return status_; }
  // Adds what this getter did.
  void AddTo(PhaseResult& result, LatencyHistogram& latencies) const {
    result.got_blocks += result_.got_blocks;
    result.missing_blocks += result_.missing_blocks;
    result.wrong_blocks += result_.wrong_blocks;
    latencies.Merge(latencies_);
  }

 private:
  const Workload& workload_;
  const std::unique_ptr<BlockReader> reader_;
  std::vector<absl::Span<const std::byte>> blocks_;
  absl::Status status_;
  PhaseResult result_;
  LatencyHistogram latencies_;
};

void SetPercentiles(const LatencyHistogram& latencies, PhaseResult& result) {
  result.p50_ns = latencies.PercentileNs(0.5);
  result.p99_ns = latencies.PercentileNs(0.99);
  result.p999_ns = latencies.PercentileNs(0.999);
}

absl::StatusOr<PhaseResult> RunMix(BlockStore& store, const Workload& workload) {
  auto reader = store.NewReader();
  if (!reader.ok()) return reader.status();
  auto buffer = AlignedBuffer::Create(workload.max_batch() * workload.block_bytes());
  if (!buffer.ok()) return buffer.status();
  Getter getter(workload, *std::move(reader));
  PhaseResult result;
  absl::Duration elapsed;
  std::vector<StoredBlock> blocks;
  for (const Operation& operation : workload.operations()) {
    if (operation.kind == Operation::Kind::kPut) {
      const double cpu = CpuSeconds(RUSAGE_THREAD);
      blocks.clear();
      for (uint64_t id : operation.ids) {
        const auto bytes =
            buffer->span().subspan(blocks.size() * workload.block_bytes(), workload.block_bytes());
        workload.Generate(id, bytes);
        blocks.push_back({id, bytes});
      }
      result.cpu_seconds -= CpuSeconds(RUSAGE_THREAD) - cpu;  // that was not the store
    }
    const absl::Time start = absl::Now();
    if (operation.kind == Operation::Kind::kGet) {
      getter.Get(operation.ids);
    } else if (absl::Status put = store.Put(blocks); !put.ok()) {
      return put;
    } else {
      result.put_blocks += blocks.size();
    }
    elapsed += absl::Now() - start;
    if (!getter.status().ok()) return getter.status();
  }
  const absl::Time start = absl::Now();
  if (absl::Status flushed = store.Flush(); !flushed.ok()) return flushed;
  result.seconds = absl::ToDoubleSeconds(elapsed + (absl::Now() - start));
  LatencyHistogram latencies;
  getter.AddTo(result, latencies);
  SetPercentiles(latencies, result);
  return result;
}

absl::StatusOr<PhaseResult> RunGets(BlockStore& store, const Workload& workload,
                                    absl::Span<const Batch> batches, size_t threads) {
  std::vector<std::unique_ptr<Getter>> getters;
  for (size_t i = 0; i < threads; ++i) {
    auto reader = store.NewReader();
    if (!reader.ok()) return reader.status();
    getters.push_back(std::make_unique<Getter>(workload, *std::move(reader)));
  }
  const absl::Time start = absl::Now();
  std::vector<std::thread> running;
  for (size_t first = 0; first < threads; ++first) {
    running.emplace_back([&, first] {
      for (size_t i = first; i < batches.size(); i += threads) getters[first]->Get(batches[i]);
    });
  }
  for (std::thread& thread : running) thread.join();
  PhaseResult result;
  result.seconds = absl::ToDoubleSeconds(absl::Now() - start);
  LatencyHistogram latencies;
  for (const std::unique_ptr<Getter>& getter : getters) {
    if (!getter->status().ok()) return getter->status();
    getter->AddTo(result, latencies);
  }
  SetPercentiles(latencies, result);
  return result;
}

}  // namespace

absl::StatusOr<PhaseResult> RunPhase(BlockStore& store, const Workload& workload,
                                     const Phase& phase) {
  const double cpu = CpuSeconds(RUSAGE_SELF);
  absl::StatusOr<PhaseResult> result;
  switch (phase.kind) {
    case Phase::Kind::kMix:
      result = RunMix(store, workload);
      break;
    case Phase::Kind::kTraceGets:
      result = RunGets(store, workload, workload.trace_gets(), phase.threads);
      break;
    case Phase::Kind::kUniformGets:
      result = RunGets(store, workload, workload.uniform_gets(), phase.threads);
      break;
  }
  if (result.ok()) result->cpu_seconds += CpuSeconds(RUSAGE_SELF) - cpu;
  return result;
}

}  // namespace terrace::peers
