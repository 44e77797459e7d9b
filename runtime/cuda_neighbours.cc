#include "runtime/cuda_neighbours.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "io/check.h"
#include "io/cuda_status.h"
#include "runtime/cuda_blas.h"
#include "runtime/cuda_handles.h"
#include "runtime/cuda_neighbour_kernels.h"

namespace terrace {
namespace {

static_assert(kMostCudaNeighbours == kMostRankedKeys);

// Scores of a tile are 64 MiB: enough work for the product to be as fast as it gets.
constexpr size_t kTileRows = 1024;
constexpr size_t kTileKeys = 16384;

// Memory that grows to what is asked for and stays as large.
template <typename Bytes>
class Reserve {
 public:
  using Allocate = absl::StatusOr<Bytes> (*)(size_t bytes, absl::string_view what);

  // What it held is lost. On an error it is empty.
  absl::Status AtLeast(size_t bytes, Allocate allocate) {
    if (bytes <= bytes_) return absl::OkStatus();
    memory_.reset();
    bytes_ = 0;
    absl::StatusOr<Bytes> memory = allocate(bytes, "CUDA neighbours");
    if (!memory.ok()) return memory.status();
    memory_ = *std::move(memory);
    bytes_ = bytes;
    return absl::OkStatus();
  }
  std::byte* data() const { return memory_.get(); }
  float* floats() const { return reinterpret_cast<float*>(memory_.get()); }

 private:
  Bytes memory_;
  size_t bytes_ = 0;
};

// Keys from `first` on that lie in one panel or several, one after the other.
void Gather(const KeyPanels& keys, size_t first, size_t count, std::byte* to) {
  for (const size_t end = first + count; first < end;) {
    const size_t run = std::min(keys.Run(first), end - first);
    std::memcpy(to, keys.key(first), run * keys.key_bytes());
    to += run * keys.key_bytes();
    first += run;
  }
}

// What one search works with. Thread-compatible.
class Searcher {
 public:
  static absl::StatusOr<std::unique_ptr<Searcher>> Create();

  // Returns [rows, k] with everything finished. k is from 1 to keys.size() and kMostRankedKeys.
  absl::StatusOr<std::vector<RankedKey>> Search(absl::Span<const float> queries,
                                                const KeyPanels& keys, size_t k);

 private:
  Searcher() = default;

  absl::Status Prepare(absl::Span<const float> queries, const KeyPanels& keys, size_t k);
  absl::Status Run(size_t rows, const KeyPanels& keys, size_t k);
  // Starts bringing `count` keys to the device as fp32; where they come to lie.
  absl::StatusOr<const float*> Bring(const KeyPanels& keys, size_t first, size_t count);

