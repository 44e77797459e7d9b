#ifndef TERRACE_TESTS_SUPPORT_BORROWED_DEVICE_H_
#define TERRACE_TESTS_SUPPORT_BORROWED_DEVICE_H_

#include "io/block_device.h"

namespace terrace {

// Lets a manager own a device that the test goes on to use once the manager is gone.
class BorrowedDevice final : public BlockDevice {
 public:
  explicit BorrowedDevice(BlockDevice& device) : device_(device) {}

  absl::StatusOr<std::unique_ptr<BlockDevice>> Clone() const override { return device_.Clone(); }
  absl::Status Discard(uint64_t offset, uint64_t bytes) override {
    return device_.Discard(offset, bytes);
  }
  void Submit(absl::Span<IoRequest* const> batch) override { device_.Submit(batch); }
  size_t Poll(absl::Span<IoRequest*> done) override { return device_.Poll(done); }
  size_t Wait(absl::Span<IoRequest*> done) override { return device_.Wait(done); }
  void Wake() override { device_.Wake(); }
  const DeviceInfo& info() const override { return device_.info(); }

 private:
  BlockDevice& device_;
};

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_BORROWED_DEVICE_H_
