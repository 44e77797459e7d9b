// How many blocks a second TierManager puts and fetches, and how long a call takes at p99, by tier,
// batch size and calling threads. Baselines: memcpy of the same bytes for memory tiers, BlockDevice
// alone on the same file for NVMe. Blocks are 64 KiB; the NVMe file lies in $TMPDIR (default /tmp).

#include <benchmark/benchmark.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "io/aligned_buffer.h"
#include "io/check.h"
#include "io/latency_histogram.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

constexpr size_t kBlockBytes = size_t{64} << 10;
constexpr uint64_t kNvmeBytes = uint64_t{512} << 20;
constexpr size_t kNvmeBlocks = 6000;  // stored there by the NVMe benchmarks

// A temporary directory that is gone at exit.
class BenchDir {
 public:
  BenchDir() {
    const char* parent = std::getenv("TMPDIR");
    path_ = absl::StrCat(parent == nullptr ? "/tmp" : parent, "/terrace-bench.XXXXXX");
    TERRACE_CHECK(mkdtemp(path_.data()) != nullptr);
  }
  ~BenchDir() {
    std::remove(File().c_str());
    rmdir(path_.c_str());
  }
  const std::string& path() const { return path_; }
  std::string File() const { return absl::StrCat(path_, "/terrace.kv"); }

 private:
  std::string path_;
};

// The manager that all threads of a benchmark share. Runs of one benchmark, which differ in batch
// size and threads, keep it: filling an NVMe tier takes longer than measuring it.
std::string shared_name;
std::unique_ptr<BenchDir> shared_dir;
std::unique_ptr<TierManager> shared_manager;
std::atomic<uint64_t> next_put = 0;

// Has a manager with these options that holds blocks 0 to `blocks` - 1. Called by the first thread.
void Share(const std::string& name, TierManagerOptions options, size_t blocks) {
  if (name == shared_name) return;
  shared_manager.reset();
  shared_dir.reset();
  shared_name = name;
  options.block_bytes = kBlockBytes;
  if (options.nvme_bytes > 0) {
    shared_dir = std::make_unique<BenchDir>();
    options.nvme_dir = shared_dir->path();
  }
  auto manager = TierManager::Open(options);
  if (!manager.ok()) std::fprintf(stderr, "%s\n", manager.status().ToString().c_str());
  TERRACE_CHECK(manager.ok());
  shared_manager = *std::move(manager);
  std::vector<std::byte> bytes(kBlockBytes, std::byte{1});
  for (uint64_t id = 0; id < blocks; ++id) {
    std::memcpy(bytes.data(), &id, sizeof(id));
    const BlockWrite write = {.id = {0, id}, .bytes = bytes};
    TERRACE_CHECK(shared_manager->Put({&write, 1}).ok());
  }
  if (options.nvme_bytes > 0) TERRACE_CHECK(shared_manager->Flush().ok());
}

void Unshare() {
  shared_manager.reset();
  shared_dir.reset();
}

void Report(benchmark::State& state, const LatencyHistogram& latency, size_t batch) {
  state.SetItemsProcessed(static_cast<int64_t>(state.iterations() * batch));
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations() * batch * kBlockBytes));
  state.counters["p99_us"] = benchmark::Counter(
      static_cast<double>(latency.PercentileNs(0.99)) / 1e3, benchmark::Counter::kAvgThreads);
}

// Fetches batches of consecutive ids out of [0, blocks), each thread in its own stretch.
void FetchLoop(benchmark::State& state, size_t blocks, const FetchOptions& options) {
  const size_t batch = static_cast<size_t>(state.range(0));
  const size_t stretch = blocks / static_cast<size_t>(state.threads());
  const size_t first = stretch * static_cast<size_t>(state.thread_index());
  std::vector<BlockRead> reads(batch);
  LatencyHistogram latency;
  size_t next = 0;
  for (auto _ : state) {
    for (size_t i = 0; i < batch; ++i) reads[i].id = {0, first + (next + i) % stretch};
    next = (next + batch) % stretch;
    const absl::Time start = absl::Now();
    absl::StatusOr<Lease> lease = shared_manager->Fetch(reads, options);
    latency.Record(absl::Now() - start);
    TERRACE_CHECK(lease.ok() && (*lease)[0].outcome == BlockOutcome::kServed);
    benchmark::DoNotOptimize((*lease)[batch - 1].data);
  }
  Report(state, latency, batch);
}

void BM_Memcpy(benchmark::State& state) {
  const size_t batch = static_cast<size_t>(state.range(0));
  auto source = AlignedBuffer::Create(batch * kBlockBytes);
  auto target = AlignedBuffer::Create(size_t{256} << 20);
  TERRACE_CHECK(source.ok() && target.ok());
  std::memset(source->data(), 1, source->size());
  std::memset(target->data(), 1, target->size());
  LatencyHistogram latency;
  size_t offset = 0;
  for (auto _ : state) {
    const absl::Time start = absl::Now();
    std::memcpy(target->data() + offset, source->data(), source->size());
    latency.Record(absl::Now() - start);
    offset = (offset + source->size()) % (target->size() - source->size());
    benchmark::ClobberMemory();
  }
  Report(state, latency, batch);
}

void PutLoop(benchmark::State& state) {
  const size_t batch = static_cast<size_t>(state.range(0));
  std::vector<std::byte> bytes(kBlockBytes, std::byte{1});
  std::vector<BlockWrite> writes(batch);
  LatencyHistogram latency;
  for (auto _ : state) {
    for (BlockWrite& write : writes) write = {.id = {1, next_put++}, .bytes = bytes};
    const absl::Time start = absl::Now();
    const absl::Status status = shared_manager->Put(writes);
    latency.Record(absl::Now() - start);
    TERRACE_CHECK(status.ok());
  }
  Report(state, latency, batch);
}

