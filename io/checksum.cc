#include "io/checksum.h"

// A build for any x86-64 has SSE2 only, which checks pages three times slower than AVX2 does. The
// library chooses at run time where it was built to; its header is installed only then.
#if defined(__x86_64__) && __has_include(<xxh_x86dispatch.h>)
#include <xxh_x86dispatch.h>
#else
#define XXH_INLINE_ALL
#include <xxhash.h>
#endif

#include "io/check.h"

namespace terrace {
namespace {

// Starts loading a page into the processor's caches.
void PrefetchPage(const std::byte* page) {
  constexpr size_t kLineBytes = 64;
  for (size_t at = 0; at < kPageBytes; at += kLineBytes) __builtin_prefetch(page + at);
}

PageChecksum ChecksumPage(const std::byte* page) {
  return static_cast<PageChecksum>(XXH3_64bits(page, kPageBytes));
}

}  // namespace

uint64_t Checksum64(absl::Span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

void ChecksumPages(absl::Span<const std::byte> bytes, absl::Span<PageChecksum> checksums) {
  TERRACE_CHECK_EQ(bytes.size(), checksums.size() * kPageBytes);
  for (size_t page = 0; page < checksums.size(); ++page) {
    checksums[page] = ChecksumPage(bytes.data() + page * kPageBytes);
  }
}

size_t FirstCorruptPage(absl::Span<const std::byte> bytes,
                        absl::Span<const PageChecksum> checksums) {
  TERRACE_CHECK_EQ(bytes.size(), checksums.size() * kPageBytes);
  for (size_t page = 0; page < checksums.size(); ++page) {
    const std::byte* const start = bytes.data() + page * kPageBytes;
    // The processor's own prefetching ends at the page, and hashing one takes as long as waiting
    // for the memory of the next.
    if (page + 1 < checksums.size()) PrefetchPage(start + kPageBytes);
    if (checksums[page] != ChecksumPage(start)) return page;
  }
  return checksums.size();
}

}  // namespace terrace
