#ifndef TERRACE_TESTS_SUPPORT_MADE_UP_KEYS_H_
#define TERRACE_TESTS_SUPPORT_MADE_UP_KEYS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "index/key_panels.h"

namespace terrace {

// Keys of one head for tests, in panels that lie apart, as those of blocks do.
class MadeUpKeys {
 public:
  // `values` is [count, head_dim].
  MadeUpKeys(const std::vector<float>& values, size_t head_dim, KvDtype dtype, size_t panel_keys);
  // ClusteredRows of a seed of its own, so that those of other seeds are queries in distribution.
  static MadeUpKeys Clustered(size_t count, size_t head_dim, KvDtype dtype, size_t panel_keys);

  // The first `count` keys, or all of them.
  KeyPanels Prefix(size_t count) const;
  KeyPanels All() const { return Prefix(size()); }

  size_t size() const { return values_.size() / head_dim_; }
  size_t head_dim() const { return head_dim_; }
  // As stored.
  double Score(const float* query, size_t key) const;
  // What a sum of fp32 products in any order may be off.
  double Tolerance(const float* query, size_t key) const;
  // Of the k-th best of the first `count` keys.
  double ScoreOfRank(const float* query, size_t count, size_t k) const;

 private:
  size_t head_dim_;
  KvDtype dtype_;
  size_t panel_keys_;
  std::vector<float> values_;
  std::vector<std::vector<std::byte>> panels_;
};

// [rows, head_dim], normal variates around some centres that depend on head_dim alone.
std::vector<float> ClusteredRows(size_t rows, size_t head_dim, uint64_t seed);

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_MADE_UP_KEYS_H_