  CudaStream stream_;
  // Keys are gathered in one buffer while the device copies from the other.
  struct Staging {
    Reserve<PinnedBytes> keys;
    CudaEvent copied;
  } staging_[2];
  size_t turn_ = 0;
  Reserve<CudaBytes> keys_;     // [kTileKeys, head_dim] as they are stored
  Reserve<CudaBytes> widened_;  // [kTileKeys, head_dim] fp32
  Reserve<CudaBytes> queries_;  // [rows, head_dim]
  Reserve<CudaBytes> scores_;   // [kTileRows, kTileKeys]
  Reserve<CudaBytes> best_;     // [rows, k] RankedKey
  std::unique_ptr<CudaBlas> blas_;
};

absl::StatusOr<std::unique_ptr<Searcher>> Searcher::Create() {
  std::unique_ptr<Searcher> searcher(new Searcher());
  absl::StatusOr<CudaStream> stream = MakeCudaStream("CUDA neighbours");
  if (!stream.ok()) return stream.status();
  searcher->stream_ = *std::move(stream);
  for (Staging& staging : searcher->staging_) {
    absl::StatusOr<CudaEvent> event = MakeCudaEvent("CUDA neighbours");
    if (!event.ok()) return event.status();
    staging.copied = *std::move(event);
  }
  absl::StatusOr<std::unique_ptr<CudaBlas>> blas = CudaBlas::Create(searcher->stream_.get());
  if (!blas.ok()) return blas.status();
  searcher->blas_ = *std::move(blas);
  return searcher;
}

absl::StatusOr<std::vector<RankedKey>> Searcher::Search(absl::Span<const float> queries,
                                                        const KeyPanels& keys, size_t k) {
  const size_t rows = queries.size() / keys.head_dim();
  std::vector<RankedKey> best(rows * k);
  absl::Status status = Prepare(queries, keys, k);
  if (status.ok()) status = Run(rows, keys, k);
  if (status.ok()) {
    status = CudaStatus(cudaMemcpyAsync(best.data(), best_.data(), best.size() * sizeof(RankedKey),
                                        cudaMemcpyDeviceToHost, stream_.get()),
                        "CUDA neighbours: copy of results");
  }
  // Also after an error: what was started reads and writes what is the caller's.
  const absl::Status finished =
      CudaStatus(cudaStreamSynchronize(stream_.get()), "CUDA neighbours: results");
  if (!status.ok()) return status;
  if (!finished.ok()) return finished;
  return best;
}

absl::Status Searcher::Prepare(absl::Span<const float> queries, const KeyPanels& keys, size_t k) {
  const size_t rows = queries.size() / keys.head_dim();
  const size_t tile_keys = std::min(kTileKeys, keys.size());
  const size_t tile_floats = tile_keys * keys.head_dim();
  const size_t best_bytes = rows * k * sizeof(RankedKey);
  absl::Status status;
  for (Staging& staging : staging_) {
    if (!status.ok()) break;
    status = staging.keys.AtLeast(tile_keys * keys.key_bytes(), AllocatePinned);
  }
  if (status.ok()) status = keys_.AtLeast(tile_keys * keys.key_bytes(), AllocateCuda);
  if (status.ok() && keys.dtype() != KvDtype::kFloat32) {
    status = widened_.AtLeast(tile_floats * sizeof(float), AllocateCuda);
  }
  if (status.ok()) status = queries_.AtLeast(queries.size() * sizeof(float), AllocateCuda);
  if (status.ok()) {
    status = scores_.AtLeast(std::min(kTileRows, rows) * tile_keys * sizeof(float), AllocateCuda);
  }
  if (status.ok()) status = best_.AtLeast(best_bytes, AllocateCuda);
  if (!status.ok()) return status;
  status =
      CudaStatus(cudaMemcpyAsync(queries_.data(), queries.data(), queries.size() * sizeof(float),
                                 cudaMemcpyHostToDevice, stream_.get()),
                 "CUDA neighbours: copy of queries");
  if (!status.ok()) return status;
  return CudaStatus(cudaMemsetAsync(best_.data(), 0, best_bytes, stream_.get()),
                    "CUDA neighbours: results");
}

absl::StatusOr<const float*> Searcher::Bring(const KeyPanels& keys, size_t first, size_t count) {
  Staging& staging = staging_[turn_];
  turn_ = 1 - turn_;
  absl::Status status =
      CudaStatus(cudaEventSynchronize(staging.copied.get()), "CUDA neighbours: copy of keys");
  if (!status.ok()) return status;
  Gather(keys, first, count, staging.keys.data());
  status = CudaStatus(cudaMemcpyAsync(keys_.data(), staging.keys.data(), count * keys.key_bytes(),
                                      cudaMemcpyHostToDevice, stream_.get()),
                      "CUDA neighbours: copy of keys");
  if (!status.ok()) return status;
  status = CudaStatus(cudaEventRecord(staging.copied.get(), stream_.get()),
                      "CUDA neighbours: copy of keys");
  if (!status.ok()) return status;
  if (keys.dtype() == KvDtype::kFloat32) return keys_.floats();
  const CudaHalf type =
      keys.dtype() == KvDtype::kFloat16 ? CudaHalf::kFloat16 : CudaHalf::kBfloat16;
  status = CudaStatus(
      LaunchWiden(keys_.data(), type, count * keys.head_dim(), widened_.floats(), stream_.get()),
      "CUDA neighbours: keys in fp32");
  if (!status.ok()) return status;
  return widened_.floats();
}

absl::Status Searcher::Run(size_t rows, const KeyPanels& keys, size_t k) {
  const size_t head_dim = keys.head_dim();
  auto* const best = reinterpret_cast<RankedKey*>(best_.data());
  for (size_t first = 0; first < keys.size(); first += kTileKeys) {
    const size_t count = std::min(kTileKeys, keys.size() - first);
    const absl::StatusOr<const float*> tile = Bring(keys, first, count);
    if (!tile.ok()) return tile.status();
    for (size_t row = 0; row < rows; row += kTileRows) {
      const size_t tile_rows = std::min(kTileRows, rows - row);
      absl::Status status = blas_->MultiplyTransposed(
          {.data = queries_.floats() + row * head_dim,
           .count = tile_rows,
           .width = head_dim,
           .stride = head_dim},
          {.data = *tile, .count = count, .width = head_dim, .stride = head_dim}, scores_.floats());
      if (!status.ok()) return status;
      status = CudaStatus(LaunchKeepBest({.scores = scores_.floats(),
                                          .rows = static_cast<uint32_t>(tile_rows),
                                          .count = static_cast<uint32_t>(count),
                                          .first_key = static_cast<uint32_t>(first)},
                                         static_cast<uint32_t>(k), best + row * k, stream_.get()),
                          "CUDA neighbours: best keys");
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

class CudaNeighbours final : public NeighbourSearch {
 public:
  explicit CudaNeighbours(int device) : device_(device) {}

  // Leaves a searcher idle.
  absl::Status Start() {
    absl::StatusOr<std::unique_ptr<Searcher>> searcher = Take();
    if (searcher.ok()) Give(*std::move(searcher));
    return searcher.status();
  }

  absl::StatusOr<std::vector<uint32_t>> Nearest(absl::Span<const float> queries,
                                                const KeyPanels& keys, size_t k) override {
    absl::StatusOr<std::vector<uint32_t>> found = Find(queries, keys, std::min(k, keys.size()));
    absl::MutexLock lock(&mu_);
    ++(found.ok() ? counts_.searches : counts_.failures);
    return found;
  }
  Counts counts() const override {
    absl::MutexLock lock(&mu_);
    return counts_;
  }

 private:
  absl::StatusOr<std::vector<uint32_t>> Find(absl::Span<const float> queries, const KeyPanels& keys,
                                             size_t k) {
    TERRACE_CHECK_EQ(queries.size() % keys.head_dim(), 0u);
    if (k > kMostCudaNeighbours) {
      return absl::InvalidArgumentError(absl::StrCat("CUDA neighbours: ", k, " are more than the ",
                                                     kMostCudaNeighbours, " that it finds"));
    }
    if (k == 0 || queries.empty()) return std::vector<uint32_t>();
    absl::StatusOr<std::unique_ptr<Searcher>> searcher = Take();
    if (!searcher.ok()) return searcher.status();
    // One that failed is not used again: what is wrong with it is not known.
    const absl::StatusOr<std::vector<RankedKey>> best = (*searcher)->Search(queries, keys, k);
    if (!best.ok()) return best.status();
    Give(*std::move(searcher));
    std::vector<uint32_t> found(best->size());
    std::transform(best->begin(), best->end(), found.begin(), KeyOf);
    return found;
  }

  absl::StatusOr<std::unique_ptr<Searcher>> Take() {
    // A device is current for a thread, and searches come from any.
    absl::Status status = CudaStatus(cudaSetDevice(device_), "CUDA neighbours: device");
    if (!status.ok()) return status;
    {
      absl::MutexLock lock(&mu_);
      if (idle_ != nullptr) return std::move(idle_);
    }
    return Searcher::Create();
  }
  // Keeps one at most; the memory of others goes.
  void Give(std::unique_ptr<Searcher> searcher) {
    absl::MutexLock lock(&mu_);
    searcher.swap(idle_);
  }

  const int device_;
  mutable absl::Mutex mu_;
  std::unique_ptr<Searcher> idle_ ABSL_GUARDED_BY(mu_);
  Counts counts_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<NeighbourSearch>> MakeCudaNeighbours(int device) {
  auto neighbours = std::make_unique<CudaNeighbours>(device);
  if (absl::Status status = neighbours->Start(); !status.ok()) return status;
  return neighbours;
}

}  // namespace terrace
