#include "io/checksum.h"

#include "io/check.h"
#include "io/checksum_pages.h"
#if defined(__x86_64__)
#include "io/checksum_avx2.h"
#endif

namespace terrace {
namespace {

static_assert(checksum_pages::kPage == kPageBytes);

const unsigned char* Raw(absl::Span<const std::byte> bytes) {
  return reinterpret_cast<const unsigned char*>(bytes.data());
}

// A build for any x86-64 has SSE2 only, with which a page takes twice as long.
bool HasAvx2() {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx2");
  return has;
#else
  return false;
#endif
}

}  // namespace

uint64_t Checksum64(absl::Span<const std::byte> bytes) {
  return XXH3_64bits(bytes.data(), bytes.size());
}

void ChecksumPages(absl::Span<const std::byte> bytes, absl::Span<PageChecksum> checksums) {
  TERRACE_CHECK_EQ(bytes.size(), checksums.size() * kPageBytes);
#if defined(__x86_64__)
  if (HasAvx2()) return ChecksumPagesAvx2(Raw(bytes), checksums.size(), checksums.data());
#endif
  checksum_pages::Make(Raw(bytes), checksums.size(), checksums.data());
}

size_t FirstCorruptPage(absl::Span<const std::byte> bytes,
                        absl::Span<const PageChecksum> checksums) {
  TERRACE_CHECK_EQ(bytes.size(), checksums.size() * kPageBytes);
#if defined(__x86_64__)
  if (HasAvx2()) return FirstCorruptPageAvx2(Raw(bytes), checksums.size(), checksums.data());
#endif
  return checksum_pages::FirstWrong(Raw(bytes), checksums.size(), checksums.data());
}

}  // namespace terrace
