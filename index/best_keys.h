#ifndef TERRACE_INDEX_BEST_KEYS_H_
#define TERRACE_INDEX_BEST_KEYS_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "absl/types/span.h"

namespace terrace {

// The best keys offered so far, at most `capacity` of them: those of the largest scores and, among
// equal ones, of the smallest ids, so that the order of offers does not matter. What is not above
// minus infinity, NaN among it, is not taken. Thread-compatible.
class BestKeys {
 public:
  explicit BestKeys(size_t capacity) : capacity_(capacity) {}

  void Offer(uint32_t key, float score) {
    if (!(score >= worst_)) return;  // almost all end here
    Take({score, key});
  }
  // Writes them best first to the front of both spans, which are [capacity] or longer, leaves the
  // rest of the spans as it is, and is empty afterwards.
  void Drain(absl::Span<uint32_t> keys, absl::Span<float> scores) {
    std::sort_heap(heap_.begin(), heap_.end(), Better);
    for (size_t i = 0; i < heap_.size(); ++i) {
      keys[i] = heap_[i].key;
      scores[i] = heap_[i].score;
    }
    heap_.clear();
    worst_ = kLeast;
  }

 private:
  struct Entry {
    float score;
    uint32_t key;
  };
  // The smallest float above minus infinity.
  static constexpr float kLeast = std::numeric_limits<float>::lowest();

  static bool Better(const Entry& a, const Entry& b) {
    return a.score > b.score || (a.score == b.score && a.key < b.key);
  }
  void Take(const Entry& entry) {
    if (heap_.size() == capacity_) {
      if (!Better(entry, heap_.front())) return;
      std::pop_heap(heap_.begin(), heap_.end(), Better);
      heap_.back() = entry;
    } else {
      heap_.push_back(entry);
    }
    std::push_heap(heap_.begin(), heap_.end(), Better);
    if (heap_.size() == capacity_) worst_ = heap_.front().score;
  }

  const size_t capacity_;
  std::vector<Entry> heap_;  // the worst in front
  float worst_ = kLeast;     // what a score must reach
};

}  // namespace terrace

#endif  // TERRACE_INDEX_BEST_KEYS_H_
