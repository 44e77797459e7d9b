#ifndef TERRACE_TIERS_RING_QUEUE_H_
#define TERRACE_TIERS_RING_QUEUE_H_

#include <cstddef>
#include <utility>
#include <vector>

#include "io/check.h"

namespace terrace {

// First in, first out, in memory that is kept: unlike std::deque it allocates only when it holds
// more than ever before. Thread-compatible.
template <typename T>
class RingQueue {
 public:
  bool empty() const { return size_ == 0; }
  size_t size() const { return size_; }

  // REQUIRES: !empty().
  const T& front() const { return items_[first_]; }
  void pop_front() {
    TERRACE_CHECK(size_ > 0);
    first_ = (first_ + 1) & (items_.size() - 1);
    --size_;
  }
  void push_back(const T& item) {
    if (size_ == items_.size()) Grow();
    items_[(first_ + size_) & (items_.size() - 1)] = item;
    ++size_;
  }

 private:
  void Grow() {
    std::vector<T> larger(items_.empty() ? kFirstCapacity : 2 * items_.size());
    for (size_t i = 0; i < size_; ++i) larger[i] = items_[(first_ + i) & (items_.size() - 1)];
    items_ = std::move(larger);
    first_ = 0;
  }

  static constexpr size_t kFirstCapacity = 64;  // a power of two, as every later one

  std::vector<T> items_;
  size_t first_ = 0;
  size_t size_ = 0;
};

}  // namespace terrace

#endif  // TERRACE_TIERS_RING_QUEUE_H_
