#include "runtime/gate_rows.h"

#include <algorithm>
#include <utility>

namespace terrace {
namespace {

constexpr size_t kBufferBytes = size_t{4} << 20;

// From the row of one group to that of the next, where they are read.
size_t GroupStride(const BundleShape& shape) {
  return shape.groups_are_runs() ? shape.group_bytes() : shape.piece_bytes(0);
}

}  // namespace

absl::StatusOr<std::unique_ptr<GateRows>> GateRows::Open(std::shared_ptr<const BundleFile> file) {
  FileDeviceOptions options;
  options.path = file->path();
  options.size_bytes = file->file_bytes();
  options.read_only = true;
  options.depth = 1;
  absl::StatusOr<std::unique_ptr<BlockDevice>> device = OpenFileDevice(options);
  if (!device.ok()) return device.status();
  absl::StatusOr<AlignedBuffer> buffer =
      AlignedBuffer::Create(std::max(kBufferBytes, GroupStride(file->shape())));
  if (!buffer.ok()) return buffer.status();
  return std::unique_ptr<GateRows>(
      new GateRows(std::move(file), *std::move(device), *std::move(buffer)));
}

GateRows::GateRows(std::shared_ptr<const BundleFile> file, std::unique_ptr<BlockDevice> device,
                   AlignedBuffer buffer)
    : file_(std::move(file)), device_(std::move(device)), buffer_(std::move(buffer)) {}

absl::Status GateRows::ForEach(uint32_t unit,
                               absl::FunctionRef<void(uint32_t place, const std::byte* row)> take) {
  const BundleShape& shape = file_->shape();
  const size_t stride = GroupStride(shape);
  const auto most = static_cast<uint32_t>(buffer_.size() / stride);
  for (uint32_t group = 0; group < shape.groups(); group += most) {
    const uint32_t groups = std::min(most, shape.groups() - group);
    const iovec vector = {buffer_.data(), groups * stride};
    IoRequest request;
    request.offset = shape.PieceOffset(unit, group, 0);
    request.buffers = absl::MakeConstSpan(&vector, 1);
    IoRequest* const batch[] = {&request};
    absl::Status status = RunBatch(*device_, batch);
    if (status.ok()) status = file_->Verify(request.offset, buffer_.span().first(groups * stride));
    if (!status.ok()) return status;
    for (uint32_t i = 0; i < groups; ++i) {
      for (uint32_t row = 0; row < shape.neurons_in(group + i); ++row) {
        take((group + i) * shape.group_neurons + row,
             buffer_.data() + i * stride + row * shape.row_bytes(0));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace terrace
