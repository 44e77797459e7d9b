#include "tools/engine/cuda_products.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "io/check.h"
#include "io/cuda_status.h"
#include "runtime/cuda_blas.h"
#include "runtime/cuda_handles.h"

namespace terrace {
namespace {

constexpr size_t kAlignment = 256;              // of a matrix in device memory, in bytes
constexpr size_t kMostTokens = 512;             // that go through the staging buffers at once
constexpr size_t kOutFloats = size_t{4} << 20;  // of the staging buffer, unless a token has more
constexpr size_t kMostProducts = 3;

size_t DeviceBytes(const Matrix& matrix) {
  const size_t bytes = matrix.values.size() * sizeof(float);
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

std::vector<const Matrix*> AllMatrices(const ModelWeights& weights) {
  std::vector<const Matrix*> all = {&weights.output_head()};
  for (const LayerWeights& layer : weights.layers) {
    for (const Matrix* const matrix : {&layer.query, &layer.key, &layer.value, &layer.output,
                                       &layer.gate, &layer.up, &layer.down}) {
      if (!matrix->values.empty()) all.push_back(matrix);  // networks may have been left out
    }
  }
  return all;
}

// `allocate` is AllocateCuda or AllocatePinned.
template <typename Bytes>
absl::Status Allocate(absl::StatusOr<Bytes> (*allocate)(size_t, absl::string_view), size_t bytes,
                      Bytes& to) {
  absl::StatusOr<Bytes> memory = allocate(bytes, "CUDA products");
  if (memory.ok()) to = *std::move(memory);
  return memory.status();
}

template <typename Bytes>
float* Floats(const Bytes& bytes) {
  return reinterpret_cast<float*>(bytes.get());
}

class CudaProducts final : public WeightProducts {
 public:
  static absl::StatusOr<std::unique_ptr<CudaProducts>> Create(const ModelWeights& weights,
                                                              int device);

  absl::Status Apply(absl::Span<const float> x, absl::Span<const WeightProduct> products) override;
  std::string name() const override { return name_; }
  uint64_t device_bytes() const override { return device_bytes_; }

 private:
  CudaProducts() = default;

  absl::Status Open(int device);
  absl::Status Reserve(absl::Span<const Matrix* const> matrices);
  absl::Status Upload(absl::Span<const Matrix* const> matrices);
  // Of so few tokens that the staging buffers hold them: x [tokens, columns] to `out_`, in which
  // the products lie one after the other.
  absl::Status Run(const float* x, size_t tokens, absl::Span<const WeightProduct> products);

  const float* OnDevice(const Matrix& matrix) const {
    const auto found = offsets_.find(&matrix);
    TERRACE_CHECK(found != offsets_.end());
    return reinterpret_cast<const float*>(weights_.get() + found->second);
  }

  int device_ = 0;
  std::string name_;
  uint64_t device_bytes_ = 0;
  size_t x_floats_ = 0;
  size_t out_floats_ = 0;
  absl::flat_hash_map<const Matrix*, size_t> offsets_;  // of their copies in weights_, in bytes
  CudaStream stream_;
  CudaBytes weights_;
  CudaBytes device_x_;
  CudaBytes device_out_;
  PinnedBytes x_;
  PinnedBytes out_;
  std::unique_ptr<CudaBlas> blas_;  // goes before what it works with
};

absl::StatusOr<std::unique_ptr<CudaProducts>> CudaProducts::Create(const ModelWeights& weights,
                                                                   int device) {
  std::unique_ptr<CudaProducts> products(new CudaProducts());
  const std::vector<const Matrix*> matrices = AllMatrices(weights);
  absl::Status status = products->Open(device);
  if (status.ok()) status = products->Reserve(matrices);
  if (status.ok()) status = products->Upload(matrices);
  if (!status.ok()) return status;
  return products;
}

absl::Status CudaProducts::Open(int device) {
  device_ = device;
  absl::Status status = CudaStatus(cudaSetDevice(device), "CUDA products: device");
  if (!status.ok()) return status;
  cudaDeviceProp properties;
  status = CudaStatus(cudaGetDeviceProperties(&properties, device), "CUDA products: device");
  if (!status.ok()) return status;
  name_ = properties.name;
  absl::StatusOr<CudaStream> stream = MakeCudaStream("CUDA products");
  if (!stream.ok()) return stream.status();
  stream_ = *std::move(stream);
  absl::StatusOr<std::unique_ptr<CudaBlas>> blas = CudaBlas::Create(stream_.get());
  if (!blas.ok()) return blas.status();
  blas_ = *std::move(blas);
  return absl::OkStatus();
}

absl::Status CudaProducts::Reserve(absl::Span<const Matrix* const> matrices) {
  size_t weight_bytes = 0;
  size_t columns = 0;
  size_t rows = 0;
  for (const Matrix* const matrix : matrices) {
    offsets_[matrix] = weight_bytes;
    weight_bytes += DeviceBytes(*matrix);
    columns = std::max(columns, matrix->columns);
    rows = std::max(rows, matrix->rows);
  }
  x_floats_ = kMostTokens * columns;
  out_floats_ = std::max(kOutFloats, kMostProducts * rows);
  const size_t buffer_bytes = (x_floats_ + out_floats_) * sizeof(float);
  device_bytes_ = weight_bytes + buffer_bytes;
  size_t free_bytes = 0;
  size_t all_bytes = 0;
  absl::Status status =
      CudaStatus(cudaMemGetInfo(&free_bytes, &all_bytes), "CUDA products: free memory");
  if (!status.ok()) return status;
  if (device_bytes_ > free_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "CUDA products: the weights take ", weight_bytes, " bytes in fp32 and their buffers ",
        buffer_bytes, ", but ", name_, " has ", free_bytes, " of its ", all_bytes, " free"));
  }
  status = Allocate(AllocateCuda, weight_bytes, weights_);
  if (status.ok()) status = Allocate(AllocateCuda, x_floats_ * sizeof(float), device_x_);
  if (status.ok()) status = Allocate(AllocatePinned, x_floats_ * sizeof(float), x_);
  if (status.ok()) status = Allocate(AllocateCuda, out_floats_ * sizeof(float), device_out_);
  if (status.ok()) status = Allocate(AllocatePinned, out_floats_ * sizeof(float), out_);
  return status;
}

absl::Status CudaProducts::Upload(absl::Span<const Matrix* const> matrices) {
  for (const Matrix* const matrix : matrices) {
    const absl::Status status =
        CudaStatus(cudaMemcpy(weights_.get() + offsets_[matrix], matrix->values.data(),
                              matrix->values.size() * sizeof(float), cudaMemcpyHostToDevice),
                   "CUDA products: copy of weights");
    if (!status.ok()) return status;
  }
  // The default stream, which these copies were on, is none that `stream_` waits for.
  return CudaStatus(cudaDeviceSynchronize(), "CUDA products: copy of weights");
}

absl::Status CudaProducts::Apply(absl::Span<const float> x,
                                 absl::Span<const WeightProduct> products) {
  TERRACE_CHECK(!products.empty() && products.size() <= kMostProducts);
  const size_t columns = products[0].weights->columns;
  TERRACE_CHECK(columns > 0 && x.size() % columns == 0);
  const size_t tokens = x.size() / columns;
  size_t rows = 0;
  for (const WeightProduct& product : products) {
    TERRACE_CHECK_EQ(product.weights->columns, columns);
    TERRACE_CHECK_EQ(product.out.size(), tokens * product.weights->rows);
    rows += product.weights->rows;
  }
  // A device is current for a thread, and the caller may have come on another one.
  absl::Status status = CudaStatus(cudaSetDevice(device_), "CUDA products: device");
  const size_t most = std::min(kMostTokens, out_floats_ / rows);
  for (size_t first = 0; status.ok() && first < tokens; first += most) {
    const size_t count = std::min(most, tokens - first);
    status = Run(x.data() + first * columns, count, products);
    if (!status.ok()) break;
    const float* from = Floats(out_);
    for (const WeightProduct& product : products) {
      const size_t floats = count * product.weights->rows;
      std::copy_n(from, floats, product.out.data() + first * product.weights->rows);
      from += floats;
    }
  }
  return status;
}

absl::Status CudaProducts::Run(const float* x, size_t tokens,
                               absl::Span<const WeightProduct> products) {
  const size_t columns = products[0].weights->columns;
  std::copy_n(x, tokens * columns, Floats(x_));
  absl::Status status =
      CudaStatus(cudaMemcpyAsync(device_x_.get(), x_.get(), tokens * columns * sizeof(float),
                                 cudaMemcpyHostToDevice, stream_.get()),
                 "CUDA products: copy of inputs");
  size_t done = 0;
  for (const WeightProduct& product : products) {
    if (!status.ok()) break;
    const size_t rows = product.weights->rows;
    status = blas_->MultiplyTransposed(
        {.data = Floats(device_x_), .count = tokens, .width = columns, .stride = columns},
        {.data = OnDevice(*product.weights), .count = rows, .width = columns, .stride = columns},
        Floats(device_out_) + done);
    done += tokens * rows;
  }
  if (status.ok()) {
    status = CudaStatus(cudaMemcpyAsync(out_.get(), device_out_.get(), done * sizeof(float),
                                        cudaMemcpyDeviceToHost, stream_.get()),
                        "CUDA products: copy of results");
  }
  // Also after an error: what was started reads and writes the buffers.
  const absl::Status finished =
      CudaStatus(cudaStreamSynchronize(stream_.get()), "CUDA products: results");
  return status.ok() ? finished : status;
}

}  // namespace

absl::StatusOr<std::unique_ptr<WeightProducts>> MakeCudaProducts(const ModelWeights& weights,
                                                                 int device) {
  return CudaProducts::Create(weights, device);
}

}  // namespace terrace
