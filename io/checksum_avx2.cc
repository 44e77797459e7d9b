// Compiled for AVX2, see io/CMakeLists.txt: nothing but what checksum_pages.h needs belongs here.

#if defined(__x86_64__)

#include "io/checksum_avx2.h"

#include "io/checksum_pages.h"

namespace terrace {

void ChecksumPagesAvx2(const unsigned char* bytes, size_t pages, uint32_t* checksums) {
  checksum_pages::Make(bytes, pages, checksums);
}

size_t FirstCorruptPageAvx2(const unsigned char* bytes, size_t pages, const uint32_t* checksums) {
  return checksum_pages::FirstWrong(bytes, pages, checksums);
}

}  // namespace terrace

#endif  // __x86_64__
