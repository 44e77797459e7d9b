#ifndef TERRACE_TIERS_BLOCK_ID_H_
#define TERRACE_TIERS_BLOCK_ID_H_

#include <cstdint>
#include <utility>

namespace terrace {

// Names a KV block. Opaque to tiers, which only compare and hash it; runtime gives it meaning.
struct BlockId {
  uint64_t high = 0;
  uint64_t low = 0;

  friend bool operator==(const BlockId& a, const BlockId& b) = default;

  template <typename H>
  friend H AbslHashValue(H state, const BlockId& id) {
    return H::combine(std::move(state), id.high, id.low);
  }
};

}  // namespace terrace

#endif  // TERRACE_TIERS_BLOCK_ID_H_
