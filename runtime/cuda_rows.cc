#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/cuda_queue.h"
#include "runtime/cuda_rows_kernels.h"
#include "runtime/device_rows.h"

namespace terrace {
namespace {

class CudaRows final : public DeviceRows {
 public:
  CudaRows(size_t row_bytes, std::unique_ptr<CudaQueue> queue)
      : row_bytes_(row_bytes), queue_(std::move(queue)) {}

  absl::Status Gather(const RowPanels& from, absl::Span<const uint32_t> rows,
                      std::byte* packed) override {
    return Run(from, rows, packed,
               [&](const CudaRowCopy& copy) { return LaunchGatherRows(copy, packed, stream()); });
  }

  absl::Status Scatter(const std::byte* packed, absl::Span<const uint32_t> rows,
                       const RowPanels& to) override {
    return Run(to, rows, packed,
               [&](const CudaRowCopy& copy) { return LaunchScatterRows(copy, packed, stream()); });
  }

  double device_seconds() const override { return queue_->seconds(); }

 private:
  cudaStream_t stream() const { return queue_->stream(); }

  // Sends addresses of panels and numbers of rows, in one copy, and runs the kernel.
  template <typename Launch>
  absl::Status Run(const RowPanels& panels, absl::Span<const uint32_t> rows,
                   const std::byte* packed, Launch launch) {
    absl::Status status = CheckRowCopy(panels, rows, packed, row_bytes_);
    if (!status.ok() || rows.empty()) return status;
    const size_t panel_bytes = panels.panels.size() * sizeof(std::byte*);
    const size_t bytes = panel_bytes + rows.size() * sizeof(uint32_t);
    status = queue_->Enter();
    if (status.ok()) status = packed_.Reserve(bytes);
    if (status.ok()) status = sent_.Reserve(bytes);
    if (!status.ok()) return status;
    std::memcpy(packed_.data(), panels.panels.data(), panel_bytes);
    std::memcpy(packed_.data() + panel_bytes, rows.data(), rows.size() * sizeof(uint32_t));
    status = queue_->Copy(sent_.data(), packed_.data(), bytes);
    if (status.ok()) status = queue_->Start();
    if (status.ok()) {
      status = queue_->Check(
          launch({.panels = sent_.data<std::byte*>(),
                  .panel_rows = static_cast<unsigned>(panels.panel_rows),
                  .rows = reinterpret_cast<const uint32_t*>(sent_.data() + panel_bytes),
                  .count = static_cast<unsigned>(rows.size()),
                  .row_bytes = static_cast<unsigned>(row_bytes_)}));
    }
    if (status.ok()) status = queue_->Stop();
    if (status.ok()) status = queue_->Finish();
    return status;
  }

  const size_t row_bytes_;
  const std::unique_ptr<CudaQueue> queue_;
  CudaArray packed_{CudaArray::Where::kPinnedHost};  // addresses of panels, numbers of rows
  CudaArray sent_{CudaArray::Where::kDevice};        // the same
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceRows>> MakeCudaRows(size_t row_bytes, int device) {
  if (absl::Status status = CheckRowBytes(row_bytes); !status.ok()) return status;
  auto queue = CudaQueue::Create(device, "CUDA rows");
  if (!queue.ok()) return queue.status();
  return std::make_unique<CudaRows>(row_bytes, *std::move(queue));
}

}  // namespace terrace
