#include "io/device_share.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "io/check.h"

namespace terrace {
namespace {

// Nobody waits with this urgency; smaller ones are more urgent.
constexpr size_t kNotWaiting = std::numeric_limits<size_t>::max();
constexpr size_t kRanks = size_t{std::numeric_limits<uint8_t>::max()} + 1;

}  // namespace

// Guarded by the share's lock.
class DeviceShare::Member {
 public:
  Member(uint8_t member_rank, std::function<void()> wake_member)
      : rank(member_rank), wake(std::move(wake_member)) {}

  const size_t rank;
  const std::function<void()> wake;
  size_t in_device = 0;
  size_t waits = kNotWaiting;  // the urgency of what it was refused
  bool was_refused = false;    // since it last had nothing to ask for
};

DeviceShare::DeviceShare(size_t depth) : depth_(depth) { TERRACE_CHECK(depth > 0); }

DeviceShare::~DeviceShare() {
  absl::MutexLock lock(&mu_);
  TERRACE_CHECK(members_.empty());
}

DeviceShare::Member* DeviceShare::Join(uint8_t rank, std::function<void()> wake) {
  absl::MutexLock lock(&mu_);
  return &members_.emplace_back(rank, std::move(wake));
}

void DeviceShare::Leave(Member* member) {
  absl::MutexLock lock(&mu_);
  TERRACE_CHECK_EQ(member->in_device, 0);
  members_.remove_if([member](const Member& other) { return &other == member; });
  WakeWaiting();
}

bool DeviceShare::Take(Member* member, size_t io_class) {
  const size_t urgency = io_class * kRanks + member->rank;
  absl::MutexLock lock(&mu_);
  bool allowed = in_device_ < depth_;
  for (const Member& other : members_) {
    if (&other != member && other.waits < urgency) allowed = false;
  }
  if (!allowed && member->in_device > 0) {
    member->waits = urgency;
    member->was_refused = true;
    return false;
  }
  member->waits = kNotWaiting;
  ++member->in_device;
  ++in_device_;
  return true;
}

void DeviceShare::StopWaiting(Member* member) {
  absl::MutexLock lock(&mu_);
  if (!member->was_refused) return;
  member->was_refused = false;
  member->waits = kNotWaiting;
  // Others may have been refused for its sake.
  WakeWaiting();
}

void DeviceShare::Return(Member* member, size_t requests) {
  absl::MutexLock lock(&mu_);
  TERRACE_CHECK(member->in_device >= requests);
  member->in_device -= requests;
  in_device_ -= requests;
  WakeWaiting();
}

size_t DeviceShare::in_device() const {
  absl::MutexLock lock(&mu_);
  return in_device_;
}

void DeviceShare::WakeWaiting() {
  if (in_device_ >= depth_) return;
  for (const Member& member : members_) {
    if (member.waits != kNotWaiting) member.wake();
  }
}

}  // namespace terrace