// Into a full DRAM tier, so that every block evicts one.
void BM_PutDram(benchmark::State& state) {
  if (state.thread_index() == 0) Share("BM_PutDram", {.dram_bytes = uint64_t{256} << 20}, 4096);
  PutLoop(state);
}

// The same with an NVMe tier below: checksums, and write-back at the speed of the disk.
void BM_PutWriteBack(benchmark::State& state) {
  if (state.thread_index() == 0) {
    Share("BM_PutWriteBack", {.dram_bytes = uint64_t{64} << 20, .nvme_bytes = kNvmeBytes}, 1024);
  }
  PutLoop(state);
}

void BM_FetchHbmHit(benchmark::State& state) {
  if (state.thread_index() == 0) Share("BM_FetchHbmHit", {.hbm_bytes = uint64_t{256} << 20}, 4096);
  FetchLoop(state, 4096, {});
}

void BM_FetchDramHit(benchmark::State& state) {
  if (state.thread_index() == 0)
    Share("BM_FetchDramHit", {.dram_bytes = uint64_t{256} << 20}, 4096);
  FetchLoop(state, 4096, {});
}

// From DRAM up to an HBM tier that is full: one copy up and one down for each block.
void BM_FetchDramToHbm(benchmark::State& state) {
  if (state.thread_index() == 0) {
    Share("BM_FetchDramToHbm", {.hbm_bytes = uint64_t{64} << 20, .dram_bytes = uint64_t{256} << 20},
          4096);
  }
  FetchLoop(state, 4096, {});
}

void BM_FetchNvmeToDram(benchmark::State& state) {
  if (state.thread_index() == 0) {
    Share("BM_FetchNvmeToDram", {.dram_bytes = uint64_t{64} << 20, .nvme_bytes = kNvmeBytes},
          kNvmeBlocks);
    state.SetLabel(absl::StrCat(IoEngineName(shared_manager->Stats().device.engine)));
  }
  FetchLoop(state, kNvmeBlocks, {});
}

// The baseline of BM_FetchNvmeToDram: the same batches, nothing but BlockDevice.
void BM_DeviceRead(benchmark::State& state) {
  const size_t batch = static_cast<size_t>(state.range(0));
  BenchDir dir;
  auto opened = OpenFileDevice({.path = dir.File(), .size_bytes = kNvmeBytes, .create = true});
  TERRACE_CHECK(opened.ok());
  BlockDevice& device = **opened;
  // As large as a DRAM tier, so that it lies in huge pages as that does, and resident.
  auto memory = AlignedBuffer::Create(uint64_t{64} << 20);
  TERRACE_CHECK(memory.ok());
  std::memset(memory->data(), 1, memory->size());
  std::vector<iovec> vectors(batch);
  std::vector<IoRequest> requests(batch);
  std::vector<IoRequest*> submitted(batch);
  for (size_t i = 0; i < batch; ++i) {
    vectors[i] = {memory->data() + i * kBlockBytes, kBlockBytes};
    requests[i].buffers = absl::MakeConstSpan(&vectors[i], 1);
    submitted[i] = &requests[i];
  }
  // Space that was never written would be read from nowhere.
  for (uint64_t at = 0; at + batch * kBlockBytes <= kNvmeBytes; at += batch * kBlockBytes) {
    for (size_t i = 0; i < batch; ++i) {
      requests[i].op = IoOp::kWrite;
      requests[i].offset = at + i * kBlockBytes;
    }
    TERRACE_CHECK(RunBatch(device, submitted).ok());
  }
  LatencyHistogram latency;
  size_t next = 0;
  for (auto _ : state) {
    for (size_t i = 0; i < batch; ++i) {
      requests[i].op = IoOp::kRead;
      requests[i].offset = (next + i) % kNvmeBlocks * kBlockBytes;
      // All of the memory in turn, as in a tier: a few buffers would stay in the processor's cache.
      vectors[i].iov_base =
          memory->data() + (next + i) % (memory->size() / kBlockBytes) * kBlockBytes;
    }
    next = (next + batch) % kNvmeBlocks;
    const absl::Time start = absl::Now();
    TERRACE_CHECK(RunBatch(device, submitted).ok());
    latency.Record(absl::Now() - start);
  }
  Report(state, latency, batch);
  state.SetLabel(IoEngineName(device.info().engine));
}

void ByBatch(benchmark::internal::Benchmark* benchmark) {
  benchmark->ArgName("batch")->Arg(1)->Arg(16)->Arg(64)->UseRealTime();
}
void ByBatchAndThreads(benchmark::internal::Benchmark* benchmark) {
  ByBatch(benchmark);
  benchmark->Threads(1)->Threads(2)->Threads(4);
}

BENCHMARK(BM_Memcpy)->Apply(ByBatch);
BENCHMARK(BM_PutDram)->Apply(ByBatchAndThreads);
BENCHMARK(BM_PutWriteBack)->Apply(ByBatchAndThreads);
BENCHMARK(BM_FetchHbmHit)->Apply(ByBatchAndThreads);
BENCHMARK(BM_FetchDramHit)->Apply(ByBatchAndThreads);
BENCHMARK(BM_FetchDramToHbm)->Apply(ByBatchAndThreads);
BENCHMARK(BM_DeviceRead)->Apply(ByBatch);
BENCHMARK(BM_FetchNvmeToDram)->Apply(ByBatchAndThreads);

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  terrace::Unshare();
  return 0;
}
