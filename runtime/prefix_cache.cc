#include "runtime/prefix_cache.h"

#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "openssl/sha.h"

namespace terrace {
namespace {

ColumnKey Digest(const std::string& text) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest);
  ColumnKey key;
  std::memcpy(&key.high, digest, sizeof(key.high));
  std::memcpy(&key.low, digest + sizeof(key.high), sizeof(key.low));
  return key;
}

void Append(std::string& text, const void* bytes, size_t size) {
  text.append(static_cast<const char*>(bytes), size);
}

}  // namespace

ColumnKey ChainRoot(uint64_t fingerprint, uint64_t space) {
  return Digest(absl::StrCat("terrace prefix/", fingerprint, "/", space));
}

ColumnKey ChainNext(const ColumnKey& parent, absl::Span<const int32_t> tokens) {
  std::string text;
  text.reserve(2 * sizeof(uint64_t) + tokens.size() * sizeof(int32_t));
  Append(text, &parent.high, sizeof(parent.high));
  Append(text, &parent.low, sizeof(parent.low));
  Append(text, tokens.data(), tokens.size() * sizeof(int32_t));
  return Digest(text);
}

PrefixCache::Hit PrefixCache::Longest(const ColumnKey& root, absl::Span<const int32_t> tokens) {
  const size_t block = columns_.options().tokens;
  Hit hit;
  ColumnKey parent = root;
  while (hit.tokens + block <= tokens.size()) {
    const absl::Span<const int32_t> next = tokens.subspan(hit.tokens, block);
    const ColumnKey key = ChainNext(parent, next);
    std::optional<ColumnIndex> column = columns_.Acquire(key);
    if (!column.has_value()) column = columns_.Adopt(key, parent, next);
    if (!column.has_value()) break;
    hit.columns.push_back(*column);
    hit.tokens += block;
    parent = key;
  }
  if (const auto partial = columns_.AcquireLongest(parent, tokens.subspan(hit.tokens))) {
    hit.columns.push_back(partial->column);
    hit.tokens += partial->tokens;
  }
  return hit;
}

}  // namespace terrace
