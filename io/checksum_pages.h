// The loop over pages that io/checksum.cc and io/checksum_avx2.cc compile for different processors.
// Everything in it is static, and it uses nothing from libraries: code for a newer processor must
// not stand in for other code of the same name.

#ifndef TERRACE_IO_CHECKSUM_PAGES_H_
#define TERRACE_IO_CHECKSUM_PAGES_H_

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace terrace::checksum_pages {

static constexpr size_t kPage = 4096;

// Starts loading a page into the processor's caches. Its own prefetching ends at the page, and
// hashing one takes as long as waiting for the memory of the next.
static inline void PrefetchPage(const unsigned char* page) {
  constexpr size_t kLineBytes = 64;
  for (size_t at = 0; at < kPage; at += kLineBytes) __builtin_prefetch(page + at);
}

static inline void Make(const unsigned char* bytes, size_t pages, uint32_t* checksums) {
  for (size_t page = 0; page < pages; ++page) {
    checksums[page] = static_cast<uint32_t>(XXH3_64bits(bytes + page * kPage, kPage));
  }
}

static inline size_t FirstWrong(const unsigned char* bytes, size_t pages,
                                const uint32_t* checksums) {
  for (size_t page = 0; page < pages; ++page) {
    const unsigned char* const start = bytes + page * kPage;
    if (page + 1 < pages) PrefetchPage(start + kPage);
    if (checksums[page] != static_cast<uint32_t>(XXH3_64bits(start, kPage))) return page;
  }
  return pages;
}

}  // namespace terrace::checksum_pages

#endif  // TERRACE_IO_CHECKSUM_PAGES_H_
