#include "io/memory_device.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "io/check.h"

namespace terrace {
namespace {

constexpr size_t kMaxDepth = 4096;

uint64_t LengthOf(const IoTransfer& transfer) {
  if (transfer.vectors.empty()) return transfer.single.iov_len;
  uint64_t bytes = 0;
  for (const iovec& vector : transfer.vectors) bytes += vector.iov_len;
  return bytes;
}

// Moves at most `limit` bytes between `memory` and one buffer and returns how many.
uint64_t Move(IoOp op, std::byte* memory, const iovec& buffer, uint64_t limit) {
  const uint64_t bytes = std::min<uint64_t>(buffer.iov_len, limit);
  if (op == IoOp::kRead) {
    std::memcpy(buffer.iov_base, memory, bytes);
  } else {
    std::memcpy(memory, buffer.iov_base, bytes);
  }
  return bytes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<MemoryDevice>> MemoryDevice::Create(MemoryDeviceOptions options) {
  if (options.size_bytes == 0 || !IsPageAligned(options.size_bytes)) {
    return absl::InvalidArgumentError(absl::StrCat("size_bytes: ", options.size_bytes,
                                                   " is not a positive multiple of ", kPageBytes));
  }
  if (options.depth == 0 || options.depth > kMaxDepth) {
    return absl::InvalidArgumentError(
        absl::StrCat("depth: ", options.depth, " is not between 1 and ", kMaxDepth));
  }
  absl::StatusOr<AlignedBuffer> memory = AlignedBuffer::Create(options.size_bytes);
  if (!memory.ok()) return memory.status();
  return std::unique_ptr<MemoryDevice>(new MemoryDevice(
      std::move(options), std::make_shared<const AlignedBuffer>(*std::move(memory))));
}

absl::StatusOr<std::unique_ptr<BlockDevice>> MemoryDevice::Clone() const {
  return std::unique_ptr<BlockDevice>(new MemoryDevice(options_, memory_));
}

absl::Status MemoryDevice::Discard(uint64_t offset, uint64_t bytes) {
  if (absl::Status status = CheckRange(offset, bytes); !status.ok()) return status;
  std::memset(memory_->data() + offset, 0, bytes);
  return absl::OkStatus();
}

MemoryDevice::MemoryDevice(MemoryDeviceOptions options, std::shared_ptr<const AlignedBuffer> memory)
    : options_(std::move(options)), memory_(std::move(memory)) {
  info_.path = "memory";
  info_.engine = IoEngine::kMemory;
  info_.engine_reason = "asked for";
  info_.direct_reason = "memory has no page cache";
  info_.size_bytes = memory_->size();
  info_.depth = options_.depth;
}

void MemoryDevice::Submit(absl::Span<IoRequest* const> batch) {
  for (IoRequest* request : batch) (Admit(*request) ? queue_ : finished_).PushBack(request);
}

size_t MemoryDevice::Poll(absl::Span<IoRequest*> done) {
  size_t count = 0;
  while (count < done.size() && !finished_.empty()) done[count++] = finished_.PopFront();
  while (count < done.size() && !queue_.empty()) {
    IoRequest* const request = queue_.PopFront();
    Carry(*request);
    done[count++] = request;
  }
  return count;
}

size_t MemoryDevice::Wait(absl::Span<IoRequest*> done) {
  TERRACE_CHECK(!done.empty());
  const size_t count = Poll(done);
  absl::MutexLock lock(&wake_mu_);
  if (count == 0) wake_mu_.Await(absl::Condition(&woken_));
  woken_ = false;
  return count;
}

void MemoryDevice::Wake() {
  absl::MutexLock lock(&wake_mu_);
  woken_ = true;
}

void MemoryDevice::Carry(IoRequest& request) {
  while (Advance(request, Transfer(request)) == IoStep::kResume) {
  }
}

int64_t MemoryDevice::Transfer(const IoRequest& request) {
  const IoTransfer transfer = NextTransfer(request);
  uint64_t bytes = LengthOf(transfer);
  if (options_.transfer_hook) {
    const int64_t granted = options_.transfer_hook(request, bytes);
    if (granted < 0) return granted;
    bytes = std::min(bytes, static_cast<uint64_t>(granted));
  }
  if (request.op == IoOp::kSync) return 0;
  std::byte* const memory = memory_->data() + transfer.offset;
  if (transfer.vectors.empty()) {
    return static_cast<int64_t>(Move(request.op, memory, transfer.single, bytes));
  }
  uint64_t moved = 0;
  for (const iovec& vector : transfer.vectors) {
    moved += Move(request.op, memory + moved, vector, bytes - moved);
  }
  return static_cast<int64_t>(moved);
}

}  // namespace terrace
