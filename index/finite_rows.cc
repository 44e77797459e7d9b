#include "index/finite_rows.h"

#include <vector>

#include "index/kv_convert.h"

namespace terrace {

std::optional<size_t> FirstNotFinite(const KeyPanels& rows, size_t first, size_t end) {
  std::vector<float> row(rows.head_dim());
  for (size_t i = first; i < end; ++i) {
    DecodeKv(rows.key(i), rows.dtype(), rows.head_dim(), row.data());
    // Finite numbers times zero are zero, and others are not.
    float sum = 0;
    for (const float element : row) sum += element * 0.0f;
    if (sum != 0) return i;
  }
  return std::nullopt;
}

}  // namespace terrace
