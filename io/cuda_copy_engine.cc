#include "io/cuda_copy_engine.h"

#include <cuda_runtime_api.h>

#include <array>
#include <bitset>
#include <chrono>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "io/copy_plan.h"
#include "io/cuda_batch.h"
#include "io/cuda_gather_kernels.h"
#include "io/cuda_memory.h"

namespace terrace {
namespace {

static_assert(kKernelPieceCopies <= kGatherMaxCopies);

// Streams of each direction and priority: one for the copy engines, one for kernels beside them.
constexpr size_t kSetStreams = 2;
constexpr size_t kSets = 4;
constexpr size_t kStreams = kSets * kSetStreams;

// Batches under way at once; a Submit beyond them waits for the oldest.
constexpr size_t kMaxBatches = 256;

// Copies of a long batch that are planned before the first of them start, where the device has
// nothing else to do meanwhile, and then before the next, each time twice as many up to a limit.
constexpr size_t kFirstSliceCopies = 128;
constexpr size_t kSliceCopies = 2048;

// How long Wait asks again and again. A block of 64 KiB takes less; to be woken takes about as
// long.
constexpr std::chrono::microseconds kSpin(50);

class CudaCopyEngine final : public CopyEngine {
 public:
  CudaCopyEngine(std::shared_ptr<CudaMemory> memory, CudaCopyMethod method)
      : memory_(std::move(memory)), method_(method) {}
  ~CudaCopyEngine() override;
  absl::Status Open();

  absl::StatusOr<std::unique_ptr<DeviceMemory>> Allocate(size_t bytes) override {
    return memory_->Allocate(bytes);
  }
  absl::StatusOr<std::unique_ptr<PinnedMemory>> Pin(absl::Span<std::byte> memory) override {
    return memory_->Pin(memory);
  }
  absl::StatusOr<CopyTicket> Submit(absl::Span<const Copy> batch, CopyPriority priority) override
      ABSL_LOCKS_EXCLUDED(submit_mu_, mu_);
  absl::Status Wait(CopyTicket ticket) override ABSL_LOCKS_EXCLUDED(mu_);
  const char* name() const override { return memory_->name().c_str(); }
  bool is_host() const override { return false; }

 private:
  using Batches = std::vector<std::shared_ptr<CudaBatch>>;  // oldest first

  // Forgets batches that ended and gives out the others, fewer than kMaxBatches.
  absl::StatusOr<Batches> UnderWay() ABSL_EXCLUSIVE_LOCKS_REQUIRED(submit_mu_)
      ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status QueueAll(absl::Span<const Copy> copies, CopyPriority priority, CudaBatch& batch)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(submit_mu_) ABSL_LOCKS_EXCLUDED(mu_);
  // Hands pieces to streams of `batch`, behind what they must wait for.
  absl::Status Queue(std::vector<CopyPiece> pieces, CopyPriority priority, const Batches& earlier,
                     CudaBatch& batch) ABSL_EXCLUSIVE_LOCKS_REQUIRED(submit_mu_);
  // The part of `batch` that the piece goes to.
  absl::StatusOr<size_t> PartOf(const CopyPiece& piece, CopyPriority priority, CudaBatch& batch)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(submit_mu_);
  cudaError_t WaitForEarlier(CudaBatch::Part& part, const Batches& earlier)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(submit_mu_);
  cudaError_t Start(const CopyPiece& piece, cudaStream_t stream)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(submit_mu_);
  cudaError_t StartBatch(const CopyPiece& piece, cudaStream_t stream)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(submit_mu_);
  static cudaError_t StartEach(const CopyPiece& piece, cudaStream_t stream);
  static cudaError_t StartKernel(const CopyPiece& piece, cudaStream_t stream);
  absl::Status WaitForParts(const CudaBatch& batch);

  const std::shared_ptr<CudaMemory> memory_;
  const CudaCopyMethod method_;
  std::array<cudaStream_t, kStreams> streams_ = {};  // constant after Open
  CudaEventPool events_;

  // Held while a batch is handed to the driver, which is what puts batches in an order: the one
  // lock that is held across calls that queue. Nobody who waits for a batch needs it.
  absl::Mutex submit_mu_ ABSL_ACQUIRED_BEFORE(mu_);
  bool driver_has_batches_ ABSL_GUARDED_BY(submit_mu_) = true;

