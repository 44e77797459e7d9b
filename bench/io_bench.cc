// How fast does each engine read KV blocks, 64 KiB at random offsets, compared with plain pread?
//
// Every benchmark reads the same offsets of one file, made in $TMPDIR or /tmp and removed at the
// end, with direct I/O where the filesystem has it. The baseline keeps one request in flight; an
// engine keeps as many as the benchmark's argument says.

#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "io/aligned_buffer.h"
#include "io/block_device.h"
#include "io/memory_device.h"

namespace terrace {
namespace {

constexpr uint64_t kFileBytes = uint64_t{256} << 20;
constexpr size_t kBlockBytes = size_t{64} << 10;
constexpr size_t kMaxDepth = 64;
constexpr uint64_t kSeed = 1;

// The file's name; the benchmarks are registered before it is made.
std::string& FilePath() {
  static std::string path;
  return path;
}

absl::StatusOr<std::unique_ptr<BlockDevice>> OpenDevice(IoEngine engine, size_t depth) {
  if (engine == IoEngine::kMemory) return MemoryDevice::Create({kFileBytes, depth, nullptr});
  FileDeviceOptions options;
  options.path = FilePath();
  options.size_bytes = kFileBytes;
  options.create = true;
  options.engine = engine;
  options.depth = depth;
  return OpenFileDevice(options);
}

// `depth` requests of one block each, with memory of their own.
class BlockRequests {
 public:
  explicit BlockRequests(size_t depth)
      : memory_(*AlignedBuffer::Create(depth * kBlockBytes)), buffers_(depth), requests_(depth) {
    for (size_t i = 0; i < depth; ++i) {
      buffers_[i] = {memory_.data() + i * kBlockBytes, kBlockBytes};
      requests_[i].buffers = absl::MakeConstSpan(&buffers_[i], 1);
      all_.push_back(&requests_[i]);
    }
  }
  const std::vector<IoRequest*>& all() const { return all_; }

 private:
  AlignedBuffer memory_;
  std::vector<iovec> buffers_;
  std::vector<IoRequest> requests_;
  std::vector<IoRequest*> all_;
};

uint64_t RandomOffset(std::mt19937_64& random) {
  return random() % (kFileBytes / kBlockBytes) * kBlockBytes;
}

// Keeps the device full: what comes back goes out again, elsewhere.
void ReadBlocks(benchmark::State& state, IoEngine engine) {
  const size_t depth = static_cast<size_t>(state.range(0));
  const BlockRequests reads(depth);  // outlives the device, which ends with requests in flight
  absl::StatusOr<std::unique_ptr<BlockDevice>> device = OpenDevice(engine, depth);
  if (!device.ok()) {
    state.SkipWithError(device.status().ToString().c_str());
    return;
  }
  std::mt19937_64 random(kSeed);
  for (IoRequest* request : reads.all()) request->offset = RandomOffset(random);
  std::vector<IoRequest*> done(depth);
  (*device)->Submit(reads.all());
  int64_t blocks = 0;
  size_t count = 0;
  // An iteration is one block, and a round takes as many as came back in the one before.
  while (state.KeepRunningBatch(static_cast<benchmark::IterationCount>(count > 0 ? count : 1))) {
    count = (*device)->Wait(absl::MakeSpan(done));
    for (size_t i = 0; i < count; ++i) {
      if (done[i]->error != 0) {
        state.SkipWithError((*device)->StatusOf(*done[i]).ToString().c_str());
        return;
      }
      done[i]->offset = RandomOffset(random);
    }
    blocks += static_cast<int64_t>(count);
    (*device)->Submit(absl::MakeConstSpan(done).first(count));
  }
  state.SetBytesProcessed(blocks * static_cast<int64_t>(kBlockBytes));
  const DeviceInfo& info = (*device)->info();
  state.SetLabel(absl::StrCat("depth ", info.depth, info.direct_io ? ", direct" : ""));
}

void ReadBlocksByPread(benchmark::State& state) {
  int fd = ::open(FilePath().c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  const bool direct_io = fd >= 0;
  if (!direct_io) fd = ::open(FilePath().c_str(), O_RDONLY | O_CLOEXEC);
  const AlignedBuffer memory = *AlignedBuffer::Create(kBlockBytes);
  std::mt19937_64 random(kSeed);
  for (auto _ : state) {
    const off_t offset = static_cast<off_t>(RandomOffset(random));
    if (::pread(fd, memory.data(), kBlockBytes, offset) != static_cast<ssize_t>(kBlockBytes)) {
      state.SkipWithError(std::generic_category().message(errno).c_str());
      break;
    }
  }
  ::close(fd);
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(kBlockBytes));
  state.SetLabel(direct_io ? "depth 1, direct" : "depth 1");
}

BENCHMARK(ReadBlocksByPread)->MeasureProcessCPUTime()->UseRealTime();
BENCHMARK_CAPTURE(ReadBlocks, io_uring, IoEngine::kIoUring)
    ->Arg(1)
    ->Arg(8)
    ->Arg(64)
    ->MeasureProcessCPUTime()
    ->UseRealTime();
BENCHMARK_CAPTURE(ReadBlocks, threads, IoEngine::kThreads)
    ->Arg(1)
    ->Arg(8)
    ->Arg(64)
    ->MeasureProcessCPUTime()
    ->UseRealTime();
BENCHMARK_CAPTURE(ReadBlocks, memory, IoEngine::kMemory)
    ->Arg(8)
    ->MeasureProcessCPUTime()
    ->UseRealTime();

// Fills the file, so that no read finds a hole, and says what it lies on.
absl::Status MakeFile() {
  const char* const parent = std::getenv("TMPDIR");
  FilePath() = absl::StrCat(parent == nullptr || *parent == '\0' ? "/tmp" : parent,
                            "/terrace_io_bench_", ::getpid());
  const BlockRequests writes(kMaxDepth);
  absl::StatusOr<std::unique_ptr<BlockDevice>> device = OpenDevice(IoEngine::kAuto, kMaxDepth);
  if (!device.ok()) return device.status();
  for (uint64_t start = 0; start < kFileBytes; start += kMaxDepth * kBlockBytes) {
    for (size_t i = 0; i < kMaxDepth; ++i) {
      writes.all()[i]->op = IoOp::kWrite;
      writes.all()[i]->offset = start + i * kBlockBytes;
    }
    if (absl::Status status = RunBatch(**device, writes.all()); !status.ok()) return status;
  }
  const DeviceInfo& info = (*device)->info();
  benchmark::AddCustomContext("file", info.path);
  benchmark::AddCustomContext(
      "auto engine", absl::StrCat(IoEngineName(info.engine), " (", info.engine_reason, ")"));
  benchmark::AddCustomContext(
      "direct I/O", absl::StrCat(info.direct_io ? "yes" : "no", " (", info.direct_reason, ")"));
  utsname kernel = {};
  if (::uname(&kernel) == 0) benchmark::AddCustomContext("kernel", kernel.release);
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  const absl::Status status = MakeFile();
  if (status.ok()) {
    benchmark::RunSpecifiedBenchmarks();
  } else {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
  }
  ::unlink(FilePath().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace terrace

int main(int argc, char** argv) { return terrace::Main(argc, argv); }
