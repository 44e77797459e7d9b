#ifndef TERRACE_RUNTIME_QUERY_SAMPLES_H_
#define TERRACE_RUNTIME_QUERY_SAMPLES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace terrace {

// A uniform sample of the queries that one KV head of a context was asked so far, for indexes that
// are built for the queries to come: a reservoir (Vitter, "Random sampling with a reservoir", 1985,
// algorithm R), whose draws depend on how many there were alone. Kept in fp16, of which queries
// with larger elements are no part. Thread-compatible.
class QuerySamples {
 public:
  QuerySamples() = default;
  QuerySamples(size_t head_dim, size_t capacity) : head_dim_(head_dim), capacity_(capacity) {}

  // `queries` is [rows, head_dim].
  void Add(absl::Span<const float> queries);
  // [size, head_dim], in no particular order.
  std::vector<float> Rows() const;
  size_t size() const { return head_dim_ == 0 ? 0 : halves_.size() / head_dim_; }
  void Clear();
  // Appends what Load needs to `bytes`.
  void Save(std::vector<std::byte>& bytes) const;
  // Becomes what was saved; false, and empty, where that is of another shape or damaged.
  bool Load(absl::Span<const std::byte> bytes);
  size_t memory_bytes() const { return halves_.capacity() * sizeof(uint16_t); }

 private:
  size_t head_dim_ = 0;
  size_t capacity_ = 0;
  uint64_t offered_ = 0;
  std::vector<uint16_t> halves_;  // [size, head_dim]
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_QUERY_SAMPLES_H_