  absl::Mutex mu_;
  uint64_t last_ticket_ ABSL_GUARDED_BY(mu_) = 0;
  // Those that nobody has seen end.
  std::map<uint64_t, std::shared_ptr<CudaBatch>> under_way_ ABSL_GUARDED_BY(mu_);
};

absl::Status CudaCopyEngine::Open() {
  const CudaDeviceScope scope(memory_->device());
  // Now rather than when a block is on its way. Other kernels were built for the same devices.
  const cudaError_t loaded = LoadGather();
  if (loaded == cudaErrorNoKernelImageForDevice || loaded == cudaErrorInvalidDeviceFunction) {
    return absl::UnavailableError(
        absl::StrCat("CUDA copy engine: this library was built without code for ", name(),
                     "; the build option TERRACE_CUDA_ARCHITECTURES says for what it is"));
  }
  if (absl::Status status = memory_->Check(loaded, "CUDA copy engine: cannot load its kernels");
      !status.ok()) {
    return status;
  }
  int least = 0;
  int greatest = 0;
  absl::Status status = memory_->Check(cudaDeviceGetStreamPriorityRange(&least, &greatest),
                                       "CUDA copy engine: priorities");
  for (size_t i = 0; i < kStreams && status.ok(); ++i) {
    const bool demand = i / kSetStreams % 2 == static_cast<size_t>(CopyPriority::kDemand);
    status = memory_->Check(cudaStreamCreateWithPriority(&streams_[i], cudaStreamNonBlocking,
                                                         demand ? greatest : least),
                            "CUDA copy engine: cannot make a stream");
  }
  return status;
}

CudaCopyEngine::~CudaCopyEngine() {
  const CudaDeviceScope scope(memory_->device());
  for (cudaStream_t stream : streams_) {
    if (stream == nullptr) continue;
    // Whoever did not wait may have its memory back now.
    static_cast<void>(memory_->Check(cudaStreamSynchronize(stream), "CUDA copy engine: closing"));
    static_cast<void>(cudaStreamDestroy(stream));
  }
}

absl::StatusOr<CopyTicket> CudaCopyEngine::Submit(absl::Span<const Copy> batch,
                                                  CopyPriority priority) {
  auto submitted = std::make_shared<CudaBatch>(events_);
  absl::MutexLock order(&submit_mu_);
  if (absl::Status lost = memory_->lost(); !lost.ok()) return lost;
  if (!batch.empty()) {
    const CudaDeviceScope scope(memory_->device());
    const absl::Status queued = QueueAll(batch, priority, *submitted);
    if (!queued.ok()) {
      // No ticket names it, so nothing of it may be left under way.
      for (const CudaBatch::Part& part : submitted->parts) {
        static_cast<void>(cudaStreamSynchronize(streams_[part.stream]));
      }
      static_cast<void>(cudaGetLastError());
      return queued;
    }
  }
  absl::MutexLock lock(&mu_);
  ++last_ticket_;
  if (!submitted->parts.empty()) under_way_.emplace(last_ticket_, std::move(submitted));
  return CopyTicket{last_ticket_};
}

absl::Status CudaCopyEngine::QueueAll(absl::Span<const Copy> copies, CopyPriority priority,
                                      CudaBatch& batch) {
  const absl::StatusOr<Batches> earlier = UnderWay();
  if (!earlier.ok()) return earlier.status();
  // What may have to wait is looked at as a whole; the device has work until then.
  size_t slice = earlier->empty() ? kFirstSliceCopies : copies.size();
  for (size_t at = 0; at < copies.size();) {
    std::vector<CopyPiece> pieces = memory_->Plan(copies.subspan(at, slice), method_);
    const absl::Status status = Queue(std::move(pieces), priority, *earlier, batch);
    if (!status.ok()) return status;
    at += slice;
    slice = std::min(2 * slice, kSliceCopies);
  }
  for (const CudaBatch::Part& part : batch.parts) {
    const absl::Status status = memory_->Check(cudaEventRecord(part.event, streams_[part.stream]),
                                               "CUDA copy engine: events");
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<CudaCopyEngine::Batches> CudaCopyEngine::UnderWay() {
  std::vector<uint64_t> tickets;
  Batches batches;
  {
    absl::MutexLock lock(&mu_);
    for (const auto& [ticket, batch] : under_way_) {
      tickets.push_back(ticket);
      batches.push_back(batch);
    }
  }
  // Mostly they end in order; one that overtook an older one is forgotten later.
  size_t ended = 0;
  for (; ended < batches.size(); ++ended) {
    cudaError_t error = cudaSuccess;
    for (const CudaBatch::Part& part : batches[ended]->parts) {
      error = cudaEventQuery(part.event);
      if (error != cudaSuccess) break;
    }
    if (error == cudaSuccess) continue;
    if (error != cudaErrorNotReady) return memory_->Check(error, "CUDA copy engine");
    static_cast<void>(cudaGetLastError());
    if (batches.size() - ended < kMaxBatches) break;
    if (absl::Status status = WaitForParts(*batches[ended]); !status.ok()) return status;
  }
  batches.erase(batches.begin(), batches.begin() + static_cast<ptrdiff_t>(ended));
  absl::MutexLock lock(&mu_);
  for (size_t i = 0; i < ended; ++i) under_way_.erase(tickets[i]);
  return batches;
}

absl::StatusOr<size_t> CudaCopyEngine::PartOf(const CopyPiece& piece, CopyPriority priority,
                                              CudaBatch& batch) {
  const size_t set = static_cast<size_t>(piece.direction) * 2 + static_cast<size_t>(priority);
  const size_t stream = set * kSetStreams + (piece.way == CopyPiece::Way::kKernel ? 1 : 0);
  for (size_t part = 0; part < batch.parts.size(); ++part) {
    if (batch.parts[part].stream == stream) return part;
  }
  batch.parts.push_back({.stream = stream, .event = nullptr, .pieces = {}, .ranges = {}});
  const absl::Status status =
      memory_->Check(events_.Take(batch.parts.back().event), "CUDA copy engine: events");
  if (!status.ok()) return status;
  return batch.parts.size() - 1;
}

absl::Status CudaCopyEngine::Queue(std::vector<CopyPiece> pieces, CopyPriority priority,
                                   const Batches& earlier, CudaBatch& batch) {
  struct PlacedPiece {
    size_t part = 0;
    size_t index = 0;  // among those of the part
  };
  std::vector<PlacedPiece> order;
  order.reserve(pieces.size());
  for (CopyPiece& piece : pieces) {
    const absl::StatusOr<size_t> part = PartOf(piece, priority, batch);
    if (!part.ok()) return part.status();
    order.push_back({.part = *part, .index = batch.parts[*part].pieces.size()});
    batch.parts[*part].pieces.push_back(std::move(piece));
  }
  if (!earlier.empty()) {
    for (CudaBatch::Part& part : batch.parts) {
      const absl::Status status =
          memory_->Check(WaitForEarlier(part, earlier), "CUDA copy engine: order of batches");
      if (!status.ok()) return status;
    }
  }
  for (const PlacedPiece& placed : order) {
    const CudaBatch::Part& part = batch.parts[placed.part];
    const CopyPiece& piece = part.pieces[placed.index];
    const cudaError_t error = Start(piece, streams_[part.stream]);
    if (error == cudaSuccess) continue;
    return memory_->Check(
        error, absl::StrCat("CUDA copy engine: ", piece.copies.size(), " copies ",
                            piece.direction == CopyDirection::kHostToDevice ? "up" : "down"));
  }
  return absl::OkStatus();
}

// The newest part of a stream that touches the same memory will do: those before it end first.
cudaError_t CudaCopyEngine::WaitForEarlier(CudaBatch::Part& part, const Batches& earlier) {
  std::bitset<kStreams> ordered;
  ordered.set(part.stream);
  for (auto batch = earlier.rbegin(); batch != earlier.rend(); ++batch) {
    for (CudaBatch::Part& other : (*batch)->parts) {
      if (ordered[other.stream] || !part.Ranges().Conflicts(other.Ranges())) continue;
      const cudaError_t error = cudaStreamWaitEvent(streams_[part.stream], other.event, 0);
      if (error != cudaSuccess) return error;
      ordered.set(other.stream);
    }
  }
  return cudaSuccess;
}

cudaError_t CudaCopyEngine::Start(const CopyPiece& piece, cudaStream_t stream) {
  switch (piece.way) {
    case CopyPiece::Way::kKernel:
      return StartKernel(piece, stream);
    case CopyPiece::Way::kBatch:
      return StartBatch(piece, stream);
    case CopyPiece::Way::kSingle:
      return StartEach(piece, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t CudaCopyEngine::StartKernel(const CopyPiece& piece, cudaStream_t stream) {
  std::vector<GatherCopy> copies;
  copies.reserve(piece.copies.size());
  for (const Copy& copy : piece.copies) {
    copies.push_back({.source = copy.source, .destination = copy.destination, .bytes = copy.bytes});
  }
  return LaunchGather(copies.data(), copies.size(), piece.shares_bus, stream);
}

cudaError_t CudaCopyEngine::StartEach(const CopyPiece& piece, cudaStream_t stream) {
  const cudaMemcpyKind kind = piece.direction == CopyDirection::kHostToDevice
                                  ? cudaMemcpyHostToDevice
                                  : cudaMemcpyDeviceToHost;
  for (const Copy& copy : piece.copies) {
    const cudaError_t error =
        cudaMemcpyAsync(copy.destination, copy.source, copy.bytes, kind, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t CudaCopyEngine::StartBatch(const CopyPiece& piece, cudaStream_t stream) {
#if CUDART_VERSION >= 12080
  if (driver_has_batches_ && piece.copies.size() > 1) {
    std::vector<void*> destinations;
    std::vector<void*> sources;
    std::vector<size_t> sizes;
    destinations.reserve(piece.copies.size());
    sources.reserve(piece.copies.size());
    sizes.reserve(piece.copies.size());
    for (const Copy& copy : piece.copies) {
      destinations.push_back(copy.destination);
      sources.push_back(const_cast<std::byte*>(copy.source));
      sizes.push_back(copy.bytes);
    }
    // Not out of order, though the driver would like that better: the batches before it may write
    // what this one reads.
    cudaMemcpyAttributes attributes = {};
    attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    size_t first = 0;
#if CUDART_VERSION >= 13000
    const cudaError_t error =
        cudaMemcpyBatchAsync(destinations.data(), sources.data(), sizes.data(), sizes.size(),
                             &attributes, &first, 1, stream);
#else
    size_t failed = 0;
    const cudaError_t error =
        cudaMemcpyBatchAsync(destinations.data(), sources.data(), sizes.data(), sizes.size(),
                             &attributes, &first, 1, &failed, stream);
#endif
    if (error != cudaErrorNotSupported && error != cudaErrorCallRequiresNewerDriver) return error;
    static_cast<void>(cudaGetLastError());
    driver_has_batches_ = false;
  }
#endif
  return StartEach(piece, stream);
}

absl::Status CudaCopyEngine::WaitForParts(const CudaBatch& batch) {
  const auto spin_end = std::chrono::steady_clock::now() + kSpin;
  for (const CudaBatch::Part& part : batch.parts) {
    cudaError_t error = cudaEventQuery(part.event);
    while (error == cudaErrorNotReady && std::chrono::steady_clock::now() < spin_end) {
      error = cudaEventQuery(part.event);
    }
    if (error == cudaErrorNotReady) {
      static_cast<void>(cudaGetLastError());
      error = cudaEventSynchronize(part.event);
    }
    const absl::Status status = memory_->Check(error, "CUDA copy engine: waiting for copies");
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CudaCopyEngine::Wait(CopyTicket ticket) {
  if (absl::Status lost = memory_->lost(); !lost.ok()) return lost;
  const uint64_t number = static_cast<uint64_t>(ticket);
  std::shared_ptr<CudaBatch> batch;
  {
    absl::MutexLock lock(&mu_);
    if (number == 0 || number > last_ticket_) {
      return absl::InvalidArgumentError(absl::StrCat("no copy batch has ticket ", number));
    }
    const auto found = under_way_.find(number);
    if (found == under_way_.end()) return absl::OkStatus();
    batch = found->second;
  }
  const CudaDeviceScope scope(memory_->device());
  if (absl::Status status = WaitForParts(*batch); !status.ok()) return status;
  absl::MutexLock lock(&mu_);
  under_way_.erase(number);
  return absl::OkStatus();
}

}  // namespace

bool BuiltWithCuda() { return true; }

absl::StatusOr<std::unique_ptr<CopyEngine>> MakeCudaCopyEngine(const CudaCopyOptions& options) {
  absl::StatusOr<std::shared_ptr<CudaMemory>> memory = CudaMemory::Create(options);
  if (!memory.ok()) return memory.status();
  auto engine = std::make_unique<CudaCopyEngine>(*std::move(memory), options.method);
  if (absl::Status status = engine->Open(); !status.ok()) return status;
  return engine;
}

}  // namespace terrace
