#include "io/copy_engine.h"

#include <atomic>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/aligned_buffer.h"

namespace terrace {
namespace {

class HostMemory final : public DeviceMemory {
 public:
  explicit HostMemory(AlignedBuffer buffer) : buffer_(std::move(buffer)) {}
  std::byte* data() const override { return buffer_.data(); }
  size_t size() const override { return buffer_.size(); }

 private:
  const AlignedBuffer buffer_;
};

// Thread-safe: a batch is finished before Submit returns, and tickets are the only shared state.
class HostCopyEngine final : public CopyEngine {
 public:
  absl::StatusOr<std::unique_ptr<DeviceMemory>> Allocate(size_t bytes) override {
    absl::StatusOr<AlignedBuffer> buffer = AlignedBuffer::Create(bytes);
    if (!buffer.ok()) return buffer.status();
    return std::make_unique<HostMemory>(*std::move(buffer));
  }

  absl::StatusOr<std::unique_ptr<PinnedMemory>> Pin(absl::Span<std::byte>) override {
    return std::make_unique<PinnedMemory>();
  }

  absl::StatusOr<CopyTicket> Submit(absl::Span<const Copy> batch, CopyPriority) override {
    for (const Copy& copy : batch) {
      if (copy.bytes > 0) std::memcpy(copy.destination, copy.source, copy.bytes);
    }
    return CopyTicket{last_ticket_.fetch_add(1, std::memory_order_relaxed) + 1};
  }

  absl::Status Wait(CopyTicket ticket) override {
    const uint64_t number = static_cast<uint64_t>(ticket);
    if (number <= last_ticket_.load(std::memory_order_relaxed)) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("no copy batch has ticket ", number));
  }

  const char* name() const override { return "host (HBM emulated)"; }
  bool is_host() const override { return true; }

 private:
  std::atomic<uint64_t> last_ticket_ = 0;
};

}  // namespace

std::unique_ptr<CopyEngine> MakeHostCopyEngine() { return std::make_unique<HostCopyEngine>(); }

}  // namespace terrace
