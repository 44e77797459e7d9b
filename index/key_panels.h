#ifndef TERRACE_INDEX_KEY_PANELS_H_
#define TERRACE_INDEX_KEY_PANELS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "index/kv_dtype.h"

namespace terrace {

// The keys of one layer and KV head where they lie: panels of `panel_keys` rows of [head_dim], all
// of one dtype, the last one perhaps shorter. Key i is row i % panel_keys of panel i / panel_keys.
// Does not own the memory, which stays where it is, unchanged, as long as anything refers to it.
class KeyPanels {
 public:
  KeyPanels(size_t head_dim, KvDtype dtype, size_t panel_keys)
      : head_dim_(head_dim), panel_keys_(panel_keys), dtype_(dtype) {}

  // Adds `count` keys, at most panel_keys. Those before must be whole panels.
  void Add(const void* keys, size_t count) {
    panels_.push_back(static_cast<const std::byte*>(keys));
    size_ += count;
  }
  // All keys in one piece: [count, head_dim].
  static KeyPanels Contiguous(const void* keys, size_t count, size_t head_dim, KvDtype dtype) {
    KeyPanels panels(head_dim, dtype, count > 0 ? count : 1);
    if (count > 0) panels.Add(keys, count);
    return panels;
  }

  const std::byte* key(size_t i) const {
    return panels_[i / panel_keys_] + i % panel_keys_ * key_bytes();
  }
  // Keys from i on that lie one after the other, key i among them.
  size_t Run(size_t i) const {
    const size_t to_panel_end = panel_keys_ - i % panel_keys_;
    return to_panel_end < size_ - i ? to_panel_end : size_ - i;
  }

  size_t size() const { return size_; }
  size_t head_dim() const { return head_dim_; }
  size_t panel_keys() const { return panel_keys_; }
  size_t key_bytes() const { return head_dim_ * KvDtypeBytes(dtype_); }
  KvDtype dtype() const { return dtype_; }

 private:
  const size_t head_dim_;
  const size_t panel_keys_;
  const KvDtype dtype_;
  std::vector<const std::byte*> panels_;
  size_t size_ = 0;
};

}  // namespace terrace

#endif  // TERRACE_INDEX_KEY_PANELS_H_
