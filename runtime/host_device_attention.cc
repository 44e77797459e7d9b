#include <utility>

#include "io/check.h"
#include "runtime/device_attention.h"

namespace terrace {
namespace {

class HostDeviceAttention final : public DeviceAttention {
 public:
  explicit HostDeviceAttention(std::unique_ptr<ParallelAttention> attention)
      : attention_(std::move(attention)) {}

  absl::Status Start(absl::Span<const AttentionJob> jobs) override {
    TERRACE_CHECK(!started_);
    jobs_ = jobs;
    started_ = true;
    return absl::OkStatus();
  }

  absl::Status Finish() override {
    if (!started_) return absl::OkStatus();
    started_ = false;
    attention_->Run(jobs_);
    return absl::OkStatus();
  }

  bool started() const override { return started_; }

 private:
  const std::unique_ptr<ParallelAttention> attention_;
  absl::Span<const AttentionJob> jobs_;
  bool started_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceAttention>> MakeHostDeviceAttention(
    const DeviceAttention::Options& options) {
  auto attention =
      ParallelAttention::Create({.head_dim = options.head_dim, .threads = options.threads});
  if (!attention.ok()) return attention.status();
  return std::make_unique<HostDeviceAttention>(*std::move(attention));
}

}  // namespace terrace
