#ifndef TERRACE_IO_DEVICE_SHARE_H_
#define TERRACE_IO_DEVICE_SHARE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace terrace {

// One depth for several IoSchedulers whose files are on the same disk, such as the tier of KV
// blocks and a bundle file of weights: together they have no more requests in the disk than one of
// them alone would, and what is urgent for one does not queue in the disk behind the rest of
// another.
//
// While the disk is full, who gets the next place is the most urgent of those that wait: by the
// class of the request first, then by the rank of the member. A member with nothing in the disk may
// always have one request there, so that each gets on; the depth is exceeded by at most one for
// each member.
//
// Thread-safe.
class DeviceShare {
 public:
  // What a scheduler is to the share. Opaque.
  class Member;

  // REQUIRES: depth > 0.
  explicit DeviceShare(size_t depth);
  // REQUIRES: every member has left.
  ~DeviceShare();
  DeviceShare(const DeviceShare&) = delete;
  DeviceShare& operator=(const DeviceShare&) = delete;

  // `rank` orders members within a class, the smallest first. `wake` tells a member that was
  // refused to ask again; it is called under a lock, from any thread, and must call nothing of the
  // share. The result is valid until Leave.
  Member* Join(uint8_t rank, std::function<void()> wake) ABSL_LOCKS_EXCLUDED(mu_);
  // REQUIRES: the member gave back all it took.
  void Leave(Member* member) ABSL_LOCKS_EXCLUDED(mu_);

  // Whether the member may send a request of this class (0: the most urgent) to the disk now. If
  // not, it is woken when it should ask again.
  bool Take(Member* member, size_t io_class) ABSL_LOCKS_EXCLUDED(mu_);
  // The member has nothing left to ask for.
  void StopWaiting(Member* member) ABSL_LOCKS_EXCLUDED(mu_);
  // So many of its requests are back from the disk.
  void Return(Member* member, size_t requests) ABSL_LOCKS_EXCLUDED(mu_);

  size_t depth() const { return depth_; }
  size_t in_device() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  // Wakes those that wait if there is room for them.
  void WakeWaiting() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const size_t depth_;
  mutable absl::Mutex mu_;
  std::list<Member> members_ ABSL_GUARDED_BY(mu_);
  size_t in_device_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace terrace

#endif  // TERRACE_IO_DEVICE_SHARE_H_
