#ifndef TERRACE_TESTS_SUPPORT_TEXTBOOK_LRU_H_
#define TERRACE_TESTS_SUPPORT_TEXTBOOK_LRU_H_

#include <cstddef>
#include <cstdint>
#include <list>
#include <unordered_map>

namespace terrace {

// The least-recently-used cache of every textbook, to compare a real one with: a list in order of
// use and a map into it. Shares no code with the tiers. Thread-compatible.
class TextbookLru {
 public:
  explicit TextbookLru(size_t capacity) : capacity_(capacity) {}

  // Uses `id`: true for a hit; a miss inserts it, evicting the id that went unused for longest.
  // REQUIRES: the capacity is not 0.
  bool Touch(uint64_t id) {
    if (const auto found = places_.find(id); found != places_.end()) {
      order_.splice(order_.begin(), order_, found->second);
      return true;
    }
    if (order_.size() == capacity_) {
      places_.erase(order_.back());
      order_.pop_back();
    }
    order_.push_front(id);
    places_[id] = order_.begin();
    return false;
  }

 private:
  const size_t capacity_;
  std::list<uint64_t> order_;  // most recently used first
  std::unordered_map<uint64_t, std::list<uint64_t>::iterator> places_;
};

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_TEXTBOOK_LRU_H_
