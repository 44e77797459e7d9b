#ifndef TERRACE_RUNTIME_LOST_TOKENS_H_
#define TERRACE_RUNTIME_LOST_TOKENS_H_

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "runtime/context_stats.h"

namespace terrace {

// What a context asked for and the tiers had lost, each range once, oldest first. Adding takes the
// same time however much is lost: with a dead disk that is everything. Thread-compatible.
class LostTokenList {
 public:
  void Add(const LostTokens& lost) {
    if (known_.insert(KeyOf(lost)).second) list_.push_back(lost);
  }
  // Forgets the ranges for which `is_gone` holds.
  template <typename Predicate>
  void RemoveIf(Predicate is_gone) {
    const auto end = std::remove_if(list_.begin(), list_.end(), [&](const LostTokens& lost) {
      const bool gone = is_gone(lost);
      if (gone) known_.erase(KeyOf(lost));
      return gone;
    });
    list_.erase(end, list_.end());
  }
  const std::vector<LostTokens>& list() const { return list_; }

 private:
  using Key = std::tuple<uint32_t, uint32_t, int64_t>;  // layer, KV head, first token
  static Key KeyOf(const LostTokens& lost) { return {lost.layer, lost.kv_head, lost.first}; }

  std::vector<LostTokens> list_;
  absl::flat_hash_set<Key> known_;
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_LOST_TOKENS_H_
