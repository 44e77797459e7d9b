#ifndef TERRACE_INDEX_VECTOR_BYTES_H_
#define TERRACE_INDEX_VECTOR_BYTES_H_

#include <cstddef>
#include <cstring>
#include <vector>

#include "absl/types/span.h"

namespace terrace {

// Appends the elements of a vector to `bytes`, little-endian as all that Terrace stores.
template <typename T>
void WriteVector(const std::vector<T>& from, std::vector<std::byte>& bytes) {
  const auto* const begin = reinterpret_cast<const std::byte*>(from.data());
  bytes.insert(bytes.end(), begin, begin + from.size() * sizeof(T));
}

// Takes vectors off the front of bytes, which it borrows.
class VectorReader {
 public:
  explicit VectorReader(absl::Span<const std::byte> bytes) : bytes_(bytes) {}

  // False, and nothing read, if there are not so many.
  template <typename T>
  bool Read(size_t count, std::vector<T>& to) {
    if (count > bytes_.size() / sizeof(T)) return false;
    to.resize(count);
    if (count > 0) std::memcpy(to.data(), bytes_.data(), count * sizeof(T));
    bytes_.remove_prefix(count * sizeof(T));
    return true;
  }
  bool empty() const { return bytes_.empty(); }

 private:
  absl::Span<const std::byte> bytes_;
};

}  // namespace terrace

#endif  // TERRACE_INDEX_VECTOR_BYTES_H_
